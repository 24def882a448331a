"""Every dataset of the registry from files to a batch, as a configuration opens it; some against values by hand."""

import math

import numpy as np
import pytest
from data.oxe import demonstrations
from data.oxe.cases import CASES
from data.oxe.episodes import BRIDGE, NATURAL, column, ramp, rows, texts
from data.oxe.files import KEY, opened, write
from data.oxe.structures import STEPS, fill, nested, structure

from jaxvla.data.formats.index import NO_TEXT
from jaxvla.data.loader import training_batches
from jaxvla.data.oxe.registry import DATASETS, find
from jaxvla.data.oxe.standardization import features, proprio, standardize
from jaxvla.errors import DataError

KEYS = ("observations", "actions", "action_pad_mask", "action_dim_mask", "language")
HORIZON, ROWS = 2, 4
ARRAY_RECORD = {"viola", "toto", "droid_wrist"}


def random_episode(name, request):
    """An episode of the dataset's own structure: pictures apart, and small where it is not read."""
    rng, read = np.random.default_rng(0), features(name)
    values = {}
    for path, (kind, shape, dtype) in structure(name, request).items():
        if kind != "Image":
            small = [8, 8, *shape[2:]] if math.prod(shape) > 1000 and path not in read else shape
            values[path] = abs(fill(kind, small, dtype, rng)) if dtype != "string" else fill(kind, small, dtype, rng)
    return nested(values)


@pytest.mark.parametrize("name", DATASETS)
def test_every_dataset_comes_to_batches(name, request, tmp_path):
    dataset, episode = find(name), random_episode(name, request)
    write(tmp_path, name, [episode], file_format="array_record" if name in ARRAY_RECORD else "tfrecord")
    mixture = opened(tmp_path, standardization=name, data={"action_horizon": HORIZON})
    (member,) = mixture.members
    source, encoding = member.dataset.source, dataset.action_encoding
    assert (member.name, source.keys, source.stored.tolist()) == (name, (KEY,), [STEPS])
    standard = standardize(name, episode)
    last = len(standard["steps"]) - 1
    table = source.table(0)
    np.testing.assert_allclose(table.actions, standard["actions"][:last], rtol=1e-6, atol=1e-7)
    np.testing.assert_allclose(table.proprio, proprio(name, standard), rtol=1e-6)
    assert source.steps.tolist() == standard["steps"].tolist()
    np.testing.assert_array_equal(source.taught, standard["taught"][:last])

    views = (dataset.cameras.primary, dataset.cameras.secondary, dataset.cameras.wrist)
    cameras = tuple(f"images{number}" for number, view in enumerate(views) if view)
    spec = mixture.spec
    assert (spec.cameras, spec.image_size) == (cameras, (8, 8))
    assert (spec.action_dim, spec.proprio_dim) == (encoding.width, dataset.state_encoding.width)
    assert member.dataset.action_normalizer.mask == encoding.normalization_mask
    convention = member.dataset.convention
    assert (convention.gripper, convention.relabel) == (encoding.grippers, False)

    batch = next(training_batches(mixture, ROWS, 0, KEYS))
    assert batch["actions"].shape == (ROWS, HORIZON, encoding.width)
    assert batch["observations"]["proprio"].shape == (ROWS, 1, dataset.state_encoding.width)
    assert batch["action_dim_mask"].all()
    assert "camera_mask" not in batch["observations"]
    shown = np.stack([batch["observations"][camera][:, 0, 0, 0] for camera in cameras])
    assert (shown[..., 0] == 0).all()
    assert (shown[..., 2] == 7).all()
    assert set(shown[..., 1].ravel()) <= set(standard["steps"].tolist())
    grippers = list(encoding.grippers)  # which are not normalized
    assert np.isin(batch["actions"][:, 0][:, grippers], table.actions[:, grippers]).all()
    said = set(standard["instruction"])
    assert {mixture.annotations()[i] if i >= 0 else "" for i in batch["language"].tolist()} <= said


