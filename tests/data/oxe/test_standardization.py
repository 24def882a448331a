"""The standard form of episodes of datasets that differ in structure; see cases.py for what is expected, by hand."""

import zlib

import numpy as np
import pytest
from data.oxe.cases import CASES, RIGHT
from data.oxe.episodes import BRIDGE, LANGUAGE, NATURAL, SHORT, column, ramp, rows, texts

from jaxvla.data.oxe.standardization import features, proprio, standardize
from jaxvla.data.skipping import UnusableError
from jaxvla.errors import ConfigError, DataError


@pytest.mark.parametrize(("name", "episode", "actions", "states"), CASES, ids=[case[0] for case in CASES])
def test_by_hand(name, episode, actions, states):
    standard = standardize(name, episode)
    np.testing.assert_allclose(standard["actions"], actions, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(proprio(name, standard), states, rtol=1e-6)
    assert standard["instruction"].tolist() == ["a", "a"]
    assert standard["steps"].tolist() == [0, 1]
    assert standard["taught"].all()


def test_relative_grippers_and_compressed_states():
    def pack(values):
        return texts(*(zlib.compress(row.tobytes()) for row in values))

    closing = column(0, 0, 1, 0, -1, 0)
    action = {"world_vector": ramp(3, 6), "rotation_delta": ramp(3, 6) + 10, "gripper_closedness_action": closing}
    pose, gripper = ramp(7, 6), column(1, 1, 0, 0, 1, 1)
    language = texts(*[b"pick anything"] * 6)
    fractal = {"base_pose_tool_reached": pose, "gripper_closed": gripper, NATURAL: language}
    kuka = {
        "clip_function_input/base_pose_tool_reached": pack(pose),
        "gripper_closed": pack(gripper),
        NATURAL: language,
    }
    for name, observation in (("fractal20220817_data", fractal), ("kuka", kuka)):
        standard = standardize(name, {"action": action, "observation": observation}, "octo")
        np.testing.assert_array_equal(standard["actions"][:, 6], [1, 1, 0, 0, 1, 1])
        np.testing.assert_array_equal(standard["actions"][1, :6], [100, 101, 102, 110, 111, 112])
        np.testing.assert_array_equal(proprio(name, standard), np.hstack([pose, gripper]))
        # Octo takes the instructions of kuka for empty; those of fractal tell its tasks apart.
        assert set(standard["instruction"]) == ({""} if name == "kuka" else {"pick anything"})
    kept = standardize("kuka", {"action": action, "observation": kuka})["instruction"]
    assert set(kept) == {"pick anything"}
    kuka["gripper_closed"] = texts(*[b"no"] * 6)
    with pytest.raises(DataError, match="kuka: 'observation/gripper_closed' holds neither numbers nor compressed"):
        standardize("kuka", {"action": action, "observation": kuka})


def test_texts_in_numbers():
    letters = np.zeros((2, 512), np.int32)
    letters[0, :2] = [ord("g"), ord("o")]
    letters[1, :3] = [0x1F600, 0xE4, ord("!")]
    observation = {"instruction": letters, "effector_translation": rows((1, 2), (3, 4))}
    standard = standardize("language_table", {"action": rows((5, 6), (7, 8)), "observation": observation})
    assert standard["instruction"].tolist() == ["go", "\U0001f600\u00e4!"]
    np.testing.assert_array_equal(standard["actions"], [[5, 6, 0, 0, 0, 0, 1], [7, 8, 0, 0, 0, 0, 1]])
    states = proprio("language_table", standard)
    np.testing.assert_array_equal(states, [[1, 2, 0, 0, 0, 0, 0, 0], [3, 4, 0, 0, 0, 0, 0, 0]])


def test_droid_does_not_teach_what_does_not_move():
    idle = (1e-7, 0, 0, 0, 0, 0)
    velocity = np.array([(0.1, 0, 0, RIGHT, 0, 0), idle, (0, 0, 0, 0, 0, 0.01)])
    pose = np.array([(1, 2, 3, 0, 0, RIGHT)] * 3)
    episode = {
        "action_dict": {"cartesian_velocity": velocity, "gripper_position": np.array([[0.0], [1.0], [0.25]])},
        "observation": {"cartesian_position": pose, "gripper_position": np.array([[0.0], [0.5], [1.0]])},
        "language_instruction": texts(b"", b"", b""),
    }
    base = standardize("droid", episode)
    np.testing.assert_allclose(base["actions"], np.hstack([velocity, [[1], [0], [0.75]]]), rtol=1e-6)
    assert base["taught"].tolist() == [True, False, True]
    np.testing.assert_allclose(proprio("droid", base)[1], [1, 2, 3, 0, 0, RIGHT, 0, 0.5], rtol=1e-6)
    assert standardize("droid_wipe", episode)["taught"].all()


def test_grippers_of_joints_by_variant():
    name = f"berkeley_mvp{SHORT}"
    episode = next(case[1] for case in CASES if case[0] == name)
    for variant, gripper in ((None, [0, 1]), ("octo", [0, 1]), ("openvla", [1, 0])):
        np.testing.assert_array_equal(standardize(name, episode, variant)["actions"][:, 7], gripper)


def test_paths_may_be_flat():
    flat = {"action": BRIDGE["action"], "observation/state": BRIDGE["observation"]["state"]}
    flat["language_instruction"] = BRIDGE["language_instruction"]
    nested = standardize("bridge_orig", BRIDGE)
    np.testing.assert_array_equal(standardize("bridge_orig", flat)["actions"], nested["actions"])
    assert features("bridge_orig") == ("action", "observation/state", "language_instruction")
    assert features("viola") == (
        "action/world_vector",
        "action/rotation_delta",
        "action/gripper_closedness_action",
        "observation/joint_states",
        "observation/gripper_states",
        "observation/natural_language_instruction",
    )


def changed(path, values):
    episode = {**BRIDGE, "observation": dict(BRIDGE["observation"])}
    node = episode["observation"] if path.startswith("observation/") else episode
    key = path.removeprefix("observation/")
    if values is None:
        del node[key]
    else:
        node[key] = values
    return episode


@pytest.mark.parametrize(
    ("path", "values", "error", "message"),
    [
        ("observation/state", None, DataError,
         "no step feature 'observation/state', there are action, language_instruction: is this an episode of bridge_d"),
        ("language_instruction", None, DataError, "bridge_orig: no step feature 'language_instruction'"),
        ("language_instruction", np.zeros(5), DataError, "'language_instruction' must be texts [n], not float64 [5]"),
        ("action", np.zeros((5, 7, 2)), DataError, "'action' must be numbers [n, k], not float64 [5, 7, 2]"),
        ("action", np.array(["a"] * 5), DataError, "'action' must be numbers [n, k], not <U1 [5]"),
        ("action", np.zeros((4, 7)), UnusableError,
         "lengths disagree: bridge_orig: steps are 4 of 'action', 5 of 'observation/state', 5 of 'language_"),
        ("observation/state", np.zeros((5, 4)), DataError, "the standard action has 5 numbers, but EEF_POS 7"),
    ],
)  # fmt: skip
def test_what_is_no_such_episode_is_refused(path, values, error, message):
    with pytest.raises(error) as caught:
        standardize("bridge_orig", changed(path, values))
    assert message in str(caught.value)


def test_states_of_another_width_are_refused():
    episode = {"action": np.zeros((2, 8)), "observation": {"state": np.zeros((2, 9))}, **LANGUAGE}
    with pytest.raises(DataError, match=r"roboset: the standard state has 9 numbers, but JOINT 8: .* of robo_set"):
        standardize("roboset", episode)


def test_unknown_names_and_empty_episodes():
    with pytest.raises(ConfigError, match="is called 'bridge_origin': did you mean bridge_orig"):
        standardize("bridge_origin", BRIDGE)
    with pytest.raises(ConfigError, match="variant must be one of openvla, octo, not 'pi0'"):
        standardize("bridge_orig", BRIDGE, "pi0")
    empty = {"action": np.zeros((0, 7)), "observation": {"state": np.zeros((0, 8))}, "language_instruction": texts()}
    with pytest.raises(UnusableError, match="no steps"):
        standardize("bridge_orig", empty)
