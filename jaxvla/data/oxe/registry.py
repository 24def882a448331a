"""The datasets of Open X-Embodiment, and those around it, that OpenVLA or Octo have a configuration for.

The table is their union: 70 of OpenVLA, five more of Octo (`gnm_dataset`, three of ALOHA, `mujoco_manip`), and
`droid_wrist`, whose actions OpenVLA has the code for, but no configuration. Cameras, states and encodings are theirs,
with these exceptions, where the data is not what they say:

    droid, droid_wipe   OpenVLA makes a `proprio` of seven numbers, and calls that of droid a quaternion; it holds Euler
                        angles. Here its parts, with the padding that POS_EULER has
    dobbe, rh20t        a `proprio` of seven numbers likewise
    fmb_dataset         both call it POS_EULER; it is a quaternion
    dlr_edan            OpenVLA pads behind the gripper; here before it
    libero_*            OpenVLA pads before the two fingers, which makes nine; here the fingers take the padding's place
    bridge_oxe          OpenVLA names a second camera, `image_1`, that the published data lacks
    mujoco_manip        Octo calls its state POS_EULER, but makes none of it; here it has none

OpenVLA's cameras are taken where the two differ: Octo calls the one of dobbe a wrist camera, which it is, and OpenVLA
the primary, without which a policy of one camera would not learn from it. OpenVLA exchanges the two outer cameras of
droid in every second episode, by chance; here they stay.
"""

import dataclasses
import difflib
from collections.abc import Collection, Iterable
from typing import Literal

from jaxvla.data.oxe.encodings import ActionEncoding, StateEncoding
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.errors import ConfigError

Variant = Literal["openvla", "octo"]
VARIANTS = ("openvla", "octo")
VIEWS = ("primary", "secondary", "wrist")

# What converted datasets are called in addition, which makes all their names alike.
_SUFFIXES = ("_converted_externally_to_rlds", "_dataset")


@dataclasses.dataclass(frozen=True)
class Views:
    """Where the pictures of a dataset's views lie, below `steps`; None for a view that it does not have."""

    primary: str | None = None
    secondary: str | None = None
    wrist: str | None = None

    def named(self, chosen: Collection[str]) -> dict[str, str]:
        """Those of the `chosen` that there are, by their names in batches: images0, images1 and images2."""
        views = {f"images{number}": name for number, name in enumerate(VIEWS) if name in chosen}
        return {camera: view for camera, name in views.items() if (view := getattr(self, name)) is not None}


@dataclasses.dataclass(frozen=True)
class OXEDataset:
    """What is to be known of a dataset, to read it and to bring it to the standard form.

    Attributes:
        name: by which mixtures and `find` know it.
        standardization: the name of its rule in `jaxvla.data.oxe.standardization`.
        cameras: its color pictures.
        state_keys: the parts of its state, in order; None for a column of zeros. A part that the standardization does
            not make is the feature `observation/<key>`.
        state_encoding: what they make together.
        action_encoding: what the standard actions are.
        depth: the depth that belongs to `cameras`, [h, w] or [h, w, 1], in the unit of the dataset.
        language: the feature that holds the instruction of each step.
        uninformative: whether Octo takes its instructions for empty, because they do not tell its tasks apart.
        targets: whether its actions are poses to reach, where the encoding stands for movements.
        published: what its files are called, where that is something else.
        version: the only one whose files can be used; empty for all.
    """

    name: str
    standardization: str
    cameras: Views
    state_keys: tuple[str | None, ...]
    state_encoding: StateEncoding
    action_encoding: ActionEncoding = ActionEncoding.EEF_POS
    depth: Views = Views()
    language: str = "language_instruction"
    uninformative: bool = False
    targets: bool = False
    published: str = ""
    version: str = ""

    @property
    def folder(self) -> str:
        """What its files are called."""
        return self.published or self.name

    @property
    def folders(self) -> tuple[str, ...]:
        """What the folder of its files may be called: by its own name, as OpenVLA has some, or as they are."""
        names = dict.fromkeys((self.name, self.folder))
        return tuple(f"{name}:{self.version}" if self.version else name for name in names)

    @property
    def actions(self) -> str:
        """What its actions are, in words."""
        reached = ", poses to reach" if self.targets else ""
        return f"{self.action_encoding.name} ({', '.join(self.action_encoding.names)}{reached})"

    @property
    def convention(self) -> ActionConvention:
        """What the standard actions are."""
        grippers = self.action_encoding.grippers
        names = self.action_encoding.names
        return ActionConvention(
            gripper=grippers,
            angles=self.state_encoding.angles,
            names=tuple(f"{name} (1 open)" if d in grippers else name for d, name in enumerate(names)),
        )

    @property
    def absolute_mask(self) -> tuple[bool, ...]:
        """As `ActionEncoding.absolute_mask`, of its own actions."""
        return (True,) * self.action_encoding.width if self.targets else self.action_encoding.absolute_mask


