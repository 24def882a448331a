"""What of an instruction a model reads, by the name of the encoder in config.language."""

import functools
from collections.abc import Callable

# Around what OpenVLA is asked. Its first version speaks as Vicuna does.
_QUESTION = "What action should the robot take to {}?"
_FRAMES = {
    "openvla": f"In: {_QUESTION}\nOut:",
    "openvla_v01": (
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        f"detailed, and polite answers to the user's questions. USER: {_QUESTION} ASSISTANT:"
    ),
}


def _plain(text: str) -> str:
    """Without regard to case and spacing."""
    return " ".join(text.lower().split())


def _line(text: str) -> str:
    """As LeRobot gives it to SmolVLA."""
    return text if text.endswith("\n") else f"{text}\n"


def _asked(text: str, frame: str) -> str:
    """OpenVLA's prompt, which ends the sentence by itself."""
    before, after = frame.split("{}")
    return before + text.lower().removesuffix(".") + after


WORDINGS: dict[str, Callable[[str], str]] = {
    "learned": _plain,
    "tokens": _line,
    **{name: functools.partial(_asked, frame=frame) for name, frame in _FRAMES.items()},
}
