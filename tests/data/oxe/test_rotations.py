"""Rotations by right angles, which can be followed with a hand."""

import numpy as np
import pytest

from jaxvla.data.oxe.rotations import (
    euler_from_matrix,
    euler_from_quaternion,
    matrix_from_euler,
    matrix_from_quaternion,
    r6_from_matrix,
)

S, RIGHT = np.sqrt(0.5), np.pi / 2
# x to y, y to z, z to x.
CYCLE = np.array([[0, 0, 1], [1, 0, 0], [0, 1, 0]])


@pytest.mark.parametrize(
    ("quaternion", "euler"),
    [
        ((0, 0, 0, 1), (0, 0, 0)),
        ((S, 0, 0, S), (RIGHT, 0, 0)),
        ((0, 0, S, S), (0, 0, RIGHT)),
        ((0, 0, -S, S), (0, 0, -RIGHT)),
        ((0.5, 0.5, 0.5, 0.5), (RIGHT, 0, RIGHT)),
        ((0, np.sin(0.25), 0, np.cos(0.25)), (0, 0.5, 0)),
        # Roll and yaw are one here, and the roll has all of it.
        ((0, S, 0, S), (0, RIGHT, 0)),
        ((0, -S, 0, S), (0, -RIGHT, 0)),
        ((0.5, 0.5, 0.5, -0.5), (-RIGHT, -RIGHT, 0)),
        ((0.5, 0.5, -0.5, 0.5), (RIGHT, RIGHT, 0)),
    ],
)
def test_euler_from_quaternion(quaternion, euler):
    for dtype in (np.float32, np.float64):
        np.testing.assert_allclose(euler_from_quaternion(np.array([quaternion], dtype)), [euler], atol=1e-6)


def test_matrices_by_hand():
    np.testing.assert_allclose(matrix_from_quaternion(np.array((0.5, 0.5, 0.5, 0.5))), CYCLE, atol=1e-12)
    np.testing.assert_allclose(matrix_from_euler(np.array((RIGHT, 0, RIGHT))), CYCLE, atol=1e-12)
    np.testing.assert_allclose(matrix_from_euler(np.array((0, RIGHT, 0))) @ (1, 0, 0), (0, 0, -1), atol=1e-12)
    np.testing.assert_array_equal(r6_from_matrix(CYCLE[None]), [[0, 0, 1, 1, 0, 0]])


def test_angles_survive_the_way_through_matrices():
    euler = np.random.default_rng(0).uniform((-np.pi, -1.5, -np.pi), (np.pi, 1.5, np.pi), (50, 3))
    matrices = matrix_from_euler(euler)
    np.testing.assert_allclose(np.linalg.det(matrices), 1)
    np.testing.assert_allclose(euler_from_matrix(matrices), euler, atol=1e-9)
