"""Every dataset of the registry, on an episode of its true structure, and rows of the table against the peers'."""

import numpy as np
import pytest
from data.oxe.structures import SHAPES, SHORT, STEPS, fill, nested, structure

from jaxvla.data.oxe import registry
from jaxvla.data.oxe.encodings import ActionEncoding, StateEncoding
from jaxvla.data.oxe.registry import DATASETS, Views, find
from jaxvla.data.oxe.standardization import STANDARDIZATIONS, features, proprio, standardize
from jaxvla.errors import ConfigError


@pytest.mark.parametrize("variant", ["openvla", "octo"])
@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_comes_to_the_standard_form(name, variant, request):
    dataset, described = find(name), structure(name, request)
    rng = np.random.default_rng(0)
    standard = standardize(name, nested({path: fill(*what, rng) for path, what in described.items()}), variant)
    actions, steps = standard["actions"], standard["steps"]
    assert actions.dtype == np.float32
    assert actions.shape[1] == dataset.action_encoding.width
    assert len(steps) - 1 <= len(actions) == len(standard["taught"]) <= len(steps) <= STEPS
    assert len(steps) > 3
    assert np.isfinite(actions).all()
    whole = proprio(name, standard)
    assert whole.shape == (len(steps), dataset.state_encoding.width)
    assert whole.dtype == np.float32
    assert np.isfinite(whole).all()
    assert [*standard["proprio"]] == [key for key in dataset.state_keys if key is not None]
    assert len(standard["instruction"]) == len(steps)
    if name != "language_table":  # whose characters are random here
        said = "" if variant == "octo" and dataset.uninformative else "do something"
        assert set(standard["instruction"]) == {said}
    assert set(features(name)) <= described.keys()


@pytest.mark.parametrize("name", [n for n in DATASETS if not any(n.startswith(start) for start in SHAPES)])
def test_cameras_are_there(name, request):
    described = structure(name, request)
    dataset = find(name)
    for camera in (
        view for view in (dataset.cameras.primary, dataset.cameras.secondary, dataset.cameras.wrist) if view
    ):
        assert described[camera][0] == "Image"
        assert described[camera][1][2] == 3
    for depth in (view for view in (dataset.depth.primary, dataset.depth.secondary, dataset.depth.wrist) if view):
        assert described[depth][1][2:] in ([], [1])


def test_the_union_of_both_peers():
    assert len(DATASETS) == 76
    octo_alone = {"gnm_dataset", "aloha_static_dataset", "aloha_dagger_dataset", "aloha_mobile_dataset", "mujoco_manip"}
    assert octo_alone < DATASETS.keys()
    uninformative = {name.split("_")[0] for name, dataset in DATASETS.items() if dataset.uninformative}
    assert sum(dataset.uninformative for dataset in DATASETS.values()) == 12
    assert uninformative == {
        "kuka", "berkeley", "roboturk", "nyu", "viola", "toto", "stanford", "austin", "utaustin"
    }  # fmt: skip
    assert {dataset.standardization for dataset in DATASETS.values()} == STANDARDIZATIONS.keys()
    assert all(dataset.cameras != Views() for dataset in DATASETS.values())


@pytest.mark.parametrize(
    ("name", "primary", "secondary", "wrist", "states", "state_encoding", "action_encoding"),
    [
        ("bridge_orig", "image_0", "image_1", None, ("EEF_state", None, "gripper_state"), "POS_EULER", "EEF_POS"),
        ("bridge_oxe", "image", None, None, ("EEF_state", None, "gripper_state"), "POS_EULER", "EEF_POS"),
        ("kuka", "image", None, None, ("clip_function_input/base_pose_tool_reached", "gripper_closed"), "POS_QUAT",
         "EEF_POS"),
        ("roboturk", "front_rgb", None, None, (None,) * 8, "NONE", "EEF_POS"),
        ("berkeley_cable_routing", "image", "top_image", "wrist45_image", ("robot_state", None), "JOINT", "EEF_POS"),
        ("nyu_door_opening_surprising_effectiveness", None, None, "image", (None,) * 8, "NONE", "EEF_POS"),
        (f"berkeley_mvp{SHORT}", None, None, "hand_image", ("pose", "gripper"), "POS_QUAT", "JOINT_POS"),
        (f"utokyo_xarm_pick_and_place{SHORT}", "image", "image2", "hand_image", ("end_effector_pose", None, None),
         "POS_EULER", "EEF_POS"),
        ("imperialcollege_sawyer_wrist_cam", "image", None, "wrist_image", (*(None,) * 7, "state"), "NONE", "EEF_POS"),
        ("dobbe", "wrist_image", None, None, ("eef_state", None, "gripper_state"), "POS_EULER", "EEF_POS"),
        ("roboset", "image_left", "image_right", "image_wrist", ("state",), "JOINT", "JOINT_POS"),
        ("aloha_mobile_dataset", "cam_high", None, "cam_right_wrist", ("state",), "JOINT_BIMANUAL",
         "JOINT_POS_BIMANUAL_NAV"),
        ("gnm_dataset", "image", None, None, ("state",), "POS_NAV", "NAV_2D"),
        ("droid_wrist", "exterior_image_1_left", "exterior_image_2_left", "wrist_image_left",
         ("cartesian_position", None, "gripper_position"), "POS_EULER", "EEF_R6"),
    ],
)  # fmt: skip
def test_rows_of_the_table(name, primary, secondary, wrist, states, state_encoding, action_encoding):
    dataset = find(name)
    views = (dataset.cameras.primary, dataset.cameras.secondary, dataset.cameras.wrist)
    assert views == tuple(view and f"observation/{view}" for view in (primary, secondary, wrist))
    assert dataset.state_keys == states
    assert dataset.state_encoding is StateEncoding[state_encoding]
    assert dataset.action_encoding is ActionEncoding[action_encoding]


def test_depth():
    depth = {name: dataset.depth for name, dataset in DATASETS.items() if dataset.depth != Views()}
    assert len(depth) == 14
    assert depth["taco_play"] == Views("observation/depth_static", None, "observation/depth_gripper")
    assert depth["berkeley_autolab_ur5"] == Views("observation/image_with_depth")
    assert depth["uiuc_d3field"] == Views("observation/depth_1", "observation/depth_2")


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("bridge_original", "bridge_orig"),
        ("fractal", "fractal20220817_data"),
        ("austin_bud", f"austin_buds_dataset{SHORT}"),
        ("libero_spatial", "libero_spatial_no_noops"),
        ("aloha_mobile", "aloha_mobile_dataset"),
    ],
)
def test_unknown_names_are_told_the_nearest(name, meant):
    with pytest.raises(ConfigError) as caught:
        find(name)
    assert f"no dataset of Open X-Embodiment is called {name!r}: did you mean {meant}" in str(caught.value)
    assert len(str(caught.value)) < 250


def test_names_that_are_near_none_are_told_all():
    with pytest.raises(ConfigError, match=r"is called 'zzz': there are .*bridge_orig, .*viola"):
        find("zzz")
    assert str(registry.unknown("fruit", "aple", ["apple", "fig"])).endswith("did you mean apple?")
