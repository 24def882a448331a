"""Datasets whose actions are made anew of the states, or of which steps are left out; the expected values by hand."""

import numpy as np
import pytest
from data.oxe.episodes import BRIDGE, NATURAL, SHORT, column, ramp, rows, texts

from jaxvla.data.oxe.standardization import proprio, standardize
from jaxvla.data.skipping import UnusableError

RIGHT = np.pi / 2


@pytest.mark.parametrize(
    ("variant", "steps", "moved", "turned", "gripper"),
    [
        (None, [1, 2, 3, 4], [2, 3, 4], [0.2, 0.3, 0.4], [1, 1, 0]),
        ("openvla", [1, 2, 3, 4], [2, 3, 4], [0.2, 0.3, 0.4], [1, 1, 0]),
        ("octo", [0, 1, 2, 3, 4], [1, 2, 3, 4], [0.1, 0.2, 0.3, 0.4], [1, 1, 1, 0]),
    ],
)
@pytest.mark.parametrize("name", ["bridge_orig", "bridge_dataset"])
def test_bridge_takes_the_movements_that_were_reached(name, variant, steps, moved, turned, gripper):
    standard = standardize(name, BRIDGE, variant)
    assert standard["steps"].tolist() == steps
    expected = np.zeros((len(moved), 7))
    expected[:, 0], expected[:, 5], expected[:, 6] = moved, turned, gripper
    np.testing.assert_allclose(standard["actions"], expected, atol=1e-6)
    states = proprio(name, standard)
    np.testing.assert_allclose(states[:, [0, 5, 6, 7]][-2:], [[6, 0.6, 0, 0.2], [10, 1.0, 0, 0]], atol=1e-6)
    assert standard["instruction"].tolist()[-4:] == ["second", "third", "vierte \u00e4", "fifth"]


def test_the_copy_of_bridge_in_open_x_embodiment():
    action = {"open_gripper": np.array([True, False, True]), "world_vector": np.full((3, 3), 9.0)}
    state = rows((0, 0, 0, 0, 0, 0, 1), (1, 1, 0, 0, 0, 0, 1), (3, 0, 0, 0, 0, 0, 0))
    episode = {"action": action, "observation": {"state": state, NATURAL: texts(b"a", b"b", b"c")}}
    standard = standardize("bridge_oxe", episode, "octo")  # which has no such dataset, and so no say
    np.testing.assert_array_equal(standard["actions"], [[2, -1, 0, 0, 0, 0, 0]])
    assert standard["steps"].tolist() == [1, 2]
    assert standard["instruction"].tolist() == ["b", "c"]


def test_every_third_step_of_rpt():
    joints = np.zeros((8, 7), np.float32)
    joints[:, 0] = [0, 1, 3, 6, 10, 15, 21, 28]
    episode = {
        "action": np.hstack([np.full((8, 7), 9), column(0, 1, 1, 1, 0, 0, 0, 1)]),
        "observation": {"joint_pos": joints, "gripper": np.array([0, 0, 0, 1, 1, 1, 1, 0], bool)},
        "language_instruction": texts(*"abcdefgh"),
    }
    name = f"berkeley_rpt{SHORT}"
    standard = standardize(name, episode)
    assert standard["steps"].tolist() == [0, 3, 6]
    assert standard["instruction"].tolist() == ["a", "d", "g"]
    np.testing.assert_array_equal(standard["actions"], [[6, 0, 0, 0, 0, 0, 0, 1], [15, 0, 0, 0, 0, 0, 0, 0]])
    np.testing.assert_array_equal(proprio(name, standard)[:, [0, 7]], [[0, 0], [6, 1], [21, 1]])
    np.testing.assert_array_equal(standardize(name, episode, "openvla")["actions"], episode["action"])


@pytest.mark.parametrize(("name", "width"), [("aloha_static_dataset", 14), ("aloha_mobile_dataset", 16)])
def test_every_fifth_step_of_two_arms(name, width):
    action, state = ramp(width, 11), ramp(14, 11) + 0.5
    language = texts(*["a"] * 11)
    standard = standardize(name, {"action": action, "observation": {"state": state}, "language_instruction": language})
    assert standard["steps"].tolist() == [0, 5, 10]
    np.testing.assert_array_equal(standard["actions"], action[[0, 5, 10]])
    np.testing.assert_array_equal(proprio(name, standard), state[[0, 5, 10]])


def gnm(position, yaw, action):
    n = len(position)
    observation = {"position": rows(*position), "yaw": column(*yaw), "state": ramp(3, n)}
    episode = {"action": rows(*action), "observation": observation, "language_instruction": texts(*["a"] * n)}
    return standardize("gnm_dataset", episode)


def test_bases_move_in_their_own_frame():
    # Two meters are one of the actions' units. Of three steps each the first is kept: (0, 0), (6, 0), (6, 4).
    position = [(0, 0), (2, 0), (4, 0), (6, 0), (6, 1), (6, 2), (6, 4), (6, 5)]
    standard = gnm(position, [0, 0, 0, RIGHT, 0, 0, 0, 0], [(1, 0)] + [(9, 9)] * 7)
    assert standard["steps"].tolist() == [0, 3, 6]
    np.testing.assert_allclose(standard["actions"], [[3, 0], [2, 0]], atol=1e-6)
    np.testing.assert_array_equal(standard["proprio"]["state"][2], [600, 601, 602])
    to_the_right = gnm([(0, 0), (1, 0), (1, 0), (0, -3)], [0] * 4, [(1, 0)] * 4)
    np.testing.assert_allclose(to_the_right["actions"], [[0, -3]], atol=1e-6)
    assert len(gnm([(0, 0)], [0], [(1, 0)])["actions"]) == 0
    with pytest.raises(UnusableError, match="no scale for actions: gnm_dataset: observation/position is the same"):
        gnm([(0, 0), (0, 0)], [0, 0], [(1, 0)] * 2)
