"""What a robot may be told: every action goes through `Guard`, and no other way."""

import dataclasses

import numpy as np

from jaxvla.errors import RobotError
from jaxvla.robots.service import ACTION_DIM, CLOSED, OPEN, STATE_DIM

# x, y, z (m), yaw (rad): where BridgeData's evaluations let a WidowX go.
WORKSPACE = ((0.1, -0.15, -0.01, -1.57), (0.45, 0.25, 0.25, 1.57))

# The most that a step moves (m) and turns (rad) along and about each axis: what the data was collected with.
MAX_TRANSLATION, MAX_ROTATION = 0.05, 0.25

# How far outside of the bounds a measured position (m) and yaw (rad) may be: the arm bends, and its angles are rounded.
TOLERANCE = np.array([0.03, 0.03, 0.03, 0.2])

_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_BOUNDED = [0, 1, 2, 5]


@dataclasses.dataclass(frozen=True)
class Bounds:
    """Where the point between the fingertips may be.

    Attributes:
        low, high: x, y, z (m) and yaw (rad).

    Raises:
        RobotError: nothing lies between them.
    """

    low: tuple[float, float, float, float] = WORKSPACE[0]
    high: tuple[float, float, float, float] = WORKSPACE[1]

    def __post_init__(self) -> None:
        if not np.all(np.less(self.low, self.high)):
            raise RobotError(f"nothing lies between the bounds {self.low} and {self.high}: x, y, z in m, yaw in rad")


class Guard:
    """Clips the actions of one episode, and stops it where clipping is not enough.

    The service moves on from the last pose that it was told, not from the one that is reached. So the guard adds up
    what it lets pass, and bounds the sum.

    Args:
        bounds: of the poses.

    Attributes:
        clipped: how many actions were changed.
    """

    def __init__(self, bounds: Bounds) -> None:
        self.bounds, self.clipped = bounds, 0
        self._target: np.ndarray | None = None

    def begin(self, state: np.ndarray) -> None:
        """Begins an episode at a state [7].

        Raises:
            RobotError: as `check`.
        """
        self.check(state)
        self._target, self.clipped = state[_BOUNDED].copy(), 0

    def check(self, state: np.ndarray) -> None:
        """Lets a robot go on that is where it may be.

        Raises:
            RobotError: its state is not 7 finite numbers, or outside of the bounds by more than measuring explains.
        """
        if state.shape != (STATE_DIM,) or not np.isfinite(state).all():
            raise RobotError(f"the robot says that its state is {state.tolist()}; expected {STATE_DIM} finite numbers")
        pose = state[_BOUNDED]
        outside = np.flatnonzero((pose < self.bounds.low - TOLERANCE) | (pose > self.bounds.high + TOLERANCE))
        if len(outside):
            d = outside[0]
            raise RobotError(
                f"the gripper is out of bounds: {_NAMES[_BOUNDED[d]]} is {pose[d]:.3f}, admitted are "
                f"{self.bounds.low[d]:g} to {self.bounds.high[d]:g}; move the arm back by hand, or set --bounds"
            )

    def admit(self, action: np.ndarray) -> np.ndarray:
        """The action [7] that may be played, of one that was decided: within a step's limits and the workspace.

        Raises:
            RobotError: as `check_action`.
        """
        admitted = check_action(action).astype(np.float64)
        admitted[:3] = np.clip(admitted[:3], -MAX_TRANSLATION, MAX_TRANSLATION)
        admitted[3:6] = np.clip(admitted[3:6], -MAX_ROTATION, MAX_ROTATION)
        admitted[6] = np.clip(admitted[6], CLOSED, OPEN)
        # A target that is outside already, as of an arm that begins at the edge, may come back and go no further.
        low, high = np.minimum(self.bounds.low, self._target), np.maximum(self.bounds.high, self._target)
        target = np.clip(self._target + admitted[_BOUNDED], low, high)
        admitted[_BOUNDED] = target - self._target
        self._target = target
        self.clipped += not np.allclose(admitted, action, atol=1e-6)
        return admitted


def check_action(action: np.ndarray) -> np.ndarray:
    """The action, if it is one.

    Raises:
        RobotError: it is not 7 finite numbers.
    """
    if action.shape != (ACTION_DIM,) or action.dtype.kind != "f" or not np.isfinite(action).all():
        given = np.round(action, 4).tolist() if action.dtype.kind == "f" else str(action)[:80]
        raise RobotError(
            f"the policy gave the action {given}; expected {ACTION_DIM} finite numbers: {', '.join(_NAMES)}"
        )
    return action


class Gripper:
    """Opens and closes the gripper all the way, and only when several decisions in a row say so.

    Args:
        steps: how many; 1 follows every decision.
        opening: how it is at first, 1 open or 0 closed.
    """

    def __init__(self, steps: int = 1, opening: float = OPEN) -> None:
        self._steps, self.opening, self._against = steps, opening, 0

    def decide(self, wanted: float) -> float:
        """What the gripper is told, 1 or 0, of what a policy wants, 0 to 1."""
        opposite = (wanted > 0.5) != (self.opening > 0.5)
        self._against = self._against + 1 if opposite else 0
        if self._against >= self._steps:
            self.opening, self._against = OPEN + CLOSED - self.opening, 0
        return self.opening
