"""Cameras and lessons from the raw folder to a batch, and what a conversion says it left out."""

import pathlib
import pickle

import numpy as np
import pytest
from data.raw_files import (
    DATE,
    EARLY,
    SIZE,
    expected_frame,
    files_of,
    load,
    make_session,
    make_trajectory,
    read_features,
    to_numpy,
    to_tfrecord,
)

from jaxvla.data.conversion.cameras import named_cameras
from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.formats import bridge_tfrecord, tfrecord
from jaxvla.data.loader import training_batches
from jaxvla.data.mixture import Mixture
from jaxvla.errors import ConfigError, DataError

BOTH = ("images0", "images1")


@pytest.fixture
def mixed(tmp_path):
    """Two tasks: all trajectories of `two` have two cameras, one of `some` has one."""
    make_session(tmp_path / "raw" / "two", count=3, cameras=BOTH)
    make_session(tmp_path / "raw" / "some", count=2, first_seed=3, cameras=BOTH)
    make_trajectory(tmp_path / "raw" / "some" / DATE / "raw" / "traj_group0" / "traj2", 5)
    return tmp_path


def open_cameras(root, cameras, split="train", **options):
    config = SourceConfig("bridge_tfrecord", str(root), (("**",),), cameras={name: name for name in cameras}, **options)
    return open_dataset(config, DataConfig(relabel_actions=False), split)


def test_all_cameras_reach_a_batch(mixed):
    to_numpy(mixed / "raw", mixed / "np", train_proportion=1.0)
    report = to_tfrecord(mixed / "np", mixed / "tf")
    assert report.cameras == {"images0": 6, "images1": 3}
    table = report.table(1.0)
    assert "cameras        images0 in all 6, images1 in 3 of 6" in table
    assert "  2  images1, which other trajectories of the file lack\n" in table
    source = open_cameras(mixed / "tf" / "two", BOTH).source
    for i, seed in enumerate((0, 1, 2)):
        for number, camera in enumerate(BOTH):
            expected = np.stack([expected_frame(seed, number, t) for t in range(5)])
            np.testing.assert_array_equal(source.frames(i, range(5), camera), expected)
    batch = next(
        training_batches(Mixture.of(open_cameras(mixed / "tf" / "two", BOTH)), 4, 0, ("observations", "actions"))
    )
    assert batch["observations"]["images1"].shape == (4, 1, SIZE, SIZE, 3)
    assert len(open_cameras(mixed / "tf", ["images0"]).source) == 6
    with pytest.raises(
        DataError, match=r"3 of 6 train trajectories .*: 3 no camera 'images1', such as .*some/train/out.tfrecord"
    ):
        open_cameras(mixed / "tf", BOTH)


# What bridge_data_v2's reader parses, each a FixedLenFeature of one string: a serialized tensor of this type, with T
# transitions in front; and the language, a tensor of strings.
ORIGINAL = {
    "observations/images0": (np.uint8, (SIZE, SIZE, 3)),
    "observations/state": (np.float32, (7,)),
    "next_observations/images0": (np.uint8, (SIZE, SIZE, 3)),
    "next_observations/state": (np.float32, (7,)),
    "actions": (np.float32, (7,)),
    "terminals": (bool, ()),
    "truncates": (bool, ()),
}


def payloads(path):
    """Of each record, the bytes of each feature."""
    read = tfrecord.buffer_reader(path.read_bytes())
    found = []
    for record in tfrecord.scan_records(path):
        features = tfrecord.parse_example(read, record, str(path))
        assert {(feature.kind, len(feature.values)) for feature in features.values()} == {("bytes", 1)}
        found.append({key: read(*feature.values[0]) for key, feature in features.items()})
    return found


def test_a_second_camera_changes_nothing_that_the_original_reads(mixed):
    to_numpy(mixed / "raw", mixed / "np", train_proportion=1.0)
    to_tfrecord(mixed / "np", mixed / "both")
    to_tfrecord(mixed / "np", mixed / "one", cameras=["images0"])
    path = pathlib.Path("two", "train", "out.tfrecord")
    both, one = payloads(mixed / "both" / path), payloads(mixed / "one" / path)
    assert len(both) == 3
    for more, less in zip(both, one, strict=True):
        assert less.keys() == {*ORIGINAL, "language", "path"}
        assert more.keys() - less.keys() == {"observations/images1", "next_observations/images1"}
        assert {key: more[key] for key in less} == less
    for features in read_features(mixed / "both" / path):
        assert features["language"] == [b""]
        for key, (dtype, shape) in ORIGINAL.items():
            assert (features[key].dtype, features[key].shape) == (dtype, (4, *shape))


def test_a_named_camera_is_demanded_of_every_trajectory(mixed):
    for name in BOTH:
        to_numpy(mixed / "raw", mixed / "np", train_proportion=1.0)
        report = to_tfrecord(mixed / "np", mixed / name, cameras=[name])
    assert report.cameras == {"images1": 5}
    assert report.skipped["no camera images1"] == [
        f"{mixed / 'np' / 'some'}/train/out.npy: trajectory 2: there are images0; --cameras chooses"
    ]
    assert len(open_cameras(mixed / "images1", ["images1"]).source) == 5
    assert "observations/images1" not in read_features(mixed / "images0" / "two" / "train" / "out.tfrecord")[0]
    report = to_numpy(mixed / "raw", mixed / "np1", cameras=["images1"], train_proportion=1.0)
    assert (report.cameras, list(report.skipped)) == ({"images1": 5}, ["no camera images1"])
    assert set(load(mixed / "np1" / "two" / "train" / "out.npy")[0]["observations"][0]) == {
        *("images1", "state", "time_stamp")
    }