def longer(values):
    """The last step once more, for an episode of two has one transition, which is none to train on."""
    return {k: longer(v) if isinstance(v, dict) else np.concatenate([v, v[-1:]]) for k, v in values.items()}


@pytest.mark.parametrize(("name", "episode", "actions", "states"), CASES, ids=[case[0] for case in CASES])
def test_files_by_hand(name, episode, actions, states, tmp_path):
    write(tmp_path, name, [longer(episode)], file_format="array_record" if name in ARRAY_RECORD else "tfrecord")
    source = opened(tmp_path, standardization=name).datasets[0].source
    np.testing.assert_allclose(source.actions, actions, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(source.proprio, [*states, states[-1]], rtol=1e-6)
    assert source.language == (("a",),)


def test_files_of_two_arms_by_hand(tmp_path):
    """Every fifth step, and the pictures of these."""
    action, state = ramp(14, 11), ramp(14, 11) + 0.5
    episode = {"action": action, "observation": {"state": state}, "language_instruction": texts(*[b"a"] * 11)}
    write(tmp_path, "aloha_static_dataset", [episode])
    source = opened(tmp_path, standardization="aloha_static_dataset").datasets[0].source
    np.testing.assert_array_equal(source.actions, action[[0, 5]])
    np.testing.assert_array_equal(source.proprio, state[[0, 5, 10]])
    assert [frame[0, 0].tolist() for frame in source.frames(0, [0, 1, 2], "images2")] == [[0, t, 7] for t in (0, 5, 10)]


def test_files_of_compressed_states_and_relative_grippers_by_hand(tmp_path):
    closing = column(0, 0, 1, 0, -1, 0)
    pose, gripper = ramp(7, 6), column(1, 1, 0, 0, 1, 1)
    episode = {
        "action": {"world_vector": ramp(3, 6), "rotation_delta": ramp(3, 6) + 10, "gripper_closedness_action": closing},
        "observation": {
            "clip_function_input/base_pose_tool_reached": pose,
            "gripper_closed": gripper,
            NATURAL: texts(*[b"pick anything"] * 6),
        },
    }
    packed = ("observation/clip_function_input|base_pose_tool_reached", "observation/gripper_closed")
    write(tmp_path, "kuka", [episode], packed)
    for variant, language in (("", ("pick anything",)), ("octo", ())):
        source = opened(tmp_path, standardization="kuka", variant=variant).datasets[0].source
        assert source.actions[:, 6].tolist() == [1, 1, 0, 0, 1]
        np.testing.assert_array_equal(source.proprio, np.hstack([pose, gripper]))
        assert source.language == (language,)


@pytest.mark.parametrize(
    ("variant", "steps", "moved"), [("", [1, 2, 3, 4], [2, 3, 4]), ("octo", [0, 1, 2, 3, 4], [1, 2, 3, 4])]
)
def test_files_of_bridge_by_hand(variant, steps, moved, tmp_path):
    """Its first step has no instruction."""
    write(tmp_path, "bridge_orig", [BRIDGE])
    source = opened(tmp_path, "bridge_orig", variant=variant).datasets[0].source
    assert (source.steps.tolist(), source.stored.tolist()) == (steps, [5])
    np.testing.assert_array_equal(source.actions[:, 0], moved)
    assert source.frames(0, [0], "images1")[0, 0, 0].tolist() == [0, steps[0], 7]
    assert (source.texts == NO_TEXT).tolist() == [step == 0 for step in steps[:-1]]
    assert source.language == (("second", "third", "vierte \u00e4"),)


def test_grippers_of_another_range_than_the_registry_says_are_a_warning(tmp_path):
    """Of a copy that nobody of the peers has seen; who says it of this data is held to it."""
    name = "nyu_rot_dataset_converted_externally_to_rlds"
    action = rows(*((1, 2, 3, 4, 5, 6, gripper) for gripper in (-1, 1, 1)))
    episode = {"action": action, "observation": {"state": ramp(7, 3)}, "language_instruction": texts("a", "a", "a")}
    write(tmp_path, name, [episode])
    report = opened(tmp_path, standardization=name).report
    assert any("gripper dimension 6 of the actions goes from -1 to 1" in line for line in report)
    dataset = opened(tmp_path, standardization=name, actions={"closed": -1.0}).datasets[0]
    assert (dataset.convention.gripper, dataset.convention.closed) == ((6,), -1.0)
    assert not any("gripper dimension" in line for line in dataset.report)


def test_a_mixture_of_files(tmp_path):
    """Shares follow weights times sizes, and each dataset keeps its own cameras and validation."""
    for name in demonstrations.STRUCTURES:
        write(tmp_path, name, demonstrations.episodes(name))
    settings = {"mixture": "bridge_rt_1", "datasets": {"viola": {"standardization": "viola", "weight": 0.5}}}
    mixture = opened(tmp_path, "oxe_magic_soup", **settings)
    assert mixture.names == ("bridge_orig", "fractal20220817_data", "viola")
    sizes = [8 * 4, 8 * 5, 8 * 5 / 2]
    assert list(mixture.shares.values()) == pytest.approx([size / sum(sizes) for size in sizes])
    assert mixture.spec.cameras == ("images0", "images1", "images2")
    batch = next(training_batches(mixture, 64, 0, (*KEYS, "dataset")))
    has = {0: [True, True, False], 1: [True, False, False], 2: [True, False, True]}
    for number, mask in zip(batch["dataset"].tolist(), batch["observations"]["camera_mask"][:, 0].tolist()):
        assert mask == has[number]
    assert set(batch["dataset"].tolist()) == {0, 1, 2}


def test_datasets_that_are_not_there_are_listed_at_once(tmp_path):
    write(tmp_path, "bridge_orig", demonstrations.episodes("bridge_orig"))
    changes = {"mixture": "rtx", "leave_out": ("kuka", "toto", "roboturk")}
    lost = (
        "berkeley_autolab_ur5",
        "berkeley_cable_routing",
        "fractal20220817_data",
        "jaco_play",
        "taco_play",
        "viola",
    )
    with pytest.raises(DataError) as caught:
        opened(tmp_path, "oxe_magic_soup", **changes)
    assert str(caught.value) == (
        f"6 of 7 datasets do not lie below {tmp_path} as <name>/<version>: download them, or leave them out: "
        f'--bridgedata_config.leave_out="{lost}"'
    )
    assert opened(tmp_path, "oxe_magic_soup", **changes | {"leave_out": (*changes["leave_out"], *lost)}).names
    with pytest.raises(DataError, match=r"none of the 10 datasets lies below .*/nowhere as <name>/<version>, such as "):
        opened(tmp_path / "nowhere", "oxe_magic_soup", mixture="rtx")
    with pytest.raises(DataError, match=r"no dataset 'viola', it holds bridge_dataset: correct .* or the data path"):
        opened(tmp_path, standardization="viola")
    with pytest.raises(DataError, match=r"no data folder .*/nowhere"):
        opened(tmp_path / "nowhere", standardization="viola")


def test_a_dataset_is_found_by_either_of_its_names(tmp_path):
    folder = write(tmp_path, "bridge_orig", [BRIDGE])
    assert opened(folder, standardization="bridge_orig").names == ("bridge_orig",)
    (tmp_path / "bridge_dataset").rename(tmp_path / "bridge_orig")
    assert opened(tmp_path, standardization="bridge_orig", cameras={"images0": "image_1"}).spec.cameras == ("images0",)
    with pytest.raises(DataError, match="no dataset 'bridge_dataset'"):
        opened(tmp_path, standardization="bridge_dataset")


def test_a_validation_split_counts_before_a_share(tmp_path):
    records = demonstrations.episodes("bridge_orig")
    folder = write(tmp_path, "bridge_orig", records)
    share = opened(tmp_path, "bridge_orig", validation_share=0.25)
    assert share.num_trajectories < 8
    for path in folder.glob("*-train.*"):
        if not path.name.endswith(".index"):
            path.with_name(path.name.replace("-train.", "-val.")).write_bytes(path.read_bytes())
    assert opened(tmp_path, "bridge_orig", validation_share=0.25).num_trajectories == 8
