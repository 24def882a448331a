"""How far the words that a policy says agree with the annotations: names, boxes, gripper positions, sentences."""

import dataclasses
import re
from collections.abc import Sequence

import numpy as np

from jaxvla.reasoning.record import PixelBox, Reasoning
from jaxvla.reasoning.words import COMPONENT_SETS, parse_explicit

OBJECTS, GRIPPER = "VISIBLE OBJECTS", "GRIPPER POSITION"
_OBJECT = re.compile(r"([^\[\],][^\[\]]*?) \[(\d+), (\d+), (\d+), (\d+)\]")
_NUMBERS = re.compile(r"-?\d+")


@dataclasses.dataclass(frozen=True)
class Accuracy:
    """What n samples of words are worth. Errors are medians, in pixels of the annotations' 256 x 256 frame.

    Attributes:
        samples: n.
        named: share of the annotated objects whose name was said.
        invented: share of the names said that no annotation has.
        box_error: of the four sides of the boxes of objects that were named.
        gripper_error: distance of the first gripper position.
        sentences: share of the samples whose text is the annotated one, by component.
    """

    samples: int
    named: float
    invented: float
    box_error: float
    gripper_error: float
    sentences: dict[str, float]


def accuracy(said: Sequence[str], known: Sequence[Reasoning]) -> Accuracy:
    """Holds words against annotations.

    Args:
        said: of n samples, as `serving.policy.Decisions.words` gives them, in ECoT's components.
        known: of the same samples.
    """
    found = named = invented = 0
    sides: list[np.ndarray] = []
    distances: list[float] = []
    hits: dict[str, list[bool]] = {}
    for text, truth in zip(said, known, strict=True):
        parts = parse_explicit("ecot", text)
        boxes, true_boxes = objects(parts.get(OBJECTS, "")), dict(truth.visible_objects)
        found += len(true_boxes)
        named += len(boxes.keys() & true_boxes)
        invented += len(boxes.keys() - true_boxes.keys())
        sides += [np.abs(np.subtract(boxes[name], true_boxes[name])) for name in boxes.keys() & true_boxes]
        point = list(map(int, _NUMBERS.findall(parts.get(GRIPPER, ""))))[:2]
        if truth.gripper_positions and len(point) == 2:
            distances.append(float(np.linalg.norm(np.subtract(point, truth.gripper_positions[0]))))
        for component, own in truth.components().items():
            if component in COMPONENT_SETS["ecot"] and component not in (OBJECTS, GRIPPER) and component in parts:
                hits.setdefault(component, []).append(parts[component] == own)
    return Accuracy(
        samples=len(said),
        named=named / max(found, 1),
        invented=invented / max(named + invented, 1),
        box_error=_median(np.concatenate(sides)) if sides else float("nan"),
        gripper_error=_median(distances),
        sentences={component: float(np.mean(own)) for component, own in hits.items()},
    )


def objects(text: str) -> dict[str, PixelBox]:
    """Names and boxes of "blue bowl [61, 140, 129, 196], red cube [172, 101, 200, 134]", without what is cut off."""
    return {name.strip(): tuple(map(int, box)) for name, *box in _OBJECT.findall(text)}


def _median(values: Sequence[float] | np.ndarray) -> float:
    return float(np.median(values)) if len(values) else float("nan")
