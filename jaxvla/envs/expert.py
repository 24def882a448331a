"""A scripted expert for the tabletop, and the demonstrations it gives."""

import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from jaxvla.envs import geometry, tasks
from jaxvla.envs.items import SHAPES, bearing
from jaxvla.envs.scene import CARRY
from jaxvla.envs.tabletop import GRIPPER_RADIUS, Observation, TabletopEnv

PICK_PHASES = ("start", "approach", "descend", "grasp", "lift")
PLACE_PHASES = ("transport", "lower", "release", "retreat")
PHASES = PICK_PHASES + PLACE_PHASES

# Heights of the point between the fingers, m: over an object, where carrying sideways may begin, and above the resting
# place when letting go.
HOVER, LIFTED, DROP = 0.10, 0.09, 0.008

# Proportional control: share of the remaining way per step, and the most per step (m, rad).
GAIN, MAX_STEP, MAX_TURN = 0.6, 0.02, 0.12

# How near (m, rad) a waypoint counts as reached. Above one, the gripper sinks as it comes within FUNNEL sideways.
REACHED, REACHED_TURN, FUNNEL = 0.008, 0.08, 0.03

# How far beyond what touches an obstacle the way around it leads, and how far ahead the waypoint on it is at least, m:
# farther than FUNNEL, so that it does not count as reached.
DETOUR_MARGIN, LOOK_AHEAD = 0.02, 0.05

# A push lasts one to PUSH_STEPS steps, each of a length up to PUSH_LENGTH (m) and a turn up to PUSH_TURN (rad). It
# comes only while the gripper is under way.
PUSH_STEPS, PUSH_LENGTH, PUSH_TURN = 3, 0.035, 0.2
PUSHED_PHASES = ("approach", "descend", "lift", "transport", "lower")

# A grasp that misses is aimed this far beside the object (m); empty fingers go on for up to MISS_STEPS steps.
MISS_NEAR, MISS_FAR, MISS_STEPS = 0.024, 0.045, 25

# The gripper's opening below which nothing is between its fingers.
CLOSED = 0.05

# Exploration noise: standard deviation per step in x, y, z (m) and yaw (rad), and its correlation with the step before.
NOISE, NOISE_MEMORY = np.array([0.0012, 0.0012, 0.0012, 0.008]), 0.7


@dataclasses.dataclass(frozen=True, eq=False)
class Decision:
    """What the expert does at one step, and why.

    Attributes:
        phase: one of `PHASES`.
        target: the name of the item that the phase is about: the object to pick, then the reference of its place.
        waypoint: float64 [3], where the gripper is heading, m.
        action: float32 [7].
        taught: whether it is to be imitated; not where something pushes the gripper off its way, nor where it aims
            beside the object, until it is seen that the object is not in hand.
    """

    phase: str
    target: str
    waypoint: np.ndarray
    action: np.ndarray
    taught: bool = True


@dataclasses.dataclass(eq=False)
class Miss:
    """A grasp that is to fail: how far beside the object it is aimed, float64 [2] in m, and for how long unseen."""

    offset: np.ndarray
    steps_left: int


