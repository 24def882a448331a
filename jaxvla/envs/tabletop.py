"""A kinematic tabletop with a WidowX-like gripper: the embedded world in which demonstrations are made and agents run.

State and action are those of BridgeData V2. State [7]: x, y, z (m), roll, pitch, yaw (rad, zero where the gripper
points straight down), gripper opening (1 open, 0 closed). Action [7] at 5 Hz: the change of the first six (turns about
world axes, as the collector applies them), clipped to 0.05 m and 0.25 rad, and the absolute gripper target in [0, 1].
"""

from typing import Any

import numpy as np

from jaxvla.envs import geometry, scene, tasks
from jaxvla.envs.items import OBSTACLES, SHAPES, SOLIDS, VESSELS, Item, bearing
from jaxvla.envs.rendering import CAMERAS, MAX_OPENING, Renderer
from jaxvla.envs.rollout import WorldSpec
from jaxvla.errors import ConfigError

# Pixels a side of the cameras. Demonstrations and evaluations take it alike: at another size the same scene gives other
# pictures, also after resizing.
CAMERA_SIZE = 128

# Actions a second, Hz, as on BridgeData's robots.
CONTROL_FREQUENCY = 5.0

MAX_TRANSLATION, MAX_ROTATION = 0.05, 0.25
GRIPPER_SPEED = 0.35

STATE_LOW = np.array([0.18, -0.17, 0.012, -np.pi / 4, -np.pi / 4, -np.pi / 2, 0.0])
STATE_HIGH = np.array([0.42, 0.17, 0.25, np.pi / 4, np.pi / 4, np.pi / 2, 1.0])
NEUTRAL_STATE = np.array([0.30, 0.0, 0.15, 0.0, 0.0, 0.0, 1.0])
START_SPREAD = 0.03

# Where the gripper is at first in episodes that begin anywhere: bounds of x, y, z (m), and how far it is turned (rad)
# from facing away from the robot.
ANYWHERE_LOW, ANYWHERE_HIGH = np.array([0.20, -0.15, 0.05]), np.array([0.40, 0.15, 0.21])
ANYWHERE_TURN = 0.5

# How far an object's centre may be from the point between the fingers, and how far it may be turned, to be caught.
GRASP_DISTANCE, GRASP_HEIGHT, GRASP_TURN = 0.02, 0.018, 0.35
RELEASE_OPENING = 0.08

# How near to the point between the fingers an obstacle touches them or what they hold, m.
GRIPPER_RADIUS = 0.035

# How far below a surface an object may be let go and still come to rest on it, m.
SINK = 0.015

Observation = dict[str, np.ndarray]


