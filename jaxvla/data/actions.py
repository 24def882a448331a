"""Action transforms of trajectories: relabelling to the reached state, gripper binarization, chunks, histories."""

import numpy as np

from jaxvla.errors import ConfigError

OPEN_ABOVE = 0.95
CLOSED_BELOW = 0.05


def binarize_gripper(gripper: np.ndarray) -> np.ndarray:
    """Turns a continuous absolute gripper signal [T] (1 open, 0 closed) into 0 and 1.

    Values between the thresholds take the state that is reached after them; an undecided tail keeps its last raw value.
    The rule of bridge_data_v2, Octo and OpenVLA (`binarize_gripper_actions`).
    """
    decided = (gripper > OPEN_ABOVE) | (gripper < CLOSED_BELOW)
    # For each step the index of the next decided step, itself included; T where none follows.
    following = np.where(decided, np.arange(len(gripper)), len(gripper))
    following = np.minimum.accumulate(following[::-1])[::-1]
    values = np.append(np.where(gripper > OPEN_ABOVE, 1, 0), gripper[-1]).astype(gripper.dtype)
    return values[following]


def relabel_actions(actions: np.ndarray, proprio: np.ndarray) -> np.ndarray:
    """Replaces commanded movements by reached ones and binarizes the gripper.

    The controller of BridgeData does not wait for a command to be reached, so the difference of two states describes a
    transition better than the command. Plain subtraction, angles are not wrapped, as in bridge_data_v2.

    Args:
        actions: [T, 7], the absolute gripper last.
        proprio: [T + 1, 7], position and angles first.

    Returns:
        float32 [T, 7].

    Raises:
        ConfigError: actions or proprio that do not have this layout.
    """
    if actions.shape[1] != 7 or proprio.shape[1] < 6:
        raise ConfigError(
            f"relabel_actions needs 7 action and at least 6 proprio dimensions, not {actions.shape[1]} and "
            f"{proprio.shape[1]}: set config.data.relabel_actions=False"
        )
    movement = proprio[1:, :6] - proprio[:-1, :6]
    return np.concatenate([movement, binarize_gripper(actions[:, 6])[:, None]], axis=1).astype(np.float32)


def chunk_steps(step: np.ndarray, length: np.ndarray, horizon: int) -> tuple[np.ndarray, np.ndarray]:
    """The transitions of the action chunk that starts at `step` of a trajectory of `length` transitions; each [b].

    Returns:
        steps int64 [b, horizon], the last action repeated beyond the end, and a bool mask, True inside the trajectory.
    """
    ahead = step[:, None] + np.arange(horizon)
    last = length[:, None] - 1
    return np.minimum(ahead, last), ahead <= last


def history_steps(step: np.ndarray, horizon: int) -> np.ndarray:
    """The frames that an observation at `step` [b] shows, oldest first, the first repeated: int64 [b, horizon]."""
    return np.maximum(step[:, None] + np.arange(1 - horizon, 1), 0)