class Expert:
    """Decides one step at a time; reads the truth from `env` and never changes it.

    Args:
        env: the world.
        rng: of noise, pushes and misses.
        push_rate: the probability with which a push begins at a step.
        miss_rate: the probability with which the first grasp misses.
    """

    def __init__(
        self, env: TabletopEnv, rng: np.random.Generator, push_rate: float = 0.0, miss_rate: float = 0.0
    ) -> None:
        self.phase = "start"
        self._env = env
        self._rng = rng
        self._push_rate = push_rate
        self._miss = self._draw_miss(miss_rate) if miss_rate else None
        self._push = np.zeros(6)
        self._pushed_steps = 0
        self._noise = np.zeros(4)
        self._phase_start = np.zeros(3)
        self._decisions = 0
        self._side = rng.choice([-1.0, 1.0]) if env.obstacles else 0.0

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.phase == "retreat" and self._is_reached()

    def decide(self) -> Decision:
        """The decision for the state that `env` is in.

        An episode begins with doing nothing, as in teleoperation; one that begins with the object in hand, at once.
        """
        while self.phase != "retreat" and self._is_reached():
            self.phase = PHASES[PHASES.index(self.phase) + 1]
            self._phase_start = self._env.state[:3].copy()
        if self._miss and self._is_noticed(self._miss):
            self._miss = None
            if self._env.held is None:
                self.phase = "approach"
        waypoint, yaw, gripper = self._waypoint()
        motion = np.zeros(6)
        if self.phase not in ("start", "grasp", "release"):
            motion[[0, 1, 2, 5]] = self._motion(waypoint, yaw)
        task = self._env.task
        target = task.target if self.phase in PICK_PHASES else task.reference
        self._decisions += 1
        pushed = self._is_pushed()
        action = np.append(self._push if pushed else motion, gripper).astype(np.float32)
        return Decision(self.phase, target, waypoint, action, not pushed and not self._miss)

    def _draw_miss(self, miss_rate: float) -> Miss | None:
        if self._rng.random() >= miss_rate:
            return None
        length, way = self._rng.uniform(MISS_NEAR, MISS_FAR), self._rng.uniform(-math.pi, math.pi)
        offset = length * np.array([math.cos(way), math.sin(way)])
        return Miss(offset, int(self._rng.integers(MISS_STEPS + 1)))

    def _is_noticed(self, miss: Miss) -> bool:
        """Whether the expert sees by now what it holds, or that it holds nothing."""
        if self.phase not in ("lift", *PLACE_PHASES):
            return self._env.held is not None
        miss.steps_left -= 1
        return self._env.held is not None or miss.steps_left < 0 or self.phase in ("release", "retreat")

    def _is_pushed(self) -> bool:
        """Whether a push goes on, or begins, at this step; draws its direction as it begins."""
        if self.phase not in PUSHED_PHASES:
            self._pushed_steps = 0
        elif self._pushed_steps:
            self._pushed_steps -= 1
        elif self._push_rate and self._rng.random() < self._push_rate:
            way = self._rng.standard_normal(3)
            self._push[:3] = way / np.linalg.norm(way) * PUSH_LENGTH * self._rng.uniform(0.3, 1.0)
            self._push[5] = self._rng.uniform(-PUSH_TURN, PUSH_TURN)
            self._pushed_steps = int(self._rng.integers(1, PUSH_STEPS + 1))
        return self._pushed_steps > 0

    def _waypoint(self) -> tuple[np.ndarray, float, float]:
        """Position [3], yaw and gripper target of the current phase."""
        task, state, phase = self._env.task, self._env.state, self.phase
        item = self._env.item(task.target)
        if phase == "start":
            return state[:3], state[5], 1.0
        if phase in ("approach", "descend", "grasp"):
            x, y, z = item.position + (np.append(self._miss.offset, 0.0) if self._miss else 0.0)
            yaw = bearing(x, y)
            yaw += geometry.nearest_turn(item.yaw - yaw, SHAPES[item.kind].yaw_period)
            return np.array([x, y, self._funnel(x, y, z, HOVER)]), yaw, float(phase != "grasp")
        if phase == "lift":
            return np.array([*self._phase_start[:2], CARRY]), state[5], 0.0
        x, y, z = tasks.place_position(task, item, self._env.item(task.reference))
        height = CARRY if phase == "retreat" else self._funnel(x, y, z + DROP, CARRY)
        ahead = self._ahead(np.array([x, y])) if phase == "transport" else (x, y)
        return np.array([*ahead, height]), bearing(x, y), float(phase in ("release", "retreat"))

    def _ahead(self, end: np.ndarray) -> np.ndarray:
        """Where to head [2] on the way to `end`: straight there, or along the tangent of a circle about an obstacle."""
        here = self._env.state[:2]
        for item in self._env.obstacles:
            radius, offset = item.radius + GRIPPER_RADIUS + DETOUR_MARGIN, item.position[:2] - here
            if geometry.free_share(here, end, item.position[:2], radius) < 1:
                distance = max(np.linalg.norm(offset), radius)
                turn = geometry.rotation(0.0, 0.0, self._side * math.asin(radius / distance))[:2, :2]
                length = max(math.sqrt(distance**2 - radius**2), LOOK_AHEAD)
                return here + turn @ offset * (length / np.linalg.norm(offset))
        return end

    def _funnel(self, x: float, y: float, low: float, high: float) -> float:
        """`low` above the point (x, y), rising to `high` at FUNNEL from there."""
        share = (self._distance(x, y) - REACHED) / (FUNNEL - REACHED)
        return low + (high - low) * float(np.clip(share, 0, 1))

    def _distance(self, x: float, y: float) -> float:
        return math.hypot(x - self._env.state[0], y - self._env.state[1])

    def _is_reached(self) -> bool:
        env, phase = self._env, self.phase
        if phase == "start":
            return self._decisions > 0 or env.held is not None
        if phase == "grasp":
            return env.held is not None or bool(self._miss and env.state[6] < CLOSED)
        if phase == "release":
            return bool(env.state[6] > 0.95)
        if phase in ("lift", "retreat"):
            return bool(env.state[2] > (LIFTED if phase == "lift" else HOVER))
        waypoint, yaw, _ = self._waypoint()
        if phase in ("approach", "transport"):
            return self._distance(*waypoint[:2]) < FUNNEL
        near = np.abs(waypoint - env.state[:3]).max() < REACHED
        return bool(near and abs(yaw - env.state[5]) < REACHED_TURN)

    def _motion(self, waypoint: np.ndarray, yaw: float) -> np.ndarray:
        """The step in x, y, z and yaw, noise included."""
        state = self._env.state
        way = GAIN * (waypoint - state[:3])
        way[:2] *= min(1.0, MAX_STEP / max(np.linalg.norm(way[:2]), 1e-9))
        way[2] = np.clip(way[2], -MAX_STEP, MAX_STEP)
        turn = np.clip(GAIN * (yaw - state[5]), -MAX_TURN, MAX_TURN)
        fresh = self._rng.standard_normal(4) * NOISE
        self._noise = NOISE_MEMORY * self._noise + np.sqrt(1 - NOISE_MEMORY**2) * fresh
        return np.append(way, turn) + self._noise


def demonstrate(
    env: TabletopEnv,
    seed: int,
    task: str | None = None,
    *,
    anywhere: bool = False,
    push_rate: float = 0.0,
    miss_rate: float = 0.0,
) -> Iterator[tuple[Observation, Decision | None]]:
    """Runs one episode and yields each frame with the expert's decision for it; the last frame with None.

    Args:
        env: the world.
        seed, task, anywhere: of the episode, see `TabletopEnv.reset`.
        push_rate, miss_rate: the probability with which a push begins at a step, and with which the first grasp misses,
            so that recovery from errors is shown, too.

    Between two yields `env` holds the world of the frame just yielded. The demonstration succeeded if `env.success()`
    holds at its end.
    """
    observation, _ = env.reset(seed=seed, task=task, anywhere=anywhere)
    expert = Expert(env, np.random.default_rng([seed, 1]), push_rate, miss_rate)
    for _ in range(env.max_steps):
        if expert.done:
            break
        decision = expert.decide()
        yield observation, decision
        observation, *_ = env.step(decision.action)
    yield observation, None