def find(name: str) -> OXEDataset:
    """The dataset of a name.

    Raises:
        ConfigError: there is none; names those whose names are nearest.
    """
    if name not in DATASETS:
        raise unknown("dataset", name, DATASETS)
    return DATASETS[name]


def check_variant(variant: str | None) -> None:
    """Raises ConfigError unless `variant` is one of those, or None for the default."""
    if variant not in (None, *VARIANTS):
        raise ConfigError(f"variant must be one of {', '.join(VARIANTS)}, not {variant!r}")


def unknown(what: str, name: str, known: Iterable[str]) -> ConfigError:
    """The error that there is no `what` of this `name`, with the nearest of those `known`."""
    by_stem: dict[str, str] = {}
    for each in known:
        by_stem.setdefault(_stem(each), each)
    near = [by_stem[stem] for stem in difflib.get_close_matches(_stem(name), by_stem, n=3, cutoff=0.5)]
    meant = f"did you mean {' or '.join(near)}?" if near else f"there are {', '.join(sorted(by_stem.values()))}"
    return ConfigError(f"no {what} of Open X-Embodiment is called {name!r}: {meant}")


def _stem(name: str) -> str:
    for suffix in _SUFFIXES:
        name = name.removesuffix(suffix)
    return name


def _views(primary: str | None = None, secondary: str | None = None, wrist: str | None = None) -> Views:
    """Views by the names of their features below `observation`."""
    return Views(*(name and f"observation/{name}" for name in (primary, secondary, wrist)))


_NONE, _EULER, _QUAT, _JOINT = StateEncoding.NONE, StateEncoding.POS_EULER, StateEncoding.POS_QUAT, StateEncoding.JOINT
_TWO_ARMS, _NAV = StateEncoding.JOINT_BIMANUAL, StateEncoding.POS_NAV
_JOINT_POS, _TWO_ARMS_POS = ActionEncoding.JOINT_POS, ActionEncoding.JOINT_POS_BIMANUAL
_TWO_ARMS_NAV, _NAV_2D, _EEF_R6 = ActionEncoding.JOINT_POS_BIMANUAL_NAV, ActionEncoding.NAV_2D, ActionEncoding.EEF_R6

_NATURAL = "observation/natural_language_instruction"
_NO_STATE = (None,) * 8
_STATE = ("state",)
_EEF = ("eef_state", None, "gripper_state")
_BRIDGE = ("EEF_state", None, "gripper_state")
_DROID = ("cartesian_position", None, "gripper_position")
_JOINTS = ("joint_state", None, "gripper_state")
_IMAGE = _views("image")
_HAND = _views(wrist="image")
_ARM = _views("image", wrist="wrist_image")
_ALOHA = _views("cam_high", "cam_low", "cam_right_wrist")

