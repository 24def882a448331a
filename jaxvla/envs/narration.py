"""Tells a demonstration in the tabletop in words, in the layout of ECoT's JSON (Zawalski et al. 2024).

    moments = [observe(env, decision) for _, decision in demonstrate(env, seed)]
    episode = narrate(env, moments, file_path)

Sentences are short and follow from the truth about the world alone, so the same scene always reads the same.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxvla.envs.expert import FUNNEL, PHASES, PLACE_PHASES, Decision
from jaxvla.envs.items import VESSELS
from jaxvla.envs.rendering import CAMERAS
from jaxvla.envs.tabletop import TabletopEnv
from jaxvla.envs.tasks import MOVE_TO_SIDE, STACK

FRAME_SIDE = 256  # of the frame that pixels refer to, whatever the size of the images
CAMERA = "images0"

# A movement is read off MOVE_WINDOW states. It goes along an axis where it exceeds MOVE_THRESHOLD (m, tenths of a rad,
# gripper opening), after a translation of more than three times that, as sum over the axes, was scaled back to it.
MOVE_WINDOW, MOVE_THRESHOLD = 4, 0.03
_TRANSLATIONS = (("backward", "forward"), ("right", "left"), ("down", "up"))
_TILT = ("tilt down", "tilt up")
_TURN = ("rotate clockwise", "rotate counterclockwise")
_GRIPPER = ("close gripper", "open gripper")

# How far (m) off its waypoint, along an axis, the gripper counts as having to go there.
AWAY = 0.015


@dataclasses.dataclass(frozen=True, eq=False)
class Moment:
    """The truth about one frame.

    Attributes:
        state: float64 [7].
        decision: the expert's; None at the last frame.
        above: whether the gripper is over the object to pick.
        held, done: whether that object is held, and whether the task is done.
        gripper: pixel (u, v) of the point between the fingertips.
        boxes: name and pixels (x0, y0, x1, y1) of each item in view.
    """

    state: np.ndarray
    decision: Decision | None
    above: bool
    held: bool
    done: bool
    gripper: tuple[int, int]
    boxes: tuple[tuple[str, tuple[int, int, int, int]], ...]


def observe(env: TabletopEnv, decision: Decision | None) -> Moment:
    """What is true of the frame that `demonstrate` just yielded with `decision`."""
    camera = CAMERAS[CAMERA]
    boxes = []
    for item in env.items:
        box = box_around(camera.project(item.vertices(), FRAME_SIDE)[0])
        if box is not None:
            boxes.append((item.name, box))
    target = env.item(env.task.target)
    u, v = camera.project(env.state[None, :3], FRAME_SIDE)[0][0].round().astype(int).tolist()
    return Moment(
        state=env.state.copy(),
        decision=decision,
        above=math.dist(env.state[:2], target.position[:2]) < FUNNEL,
        held=env.held is target,
        done=env.success(),
        gripper=(u, v),
        boxes=tuple(boxes),
    )


def narrate(env: TabletopEnv, moments: Sequence[Moment], file_path: str, episode_id: str = "0") -> dict[str, Any]:
    """The episode that `moments` were observed in: the value of root[file_path][episode_id] in ECoT's JSON.

    Args:
        env: the world of the episode; only its task and its items' kinds are read.
        moments: one per frame, two at least, the last without a decision; it is told as the one before.
        file_path, episode_id: what the episode is called.
    """
    place, over = _places(env)
    target = f"the {env.task.target}"
    moves = move_primitives(np.stack([moment.state for moment in moments]))
    decisions = [moment.decision for moment in moments[:-1]]
    phases = PLACE_PHASES if moments[0].held else PHASES
    first, *later = dict.fromkeys(_subtask(phase, target, over) for phase in phases)
    told = {
        "task": _task(env, place),
        "plan": " ".join([first, *(subtask.replace(target, "it") for subtask in later)]),
    }
    reasoning = {}
    for t, moment in enumerate(moments):
        decision = decisions[min(t, len(decisions) - 1)]
        # The first decision is to wait, while the movement looks ahead already.
        heading = decisions[1] if decision.phase == "start" and len(decisions) > 1 else decision
        reasoning[str(t)] = told | {
            "subtask": _subtask(decision.phase, target, over),
            "subtask_reason": _subtask_reason(decision.phase, moment, target),
            "move": moves[t],
            "move_reason": _move_reason(heading, moment, target),
        }
    things = [item.name for item in env.items]
    return in_ecots_layout(reasoning, moments, moves, file_path, episode_id, env.task.instructions[0], things)


@runtime_checkable
class Seen(Protocol):
    """What of a moment every world's annotations hold.

    Attributes:
        state: of the robot, its place first, metres.
        gripper: pixel of it (x, y).
        boxes: (name, (x0, y0, x1, y1)) of what is visible.
    """

    state: np.ndarray
    gripper: tuple[int, int]
    boxes: tuple[tuple[str, tuple[int, int, int, int]], ...]


def box_around(pixels: np.ndarray) -> tuple[int, int, int, int] | None:
    """The part in the picture of the smallest box (x0, y0, x1, y1) around points [n, 2]; None where there is none."""
    x0, y0, x1, y1 = np.clip((*pixels.min(0), *pixels.max(0)), 0, FRAME_SIDE).round().astype(int).tolist()
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def in_ecots_layout(
    reasoning: Mapping[str, Any],
    moments: Sequence[Seen],
    moves: Sequence[str],
    file_path: str,
    episode_id: str,
    instruction: str,
    things: Sequence[str],
) -> dict[str, Any]:
    """What is said of an episode as ECoT's JSON has it.

    Args:
        reasoning: what is thought, by the number of the step.
        moments: one per frame.
        moves: the movement at each.
        file_path, episode_id: what the episode is called.
        instruction: what is to be done.
        things: names of what there is.
    """
    features = {
        "state_3d": [moment.state[:3].round(6).tolist() for moment in moments],
        "move_primitive": list(moves),
        "gripper_position": [list(moment.gripper) for moment in moments],
        "bboxes": [[[1.0, name, list(box)] for name, box in moment.boxes] for moment in moments],
    }
    metadata = {
        "episode_id": episode_id,
        "file_path": file_path,
        "n_steps": len(moments),
        "language_instruction": instruction,
        "caption": f"On the table: {', '.join(f'the {thing}' for thing in things)}.",
    }
    return {"reasoning": dict(reasoning), "features": features, "metadata": metadata}


def move_primitives(states: np.ndarray, window: int = MOVE_WINDOW) -> list[str]:
    """The movement that follows each of n states [n, 7], in ECoT's words, such as "move forward left, close gripper".

    A movement is the difference between the first and the last of `window` states, or of those that are left; the last
    state repeats the movement before it. Rolls and pitches are both called tilts.
    """
    moves = []
    for t in range(len(states) - 1):
        change = states[t : t + window][-1] - states[t]
        change[:3] *= min(1.0, 3 * MOVE_THRESHOLD / max(np.abs(change[:3]).sum(), 1e-9))
        change[3:6] /= 10
        signs = np.where(np.abs(change) > MOVE_THRESHOLD, np.sign(change), 0).tolist()
        tilt = signs[3] or signs[4]
        along = [words[sign > 0] for words, sign in zip(_TRANSLATIONS, signs) if sign]
        parts = [f"move {' '.join(along)}"] if along else []
        parts += [w[sign > 0] for w, sign in ((_TILT, tilt), (_TURN, signs[5]), (_GRIPPER, signs[6])) if sign]
        moves.append(", ".join(parts) or "stop")
    return [*moves, moves[-1]]


def _places(env: TabletopEnv) -> tuple[str, str]:
    """Where the task puts the object, and where it is carried to be lowered."""
    task, reference = env.task, env.item(env.task.reference)
    if task.id == MOVE_TO_SIDE:
        return (f"{task.side} the {reference.name}",) * 2
    preposition = "on" if task.id == STACK else VESSELS[reference.kind].preposition
    return f"{preposition} the {reference.name}", f"above the {reference.name}"


def _task(env: TabletopEnv, place: str) -> str:
    verb = {MOVE_TO_SIDE: "Move", STACK: "Stack"}.get(env.task.id, "Put")
    return f"{verb} the {env.task.target} {place}."


def _subtask(phase: str, target: str, over: str) -> str:
    return {
        "grasp": f"Grasp {target}.",
        "lift": f"Lift {target}.",
        "transport": f"Move {target} {over}.",
        "lower": f"Lower {target}.",
        "release": f"Release {target}.",
        "retreat": "Move away.",
    }.get(phase, f"Reach for {target}.")


def _subtask_reason(phase: str, moment: Moment, target: str) -> str:
    target = target.capitalize()
    return {
        "grasp": f"{target} is between the fingers but not held.",
        "lift": f"{target} is held but still low.",
        "transport": f"{target} is held but not yet at its place.",
        "lower": f"{target} is held above its place.",
        "release": f"{target} is {'held' if moment.held else 'free'} at its place.",
        "retreat": "The task is done." if moment.done else f"{target} was let go.",
    }.get(phase, f"The open gripper is {'' if moment.above else 'not yet '}above {target.lower()}.")


def _move_reason(decision: Decision, moment: Moment, target: str) -> str:
    fixed = {
        "grasp": f"The fingers must close around {target}.",
        "lift": f"{target.capitalize()} must rise before it is carried.",
        "release": f"The fingers must open to free {target}.",
        "retreat": f"The gripper must rise clear of {target}.",
    }
    if decision.phase in fixed:
        return fixed[decision.phase]
    goal = "its place" if decision.phase in ("transport", "lower") else target
    way = (decision.waypoint - moment.state[:3]).tolist()
    words = [names[length > 0] for names, length in zip(_TRANSLATIONS, way) if abs(length) > AWAY]
    if not words:
        return f"The gripper has reached {goal}."
    leads = " and ".join(part for part in (", ".join(words[:-1]), words[-1]) if part)
    return f"The way to {goal} leads {leads}."
