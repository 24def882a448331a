"""Gripper signals to 1 open, 0 closed, for what `transforms.actions.binarize_gripper` cannot take yet."""

import numpy as np

# A relative command below this, either way, is none.
_COMMAND = 0.1


def invert(gripper: np.ndarray) -> np.ndarray:
    """1 - `gripper`: of a signal that is 1 where the gripper is closed."""
    return 1 - gripper


def invert_clipped(gripper: np.ndarray) -> np.ndarray:
    """The same of a signal of which all that is not positive means open, such as one from -1 (open) to 1 (closed)."""
    return invert(np.clip(gripper, 0, 1))


def from_relative(command: np.ndarray) -> np.ndarray:
    """What a gripper does by relative commands [n, 1], positive to close it: float32 [n, 1], 1 open and 0 closed.

    It stays as it was last told. Before the first command it is what that command changes; without any it is open.
    The rule of Octo and OpenVLA (`rel2abs_gripper_actions`).
    """
    flat = command[:, 0]
    told = np.abs(flat) > _COMMAND
    if not told.any():
        return np.ones((len(flat), 1), np.float32)
    opened = (flat < 0).astype(np.float32)
    last = np.maximum.accumulate(np.where(told, np.arange(len(flat)), -1))
    before = 1 - opened[np.argmax(told)]
    return np.where(last < 0, before, opened[last])[:, None].astype(np.float32)
