"""Frames that no client would send: what is wrong with each is drawn, from damage in bytes to values that lie.

frames = malformed(np.random.default_rng(0), "openpi")
"""

from collections.abc import Callable, Iterator
from typing import Any

import msgpack
import numpy as np

_Rng = np.random.Generator
_VLA_EVAL = ("hello", "observation", "action", "episode_start", "episode_end", "error")
_LIES = (float("nan"), float("inf"), -1, 2**63, None, True, "", "x" * 5000, b"\xff" * 40, [], {}, [[]], {"": {}})


def observation(rng: _Rng, dialect: str, size: int = 8) -> dict[str, Any]:
    """A message of a protocol as it should be, of arrays in its form, for a policy of one camera and a proprio."""
    image = described(rng.integers(0, 256, (size, size, 3), np.uint8), dialect)
    state = described(rng.normal(size=4).astype(np.float32), dialect)
    if dialect == "openpi":
        return {"images0": image, "proprio": state, "language": "go", "goals": {"images0": image}}
    if dialect == "starvla":
        example = {"image": [image], "state": state, "lang": "go", "goals": {"images0": image}}
        return {"type": "infer", "request_id": "a", "payload": {"examples": [example]}}
    payload = {"images": {"a": image}, "states": state, "task_description": "go", "goals": {"images0": image}}
    return {"type": "observation", "payload": payload, "seq": 1, "timestamp": 0.0}


def described(array: np.ndarray, dialect: str) -> dict[Any, Any]:
    """The map that stands for an array."""
    named = {"__ndarray__": True, "data": array.tobytes(), "dtype": array.dtype.str, "shape": list(array.shape)}
    return named if dialect == "vla-eval" else {key.encode(): value for key, value in named.items()}


def malformed(rng: _Rng, dialect: str) -> Iterator[bytes]:
    """Frames without end, in turn of every kind."""
    while True:
        for make in KINDS.values():
            yield make(rng, dialect)


def _random(rng: _Rng, dialect: str) -> bytes:
    return rng.bytes(int(rng.integers(0, 200)))


def _truncated(rng: _Rng, dialect: str) -> bytes:
    whole = msgpack.packb(observation(rng, dialect))
    return whole[: rng.integers(len(whole))]


def _flipped(rng: _Rng, dialect: str) -> bytes:
    whole = bytearray(msgpack.packb(observation(rng, dialect)))
    for place in rng.integers(0, min(len(whole), 60), int(rng.integers(1, 4))):
        whole[place] = int(rng.integers(256))
    return bytes(whole)


def _array(change: Callable[[_Rng, dict[str, Any]], None]) -> Callable[[_Rng, str], bytes]:
    """Damages the description of the image."""

    def make(rng: _Rng, dialect: str) -> bytes:
        def damaged(array: np.ndarray) -> dict[Any, Any]:
            found = described(array, "vla-eval")
            change(rng, found)
            return found if dialect == "vla-eval" else {key.encode(): value for key, value in found.items()}

        message = observation(rng, dialect)
        image = damaged(np.zeros((8, 8, 3), np.uint8))
        target = message if dialect == "openpi" else message["payload"]
        if dialect == "starvla":
            target["examples"][0]["image"] = [image]
        else:
            target["images0" if dialect == "openpi" else "images"] = image if dialect == "openpi" else {"a": image}
        return msgpack.packb(message)

    return make


def _shape(rng: _Rng, array: dict[str, Any]) -> None:
    shapes = (
        [8, 8],
        [8, 8, 4],
        [192],
        [2**31 - 1, 2**31 - 1, 3],
        [0, 8, 3],
        [-8, -8, 3],
        [8.0, 8, 3],
        [[8], 8, 3],
        "8",
    )
    array["shape"] = shapes[rng.integers(len(shapes))]
    if array["shape"] == [0, 8, 3]:
        array["data"] = b""


def _dtype(rng: _Rng, array: dict[str, Any]) -> None:
    dtypes = ("|O", "O", "|V192", "<c8", "<f4,<f4", "<M8[s]", "<U48", "|S192", "<f8", "<i2", "", "f" * 3000, None, [1])
    array["dtype"] = dtypes[rng.integers(len(dtypes))]


def _data(rng: _Rng, array: dict[str, Any]) -> None:
    array["data"] = (b"", b"\0" * 191, "\0" * 192, [0] * 192, None, {}, 5)[rng.integers(7)]


