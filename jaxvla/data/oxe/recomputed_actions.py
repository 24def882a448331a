"""Standardizations that make actions anew, of the states that were reached, or leave steps out."""

import numpy as np

from jaxvla.data.oxe import grippers
from jaxvla.data.oxe.registry import Variant
from jaxvla.data.oxe.standard import Rows, columns, reads
from jaxvla.data.skipping import UnusableError
from jaxvla.data.transforms.actions import binarize_gripper

_PARTS = ("EEF_state", "gripper_state")

# Of how many steps one is kept, so that an action takes about as long as in other datasets: 10 Hz from 30 and 50.
_RPT_STRIDE = 3
_ALOHA_STRIDE = 5
_GNM_STRIDE = 3


def _reached(state: np.ndarray) -> np.ndarray:
    """The movements [n - 1, k] from each state [n, k] to the next."""
    return state[1:] - state[:-1]


def _bridge(gripper: np.ndarray, state: np.ndarray, first: int) -> Rows:
    """Reached movements, and a gripper, from step `first` on."""
    steps = np.arange(first, len(state))
    actions = columns(_reached(state[steps, :6]), gripper[steps[:-1], None])
    return Rows(actions, (state[:, :6], state[:, -1:]), steps)


@reads("action", "observation/state", makes=_PARTS, default="openvla")
def bridge(action: np.ndarray, state: np.ndarray, variant: Variant) -> Rows:
    """The movement that was reached takes the place of the command, and the gripper becomes binary.

    OpenVLA leaves the first step out, whose command is nothing but the default; Octo keeps it, with what was reached.
    """
    return _bridge(binarize_gripper(action[:, -1]), state, 1 if variant == "openvla" else 0)


@reads("action/open_gripper", "observation/state", makes=_PARTS)
def bridge_oxe(opened: np.ndarray, state: np.ndarray) -> Rows:
    """The same of the copy in Open X-Embodiment, whose gripper is binary, and which OpenVLA alone knows."""
    return _bridge(opened[:, 0], state, 1)


@reads("action", "observation/joint_pos", default="octo")
def rpt(action: np.ndarray, joints: np.ndarray, variant: Variant) -> Rows:
    """Seven joint movements and a gripper that is 1 closed.

    Octo keeps every third step, makes the movements anew and inverts the gripper. OpenVLA leaves all as it is, and does
    not load the dataset.
    """
    if variant == "openvla":
        return Rows(action)
    steps = np.arange(0, len(action), _RPT_STRIDE)
    gripper = grippers.invert(action[steps[:-1], -1:])
    return Rows(columns(_reached(joints[steps, :7]), gripper), steps=steps)


@reads("action")
def aloha(action: np.ndarray) -> Rows:
    """Joints to reach, of which every fifth step is kept."""
    steps = np.arange(0, len(action), _ALOHA_STRIDE)
    return Rows(action[steps], steps=steps)


@reads("action", "observation/position", "observation/yaw")
def gnm(action: np.ndarray, position: np.ndarray, yaw: np.ndarray) -> Rows:
    """Every third step, and the movement from one to the next in the frame of the base.

    Movements are scaled as the actions are, each of the datasets in it by a length of its own: by what the first action
    says of the first movement.

    Raises:
        UnusableError: nothing moves in the first step, so that there is no scale.
    """
    steps = np.arange(0, len(action), _GNM_STRIDE)
    if len(action) < 2:
        return Rows(np.empty((0, 2)), steps=steps)
    moved = np.linalg.norm(position[1] - position[0])
    if not moved:
        raise UnusableError("no scale for actions", "gnm_dataset: observation/position is the same at steps 0 and 1")
    delta, angle = _reached(position[steps]), yaw[steps[:-1], 0]
    cos, sin = np.cos(angle), np.sin(angle)
    forward, left = cos * delta[:, 0] + sin * delta[:, 1], cos * delta[:, 1] - sin * delta[:, 0]
    return Rows(np.stack([forward, left], 1) * np.linalg.norm(action[0]) / moved, steps=steps)