def test_a_camera_that_nobody_has_is_an_error_that_lists_those_there_are(mixed):
    to_numpy(mixed / "raw", mixed / "np")
    for report in (
        to_numpy(mixed / "raw", mixed / "other", cameras=["images0", "images7"]),
        to_tfrecord(mixed / "np", mixed / "tf", cameras=["images0", "images7"]),
    ):
        with pytest.raises(DataError, match=r"all 6 .*no camera images7, as .*: there are images0, images1; --cameras"):
            report.check(max_skipped=1.0)
    assert files_of(mixed / "tf") == {}


def test_without_images0_a_camera_must_be_named(tmp_path):
    make_session(tmp_path / "raw" / "task", count=2, cameras=("images2", "images10"))
    to_numpy(tmp_path / "raw", tmp_path / "np")
    with pytest.raises(DataError, match=r"no camera images0, as .*: there are images2, images10; --cameras chooses"):
        to_tfrecord(tmp_path / "np", tmp_path / "tf").check(1.0)
    to_tfrecord(tmp_path / "np", tmp_path / "tf", cameras=["images10", "images2"])
    index = bridge_tfrecord.build_index(str(tmp_path / "tf" / "task" / "train" / "out.tfrecord"))
    assert set(index.frames) == {"images10", "images2"}


def test_a_camera_that_is_not_asked_for_may_be_broken(mixed):
    frame = mixed / "raw" / "two" / DATE / "raw" / "traj_group0" / "traj1" / "images1" / "im_2.jpg"
    frame.write_bytes(b"")
    assert list(to_numpy(mixed / "raw", mixed / "all").skipped) == ["damaged image"]
    assert not to_numpy(mixed / "raw", mixed / "one", cameras=["images0"]).skipped


def test_frames_of_another_size_than_the_first_are_skipped(tmp_path):
    for size, count in ((SIZE, 3), (8, 2)):
        make_session(tmp_path / str(size) / "task", count=count)
        to_numpy(tmp_path / str(size), tmp_path / f"np{size}", im_size=size, train_proportion=1.0)
    parts = [load(tmp_path / f"np{size}" / "task" / "train" / "out.npy") for size in (SIZE, 8)]
    np.save(tmp_path / f"np{SIZE}" / "task" / "train" / "out.npy", np.concatenate(parts))
    report = to_tfrecord(tmp_path / f"np{SIZE}", tmp_path / "tf")
    assert report.lost == {"frames of another size than the file's first": 2}
    assert len(open_cameras(tmp_path / "tf", ["images0"]).source) == 3


@pytest.mark.parametrize("names", [["image0"], ["images0", "images0"], ["depth_images0"], ["images0", ""]])
def test_names_of_cameras_are_checked(names):
    with pytest.raises(ConfigError, match=r"--cameras takes different names like images0,images1, not"):
        named_cameras(names)
    assert named_cameras(["images1", "images0"]) == ("images1", "images0")


def mark(folder, untaught):
    path = folder / "policy_out.pkl"
    steps = pickle.loads(path.read_bytes())
    for t in untaught:
        steps[t]["taught"] = np.bool_(False) if t % 2 else False
    path.write_bytes(pickle.dumps(steps))


@pytest.mark.parametrize(("date", "expected"), [(DATE, [True, False, True, False]), (EARLY, [True, False, True])])
def test_what_is_not_taught_is_carried_along(tmp_path, date, expected):
    group = tmp_path / "raw" / "task" / date / "raw" / "traj_group0"
    make_session(tmp_path / "raw" / "task", date, count=2)
    mark(group / "traj0", (1, 3))
    report = to_numpy(tmp_path / "raw", tmp_path / "np", train_proportion=1.0)
    marked, plain = load(tmp_path / "np" / "task" / "train" / "out.npy")
    assert marked["taught"] == expected
    assert "taught" not in plain
    to_tfrecord(tmp_path / "np", tmp_path / "tf")
    marked, plain = read_features(tmp_path / "tf" / "task" / "train" / "out.tfrecord")
    assert marked["taught"].dtype == bool
    np.testing.assert_array_equal(marked["taught"], expected)
    assert "taught" not in plain
    assert f"not taught     {expected.count(False)} of {2 * len(expected)} transitions" in report.table(1.0)


def test_taught_must_be_a_bool(tmp_path):
    make_session(tmp_path / "raw" / "task", count=1)
    path = tmp_path / "raw" / "task" / DATE / "raw" / "traj_group0" / "traj0" / "policy_out.pkl"
    steps = pickle.loads(path.read_bytes())
    steps[2]["taught"] = "no"
    path.write_bytes(pickle.dumps(steps))
    report = to_numpy(tmp_path / "raw", tmp_path / "np")
    assert report.skipped == {"`taught` is neither True nor False": [f"{path}: step 2: str"]}


LANGUAGE = {
    b"move with confidence to the left\nconfidence: 1\n": ["move with confidence to the left"],
    b"Confidence : 0.85 \n  lift it\n": ["lift it"],
    b"confidence: 1e-1\nconfidence: high\nconfidence: 1 of 5": ["confidence: high", "confidence: 1 of 5"],
    b"confidence: 1\n\n": [""],
    b"\xef\xbb\xbflift it\r\n": ["lift it"],
}


@pytest.mark.parametrize("content", LANGUAGE)
def test_only_lines_of_confidence_are_no_instructions(tmp_path, content):
    make_trajectory(tmp_path / "raw" / "task" / DATE / "raw" / "traj_group0" / "traj0", lang=content)
    to_numpy(tmp_path / "raw", tmp_path / "np")
    (trajectory,) = load(tmp_path / "np" / "task" / "train" / "out.npy")
    assert trajectory["language"] == LANGUAGE[content]