def _value(rng: _Rng, dialect: str) -> bytes:
    """Some leaf of the message lies."""
    message = observation(rng, dialect)
    at: Any = message
    while True:
        key = list(at)[rng.integers(len(at))] if isinstance(at, dict) else int(rng.integers(len(at)))
        below = at[key]
        if not isinstance(below, dict | list) or not below or rng.random() < 0.3:
            break
        at = below
    lie = _LIES[rng.integers(len(_LIES))]
    at[key] = lie
    return msgpack.packb(message)


def _state(rng: _Rng, dialect: str) -> bytes:
    """A proprio with a value that is no number, or of another length or shape."""
    states = (
        np.array([np.nan, 0, 0, 0]),
        np.array([np.inf] * 4),
        np.zeros(3),
        np.zeros((4, 1)),
        np.zeros(0),
        np.zeros(999),
    )
    state = described(states[rng.integers(len(states))].astype(np.float32), dialect)
    message = observation(rng, dialect)
    if dialect == "openpi":
        message["proprio"] = state
    elif dialect == "starvla":
        message["payload"]["examples"][0]["state"] = state
    else:
        message["payload"]["states"] = state
    return msgpack.packb(message)


def _deep(rng: _Rng, dialect: str) -> bytes:
    opening = (b"\x91", b"\x81\xa1a", b"\x81\xa7payload", b"\xdc\x00\x01")[rng.integers(4)]
    return opening * int(rng.integers(17, 5000)) + b"\xc0"


def _long(rng: _Rng, dialect: str) -> bytes:
    """A length that is not there."""
    first = (0xC4, 0xC5, 0xC6, 0xD9, 0xDA, 0xDB, 0xDC, 0xDD, 0xDE, 0xDF, 0xC9)[rng.integers(11)]
    return b"\x81\xa7images0" + bytes([first]) + b"\xff\xff\xff\xff" + rng.bytes(int(rng.integers(0, 50)))


def _keys(rng: _Rng, dialect: str) -> bytes:
    """Names that nobody has, and many of them."""
    names = {f"{rng.integers(1 << 40):x}": int(rng.integers(9)) for _ in range(int(rng.integers(0, 400)))}
    if dialect == "openpi":
        return msgpack.packb({**names, "jaxvla": {"reset": 1}} if rng.random() < 0.5 else names)
    kinds = _VLA_EVAL if dialect == "vla-eval" else ("ping", "infer", "reset", "init", "stop")
    kind = kinds[rng.integers(len(kinds))]
    return msgpack.packb({"type": kind, "payload": names if rng.random() < 0.7 else 3, "seq": 1, "request_id": {}})


def _options(rng: _Rng, dialect: str) -> bytes:
    """Options of a request that there are not, or with values that lie."""
    message = observation(rng, dialect)
    names = ("policy", "reset", "seed", "observe", "deadline_ms", "timing", "contract", "strange")
    lies = (
        *_LIES,
        3,
        described(np.arange(3), dialect),
        {"delay": -1},
        {"action_dim": described(np.arange(2), dialect)},
    )
    options = {names[rng.integers(len(names))]: lies[rng.integers(len(lies))] for _ in range(3)}
    target = message if dialect == "openpi" else message["payload"]
    target["jaxvla"] = options if rng.random() < 0.9 else lies[rng.integers(len(lies))]
    return msgpack.packb(message)


def _image(rng: _Rng, dialect: str) -> bytes:
    """An encoded image that is none, or of another size than it says."""
    data = (b"\x89PNG\r\n\x1a\n" + rng.bytes(50), b"", rng.bytes(100))[rng.integers(3)]
    kind = ("png", "jpeg", "raw", "gif", None)[rng.integers(5)]
    image = {"__image__": True, "format": kind, "data": data, "shape": [8, 8, 3]}
    message = observation(rng, "vla-eval")
    message["payload"]["images"] = {"a": image}
    return msgpack.packb(message if dialect == "vla-eval" else {"images0": image})


KINDS: dict[str, Callable[[_Rng, str], bytes]] = {
    "random bytes": _random,
    "truncated": _truncated,
    "flipped bytes": _flipped,
    "wrong shape": _array(_shape),
    "wrong dtype": _array(_dtype),
    "wrong data": _array(_data),
    "a value that lies": _value,
    "a proprio that lies": _state,
    "deep nesting": _deep,
    "huge lengths": _long,
    "strange keys": _keys,
    "strange options": _options,
    "broken images": _image,
}
