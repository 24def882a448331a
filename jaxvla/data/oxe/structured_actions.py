"""Standardizations of datasets that store an action in parts: those of RT-X, BC-Z, RH20T and DROID."""

import numpy as np

from jaxvla.data.oxe import grippers
from jaxvla.data.oxe.rotations import matrix_from_euler, r6_from_matrix
from jaxvla.data.oxe.standard import Rows, columns, reads, zeros

_MOVEMENT = ("action/world_vector", "action/rotation_delta")
_CLOSEDNESS = "action/gripper_closedness_action"
_PARTS = ("state_eef", "state_gripper")
_DROID = ("action_dict/cartesian_velocity", "action_dict/gripper_position")

# DROID's 1st to 99th percentile of the six velocities, by which OpenVLA tells whether they are 0 once normalized.
_DROID_RANGE = np.array([1.5374229, 1.1529756, 1.3146092, 1.3169658, 1.3506057, 1.7792646])
_IDLE = 1e-5


@reads(*_MOVEMENT, _CLOSEDNESS)
def relative_gripper(movement: np.ndarray, rotation: np.ndarray, closing: np.ndarray) -> Rows:
    """The gripper is told to close (positive) or to open."""
    return Rows(columns(movement, rotation, grippers.from_relative(closing)))


@reads(*_MOVEMENT, _CLOSEDNESS)
def closedness(movement: np.ndarray, rotation: np.ndarray, closed: np.ndarray) -> Rows:
    """The gripper is absolute, positive where it is closed."""
    return Rows(columns(movement, rotation, grippers.invert_clipped(closed)))


@reads(*_MOVEMENT, "action/open_gripper")
def open_gripper(movement: np.ndarray, rotation: np.ndarray, opened: np.ndarray) -> Rows:
    """The gripper is open or not."""
    return Rows(columns(movement, rotation, opened))


@reads(*_MOVEMENT)
def no_gripper(movement: np.ndarray, rotation: np.ndarray) -> Rows:
    """No gripper is stored; it counts as closed, for it holds a cable."""
    return Rows(columns(movement, rotation, zeros(movement, 1)))


@reads(*_MOVEMENT, _CLOSEDNESS)
def pusht(movement: np.ndarray, rotation: np.ndarray, closed: np.ndarray) -> Rows:
    """A stick that pushes. Both peers take its closedness as it is, so 1 is closed here, if it ever is."""
    return Rows(columns(movement, rotation, closed))


@reads("action/world_vector", _CLOSEDNESS, "observation/end_effector_cartesian_pos", makes=_PARTS)
def jaco(movement: np.ndarray, closing: np.ndarray, pose: np.ndarray) -> Rows:
    """The hand does not turn, and its gripper is told to close or to open."""
    actions = columns(movement, zeros(movement, 3), grippers.from_relative(closing))
    return Rows(actions, (pose[:, :6], pose[:, -1:]))


@reads(*_MOVEMENT, _CLOSEDNESS, "observation/robot_state", makes=("state",))
def ur5(movement: np.ndarray, rotation: np.ndarray, closing: np.ndarray, state: np.ndarray) -> Rows:
    """The state begins with joints, behind which are position, quaternion and gripper."""
    return Rows(columns(movement, rotation, grippers.from_relative(closing)), (state[:, 6:14],))


@reads("action/rel_actions_world", "observation/robot_obs", makes=_PARTS)
def taco(action: np.ndarray, robot: np.ndarray) -> Rows:
    """The gripper is 1 open and -1 closed; behind the pose the state has the width of the gripper."""
    actions = columns(action[:, :6], np.clip(action[:, -1:], 0, 1))
    return Rows(actions, (robot[:, :6], robot[:, 7:8]))


@reads("action/future/xyz_residual", "action/future/axis_angle_residual", "action/future/target_close")
def bc_z(movement: np.ndarray, rotation: np.ndarray, closed: np.ndarray) -> Rows:
    """The first of ten steps to come. Rotations are axis times angle; both peers take them for Euler angles."""
    return Rows(columns(movement[:, :3], rotation[:, :3], grippers.invert(closed[:, :1])))


@reads("action/tcp_base", "action/gripper")
def rh20t(pose: np.ndarray, gripper: np.ndarray) -> Rows:
    """The pose to reach, not a movement."""
    return Rows(columns(pose, gripper))


@reads(*_DROID)
def droid_wipe(velocity: np.ndarray, closed: np.ndarray) -> Rows:
    """Velocities in the frame of the base."""
    return Rows(columns(velocity[:, :6], grippers.invert(closed)))


@reads(*_DROID)
def droid(velocity: np.ndarray, closed: np.ndarray) -> Rows:
    """The same; what does not move is not taught (OpenVLA's `zero_action_filter`), whatever the gripper does."""
    moving = 2 * np.abs(velocity[:, :6]) / _DROID_RANGE > _IDLE
    return Rows(columns(velocity[:, :6], grippers.invert(closed)), taught=moving.any(1))


@reads(*_DROID, "observation/cartesian_position")
def droid_wrist(velocity: np.ndarray, closed: np.ndarray, pose: np.ndarray) -> Rows:
    """Velocities in the frame of the wrist, rotations as R6: R^-1 v and R^-1 dR R for the wrist's rotation R.

    OpenVLA leaves this gripper as it is, closed at 1; here it is open at 1, as all are.
    """
    to_wrist = matrix_from_euler(pose[:, 3:6]).swapaxes(1, 2)
    movement = (to_wrist @ velocity[:, :3, None])[..., 0]
    rotation = to_wrist @ matrix_from_euler(velocity[:, 3:6]) @ to_wrist.swapaxes(1, 2)
    return Rows(columns(movement, r6_from_matrix(rotation), grippers.invert(closed)))