class TabletopEnv:
    """One table. Environments share nothing that changes, so many can run side by side.

    Args:
        image_size: pixels a side of the square images.
        render: whether observations hold images; most of the time of a step goes into them.
        max_steps: after which an episode is truncated.
        level: how much there is to tell apart, one of `scene.LEVELS`.

    Raises:
        ConfigError: there is no such level.

    Attributes (the truth about the world, for annotations; valid until the next step):
        items: containers, objects and obstacles, each with name, kind, color, position, yaw and support.
        task: the `tasks.Task` of the episode.
        state: float64 [7].
        desired_state: float64 [7], what the last action asked for.
        held: the item in the gripper, or None.
    """

    def __init__(
        self, image_size: int = CAMERA_SIZE, render: bool = True, max_steps: int = 60, level: str = "full"
    ) -> None:
        if level not in scene.LEVELS:
            raise ConfigError(f"no tabletop level named {level!r}; there are: {', '.join(scene.LEVELS)}")
        self.level = level
        self.image_size = image_size
        self.max_steps = max_steps
        self.items: list[Item] = []
        self.task: tasks.Task
        self.state = NEUTRAL_STATE.copy()
        self.desired_state = NEUTRAL_STATE.copy()
        self.held: Item | None = None
        self._grasp_offset = np.zeros(4)
        self._steps = 0
        self._renderer = Renderer(image_size) if render else None

    def reset(
        self, *, seed: int, task: str | None = None, anywhere: bool = False
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts the episode that `seed` determines.

        Args:
            seed: of the scene.
            task: one of the level's tasks; None for one that is drawn from the seed.
            anywhere: the gripper begins anywhere above the table, not near one pose.

        Raises:
            ConfigError: there is no such task on this level.
        """
        level = scene.LEVELS[self.level]
        if task not in (None, *level.all_tasks):
            known = ", ".join(level.all_tasks)
            raise ConfigError(f"no tabletop task named {task!r} on level {self.level}; there are: {known}")
        rng = np.random.default_rng(seed)
        drawn = level.tasks[rng.integers(len(level.tasks))]
        self.items, self.task = scene.sample_scene(task or drawn, level, rng)
        self.state = NEUTRAL_STATE.copy()
        self.state[:3] += rng.uniform(-START_SPREAD, START_SPREAD, 3)
        if anywhere:
            self.state[:3] = rng.uniform(ANYWHERE_LOW, ANYWHERE_HIGH)
        self.state[5] = bearing(*self.state[:2]) + (rng.uniform(-ANYWHERE_TURN, ANYWHERE_TURN) if anywhere else 0.0)
        self.held = None
        for item in self.items:
            if item.support == "gripper":
                self._begin_with(item)
        self.desired_state = self.state.copy()
        self._steps = 0
        if self._renderer:
            self._renderer.reset(self.containers)
        return self.observation(), self._info()

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Acts for 0.2 s. Returns observation, reward (1 at success), terminated (success), truncated, info.

        Raises:
            ValueError: the action is not seven finite numbers.
        """
        action = np.asarray(action, np.float64)
        if action.shape != (7,) or not np.isfinite(action).all():
            raise ValueError(f"an action is 7 finite numbers, not {action!r} of shape {action.shape}")
        self._move(action[:6])
        self._move_gripper(float(np.clip(action[6], 0, 1)))
        self._steps += 1
        success = self.success()
        truncated = not success and self._steps >= self.max_steps
        return self.observation(), float(success), success, truncated, self._info()

    def success(self) -> bool:
        """Whether the task is done: the target is released and rests where the instruction says."""
        return tasks.is_done(self.task, self.item(self.task.target), self.item(self.task.reference))

    def observation(self) -> Observation:
        """{images0, images1: uint8 [image_size, image_size, 3], proprio: float32 [7]}; no images without rendering."""
        solids = self.objects + self.obstacles
        images = self._renderer.render(solids, self.containers, self.state) if self._renderer else {}
        return {**images, "proprio": self.state.astype(np.float32)}

    @property
    def spec(self) -> WorldSpec:
        """What observations hold, and how long an action is."""
        cameras = tuple(CAMERAS) if self._renderer else ()
        return WorldSpec(cameras, len(STATE_LOW), len(STATE_LOW), CONTROL_FREQUENCY)

    @property
    def objects(self) -> list[Item]:
        """The items that can be moved."""
        return [item for item in self.items if item.kind in SHAPES]

    @property
    def obstacles(self) -> list[Item]:
        """The items that stand in the way of the gripper."""
        return [item for item in self.items if item.kind in OBSTACLES]

    @property
    def containers(self) -> list[Item]:
        """The items that objects can be put into."""
        return [item for item in self.items if item.kind in VESSELS]

    def item(self, name: str) -> Item:
        """The item called `name`."""
        return scene.find(self.items, name)

    def project(self, points: np.ndarray, camera: str) -> np.ndarray:
        """World points [n, 3] to pixels [n, 2] (u right, v down) of `camera`, a key of `rendering.CAMERAS`."""
        return CAMERAS[camera].project(points, self.image_size)[0]

    def box(self, name: str, camera: str) -> tuple[float, float, float, float]:
        """Pixels (left, top, right, bottom) of an item, clipped to the image; what hides it is ignored."""
        pixels = np.clip(self.project(self.item(name).vertices(), camera), 0, self.image_size)
        left, top, right, bottom = (*pixels.min(0), *pixels.max(0))
        return float(left), float(top), float(right), float(bottom)

    def gripper_pixel(self, camera: str) -> tuple[float, float]:
        """Pixel (u, v) of the point between the fingertips."""
        u, v = self.project(self.state[None, :3], camera)[0]
        return float(u), float(v)

    def _info(self) -> dict[str, Any]:
        return {"task": self.task.id, "instruction": self.task.instructions[0], "success": self.success()}

    def _move(self, delta: np.ndarray) -> None:
        translation = np.clip(delta[:3], -MAX_TRANSLATION, MAX_TRANSLATION)
        turn = geometry.rotation(*np.clip(delta[3:], -MAX_ROTATION, MAX_ROTATION))
        self.desired_state[:3] = self.state[:3] + translation
        self.desired_state[3:6] = geometry.euler(turn @ geometry.rotation(*self.state[3:6]))
        low = STATE_LOW[:6].copy()
        if self.held:  # the table stops what hangs below the fingers
            low[2] = max(low[2], SHAPES[self.held.kind].half_height - self._grasp_offset[2])
        self.state[:6] = self._stopped(np.clip(self.desired_state[:6], low, STATE_HIGH[:6]), low[2])
        if self.held:
            self._carry(self.held)

    def _stopped(self, wanted: np.ndarray, hang: float) -> np.ndarray:
        """Where the way to a pose [6] ends: obstacles stop what comes from the side, and carry what comes from above.

        Args:
            wanted: the pose without obstacles.
            hang: how far the gripper and what it holds reach below the point between the fingers, m.
        """
        for item in self.obstacles:
            center, reach = item.position[:2], item.radius + GRIPPER_RADIUS
            floor = item.position[2] + SOLIDS[item.kind].half_height + hang
            if self.state[2] < floor:
                way = wanted[:2] - self.state[:2]
                wanted[:2] = self.state[:2] + way * geometry.free_share(self.state[:2], wanted[:2], center, reach)
            elif np.linalg.norm(wanted[:2] - center) < reach:
                wanted[2] = max(wanted[2], floor)
        return wanted

    def _carry(self, item: Item) -> None:
        x, y, z, yaw = self._grasp_offset
        item.position = self.state[:3] + geometry.rotation(0.0, 0.0, self.state[5]) @ (x, y, z)
        item.yaw = float(self.state[5] + yaw)

    def _move_gripper(self, target: float) -> None:
        self.desired_state[6] = target
        opening = self.state[6]
        wanted = opening + np.clip(target - opening, -GRIPPER_SPEED, GRIPPER_SPEED)
        caught = self.held or (self._graspable() if wanted < opening else None)
        if caught is None:
            self.state[6] = wanted
            return
        touching = _grip_opening(caught)
        self.state[6] = max(wanted, touching)
        if self.held and wanted > touching + RELEASE_OPENING:
            self.held = None
            self._settle(caught)
        elif not self.held and wanted <= touching:
            self._attach(caught)

    def _graspable(self) -> Item | None:
        """The object between the fingers that would stop them, if any."""
        near = []
        for item in self.objects:
            across = np.linalg.norm((item.position - self.state[:3])[:2])
            above = abs(item.position[2] - self.state[2])
            turn = abs(geometry.nearest_turn(item.yaw - self.state[5], SHAPES[item.kind].yaw_period))
            reached = across <= GRASP_DISTANCE and above <= GRASP_HEIGHT and turn <= GRASP_TURN
            if reached and _grip_opening(item) <= self.state[6]:
                near.append((across, item))
        return min(near, key=lambda pair: pair[0])[1] if near else None

    def _attach(self, item: Item) -> None:
        """The fingers close on `item`, which they centre between them and turn parallel to themselves."""
        offset = geometry.rotation(0.0, 0.0, -self.state[5]) @ (item.position - self.state[:3])
        turn = item.yaw - self.state[5]
        turn -= geometry.nearest_turn(turn, SHAPES[item.kind].yaw_period)
        self._grasp_offset = np.array([offset[0], 0.0, offset[2], turn])
        self.held = item
        item.support = "gripper"
        self._carry(item)
        self._settle_riders(item)

    def _begin_with(self, item: Item) -> None:
        """Puts the gripper to where `item` is, and closes it."""
        self.state[:3] = item.position
        self.state[5] = bearing(*item.position[:2])
        self.state[6] = _grip_opening(item)
        self._attach(item)

    def _settle_riders(self, item: Item) -> None:
        for other in self.objects:
            if other.support == item.name:
                self._settle(other)

    def _settle(self, item: Item) -> None:
        """Drops `item` onto what is below it: a container, a flat top, or the table."""
        half_height = SHAPES[item.kind].half_height
        bottom = item.position[2] - half_height
        item.support, top = "table", 0.0
        for other in self.items:
            if other is item or other is self.held:
                continue
            height = _resting_height(other, float(np.linalg.norm((item.position - other.position)[:2])))
            if top < height <= bottom + SINK:
                item.support, top = other.name, height
        if item.support in (container.name for container in self.containers):
            self._slide_inside(item, self.item(item.support))
        elif item.support == "table":
            self._slide_aside(item)
        item.position = np.array([item.position[0], item.position[1], top + half_height])
        self._settle_riders(item)

    def _slide_inside(self, item: Item, container: Item) -> None:
        room = max(VESSELS[container.kind].floor_radius - item.radius, 0.0)
        offset = (item.position - container.position)[:2]
        excess = max(np.linalg.norm(offset) - room, 0.0)
        item.position[:2] -= offset / max(np.linalg.norm(offset), 1e-9) * excess

    def _slide_aside(self, item: Item) -> None:
        for other in self.items:
            if other is item or other.support != "table":
                continue
            offset = (item.position - other.position)[:2]
            distance = np.linalg.norm(offset)
            overlap = max(0.8 * (item.radius + other.radius) - distance, 0.0)
            item.position[:2] += offset / max(distance, 1e-9) * overlap


def _grip_opening(item: Item) -> float:
    """The gripper opening at which the fingers touch `item`."""
    return SHAPES[item.kind].grip_width / MAX_OPENING


def _resting_height(item: Item, distance: float) -> float:
    """How high the surface is that `item` offers at `distance` (m) from its axis; 0 where it offers none."""
    if item.kind in VESSELS:
        return VESSELS[item.kind].floor_height if distance < VESSELS[item.kind].inner_radius else 0.0
    shape = SOLIDS[item.kind]
    return item.position[2] + shape.half_height if shape.flat_top and distance < 0.8 * shape.radius else 0.0
