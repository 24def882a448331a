"""The components of a chain of thought: their names and order, how they read in words, and words read back."""

import re
from collections.abc import Mapping

from jaxvla.data.text.tokenizer import IM_END

# Embodied chain of thought (Zawalski et al. 2024), in the order of its training text.
ECOT = (
    "TASK",
    "PLAN",
    "VISIBLE OBJECTS",
    "SUBTASK REASONING",
    "SUBTASK",
    "MOVE REASONING",
    "MOVE",
    "GRIPPER POSITION",
)
LARA = ("SUBTASK", "BBOX", "REASON")
COMPONENT_SETS = {"ecot": ECOT, "lara": LARA}

# What stands before and after a component's text.
_FRAMES: Mapping[str, Mapping[str, tuple[str, str]]] = {
    "ecot": {component: (f"{component}:", "") for component in ECOT},
    "lara": {"SUBTASK": ("Subtask:", "."), "BBOX": ("BBox:", "."), "REASON": ("Reasoning:", "")},
}


def render(component_set: str, component: str, text: str) -> str:
    """One component in words: "PLAN: reach the cup" of "ecot", "Subtask: reach the cup." of "lara"."""
    tag, end = _FRAMES[component_set][component]
    return f"{tag} {text}{end}"


def parse_explicit(component_set: str, text: str) -> dict[str, str]:
    """The components of words that a model said: the inverse of `render` and joining by spaces.

    Any order and any subset of tags is read; the texts of a tag that comes again are joined by a space.

    Args:
        component_set: "ecot" or "lara".
        text: generated words; what follows the end of the turn is left out.

    Returns:
        Component to text, in the order of the words, none of them empty. What stands before the first tag has the
        name "".
    """
    components = {tag: component for component, (tag, _) in _FRAMES[component_set].items()}
    tags = "|".join(map(re.escape, components))
    start, *rest = re.split(rf"(?<!\S)({tags})", text.partition(IM_END)[0])
    parsed: dict[str, str] = {}
    for tag, part in (("", start), *zip(rest[::2], rest[1::2])):
        component = components.get(tag, "")
        end = _FRAMES[component_set][component][1] if component else ""
        part = part.strip().removesuffix(end).rstrip()
        if part:
            parsed[component] = f"{parsed[component]} {part}" if component in parsed else part
    return parsed
