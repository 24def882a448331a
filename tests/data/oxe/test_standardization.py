"""Episodes of datasets that differ in structure, and by hand the standard form that follows from what the peers do."""

import zlib

import numpy as np
import pytest
from data.oxe.episodes import BRIDGE, LANGUAGE, LONG, NATURAL, SHORT, column, ramp, rows, texts

from jaxvla.data.oxe.standardization import features, proprio, standardize
from jaxvla.data.skipping import UnusableError
from jaxvla.errors import ConfigError, DataError

MOVEMENT = {"world_vector": rows((1, 2, 3), (4, 5, 6)), "rotation_delta": rows((7, 8, 9), (10, 11, 12))}
INSTRUCTION = {NATURAL: texts(b"a", b"a")}
ZERO_STATE = [[0] * 8] * 2
S, RIGHT = np.sqrt(0.5), np.pi / 2

# The dataset, an episode of two steps, the actions, the whole states.
CASES = [
    (
        "berkeley_cable_routing",  # no gripper
        {"action": MOVEMENT, "observation": {"robot_state": ramp(7), **INSTRUCTION}},
        [[1, 2, 3, 7, 8, 9, 0], [4, 5, 6, 10, 11, 12, 0]],
        [[0, 1, 2, 3, 4, 5, 6, 0], [100, 101, 102, 103, 104, 105, 106, 0]],
    ),
    (
        "viola",  # a closedness, one number a step
        {
            "action": {**MOVEMENT, "gripper_closedness_action": rows(-1, 0.25)},
            "observation": {"joint_states": ramp(7), "gripper_states": column(0.5, 0.6), **INSTRUCTION},
        },
        [[1, 2, 3, 7, 8, 9, 1], [4, 5, 6, 10, 11, 12, 0.75]],
        [[0, 1, 2, 3, 4, 5, 6, 0.5], [100, 101, 102, 103, 104, 105, 106, 0.6]],
    ),
    (
        "roboturk",  # the same in a vector of one, and no state
        {"action": {**MOVEMENT, "gripper_closedness_action": column(1, -1)}, "observation": INSTRUCTION},
        [[1, 2, 3, 7, 8, 9, 0], [4, 5, 6, 10, 11, 12, 1]],
        ZERO_STATE,
    ),
    (
        "toto",  # a truth value
        {
            "action": {**MOVEMENT, "open_gripper": np.array([True, False])},
            "observation": {"state": ramp(7), **INSTRUCTION},
        },
        [[1, 2, 3, 7, 8, 9, 1], [4, 5, 6, 10, 11, 12, 0]],
        [[0, 1, 2, 3, 4, 5, 6, 0], [100, 101, 102, 103, 104, 105, 106, 0]],
    ),
    (
        "jaco_play",  # relative gripper, no rotation
        {
            "action": {"world_vector": MOVEMENT["world_vector"], "gripper_closedness_action": column(0, -1)},
            "observation": {"end_effector_cartesian_pos": ramp(7), **INSTRUCTION},
        },
        [[1, 2, 3, 0, 0, 0, 0], [4, 5, 6, 0, 0, 0, 1]],
        [[0, 1, 2, 3, 4, 5, 0, 6], [100, 101, 102, 103, 104, 105, 0, 106]],
    ),
    (
        "berkeley_autolab_ur5",  # a state within a state
        {
            "action": {**MOVEMENT, "gripper_closedness_action": rows(1, 0)},
            "observation": {"robot_state": ramp(15), **INSTRUCTION},
        },
        [[1, 2, 3, 7, 8, 9, 0], [4, 5, 6, 10, 11, 12, 0]],
        [[6, 7, 8, 9, 10, 11, 12, 13], [106, 107, 108, 109, 110, 111, 112, 113]],
    ),
    (
        "taco_play",  # one of several actions; a gripper of -1 and 1
        {
            "action": {"rel_actions_world": rows((1, 2, 3, 4, 5, 6, -1), (1, 2, 3, 4, 5, 6, 1)), "actions": ramp(7)},
            "observation": {"robot_obs": ramp(15), **INSTRUCTION},
        },
        [[1, 2, 3, 4, 5, 6, 0], [1, 2, 3, 4, 5, 6, 1]],
        [[0, 1, 2, 3, 4, 5, 0, 7], [100, 101, 102, 103, 104, 105, 0, 107]],
    ),
    (
        "bc_z",  # keys with a slash, ten steps ahead
        {
            "action": {
                "future/xyz_residual": ramp(30),
                "future/axis_angle_residual": ramp(30) + 0.5,
                "future/target_close": np.array([[1, 0] * 5, [0, 1] * 5]),
            },
            "observation": {
                "present/xyz": ramp(3),
                "present/axis_angle": ramp(3) + 0.5,
                "present/sensed_close": column(1, 0),
                **INSTRUCTION,
            },
        },
        [[0, 1, 2, 0.5, 1.5, 2.5, 0], [100, 101, 102, 100.5, 101.5, 102.5, 1]],
        [[0, 1, 2, 0.5, 1.5, 2.5, 0, 1], [100, 101, 102, 100.5, 101.5, 102.5, 0, 0]],
    ),
    (
        "rh20t",
        {
            "action": {"tcp_base": ramp(6), "gripper": rows(1, 0)},
            "observation": {"tcp_base": ramp(6) + 7, "gripper_width": rows(0.1, 0.2)},
            **LANGUAGE,
        },
        [[0, 1, 2, 3, 4, 5, 1], [100, 101, 102, 103, 104, 105, 0]],
        [[7, 8, 9, 10, 11, 12, 0, 0.1], [107, 108, 109, 110, 111, 112, 0, 0.2]],
    ),
    (
        f"stanford_hydra{LONG}",  # parts of a long state, an inverted gripper
        {
            "action": rows((1, 2, 3, 4, 5, 6, 1), (1, 2, 3, 4, 5, 6, 0.25)),
            "observation": {"state": ramp(27)},
            **LANGUAGE,
        },
        [[1, 2, 3, 4, 5, 6, 0], [1, 2, 3, 4, 5, 6, 0.75]],
        [[0, 1, 2, 7, 8, 9, 0, 24], [100, 101, 102, 107, 108, 109, 0, 124]],
    ),
    (
        f"nyu_franka_play{LONG}",  # an action behind joints
        {
            "action": rows((*range(13), -1, 0), (*range(13), 1, 1)),
            "observation": {"state": ramp(13)},
            **LANGUAGE,
        },
        [[7, 8, 9, 10, 11, 12, 0], [7, 8, 9, 10, 11, 12, 1]],
        [[7, 8, 9, 10, 11, 12, 0, 0], [107, 108, 109, 110, 111, 112, 0, 0]],
    ),
    (
        f"furniture_bench{LONG}",  # quaternions
        {
            "action": rows((1, 2, 3, 0, 0, S, S, -1), (1, 2, 3, 0.5, 0.5, 0.5, 0.5, 1)),
            "observation": {"state": ramp(35)},
            **LANGUAGE,
        },
        [[1, 2, 3, 0, 0, RIGHT, 1], [1, 2, 3, RIGHT, 0, RIGHT, 0]],
        [[0, 1, 2, 3, 4, 5, 6, 34], [100, 101, 102, 103, 104, 105, 106, 134]],
    ),
    (
        f"iamlab_cmu_pickup_insert{SHORT}",  # quaternions, joints
        {
            "action": rows((1, 2, 3, S, 0, 0, S, 0.3), (1, 2, 3, 0, S, 0, S, 1)),
            "observation": {"state": ramp(20)},
            **LANGUAGE,
        },
        [[1, 2, 3, RIGHT, 0, 0, 0.3], [1, 2, 3, 0, RIGHT, 0, 1]],
        [[0, 1, 2, 3, 4, 5, 6, 7], [100, 101, 102, 103, 104, 105, 106, 107]],
    ),
    (
        "berkeley_fanuc_manipulation",  # the gripper of the state
        {
            "action": rows((1, 2, 3, 4, 5, 6), (7, 8, 9, 10, 11, 12)),
            "observation": {"state": rows((*range(6), 1, 9, 9, 9, 9, 9, 9), (*range(6), 0, 9, 9, 9, 9, 9, 9))},
            **LANGUAGE,
        },
        [[1, 2, 3, 4, 5, 6, 0], [7, 8, 9, 10, 11, 12, 1]],
        [[0, 1, 2, 3, 4, 5, 0, 1], [0, 1, 2, 3, 4, 5, 0, 0]],
    ),
    (
        f"kaist_nonprehensile{SHORT}",
        {"action": ramp(20), "observation": {"state": ramp(21)}, **LANGUAGE},
        [[0, 1, 2, 3, 4, 5, 0], [100, 101, 102, 103, 104, 105, 0]],
        [[14, 15, 16, 17, 18, 19, 20, 0], [114, 115, 116, 117, 118, 119, 120, 0]],
    ),
    (
        f"asu_table_top{SHORT}",  # a pose beside the observation
        {
            "action": ramp(7),
            "ground_truth_states": {"EE": ramp(6) + 0.5},
            "observation": {"state": ramp(7)},
            **LANGUAGE,
        },
        ramp(7),
        [[0.5, 1.5, 2.5, 3.5, 4.5, 5.5, 0, 6], [100.5, 101.5, 102.5, 103.5, 104.5, 105.5, 0, 106]],
    ),
    (
        "robo_net",
        {"action": ramp(5), "observation": {"state": ramp(5)}, **LANGUAGE},
        [[0, 1, 2, 3, 0, 0, 4], [100, 101, 102, 103, 0, 0, 104]],
        [[0, 1, 2, 3, 0, 0, 0, 4], [100, 101, 102, 103, 0, 0, 0, 104]],
    ),
    (
        "cmu_stretch",  # a flag at the end
        {"action": ramp(8), "observation": {"state": ramp(4)}, **LANGUAGE},
        ramp(8)[:, :7],
        [[0, 1, 2, 0, 0, 0, 0, 3], [100, 101, 102, 0, 0, 0, 0, 103]],
    ),
    (
        "cmu_play_fusion",
        {"action": ramp(9), "observation": {"state": ramp(8)}, **LANGUAGE},
        [[0, 1, 2, 5, 6, 7, 8], [100, 101, 102, 105, 106, 107, 108]],
        ramp(8),
    ),
    (
        "uiuc_d3field",
        {"action": ramp(3), "observation": {"state": np.zeros((2, 4, 4))}, **LANGUAGE},
        [[0, 1, 2, 0, 0, 0, 0], [100, 101, 102, 0, 0, 0, 0]],
        ZERO_STATE,
    ),
    (
        f"utokyo_xarm_bimanual{SHORT}",  # one of two arms
        {"action": ramp(14), "observation": {"pose_r": ramp(6), "pose_l": -ramp(6)}, **LANGUAGE},
        [[7, 8, 9, 10, 11, 12, 13], [107, 108, 109, 110, 111, 112, 113]],
        [[0, 1, 2, 3, 4, 5, 0, 0], [100, 101, 102, 103, 104, 105, 0, 0]],
    ),
    (
        "berkeley_gnm_recon",  # a base
        {
            "action": ramp(2).astype(np.float64),
            "observation": {"position": ramp(2), "yaw": column(0.5, 0.6), "state": ramp(3)},
            **LANGUAGE,
        },
        [[0, 1, 0, 0, 0, 0, 0], [100, 101, 0, 0, 0, 0, 0]],
        [[0, 1, 0, 0, 0, 0.5, 0, 0], [100, 101, 0, 0, 0, 0.6, 0, 0]],
    ),
    (
        "libero_10_no_noops",
        {"action": rows((1, 2, 3, 4, 5, 6, -1), (1, 2, 3, 4, 5, 6, 1)), "observation": {"state": ramp(8)}, **LANGUAGE},
        [[1, 2, 3, 4, 5, 6, 1], [1, 2, 3, 4, 5, 6, 0]],
        ramp(8),
    ),
    (
        "roboset",  # joints
        {"action": rows((*range(7), -1), (*range(7), 1)), "observation": {"state": ramp(8)}, **LANGUAGE},
        [[0, 1, 2, 3, 4, 5, 6, 1], [0, 1, 2, 3, 4, 5, 6, 0]],
        ramp(8),
    ),
    (
        "mujoco_manip",
        {"action": rows((1, 2, 3, 4, 5, 6, 255), (1, 2, 3, 4, 5, 6, 51)), **LANGUAGE},
        [[1, 2, 3, 4, 5, 6, 0], [1, 2, 3, 4, 5, 6, 0.8]],
        ZERO_STATE,
    ),
    (
        "fmb_dataset",  # one number a step beside a vector
        {"action": ramp(7), "observation": {"eef_pose": ramp(7), "state_gripper_pose": rows(0.5, 0.6)}, **LANGUAGE},
        ramp(7),
        [[0, 1, 2, 3, 4, 5, 6, 0.5], [100, 101, 102, 103, 104, 105, 106, 0.6]],
    ),
    (
        "tdroid_knock_object_over",  # binarized
        {
            "action": rows((1, 2, 3, 4, 5, 6, 0.7), (1, 2, 3, 4, 5, 6, 0.01)),
            "observation": {"cartesian_position": ramp(6), "gripper_position": column(0.5, 0.6)},
            **LANGUAGE,
        },
        [[1, 2, 3, 4, 5, 6, 0], [1, 2, 3, 4, 5, 6, 0]],
        [[0, 1, 2, 3, 4, 5, 0, 0.5], [100, 101, 102, 103, 104, 105, 0, 0.6]],
    ),
]


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


