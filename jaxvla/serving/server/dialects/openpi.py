"""The protocol of openpi's policy server: metadata first, then one map of observations after the other.

https://github.com/Physical-Intelligence/openpi, src/openpi/serving/websocket_policy_server.py. An error is a frame of
text. The connection goes on after it; there it ends.
"""

from collections.abc import Mapping
from typing import Any

from jaxvla.serving.server.request import OPTIONS, Answer, Options, Request
from jaxvla_client.codec import pack

NAME = "openpi"
SPEAKS_FIRST = True


def is_spoken(message: Mapping[Any, Any]) -> bool:
    """Any map can be an observation."""
    return True


def metadata(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the first frame says, of the facts that `server.facts` gives."""
    return facts


def greeting(facts: Mapping[str, Any]) -> bytes:
    """The first frame."""
    return pack(metadata(facts))


def parse(message: Mapping[Any, Any]) -> Request:
    """What a message asks.

    Raises:
        RequestError: it does not say what it must.
    """
    options = Options.of(message.get(OPTIONS, {}))
    observation = {key: value for key, value in message.items() if key != OPTIONS}
    if not observation and options.reset:
        return Request("reset", options=options)
    return Request("act", (observation,), options)


def reply(request: Request, answer: Answer | None, facts: Mapping[str, Any]) -> bytes:
    """The frame of an answer; of a reset there is none."""
    if answer is None:
        return pack({"reset": True})
    server = {"infer_ms": answer.infer_ms + answer.queue_ms, "queue_ms": answer.queue_ms}
    if answer.previous_ms:
        server["prev_total_ms"] = answer.previous_ms
    values: dict[str, Any] = {"policy_timing": {"infer_ms": answer.infer_ms}, "server_timing": server}
    if answer.actions:
        values["actions"] = answer.actions[0]
    if any(answer.words):
        values["words"] = answer.words[0]
    return pack(values)


def error(message: Mapping[Any, Any] | None, text: str) -> str:
    """The frame of an error in answer to a message, which could not be read where there is none."""
    return text
