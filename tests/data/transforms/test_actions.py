import numpy as np
import pytest

from jaxvla.data.transforms.actions import ActionConvention, binarize_gripper, chunk_steps, history_steps
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


@pytest.mark.parametrize(("opened", "closed"), [(0.08, 0.0), (-1.0, 1.0), (1.0, -1.0), (0.0, 1.0)])
def test_grippers_are_binarized_in_their_own_units(opened, closed):
    share = np.array([1, 0.96, 0.8, 0.5, 0.02, 0, 0.3, 0.97])
    raw = (closed + share * (opened - closed)).astype(np.float32)
    expected = np.where([1, 1, 0, 0, 0, 0, 1, 1], opened, closed).astype(np.float32)
    np.testing.assert_array_equal(binarize_gripper(raw, opened, closed), expected)


BRIDGE = ActionConvention(relabel=True, gripper=(6,), binarize=True, angles=(3, 4, 5))


def test_relabelled_actions_are_reached_deltas_and_a_binary_gripper():
    rng = np.random.default_rng(0)
    proprio = rng.standard_normal((6, 7)).astype(np.float32)
    actions = rng.standard_normal((5, 7)).astype(np.float32)
    actions[:, 6] = [1, 0.7, 0.01, 0.5, 0.99]
    relabelled = BRIDGE.transform(actions, proprio)
    assert relabelled.dtype == np.float32
    for t in range(5):
        np.testing.assert_array_equal(relabelled[t, :6], proprio[t + 1, :6] - proprio[t, :6])
    np.testing.assert_array_equal(relabelled[:, 6], [1, 0, 0, 1, 1])


def test_nothing_said_is_nothing_done():
    actions = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    np.testing.assert_array_equal(ActionConvention().transform(actions, np.zeros((6, 7), np.float32)), actions)


def test_two_arms_keep_their_grippers_and_relabel_the_rest():
    rng = np.random.default_rng(0)
    actions, proprio = (rng.standard_normal((n, 14)).astype(np.float32) for n in (5, 6))
    relabelled = ActionConvention(relabel=True, gripper=(6, 13)).transform(actions, proprio)
    np.testing.assert_array_equal(relabelled[:, [6, 13]], actions[:, [6, 13]])
    moving = [d for d in range(14) if d not in (6, 13)]
    np.testing.assert_array_equal(relabelled[:, moving], np.diff(proprio, axis=0)[:, moving])


def test_angles_are_wrapped_on_request():
    proprio = np.zeros((4, 3), np.float32)
    proprio[:, 2] = [3.1, -3.1, 3.0, 2.9]
    plain = ActionConvention(relabel=True, angles=(2,)).transform(np.zeros((3, 3)), proprio)
    wrapped = ActionConvention(relabel=True, angles=(2,), wrap=True).transform(np.zeros((3, 3)), proprio)
    np.testing.assert_allclose(plain[:, 2], [-6.2, 6.1, -0.1], atol=1e-6)
    np.testing.assert_allclose(wrapped[:, 2], [2 * np.pi - 6.2, 6.1 - 2 * np.pi, -0.1], atol=1e-6)
    assert wrapped[2, 2] == plain[2, 2]


@pytest.mark.parametrize(
    ("dims", "message"),
    [
        ((7, 5), "difference of proprio dimension 5, but .* has 5 dimensions: .*relabel_actions=False"),
        ((6, 7), "gripper must be different numbers from 0 to 5, for actions of 6 dimensions"),
        ((10, 8), "difference of proprio dimension 8"),
        ((7, 4), r"angles must be different numbers from 0 to 3, for proprio of 4 dimensions, not \(3, 4, 5\)"),
    ],
)
def test_other_layouts_are_refused(dims, message):
    convention = BRIDGE if dims[1] < 5 else ActionConvention(relabel=True, gripper=(6,))
    with pytest.raises(ConfigError, match=message):
        convention.check(*dims)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"open": 0.0}, "open and closed must be two numbers"),
        ({"binarize": True}, "binarize needs the numbers of dimensions in bridgedata_config.actions.gripper"),
        ({"wrap": True}, "wrap needs"),
    ],
)
def test_contradictions_are_refused(changes, message):
    with pytest.raises(ConfigError, match=message):
        ActionConvention(**changes)


def test_dimensions_have_names():
    assert ActionConvention(gripper=(1,), open=0.08).labels(2) == ("action 0", "gripper 1 (0.08 open, 0 closed)")
    assert ActionConvention(names=("x (m)", "grip")).labels(2) == ("x (m)", "grip")
    with pytest.raises(ConfigError, match="names has 2 entries for 3"):
        ActionConvention(names=("x (m)", "grip")).check(3, 3)


def test_chunk_steps_repeat_the_last_action():
    steps = chunk_steps(np.arange(4), np.full(4, 4), 3)
    np.testing.assert_array_equal(steps, [[0, 1, 2], [1, 2, 3], [2, 3, 3], [3, 3, 3]])


def test_history_steps_repeat_the_first_frame():
    np.testing.assert_array_equal(history_steps(np.arange(4), 2), [[0, 0], [0, 1], [1, 2], [2, 3]])
    np.testing.assert_array_equal(history_steps(np.arange(3), 1), [[0], [1], [2]])
