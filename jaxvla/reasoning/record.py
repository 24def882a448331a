"""What is known about an episode and each of its steps, and how each part of a step reads as text."""

import dataclasses
from collections.abc import Mapping
from typing import Any

PixelBox = tuple[int, int, int, int]
UnitBox = tuple[float, float, float, float]

# The name of every component, in the order in which `Reasoning.components` gives them.
COMPONENTS = (
    *("TASK", "PLAN", "VISIBLE OBJECTS", "SUBTASK REASONING", "SUBTASK", "MOVE REASONING", "MOVE", "GRIPPER POSITION"),
    *("BBOX", "REASON"),
)


@dataclasses.dataclass(frozen=True)
class Reasoning:
    """The annotations of one step. Every part may be absent: None, or empty.

    Attributes:
        task, plan, subtask_reason, subtask, move_reason, move: texts of embodied chain of thought (Zawalski et al.
            2024); `subtask` is LaRA's too.
        visible_objects: (name, (x0, y0, x1, y1)) in pixels of a 256 x 256 frame.
        gripper_positions: up to 5 points (u, v), in pixels of a 256 x 256 frame, from the current step on.
        boxes: LaRA's active boxes (x0, y0, x1, y1), each value a share of the frame's side, 0 to 1.
        reason: LaRA's reason for the motion.
    """

    task: str | None = None
    plan: str | None = None
    subtask_reason: str | None = None
    subtask: str | None = None
    move_reason: str | None = None
    move: str | None = None
    visible_objects: tuple[tuple[str, PixelBox], ...] = ()
    gripper_positions: tuple[tuple[int, int], ...] = ()
    boxes: tuple[UnitBox, ...] = ()
    reason: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The parts that are present, as values that json can write (tuples become lists there)."""
        parts = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {name: part for name, part in parts.items() if part}

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Reasoning":
        """The inverse of `to_json`, also after a round trip through json."""
        parts = dict(values)
        parts["visible_objects"] = tuple((name, tuple(box)) for name, box in parts.get("visible_objects", ()))
        for name in ("gripper_positions", "boxes"):
            parts[name] = tuple(map(tuple, parts.get(name, ())))
        return cls(**parts)

    def components(self) -> dict[str, str]:
        """The text of each component that is present, by its name in ECoT's or LaRA's list of components.

        ECoT's objects read `name [x0, y0, x1, y1]`, joined by ", ", its gripper positions `[u0, v0, u1, v1, ...]`;
        LaRA's boxes `[x0 y0 x1 y1]` with four decimals, joined by a space.
        """
        points = [value for point in self.gripper_positions for value in point]
        texts = (
            self.task,
            self.plan,
            ", ".join(f"{name} {list(box)}" for name, box in self.visible_objects),
            self.subtask_reason,
            self.subtask,
            self.move_reason,
            self.move,
            str(points) if points else None,
            " ".join("[" + " ".join(f"{value:.4f}" for value in box) + "]" for box in self.boxes),
            self.reason,
        )
        return {name: text for name, text in zip(COMPONENTS, texts) if text}


@dataclasses.dataclass(frozen=True)
class Episode:
    """The annotations of one episode, and what they say of the episode itself.

    Attributes:
        key: "<file_path>#<episode_id>", by which trajectories find it.
        steps: the annotated steps, by their number from 0.
        num_steps: how many steps the episode has, annotated or not; None where that is not known.
        instruction: what the robot was told; empty where that is not known.
    """

    key: str
    steps: Mapping[int, Reasoning]
    num_steps: int | None = None
    instruction: str = ""
