"""What a dataset's actions are, and their transforms: relabelling to the reached state, binary grippers, chunks."""

import dataclasses

import numpy as np

from jaxvla.data.schema import Trajectory
from jaxvla.errors import ConfigError

# Of the way from closed to open; between them a gripper is undecided.
OPEN_ABOVE = 0.95
CLOSED_BELOW = 0.05

_WHERE = "bridgedata_config.actions"


@dataclasses.dataclass(frozen=True)
class ActionConvention:
    """What a dataset says of its actions; the keys of bridgedata_config.actions. Nothing said, nothing done.

    Attributes:
        relabel: commanded movements are replaced by reached ones: each dimension but the gripper becomes the difference
            of two successive states in the proprio dimension of the same number. For actions that are such differences,
            of a pose or of joints, and for no others.
        gripper: the dimensions that are absolute states of a gripper; empty for none.
        open, closed: what they are then, in the units of the data.
        binarize: gripper values become `open` or `closed`, see `binarize_gripper`.
        angles: the dimensions of the proprio, and of movements, that are angles (rad) and may jump by 2 pi.
        wrap: differences of these angles are taken the short way round, within [-pi, pi].
        names: of all action dimensions, with their units, for plots and reports; empty to number them.

    Raises:
        ConfigError: keys that contradict each other.
    """

    relabel: bool = False
    gripper: tuple[int, ...] = ()
    open: float = 1.0
    closed: float = 0.0
    binarize: bool = False
    angles: tuple[int, ...] = ()
    wrap: bool = False
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not np.isfinite([self.open, self.closed]).all() or self.open == self.closed:
            raise ConfigError(f"{_WHERE}.open and closed must be two numbers, not {self.open} and {self.closed}")
        for key, needed in {"binarize": "gripper", "wrap": "angles"}.items():
            if getattr(self, key) and not getattr(self, needed):
                raise ConfigError(f"{_WHERE}.{key} needs the numbers of dimensions in {_WHERE}.{needed}")

    def check(self, action_dim: int, proprio_dim: int) -> None:
        """Raises ConfigError where data of these dimensions cannot be what is said."""
        for key, dims, what in (("gripper", action_dim, "actions"), ("angles", proprio_dim, "proprio")):
            numbers = getattr(self, key)
            if len(set(numbers)) < len(numbers) or not set(numbers) <= set(range(dims)):
                raise ConfigError(
                    f"{_WHERE}.{key} must be different numbers from 0 to {dims - 1}, for {what} of {dims} dimensions, "
                    f"not {numbers}"
                )
        if self.names and len(self.names) != action_dim:
            raise ConfigError(f"{_WHERE}.names has {len(self.names)} entries for {action_dim} action dimensions")
        beyond = [d for d in self.movements(action_dim) if d >= proprio_dim]
        if self.relabel and beyond:
            raise ConfigError(
                f"relabelling makes action {beyond[0]} the difference of proprio dimension {beyond[0]}, but the "
                f"proprio has {proprio_dim} dimensions: set config.data.relabel_actions=False, or {_WHERE}.gripper"
            )

    def movements(self, action_dim: int) -> tuple[int, ...]:
        """The dimensions that are not a gripper's."""
        return tuple(d for d in range(action_dim) if d not in self.gripper)

    def labels(self, action_dim: int) -> tuple[str, ...]:
        """A name for each dimension."""
        gripper = f"({self.open:g} open, {self.closed:g} closed)"
        numbered = (f"gripper {d} {gripper}" if d in self.gripper else f"action {d}" for d in range(action_dim))
        return self.names or tuple(numbered)

    def __call__(self, trajectory: Trajectory) -> Trajectory:
        """The trajectory with the actions that a policy learns."""
        return dataclasses.replace(trajectory, actions=self.transform(trajectory.actions, trajectory.proprio))

    def transform(self, actions: np.ndarray, proprio: np.ndarray) -> np.ndarray:
        """What a policy learns of one trajectory: float32 [T, d], of actions [T, d] and proprio [T + 1, p]."""
        actions = actions.astype(np.float32)
        if self.relabel:
            moving = list(self.movements(actions.shape[1]))
            actions[:, moving] = self.differences(proprio[:-1], proprio[1:])[:, moving]
        if self.binarize:
            for d in self.gripper:
                actions[:, d] = binarize_gripper(actions[:, d], self.open, self.closed)
        return actions

    def differences(self, before: np.ndarray, after: np.ndarray) -> np.ndarray:
        """after - before, float64 [n, p] in the units of the proprio.

        The controller of BridgeData does not wait for a command to be reached, so the difference of two states
        describes a transition better than the command. Angles are subtracted plainly, as in bridge_data_v2, unless they
        are to `wrap`.
        """
        difference = after.astype(np.float64) - before
        if self.wrap:
            angles = list(self.angles)
            difference[:, angles] -= 2 * np.pi * np.round(difference[:, angles] / (2 * np.pi))
        return difference


def binarize_gripper(gripper: np.ndarray, opened: float = 1.0, closed: float = 0.0) -> np.ndarray:
    """Turns a continuous absolute gripper signal [T] into its two ends, `opened` and `closed`.

    Values between the thresholds take the state that is reached after them; an undecided tail keeps its last raw value.
    The rule of bridge_data_v2, Octo and OpenVLA (`binarize_gripper_actions`), whose ends are 1 and 0.
    """
    opening = (gripper - closed) / (opened - closed)
    decided = (opening > OPEN_ABOVE) | (opening < CLOSED_BELOW)
    # For each step the index of the next decided step, itself included; T where none follows.
    following = np.where(decided, np.arange(len(gripper)), len(gripper))
    following = np.minimum.accumulate(following[::-1])[::-1]
    values = np.append(np.where(opening > OPEN_ABOVE, opened, closed), gripper[-1]).astype(gripper.dtype)
    return values[following]


def chunk_steps(step: np.ndarray, length: np.ndarray, horizon: int) -> np.ndarray:
    """The transitions of the action chunk that starts at `step` of a trajectory of `length` transitions; each [b].

    Returns:
        int64 [b, horizon], the last one repeated beyond the end.
    """
    return np.minimum(step[:, None] + np.arange(horizon), length[:, None] - 1)


def history_steps(step: np.ndarray, horizon: int) -> np.ndarray:
    """The frames that an observation at `step` [b] shows, oldest first, the first repeated: int64 [b, horizon]."""
    return np.maximum(step[:, None] + np.arange(1 - horizon, 1), 0)
