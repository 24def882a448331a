"""The true structure of every dataset of the registry, and random episodes of it."""

import json
import math

import numpy as np
import pytest

from jaxvla.data.oxe.registry import find

STEPS = 16
SHORT = "_converted_externally_to_rlds"
TEXT = "text"
# Of datasets that the samples do not describe: the shape of each feature that is read, in one step. Those that the
# catalogue of TFDS has are from there; of the others it is the least that the peers' code takes.
SHAPES = {
    f"nyu_rot_dataset{SHORT}": {"action": 7, "observation/state": 7},
    f"furniture_bench_dataset{SHORT}": {"action": 8, "observation/state": 35},
    f"cmu_franka_exploration_dataset{SHORT}": {"action": 8},
    f"ucsd_pick_and_place_dataset{SHORT}": {"action": 4, "observation/state": 7},
    f"utokyo_pr2_opening_fridge{SHORT}": {"action": 8, "observation/state": 7},
    f"utokyo_pr2_tabletop_manipulation{SHORT}": {"action": 8, "observation/state": 7},
    f"utokyo_xarm_pick_and_place{SHORT}": {"action": 7, "observation/end_effector_pose": 6},
    "robo_net": {"action": 5, "observation/state": 5},
    f"berkeley_rpt{SHORT}": {"action": 8, "observation/joint_pos": 7, "observation/gripper": 0},
    f"stanford_mask_vit{SHORT}": {"action": 5, "observation/end_effector_pose": 5},
    f"dlr_sara_pour{SHORT}": {"action": 7, "observation/state": 6},
    f"dlr_sara_grid_clamp{SHORT}": {"action": 7, "observation/state": 12},
    f"asu_table_top{SHORT}": {"action": 7, "observation/state": 7, "ground_truth_states/EE": 6},
    "uiuc_d3field": {"action": 3},
    "cmu_playing_with_food": {"action": 8, "observation/state": 6},
    "gnm_dataset": {"action": 2, "observation/position": 2, "observation/yaw": 1, "observation/state": 3},
    "rh20t": {"action/tcp_base": 6, "action/gripper": 0, "observation/tcp_base": 6, "observation/gripper_width": 0},
    "mujoco_manip": {"action": 7},
    "aloha_static_dataset": {"action": 14, "observation/state": 14},
    "aloha_dagger_dataset": {"action": 14, "observation/state": 14},
    "tdroid_": {"action": 7, "observation/cartesian_position": 6, "observation/gripper_position": 1},
    "droid_wipe": {
        "action_dict/cartesian_velocity": 6,
        "action_dict/gripper_position": 1,
        "observation/cartesian_position": 6,
        "observation/gripper_position": 1,
    },
}
# Whose structure the samples keep under the name of another.
SAME = {"libero_": "libero_spatial_no_noops", "berkeley_gnm_": "berkeley_gnm_recon"}


def flat(node, above=""):
    """Shape and dtype of each feature, by its path."""
    found = {}
    for key, child in node.items():
        found |= flat(child, f"{above}{key}/") if isinstance(child, dict) else {f"{above}{key}": child[:3]}
    return found


def nested(values):
    """The first part of a path names the mapping that a value lies in; the rest is one key."""
    episode = {}
    for path, value in values.items():
        group, _, key = path.partition("/")
        if key:
            episode.setdefault(group, {})[key] = value
        else:
            episode[group] = value
    return episode


def fill(kind, shape, dtype, rng):
    if kind == "Image":
        return np.array([b"encoded"] * STEPS, object)
    if dtype == "string":
        return np.array([b"do something "] * STEPS, object)
    if dtype == "bool":
        return rng.random((STEPS, *shape)) < 0.5
    if math.prod(shape) > 1000:
        return np.zeros((STEPS, *shape), dtype)
    if np.dtype(dtype).kind in "iu":
        return rng.integers(0, 2, (STEPS, *shape)).astype(dtype)
    return rng.uniform(-1, 1, (STEPS, *shape)).astype(dtype)


def structure(name, request):
    """The features of a dataset's steps: [kind, shape, dtype] by their paths; skips where the samples are needed."""
    known = next((shapes for start, shapes in SHAPES.items() if name.startswith(start)), None)
    if known is not None:
        numbers = {path: ["Tensor", [width] if width else [], "float32"] for path, width in known.items()}
        return {**numbers, find(name).language: ["Text", [], "string"]}
    path = request.getfixturevalue("samples") / "oxe_features" / "DERIVED_features.json"
    if not path.is_file():
        pytest.skip(f"no structure of {name}: {path} is missing")
    described = json.loads(path.read_text())["datasets"]
    other = next((target for start, target in SAME.items() if name.startswith(start)), find(name).folder)
    return flat(described[other]["steps"])
