"""Conversions of rotations, as Octo and OpenVLA take them from tensorflow_graphics; all in float64.

Euler angles (rad) are rotations about the fixed axes x, then y, then z: R = Rz(yaw) Ry(pitch) Rx(roll). Quaternions are
(x, y, z, w) and are taken to be of length 1.
"""

import numpy as np

# How near to 1 the sine of the pitch must be for roll and yaw to be one and the same rotation.
_LOCKED = 1e-6


def matrix_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] of quaternions [..., 4]."""
    x, y, z, w = np.moveaxis(np.asarray(quaternion, np.float64), -1, 0)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        (2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        (2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)


def matrix_from_euler(euler: np.ndarray) -> np.ndarray:
    """Rotation matrices [..., 3, 3] of angles [..., 3]."""
    angles = np.moveaxis(np.asarray(euler, np.float64), -1, 0)
    (sr, sp, sy), (cr, cp, cy) = np.sin(angles), np.cos(angles)
    rows = (
        (cy * cp, cy * sp * sr - sy * cr, cy * sp * cr + sy * sr),
        (sy * cp, sy * sp * sr + cy * cr, sy * sp * cr - cy * sr),
        (-sp, cp * sr, cp * cr),
    )
    return np.stack([np.stack(row, -1) for row in rows], -2)


def euler_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """Angles [..., 3] of rotation matrices [..., 3, 3]; the pitch is within [-pi / 2, pi / 2].

    Where the pitch is one of these two, roll and yaw turn about the same axis: then the yaw is 0.
    """
    m = np.asarray(matrix, np.float64)
    sine = -np.clip(m[..., 2, 0], -1, 1)
    free = (
        np.arctan2(m[..., 2, 1], m[..., 2, 2]),
        np.arcsin(sine),
        np.arctan2(m[..., 1, 0], m[..., 0, 0]),
    )
    sign = np.sign(sine)
    locked = np.arctan2(sign * m[..., 0, 1], sign * m[..., 0, 2]), sign * np.pi / 2, np.zeros_like(sine)
    is_locked = 1 - np.abs(sine) < _LOCKED
    return np.where(is_locked[..., None], np.stack(locked, -1), np.stack(free, -1))


def euler_from_quaternion(quaternion: np.ndarray) -> np.ndarray:
    """Angles [..., 3] of quaternions [..., 4]."""
    return euler_from_matrix(matrix_from_quaternion(quaternion))


def r6_from_matrix(matrix: np.ndarray) -> np.ndarray:
    """The first two rows of rotation matrices [..., 3, 3], end to end: [..., 6]."""
    return matrix[..., :2, :].reshape(*matrix.shape[:-2], 6)
