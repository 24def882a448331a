"""Episodes of datasets that differ in structure, and by hand the standard form that follows from what the peers do."""

import numpy as np
from data.oxe.episodes import LANGUAGE, LONG, NATURAL, SHORT, column, ramp, rows, texts

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
    (
        f"berkeley_mvp{SHORT}",  # joints, and a gripper to invert
        {
            "action": rows((1, 2, 3, 4, 5, 6, 7, 1), (1, 2, 3, 4, 5, 6, 7, 0)),
            "observation": {"pose": ramp(7), "gripper": np.array([True, False])},
            **LANGUAGE,
        },
        [[1, 2, 3, 4, 5, 6, 7, 0], [1, 2, 3, 4, 5, 6, 7, 1]],
        [[0, 1, 2, 3, 4, 5, 6, 1], [100, 101, 102, 103, 104, 105, 106, 0]],
    ),
    (
        # The wrist is turned left by a right angle: what goes forward goes to its right, and what rolls pitches back.
        "droid_wrist",
        {
            "action_dict": {
                "cartesian_velocity": rows((0.1, 0, 0, RIGHT, 0, 0), (1e-7, 0, 0, 0, 0, 0)),
                "gripper_position": column(0, 1),
            },
            "observation": {
                "cartesian_position": rows((1, 2, 3, 0, 0, RIGHT), (1, 2, 3, 0, 0, RIGHT)),
                "gripper_position": column(0, 0.5),
            },
            **LANGUAGE,
        },
        [[0, -0.1, 0, 0, 0, -1, 0, 1, 0, 1], [0, 0, 0, 1, 0, 0, 0, 1, 0, 0]],
        [[1, 2, 3, 0, 0, RIGHT, 0, 0], [1, 2, 3, 0, 0, RIGHT, 0, 0.5]],
    ),
]
