"""Tells a demonstration in Meta-World in words, in the layout of ECoT's JSON (Zawalski et al. 2024).

    moments = [observe(world, decision) for _, decision in demonstrate(world, seed, task)]
    episode = narrate(task, moments, "0")

Sentences follow from the truth about the world and from what the expert is about, so the same scene always reads the
same. Directions are those of the robot: forward is away from it, left is on its left.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxvla.envs.metaworld.expert import Decision
from jaxvla.envs.metaworld.tasks import PHASES, TASKS, Task
from jaxvla.envs.metaworld.world import MetaWorld
from jaxvla.envs.narration import FRAME_SIDE, box_around, in_ecots_layout, move_primitives

# How far (m) off its waypoint, along an axis, the hand counts as having to go there.
AWAY = 0.015
_WORDS = (("backward", "forward"), ("right", "left"), ("down", "up"))

# A step is a sixteenth as long as on BridgeData's robots, for which the words of movements were made. So a movement is
# read off so many states, a tenth of a second, in which the hand comes about half as far.
MOVE_WINDOW, _NEARER = 9, 2.0


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    """The truth about one frame.

    Attributes:
        state: float64 [4].
        decision: the expert's; None at the last frame.
        gripper: pixel (u, v) of the point between the fingers.
        boxes: name and pixels (x0, y0, x1, y1) of each thing in view; what hides it is ignored.
    """

    state: np.ndarray
    decision: Decision | None
    gripper: tuple[int, int]
    boxes: tuple[tuple[str, tuple[int, int, int, int]], ...]


def observe(world: MetaWorld, decision: Decision | None) -> Moment:
    """What is true of the frame that `demonstrate` just yielded with `decision`."""
    boxes = []
    for name in TASKS[world.task].things:
        box = box_around(world.project(world.points(name), FRAME_SIDE))
        if box is not None:
            boxes.append((name, box))
    u, v = world.project(world.gripper()[None], FRAME_SIDE)[0].round().astype(int).tolist()
    return Moment(world.facts[:4].copy(), decision, (u, v), tuple(boxes))


def narrate(name: str, moments: Sequence[Moment], file_path: str, episode_id: str = "0") -> dict[str, Any]:
    """The episode that `moments` were observed in: the value of root[file_path][episode_id] in ECoT's JSON.

    Args:
        name: of the task.
        moments: one per frame, two at least, the last without a decision; it is told as the one before.
        file_path, episode_id: what the episode is called.
    """
    task = TASKS[name]
    decisions = [moment.decision for moment in moments[:-1]]
    moves = move_primitives(np.stack([bridge_state(moment.state) for moment in moments]), MOVE_WINDOW)
    target = f"the {task.target}"
    first, *later = dict.fromkeys(tell(task, phase)[0] for phase in task.phases)
    told = {
        "task": f"{task.instruction}.",
        "plan": " ".join([first, *(step.replace(target, "it") for step in later)]),
    }
    reasoning = {}
    for t, moment in enumerate(moments):
        decision = decisions[min(t, len(decisions) - 1)]
        subtask, reason = tell(task, decision.phase)
        reasoning[str(t)] = told | {
            "subtask": subtask,
            "subtask_reason": reason,
            "move": moves[t],
            "move_reason": _move_reason(decision, moment),
        }
    return in_ecots_layout(reasoning, moments, moves, file_path, episode_id, task.instruction, list(task.things))


def tell(task: Task, phase: str) -> tuple[str, str]:
    """What an expert of a task does in a phase, and why."""
    names = {"target": f"the {task.target}", "place": f"the {task.place}"}
    subtask, reason = (text.format(**names) for text in PHASES[phase])
    return subtask, reason[0].upper() + reason[1:]


def bridge_state(state: np.ndarray) -> np.ndarray:
    """A state [4] as BridgeData would have it [7]: x forward, y left, no turns, the gripper last.

    Meta-World's y points away from the robot, its x to the robot's right.
    """
    x, y, z, opening = state
    return np.array([_NEARER * y, -_NEARER * x, _NEARER * z, 0.0, 0.0, 0.0, opening])


def _move_reason(decision: Decision, moment: Moment) -> str:
    x, y, z = (decision.waypoint - moment.state[:3]).tolist()
    words = [names[length > 0] for names, length in zip(_WORDS, (y, -x, z)) if abs(length) > AWAY]
    if not words:
        return "The gripper is where it has to be."
    leads = " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
    return f"The way leads {leads}."
