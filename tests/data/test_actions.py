import numpy as np
import pytest

from jaxvla.data.actions import binarize_gripper, chunk_steps, history_steps, relabel_actions
from jaxvla.errors import ConfigError


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ([1, 0.96, 0.8, 0.5, 0.02, 0, 0.3, 0.97, 0.6], [1, 1, 0, 0, 0, 0, 1, 1, 0.6]),
        ([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]),
        ([0.95, 0.05, 1], [1, 1, 1]),
        ([0.3], [0.3]),
    ],
)
def test_binarize_gripper(raw, expected):
    np.testing.assert_array_equal(binarize_gripper(np.array(raw, np.float32)), np.array(expected, np.float32))


def test_relabelled_actions_are_reached_deltas_and_a_binary_gripper():
    rng = np.random.default_rng(0)
    proprio = rng.standard_normal((6, 7)).astype(np.float32)
    actions = rng.standard_normal((5, 7)).astype(np.float32)
    actions[:, 6] = [1, 0.7, 0.01, 0.5, 0.99]
    relabelled = relabel_actions(actions, proprio)
    assert relabelled.dtype == np.float32
    for t in range(5):
        np.testing.assert_array_equal(relabelled[t, :6], proprio[t + 1, :6] - proprio[t, :6])
    np.testing.assert_array_equal(relabelled[:, 6], [1, 0, 0, 1, 1])


def test_relabelling_other_layouts_is_refused():
    with pytest.raises(ConfigError, match="relabel_actions=False"):
        relabel_actions(np.zeros((3, 10)), np.zeros((4, 7)))


def test_chunk_steps_repeat_the_last_action():
    steps, mask = chunk_steps(np.arange(4), np.full(4, 4), 3)
    np.testing.assert_array_equal(steps, [[0, 1, 2], [1, 2, 3], [2, 3, 3], [3, 3, 3]])
    np.testing.assert_array_equal(mask, [[1, 1, 1], [1, 1, 1], [1, 1, 0], [1, 0, 0]])


def test_history_steps_repeat_the_first_frame():
    np.testing.assert_array_equal(history_steps(np.arange(4), 2), [[0, 0], [0, 1], [1, 2], [2, 3]])
    np.testing.assert_array_equal(history_steps(np.arange(3), 1), [[0], [1], [2]])
