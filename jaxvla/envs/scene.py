"""How an episode's scene is drawn: which things stand where, and what is to be done with them."""

import dataclasses

import numpy as np

from jaxvla.envs.items import COLORS, OBSTACLES, SHAPES, VESSELS, Item, bearing
from jaxvla.envs.tasks import (
    EXTRA_TASKS,
    GO_AROUND,
    MOVE_TO_SIDE,
    PUT_IN_CONTAINER,
    TASKS,
    Task,
    is_done,
    place_position,
    sample_task,
)

# Where things are put down at first, m; the gripper reaches 2 cm farther.
PLACE_LOW, PLACE_HIGH = np.array([0.205, -0.145]), np.array([0.395, 0.145])

# Between the footprints of two things: room for a finger.
CLEARANCE = 0.022

# Things are set down facing the robot, give or take this turn (rad).
TURN_SPREAD = 0.25

# Height of the point between the fingers when they carry something sideways, m.
CARRY = 0.125

# Where an object is carried from and where its container stands, left and right with a post half way: how far ahead of
# the robot, how far to the side, and how far each of them is off that at most, m.
DETOUR_AHEAD, DETOUR_ASIDE, DETOUR_SPREAD = 0.30, 0.125, 0.015


@dataclasses.dataclass(frozen=True)
class Level:
    """How much there is to tell apart in a scene: one container, and some objects, all of different colours.

    Attributes:
        vessels, shapes, colors: what containers, objects and their colours are drawn from.
        objects: the least and the largest number of objects.
        tasks: those that a seed draws from.
        extra_tasks: what there is besides where it is asked for by name.
    """

    vessels: tuple[str, ...] = tuple(VESSELS)
    shapes: tuple[str, ...] = tuple(SHAPES)
    colors: tuple[str, ...] = tuple(COLORS)
    objects: tuple[int, int] = (2, 3)
    tasks: tuple[str, ...] = TASKS
    extra_tasks: tuple[str, ...] = ()

    @property
    def all_tasks(self) -> tuple[str, ...]:
        """Every task that can be asked for."""
        return self.tasks + self.extra_tasks


LEVELS = {
    "one": Level(("bowl",), ("cube",), ("blue", "red"), (1, 1), (PUT_IN_CONTAINER,)),
    "few": Level(("bowl", "plate"), ("cube", "cylinder"), ("blue", "red", "green", "yellow"), (2, 2), TASKS[:2]),
    "full": Level(extra_tasks=EXTRA_TASKS),
}


def sample_scene(task_id: str, level: Level, rng: np.random.Generator) -> tuple[list[Item], Task]:
    """Draws the items of a scene, their places, and a task that is possible and not yet done.

    To go around, there are a container, an object in the gripper and a post.
    """
    if task_id == GO_AROUND:
        items = _place_detour(_draw_kinds(level, rng), rng)
        return items, sample_task(task_id, items, rng)
    while True:
        items = _place(_draw_kinds(level, rng), rng)
        task = items and sample_task(task_id, items, rng)
        if task and _is_possible(task, items):
            return items, task


def find(items: list[Item], name: str) -> Item:
    """The item called `name`."""
    return next(item for item in items if item.name == name)


def _draw_kinds(level: Level, rng: np.random.Generator) -> list[tuple[str, str]]:
    """(kind, colour) of the container, then of the objects; all of different colours."""
    fewest, most = level.objects
    count = int(rng.integers(fewest, most + 1))
    # With as many colours as things, each keeps its own: the container has the first.
    spare = len(level.colors) > 1 + most
    colors = [level.colors[i] for i in rng.permutation(len(level.colors))] if spare else level.colors
    shapes = [level.shapes[i] for i in rng.integers(len(level.shapes), size=count)]
    return list(zip([level.vessels[rng.integers(len(level.vessels))], *shapes], colors))


def _place(kinds: list[tuple[str, str]], rng: np.random.Generator) -> list[Item]:
    """Puts each thing at a free place on the table; empty where one finds none."""
    items: list[Item] = []
    for kind, color in kinds:
        free = [item for item in (_drop(kind, color, rng) for _ in range(20)) if _is_clear(item, items)]
        if not free:
            return []
        items.append(free[0])
    return items


def _drop(kind: str, color: str, rng: np.random.Generator) -> Item:
    x, y = rng.uniform(PLACE_LOW, PLACE_HIGH)
    height = 0.0 if kind in VESSELS else SHAPES[kind].half_height
    return Item(kind, color, np.array([x, y, height]), bearing(x, y) + rng.uniform(-TURN_SPREAD, TURN_SPREAD))


def _place_detour(kinds: list[tuple[str, str]], rng: np.random.Generator) -> list[Item]:
    """The container, the first object across the table from it in the gripper, and a post half way between them."""
    (vessel, vessel_color), (shape, color), (_, post_color) = kinds[:3]
    side = rng.choice([-1.0, 1.0])
    spread = rng.uniform(-DETOUR_SPREAD, DETOUR_SPREAD, (2, 2))
    end, start = np.array([[DETOUR_AHEAD, side * DETOUR_ASIDE], [DETOUR_AHEAD, -side * DETOUR_ASIDE]]) + spread
    places = [
        (vessel, vessel_color, end, 0.0, "table"),
        (shape, color, start, CARRY, "gripper"),
        ("post", post_color, (start + end) / 2, OBSTACLES["post"].half_height, "table"),
    ]
    return [Item(kind, hue, np.array([*at, z]), bearing(*at), support) for kind, hue, at, z, support in places]


def _is_clear(item: Item, others: list[Item]) -> bool:
    distances = [np.linalg.norm((item.position - other.position)[:2]) for other in others]
    return all(d > item.radius + other.radius + CLEARANCE for d, other in zip(distances, others))


def _is_possible(task: Task, items: list[Item]) -> bool:
    target, reference = find(items, task.target), find(items, task.reference)
    if task.id != MOVE_TO_SIDE:
        return True
    there = Item(target.kind, target.color, place_position(task, target, reference), 0.0)
    inside = np.all((there.position[:2] > PLACE_LOW) & (there.position[:2] < PLACE_HIGH))
    others = [item for item in items if item is not target and item is not reference]
    return bool(inside) and _is_clear(there, others) and not is_done(task, target, reference)
