"""The task families of the tabletop: their instructions, where the object has to go, and when that is done.

Sides are seen from the robot, over whose shoulder camera 0 looks: left is +y, behind is +x (away from the robot).
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxvla.envs.items import SHAPES, VESSELS, Item

PUT_IN_CONTAINER, MOVE_TO_SIDE, STACK, GO_AROUND = "put_in_container", "move_to_side", "stack", "go_around"

TEMPLATES = {
    PUT_IN_CONTAINER: (
        "put the {target} {preposition} the {reference}",
        "place the {target} {preposition} the {reference}",
        "pick up the {target} and put it {preposition} the {reference}",
        "move the {target} {preposition}to the {reference}",
        "take the {target} and place it {preposition} the {reference}",
    ),
    MOVE_TO_SIDE: (
        "move the {target} {side} the {reference}",
        "put the {target} {side} the {reference}",
        "place the {target} {side} the {reference}",
        "pick up the {target} and set it down {side} the {reference}",
    ),
    STACK: (
        "stack the {target} on the {reference}",
        "put the {target} on top of the {reference}",
        "place the {target} on the {reference}",
        "pick up the {target} and stack it on top of the {reference}",
    ),
    GO_AROUND: (
        "carry the {target} around the post and put it {preposition} the {reference}",
        "bring the {target} around the post {preposition}to the {reference}",
        "go around the post and place the {target} {preposition} the {reference}",
        "move the {target} past the post and drop it {preposition} the {reference}",
    ),
}

# What a seed draws from, and what there is besides where it is asked for by name.
TASKS = (PUT_IN_CONTAINER, MOVE_TO_SIDE, STACK)
EXTRA_TASKS = (GO_AROUND,)
ALL_TASKS = TASKS + EXTRA_TASKS

SIDES = {
    "to the left of": (0.0, 1.0),
    "to the right of": (0.0, -1.0),
    "in front of": (-1.0, 0.0),
    "behind": (1.0, 0.0),
}

# From the edge of the reference to the centre of the object that is moved beside it, m.
SIDE_GAP = 0.055


@dataclasses.dataclass(frozen=True)
class Task:
    """What to do with the object named `target`.

    Attributes:
        id: one of `ALL_TASKS`.
        target, reference: names of items.
        side: a key of `SIDES` for move_to_side, else "".
        instructions: paraphrases; the first is the one that an episode is run with.
    """

    id: str
    target: str
    reference: str
    side: str
    instructions: tuple[str, ...]


def sample_task(id: str, items: Sequence[Item], rng: np.random.Generator) -> Task | None:
    """Draws target, reference and wording among `items`; None where these items do not allow the task."""
    objects = [item for item in items if item.kind in SHAPES]
    target = objects[rng.integers(len(objects))]
    references = [item for item in items if item is not target and _can_refer(id, item)]
    if not references or (id == STACK and target.kind == "ball"):
        return None
    reference = references[rng.integers(len(references))]
    side = list(SIDES)[rng.integers(len(SIDES))] if id == MOVE_TO_SIDE else ""
    preposition = VESSELS[reference.kind].preposition if reference.kind in VESSELS else ""
    words = {"target": target.name, "reference": reference.name, "side": side, "preposition": preposition}
    templates = [TEMPLATES[id][i] for i in rng.permutation(len(TEMPLATES[id]))]
    return Task(id, target.name, reference.name, side, tuple(template.format(**words) for template in templates))


def _can_refer(id: str, item: Item) -> bool:
    if id in (PUT_IN_CONTAINER, GO_AROUND):
        return item.kind in VESSELS
    return id == MOVE_TO_SIDE or (item.kind in SHAPES and SHAPES[item.kind].flat_top)


def place_position(task: Task, target: Item, reference: Item) -> np.ndarray:
    """Where the centre of `target` rests when the task is done as the expert does it, [3] in m."""
    x, y, z = reference.position
    half_height = SHAPES[target.kind].half_height
    if task.id in (PUT_IN_CONTAINER, GO_AROUND):
        return np.array([x, y, VESSELS[reference.kind].floor_height + half_height])
    if task.id == STACK:
        return np.array([x, y, z + SHAPES[reference.kind].half_height + half_height])
    dx, dy = np.array(SIDES[task.side]) * (reference.radius + SIDE_GAP)
    return np.array([x + dx, y + dy, half_height])


def is_done(task: Task, target: Item, reference: Item) -> bool:
    """Whether the target rests where the task wants it; never while the gripper holds it.

    Beside the reference means: on the table, at most 5 cm farther than the expert puts it, and within 40 degrees of
    the side's direction.
    """
    if task.id != MOVE_TO_SIDE:
        return target.support == reference.name
    offset = (target.position - reference.position)[:2]
    along = float(offset @ SIDES[task.side])
    across = abs(float(offset @ SIDES[task.side][::-1]))
    near = along <= reference.radius + SIDE_GAP + 0.05
    return target.support == "table" and along > 0 and across <= 0.84 * along and near