def test_droid_in_both_frames():
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
    # The wrist is turned left by a right angle: what goes forward goes to its right, and what rolls pitches back.
    wrist = standardize("droid_wrist", episode)
    np.testing.assert_allclose(wrist["actions"][0], [0, -0.1, 0, 0, 0, -1, 0, 1, 0, 1], atol=1e-6)
    np.testing.assert_allclose(wrist["actions"][1], [0, 0, 0, 1, 0, 0, 0, 1, 0, 0], atol=1e-6)


def test_joints_of_one_arm():
    mvp = {
        "action": rows((1, 2, 3, 4, 5, 6, 7, 1), (1, 2, 3, 4, 5, 6, 7, 0)),
        "observation": {"pose": ramp(7), "gripper": np.array([True, False])},
        **LANGUAGE,
    }
    name = f"berkeley_mvp{SHORT}"
    for variant, gripper in ((None, [0, 1]), ("octo", [0, 1]), ("openvla", [1, 0])):
        np.testing.assert_array_equal(standardize(name, mvp, variant)["actions"][:, 7], gripper)
    states = proprio(name, standardize(name, mvp))
    np.testing.assert_array_equal(states, [[0, 1, 2, 3, 4, 5, 6, 1], [100, 101, 102, 103, 104, 105, 106, 0]])


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
