import numpy as np
import pytest

from jaxvla.data.oxe import grippers


@pytest.mark.parametrize(
    ("command", "opened"),
    [
        ([0, 0, 1, 0, -1, 0], [1, 1, 0, 0, 1, 1]),
        ([0, 0, 0], [1, 1, 1]),
        ([0, -1, 0, 1], [0, 1, 1, 0]),
        ([0.09, -0.09, 0.11, 0.05], [1, 1, 0, 0]),
        ([1, 1], [0, 0]),
    ],
)
def test_relative_commands(command, opened):
    absolute = grippers.from_relative(np.array(command, np.float32)[:, None])
    np.testing.assert_array_equal(absolute, np.array(opened, np.float32)[:, None])


def test_inverted():
    np.testing.assert_allclose(grippers.invert(np.array([0, 0.25, 1])), [1, 0.75, 0])
    np.testing.assert_allclose(grippers.invert_clipped(np.array([-1, 0, 0.25, 1, 2])), [1, 1, 0.75, 0, 0])
