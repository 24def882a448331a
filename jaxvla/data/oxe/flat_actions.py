"""Standardizations of datasets that store an action as a vector, nearly all of them converted from another format.

Both peers take the gripper as 1 open where nothing inverts it here. Of some datasets the published description says
otherwise: it has 1 for closed in nyu_rot and stanford_mask_vit, a torque in ucsd_pick_and_place, and joint velocities
for all of the action in asu_table_top. None of these is in a mixture that either of them trains on.
"""

import numpy as np

from jaxvla.data.oxe import grippers
from jaxvla.data.oxe.registry import Variant
from jaxvla.data.oxe.rotations import euler_from_quaternion
from jaxvla.data.oxe.standard import Rows, columns, reads, zeros
from jaxvla.data.transforms.actions import binarize_gripper

_EEF = ("eef_state", "gripper_state")
_JOINTS = ("joint_state", "gripper_state")
_ACTION_AND_STATE = ("action", "observation/state")


def _pose(state: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of a state that begins with position and angles, and ends with the gripper, these two parts."""
    return state[:, :6], state[:, -1:]


def _yaw_alone(values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of values [n, 5] (x, y, z, an angle, gripper) the first six of a pose, as both peers fill it up, and the gripper.

    The one angle, a yaw, comes to stand where the roll does.
    """
    return columns(values[:, :4], zeros(values, 2)), values[:, -1:]


# Actions as they are, or a part of them.


@reads("action")
def unchanged(action: np.ndarray) -> Rows:
    """Actions and states as they are stored."""
    return Rows(action)


@reads("action")
def without_last(action: np.ndarray) -> Rows:
    """The last number tells that the episode ends."""
    return Rows(action[:, :-1])


@reads("action")
def right_arm(action: np.ndarray) -> Rows:
    """Of two arms the right one, which comes last."""
    return Rows(action[:, -7:])


@reads("action")
def play_fusion(action: np.ndarray) -> Rows:
    """Nine numbers: the position, two that are left out, the angles and the gripper."""
    return Rows(columns(action[:, :3], action[:, -4:]))


@reads("action")
def translation(action: np.ndarray) -> Rows:
    """Three numbers that move the hand; nothing turns it, and there is no gripper: 0."""
    return Rows(columns(action, zeros(action, 4)))


@reads("action")
def no_rotation(action: np.ndarray) -> Rows:
    """Four numbers, movement and gripper; nothing turns the hand."""
    return Rows(columns(action[:, :3], zeros(action, 3), action[:, -1:]))


@reads("action")
def language_table(action: np.ndarray) -> Rows:
    """Two numbers that move a stick on a table; a gripper that is not there counts as open."""
    return Rows(columns(action, zeros(action, 4), np.ones((len(action), 1))))


@reads(*_ACTION_AND_STATE, makes=_EEF)
def pose_state(action: np.ndarray, state: np.ndarray) -> Rows:
    """Actions as they are; the state is a pose and a gripper, and perhaps something between them."""
    return Rows(action[:, :7], _pose(state))


@reads(*_ACTION_AND_STATE, makes=("gripper_state",))
def maniskill(action: np.ndarray, state: np.ndarray) -> Rows:
    """The gripper's state stands behind seven joints."""
    return Rows(action, (state[:, 7:8],))


@reads(*_ACTION_AND_STATE, makes=("state",))
def sara_grid_clamp(action: np.ndarray, state: np.ndarray) -> Rows:
    """The state is a pose and a wrench."""
    return Rows(action, (state[:, :6],))


@reads("action", "ground_truth_states/EE", "observation/state", makes=_EEF)
def asu(action: np.ndarray, pose: np.ndarray, joints: np.ndarray) -> Rows:
    """The pose stands apart from the observation, which has joints and the gripper."""
    return Rows(action, (pose, joints[:, -1:]))


@reads(*_ACTION_AND_STATE, makes=_EEF)
def pr2(action: np.ndarray, state: np.ndarray) -> Rows:
    """The last number of the action tells that the episode ends."""
    return Rows(action[:, :-1], _pose(state))


@reads(*_ACTION_AND_STATE, makes=_EEF)
def stretch(action: np.ndarray, state: np.ndarray) -> Rows:
    """The same; the state is a position and a gripper."""
    return Rows(action[:, :-1], (columns(state[:, :3], zeros(state, 3)), state[:, -1:]))


@reads(*_ACTION_AND_STATE, makes=("joint_state",))
def ucsd_kitchen(action: np.ndarray, state: np.ndarray) -> Rows:
    """The last number of the action tells that the episode ends; the state begins with seven joints."""
    return Rows(action[:, :-1], (state[:, :7],))


@reads(*_ACTION_AND_STATE, makes=_EEF)
def ucsd_pick_place(action: np.ndarray, state: np.ndarray) -> Rows:
    """Four numbers, velocity and gripper; nothing turns the hand."""
    return Rows(columns(action[:, :3], zeros(action, 3), action[:, -1:]), _pose(state))


@reads(*_ACTION_AND_STATE, makes=_EEF)
def robo_net(action: np.ndarray, state: np.ndarray) -> Rows:
    """A hand that turns about one axis."""
    return Rows(columns(*_yaw_alone(action)), _yaw_alone(state))


@reads("action", "observation/end_effector_pose", makes=_EEF)
def mask_vit(action: np.ndarray, state: np.ndarray) -> Rows:
    """A hand that turns about one axis, likewise."""
    return Rows(columns(*_yaw_alone(action)), _yaw_alone(state))


@reads(*_ACTION_AND_STATE, makes=("state",))
def kaist(action: np.ndarray, state: np.ndarray) -> Rows:
    """No gripper: 0. Behind the movement the action has gains, and before the pose the state has joints."""
    return Rows(columns(action[:, :6], zeros(action, 1)), (state[:, -7:],))


@reads("action", "observation/position", "observation/yaw", makes=("state",))
def gnm_as_arm(action: np.ndarray, position: np.ndarray, yaw: np.ndarray) -> Rows:
    """A base that drives, as an arm that moves in a plane and has no gripper: 0."""
    return Rows(columns(action, zeros(action, 5)), (columns(position, zeros(position, 3), yaw),))


# Grippers to turn round.


@reads("action")
def inverted_gripper(action: np.ndarray) -> Rows:
    """The gripper is positive where it closes."""
    return Rows(columns(action[:, :6], grippers.invert_clipped(action[:, -1:])))


@reads(*_ACTION_AND_STATE, makes=("state",))
def joint_state_8(action: np.ndarray, state: np.ndarray) -> Rows:
    """The same; the state begins with seven joints and the gripper."""
    return Rows(columns(action[:, :6], grippers.invert_clipped(action[:, -1:])), (state[:, :8],))


@reads("action")
def roboset(action: np.ndarray) -> Rows:
    """Seven joints and a gripper from -1 (open) to 1 (closed)."""
    return Rows(columns(action[:, :7], grippers.invert_clipped(action[:, -1:])))


@reads(*_ACTION_AND_STATE, makes=("EEF_state", "gripper_state"))
def libero(action: np.ndarray, state: np.ndarray) -> Rows:
    """The gripper goes from -1 (open) to 1 (closed); the state is a pose, by axis times angle, and two fingers."""
    actions = columns(action[:, :6], grippers.invert_clipped(action[:, -1:]))
    return Rows(actions, (state[:, :6], state[:, -2:]))


@reads(*_ACTION_AND_STATE, makes=_EEF)
def hydra(action: np.ndarray, state: np.ndarray) -> Rows:
    """The gripper is 1 closed. The state has position, quaternion, angles, and the gripper third last."""
    actions = columns(action[:, :6], grippers.invert(action[:, -1:]))
    pose = columns(state[:, :3], state[:, 7:10])
    return Rows(actions, (pose, state[:, -3:-2]))


@reads(*_ACTION_AND_STATE, makes=_EEF)
def edan(action: np.ndarray, state: np.ndarray) -> Rows:
    """The gripper is 1 closed."""
    return Rows(columns(action[:, :6], grippers.invert(action[:, -1:])), _pose(state))


@reads("action")
def mujoco_manip(action: np.ndarray) -> Rows:
    """The gripper goes from 0 (open) to 255 (closed)."""
    return Rows(columns(action[:, :6], grippers.invert(action[:, -1:] / 255)))


@reads(*_ACTION_AND_STATE, makes=_JOINTS)
def fanuc(action: np.ndarray, state: np.ndarray) -> Rows:
    """The action has no gripper, so the state's is taken, which stands behind six joints and is 1 closed."""
    gripper = state[:, 6:7]
    return Rows(columns(action, grippers.invert(gripper)), (state[:, :6], gripper))


@reads("action", default="octo")
def mvp(action: np.ndarray, variant: Variant) -> Rows:
    """Seven joints, and a gripper that is 1 closed: Octo inverts it, OpenVLA does not, nor does it load the dataset."""
    gripper = action[:, -1:]
    return Rows(columns(action[:, :-1], grippers.invert(gripper) if variant == "octo" else gripper))


@reads(*_ACTION_AND_STATE, makes=("eef_state",))
def nyu_franka(action: np.ndarray, state: np.ndarray) -> Rows:
    """Fifteen numbers: joints, then the movement, a gripper of -1 or 1 (open), and one that tells the end."""
    actions = columns(action[:, -8:-2], np.clip(action[:, -2:-1], 0, 1))
    return Rows(actions, (state[:, -6:],))


@reads("action", "observation/cartesian_position", "observation/gripper_position", makes=("EEF_state", "gripper_state"))
def tdroid(action: np.ndarray, pose: np.ndarray, gripper: np.ndarray) -> Rows:
    """The gripper becomes binary."""
    binary = binarize_gripper(action[:, -1])[:, None]
    return Rows(columns(action[:, :6], binary), (pose[:, :6], gripper[:, -1:]))


# Quaternions.


@reads(*_ACTION_AND_STATE, makes=("state",))
def furniture_bench(action: np.ndarray, state: np.ndarray) -> Rows:
    """The gripper is positive where it closes; the state begins with the pose and ends with the gripper."""
    rotation = euler_from_quaternion(action[:, 3:7])
    actions = columns(action[:, :3], rotation, grippers.invert_clipped(action[:, -1:]))
    return Rows(actions, (columns(state[:, :7], state[:, -1:]),))


@reads(*_ACTION_AND_STATE, makes=_JOINTS)
def iamlab(action: np.ndarray, state: np.ndarray) -> Rows:
    """The state begins with seven joints and the gripper."""
    actions = columns(action[:, :3], euler_from_quaternion(action[:, 3:7]), action[:, 7:8])
    return Rows(actions, (state[:, :7], state[:, 7:8]))


@reads("action")
def playing_with_food(action: np.ndarray) -> Rows:
    """Position, quaternion, and the gripper last."""
    return Rows(columns(action[:, :3], euler_from_quaternion(action[:, 3:7]), action[:, -1:]))
