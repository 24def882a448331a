"""The messages of starVLA's server, and of LaRA's, from which they come.

https://github.com/starVLA/starVLA, deployment/model_server: metadata first, then {"type", "request_id", "payload"}. A
payload without the rest is one too.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvla.serving.server.request import OPTIONS, Answer, Options, Request, RequestError
from jaxvla_client.codec import pack

NAME = "starvla"
SPEAKS_FIRST = True
_ASKS = ("infer", "predict_action")
_OTHERS = ("ping", "init", "reset")
MAX_EXAMPLES = 64


def is_spoken(message: Mapping[Any, Any]) -> bool:
    """Whether a message is one of this protocol."""
    named = message.get("type") in (*_ASKS, *_OTHERS)
    return named or "examples" in message or "batch_images" in message


def metadata(facts: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the first frame says."""
    values = dict(facts)
    own = facts["policies"].get(facts["policy"])
    if own is not None:
        contract = own["contract"]
        sizes = {camera["policy_size"] for camera in contract["cameras"].values()}
        values |= {
            "env": "jaxvla",
            "ckpt_path": facts["policy"],
            "action_chunk_size": contract["execute_steps"],
            "available_unnorm_keys": own["datasets"],
            "default_unnorm_key": own["datasets"][0] if own["datasets"] else None,
            "training_obs_image_size": list(max(sizes)) if sizes else None,
        }
    return values


def greeting(facts: Mapping[str, Any]) -> bytes:
    """The first frame."""
    return pack(metadata(facts))


def parse(message: Mapping[Any, Any]) -> Request:
    """What a message asks.

    Raises:
        RequestError: it does not say what it must.
    """
    kind = message.get("type", "infer")
    payload = message.get("payload", message)
    context = message.get("request_id"), kind
    if kind not in (*_ASKS, *_OTHERS) or not isinstance(payload, Mapping):
        raise RequestError(f"a message's type must be one of {', '.join((*_ASKS, *_OTHERS))}, with a map as payload")
    options = Options.of(payload.get(OPTIONS, {}))
    if kind in _OTHERS:
        return Request("nothing" if kind == "ping" else "reset", options=options, context=context)
    examples = payload["examples"] if "examples" in payload else _of_lara(payload)
    if not isinstance(examples, list) or not 0 < len(examples) <= MAX_EXAMPLES:
        raise RequestError(f"a payload must have 1 to {MAX_EXAMPLES} examples in a list")
    dataset = payload.get("unnorm_key") or ""
    if not isinstance(dataset, str):
        raise RequestError(f"unnorm_key must be the name of a dataset, not {dataset!r:.60}")
    return Request("act", tuple(map(_example, examples)), options, dataset=dataset, context=context)


def reply(request: Request, answer: Answer | None, facts: Mapping[str, Any]) -> bytes:
    """The frame of an answer."""
    number, kind = request.context
    if answer is None:
        return pack({"status": "ok", "ok": True, "type": kind, "request_id": number})
    data: dict[str, Any] = {"total_infer_time": answer.infer_ms / 1000}
    if answer.actions:
        data["actions"] = np.stack(answer.actions)
    if any(answer.words):
        data["words"] = list(answer.words)
    return pack({"status": "ok", "ok": True, "type": "inference_result", "request_id": number, "data": data})


def error(message: Mapping[Any, Any] | None, text: str) -> bytes:
    """The frame of an error in answer to a message, which could not be read where there is none."""
    number = (message or {}).get("request_id")
    values = {"status": "error", "ok": False, "type": "error", "request_id": number, "error": {"message": text}}
    return pack(values)


def _of_lara(payload: Mapping[Any, Any]) -> list[dict[str, Any]]:
    images, texts = payload.get("batch_images"), payload.get("instructions")
    states = payload.get("states", [None] * len(images)) if isinstance(images, list) else None
    lists = all(isinstance(each, list) for each in (images, texts, states))
    if not lists or not len(images) == len(texts) == len(states):
        raise RequestError(
            f"a payload must have examples, or batch_images and as many instructions; it has "
            f"{', '.join(f'{key!r:.40}' for key in list(payload)[:8]) or 'nothing'}"
        )
    made = [{"image": views, "lang": text} for views, text in zip(images, texts)]
    return [{**each, **({} if state is None else {"state": state})} for each, state in zip(made, states)]


def _example(values: Any) -> dict[str, Any]:
    """An example whose images have numbers as names."""
    if not isinstance(values, Mapping):
        raise RequestError(f"an example must be a map, not {type(values).__name__}")
    images = values.get("image", [])
    images = images if isinstance(images, Sequence) else [images]
    example = {key: value for key, value in values.items() if key != "image"}
    state = example.get("state")
    if isinstance(state, np.ndarray) and state.ndim == 2 and len(state) == 1:
        example["state"] = state[0]
    return {**example, "image": {str(i): image for i, image in enumerate(images)}}