# A table: name, standardization, cameras, state and its encoding, and what is otherwise than most.
# fmt: off
_TABLE = (
    # RT-X: actions in parts.
    OXEDataset("fractal20220817_data", "relative_gripper", _IMAGE,
               ("base_pose_tool_reached", "gripper_closed"), _QUAT, language=_NATURAL),
    OXEDataset("kuka", "relative_gripper", _IMAGE,
               ("clip_function_input/base_pose_tool_reached", "gripper_closed"), _QUAT,
               language=_NATURAL, uninformative=True),
    OXEDataset("taco_play", "taco", _views("rgb_static", wrist="rgb_gripper"),
               ("state_eef", None, "state_gripper"), _EULER,
               depth=_views("depth_static", wrist="depth_gripper"), language=_NATURAL),
    OXEDataset("jaco_play", "jaco", _views("image", wrist="image_wrist"),
               ("state_eef", None, "state_gripper"), _EULER, language=_NATURAL),
    OXEDataset("berkeley_cable_routing", "no_gripper", _views("image", "top_image", "wrist45_image"),
               ("robot_state", None), _JOINT, language=_NATURAL, uninformative=True),
    OXEDataset("roboturk", "closedness", _views("front_rgb"), _NO_STATE, _NONE,
               language=_NATURAL, uninformative=True),
    OXEDataset("nyu_door_opening_surprising_effectiveness", "relative_gripper", _HAND, _NO_STATE, _NONE,
               language=_NATURAL, uninformative=True),
    OXEDataset("viola", "closedness", _views("agentview_rgb", wrist="eye_in_hand_rgb"),
               ("joint_states", "gripper_states"), _JOINT, language=_NATURAL, uninformative=True),
    OXEDataset("berkeley_autolab_ur5", "ur5", _views("image", wrist="hand_image"), _STATE, _QUAT,
               depth=_views("image_with_depth"), language=_NATURAL),
    OXEDataset("toto", "open_gripper", _IMAGE, ("state", None), _JOINT, language=_NATURAL, uninformative=True),
    OXEDataset("columbia_cairlab_pusht_real", "pusht", _ARM, ("robot_state", *(None,) * 6), _EULER,
               language=_NATURAL),
    OXEDataset("bc_z", "bc_z", _IMAGE,
               ("present/xyz", "present/axis_angle", None, "present/sensed_close"), _EULER, language=_NATURAL,
               version="0.1.0"),
    OXEDataset("language_table", "language_table", _views("rgb"),
               ("effector_translation", *(None,) * 6), _EULER, language="observation/instruction"),

    # BridgeData: the copy of Open X-Embodiment, an old part, and that of its project, by its names in both.
    OXEDataset("bridge_oxe", "bridge_oxe", _IMAGE, _BRIDGE, _EULER, language=_NATURAL, published="bridge"),
    OXEDataset("bridge_orig", "bridge", _views("image_0", "image_1"), _BRIDGE, _EULER, published="bridge_dataset"),
    OXEDataset("bridge_dataset", "bridge", _views("image_0", "image_1"), _BRIDGE, _EULER),

    # Converted from other formats: actions are vectors.
    OXEDataset("stanford_kuka_multimodal_dataset_converted_externally_to_rlds", "no_rotation", _IMAGE,
               ("ee_position", "ee_orientation", None), _QUAT, depth=_views("depth_image")),
    OXEDataset("nyu_rot_dataset_converted_externally_to_rlds", "pose_state", _IMAGE, _EEF, _EULER),
    OXEDataset("stanford_hydra_dataset_converted_externally_to_rlds", "hydra", _ARM, _EEF, _EULER,
               uninformative=True),
    OXEDataset("austin_buds_dataset_converted_externally_to_rlds", "joint_state_8", _ARM, _STATE, _JOINT,
               uninformative=True),
    OXEDataset("nyu_franka_play_dataset_converted_externally_to_rlds", "nyu_franka",
               _views("image", "image_additional_view"), ("eef_state", None, None), _EULER,
               depth=_views("depth", "depth_additional_view"), uninformative=True),
    OXEDataset("maniskill_dataset_converted_externally_to_rlds", "maniskill", _ARM,
               ("tcp_pose", "gripper_state"), _QUAT, depth=_views("depth", wrist="wrist_depth")),
    OXEDataset("furniture_bench_dataset_converted_externally_to_rlds", "furniture_bench", _ARM, _STATE, _QUAT),
    OXEDataset("cmu_franka_exploration_dataset_converted_externally_to_rlds", "without_last",
               _views("highres_image"), _NO_STATE, _NONE),
    OXEDataset("ucsd_kitchen_dataset_converted_externally_to_rlds", "ucsd_kitchen", _IMAGE,
               ("joint_state", None), _JOINT),
    OXEDataset("ucsd_pick_and_place_dataset_converted_externally_to_rlds", "ucsd_pick_place", _IMAGE, _EEF, _EULER),
    OXEDataset("austin_sailor_dataset_converted_externally_to_rlds", "inverted_gripper", _ARM, _STATE, _QUAT,
               uninformative=True),
    OXEDataset("austin_sirius_dataset_converted_externally_to_rlds", "inverted_gripper", _ARM, _STATE, _QUAT,
               uninformative=True),
    OXEDataset("utokyo_pr2_opening_fridge_converted_externally_to_rlds", "pr2", _IMAGE, _EEF, _EULER),
    OXEDataset("utokyo_pr2_tabletop_manipulation_converted_externally_to_rlds", "pr2", _IMAGE, _EEF, _EULER),
    OXEDataset("utokyo_xarm_pick_and_place_converted_externally_to_rlds", "unchanged",
               _views("image", "image2", "hand_image"), ("end_effector_pose", None, None), _EULER),
    OXEDataset("utokyo_xarm_bimanual_converted_externally_to_rlds", "right_arm", _IMAGE,
               ("pose_r", None, None), _EULER),
    OXEDataset("robo_net", "robo_net", _views("image", "image1"), _EEF, _EULER),
    OXEDataset("berkeley_mvp_converted_externally_to_rlds", "mvp", _views(wrist="hand_image"),
               ("pose", "gripper"), _QUAT, _JOINT_POS),
    OXEDataset("berkeley_rpt_converted_externally_to_rlds", "rpt", _views(wrist="hand_image"),
               ("joint_pos", "gripper"), _JOINT, _JOINT_POS),
    OXEDataset("kaist_nonprehensile_converted_externally_to_rlds", "kaist", _IMAGE, ("state", None), _QUAT),
    OXEDataset("stanford_mask_vit_converted_externally_to_rlds", "mask_vit", _IMAGE, _EEF, _EULER),
    OXEDataset("tokyo_u_lsmo_converted_externally_to_rlds", "pose_state", _IMAGE, _EEF, _EULER),
    OXEDataset("dlr_sara_pour_converted_externally_to_rlds", "unchanged", _IMAGE, ("state", None, None), _EULER),
    OXEDataset("dlr_sara_grid_clamp_converted_externally_to_rlds", "sara_grid_clamp", _IMAGE,
               ("state", None, None), _EULER),
    OXEDataset("dlr_edan_shared_control_converted_externally_to_rlds", "edan", _IMAGE, _EEF, _EULER),
    OXEDataset("asu_table_top_converted_externally_to_rlds", "asu", _IMAGE, _EEF, _EULER),
    OXEDataset("stanford_robocook_converted_externally_to_rlds", "pose_state", _views("image_1", "image_2"), _EEF,
               _EULER, depth=_views("depth_1", "depth_2")),
    OXEDataset("imperialcollege_sawyer_wrist_cam", "without_last", _ARM, (*(None,) * 7, "state"), _NONE),
    OXEDataset("iamlab_cmu_pickup_insert_converted_externally_to_rlds", "iamlab", _ARM,
               ("joint_state", "gripper_state"), _JOINT),
    OXEDataset("uiuc_d3field", "translation", _views("image_1", "image_2"), _NO_STATE, _NONE,
               depth=_views("depth_1", "depth_2")),
    OXEDataset("utaustin_mutex", "joint_state_8", _ARM, _STATE, _JOINT, uninformative=True),
    OXEDataset("berkeley_fanuc_manipulation", "fanuc", _ARM, _JOINTS, _JOINT),
    OXEDataset("cmu_playing_with_food", "playing_with_food", _views("image", wrist="finger_vision_1"),
               ("state", None, None), _EULER),
    OXEDataset("cmu_play_fusion", "play_fusion", _IMAGE, _STATE, _JOINT),
    OXEDataset("cmu_stretch", "stretch", _IMAGE, _EEF, _EULER),

    # Bases that drive: OpenVLA's three, each by itself, as arms; Octo's all in one.
    *(OXEDataset(f"berkeley_gnm_{name}", "gnm_as_arm", _HAND, ("state", None, None), _EULER)
      for name in ("recon", "cory_hall", "sac_son")),
    OXEDataset("gnm_dataset", "gnm", _IMAGE, _STATE, _NAV, _NAV_2D),

    # Later ones.
    OXEDataset("droid", "droid", _views("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"),
               _DROID, _EULER),
    OXEDataset("droid_wrist", "droid_wrist",
               _views("exterior_image_1_left", "exterior_image_2_left", "wrist_image_left"), _DROID, _EULER, _EEF_R6,
               published="droid"),
    OXEDataset("droid_wipe", "droid_wipe", _views("exterior_image_2_left", wrist="wrist_image_left"), _DROID, _EULER),
    OXEDataset("fmb_dataset", "unchanged", _views("image_side_1", "image_side_2", "image_wrist_1"),
               ("eef_pose", "state_gripper_pose"), _QUAT,
               depth=_views("image_side_1_depth", "image_side_2_depth", "image_wrist_1_depth"), published="fmb"),
    OXEDataset("dobbe", "pose_state", _views("wrist_image"), _EEF, _EULER),
    OXEDataset("roboset", "roboset", _views("image_left", "image_right", "image_wrist"), _STATE, _JOINT, _JOINT_POS,
               published="robo_set"),
    OXEDataset("rh20t", "rh20t", _views("image_front", "image_side_right", "image_wrist"),
               ("tcp_base", None, "gripper_width"), _EULER, targets=True),
    OXEDataset("mujoco_manip", "mujoco_manip", _IMAGE, _NO_STATE, _NONE),
    OXEDataset("aloha_static_dataset", "aloha", _ALOHA, _STATE, _TWO_ARMS, _TWO_ARMS_POS),
    OXEDataset("aloha_dagger_dataset", "aloha", _ALOHA, _STATE, _TWO_ARMS, _TWO_ARMS_POS),
    OXEDataset("aloha_mobile_dataset", "aloha", _views("cam_high", wrist="cam_right_wrist"), _STATE, _TWO_ARMS,
               _TWO_ARMS_NAV, published="aloha_mobile"),
    *(OXEDataset(f"tdroid_{task}", "tdroid", _views("static_image"), _BRIDGE, _EULER,
                 depth=_views("static_depth_image"))
      for task in ("carrot_in_bowl", "pour_corn_in_pot", "flip_pot_upright", "move_object_onto_plate",
                   "knock_object_over", "cover_object_with_towel")),
    *(OXEDataset(f"libero_{suite}_no_noops", "libero", _ARM, ("EEF_state", "gripper_state"), _EULER)
      for suite in ("spatial", "object", "goal", "10")),
)
# fmt: on

DATASETS = {dataset.name: dataset for dataset in _TABLE}
