"""The protocol of vla-eval: typed frames with numbers, one action for each observation.

https://github.com/allenai/vla-evaluation-harness, src/vla_eval/protocol and connection.py, version 0.8.
"""

import time
from collections.abc import Mapping
from typing import Any

from jaxvla.serving.server.dialects.wire import VLA_EVAL
from jaxvla.serving.server.keys import at_wrist
from jaxvla.serving.server.request import OPTIONS, Answer, Options, Request, RequestError
from jaxvla_client.codec import pack

NAME = "vla-eval"
SPEAKS_FIRST = False
# Of `vla_eval.protocol.messages`.
PROTOCOL_VERSION = 1
_TYPES = ("hello", "observation", "action", "episode_start", "episode_end", "error")
# (closed, open) of a gripper by what `vla_eval.specs` calls it, and the range there.
_GRIPPERS = {
    (1.0, -1.0): ("binary_close_positive", [-1.0, 1.0]),
    (-1.0, 1.0): ("binary_close_negative", [-1.0, 1.0]),
    (0.0, 1.0): ("continuous_01", [0.0, 1.0]),
    (1.0, 0.0): ("binary_close_01", [0.0, 1.0]),
}


def is_spoken(message: Mapping[Any, Any]) -> bool:
    """Whether a message is one of this protocol."""
    return message.get("type") in _TYPES and {"payload", "seq"} <= message.keys()


def metadata(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first frame, as if it answered a hello, so that a client that says hello later has its answer."""
    return _frame("hello", _hello(facts), 0)


def greeting(facts: Mapping[str, Any]) -> bytes:
    """The frame of `metadata`."""
    return pack(metadata(facts), VLA_EVAL)


def parse(message: Mapping[Any, Any]) -> Request:
    """What a message asks.

    Raises:
        RequestError: it does not say what it must.
    """
    kind, payload, seq = (message.get(key) for key in ("type", "payload", "seq"))
    if kind not in _TYPES or not isinstance(payload, Mapping) or type(seq) is not int:
        raise RequestError(
            f"a message must have a type of {', '.join(_TYPES)}, a payload that is a map, and a seq that is a number; "
            f"it has {', '.join(f'{key!r:.40}' for key in list(message)[:8])}"
        )
    options = Options.of(payload.get(OPTIONS, {}))
    observation = {key: value for key, value in payload.items() if key != OPTIONS}
    if kind == "observation":
        return Request("act", (observation,), options, single=True, context=(kind, seq))
    what = {"hello": "hello", "episode_start": "reset"}.get(kind, "nothing")
    return Request(what, options=options, context=(kind, seq))


def reply(request: Request, answer: Answer | None, facts: Mapping[str, Any]) -> bytes | None:
    """The frame of an answer; None where the protocol has none."""
    kind, seq = request.context
    if kind == "hello":
        return pack(_frame("hello", _hello(facts), seq), VLA_EVAL)
    if answer is None:
        return None
    payload = {"actions": answer.actions[0]} if answer.actions else {}
    return pack(_frame("action", payload, seq), VLA_EVAL)


def error(message: Mapping[Any, Any] | None, text: str) -> bytes:
    """The frame of an error in answer to a message, which could not be read where there is none."""
    seq = (message or {}).get("seq")
    return pack(_frame("error", {"error": text}, seq if isinstance(seq, int) else 0))


def _frame(kind: str, payload: Mapping[str, Any], seq: int) -> dict[str, Any]:
    return {"type": kind, "payload": payload, "seq": seq, "timestamp": time.time()}


def _hello(facts: Mapping[str, Any]) -> dict[str, Any]:
    """What vla-eval compares with a benchmark, and what it sets there so that the observation holds what is needed."""
    hello: dict[str, Any] = {
        "harness_version": "jaxvla",
        "protocol_version": PROTOCOL_VERSION,
        "model_server": "jaxvla",
        "capabilities": {},
        "jaxvla": facts,
    }
    own = facts["policies"].get(facts["policy"])
    if own is None:
        return hello
    params = {"send_state": "proprio" in own["needed"], "send_wrist_image": any(map(at_wrist, own["needed"]))}
    hello["observation_params"] = {name: True for name, needed in params.items() if needed}
    ends = _ends(own)
    if ends in _GRIPPERS:
        name, limits = _GRIPPERS[ends]
        hello["action_spec"] = {"gripper": {"name": "gripper", "dims": 1, "format": name, "range": limits}}
    if "language" in own["needed"]:
        hello["observation_spec"] = {"language": {"name": "language", "dims": 0, "format": "language"}}
    return hello


def _ends(own: Mapping[str, Any]) -> tuple[float, float] | None:
    """(closed, open) of the gripper's actions."""
    if own["gripper"]:
        return tuple(own["gripper"])
    actions = own["contract"]["actions"]
    return (actions["closed"], actions["open"]) if actions and len(actions["gripper"]) == 1 else None
