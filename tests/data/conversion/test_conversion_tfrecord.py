import pathlib
import warnings

import numpy as np
import pytest
from data.raw_files import (
    DATE,
    SIZE,
    Bomb,
    expected_frame,
    files_of,
    make_trajectory,
    read_features,
    to_numpy,
    to_tfrecord,
)

from jaxvla.errors import DataError


def test_features_of_a_trajectory(tmp_path):
    folder = tmp_path / "raw" / "task" / DATE / "raw" / "traj_group0" / "traj0"
    states, actions = make_trajectory(folder, seed=3, lang=b"lift\nraise\n", cameras=("images0", "images1"))
    to_numpy(tmp_path / "raw", tmp_path / "np")
    report = to_tfrecord(tmp_path / "np", tmp_path / "tf")
    path = tmp_path / "tf" / "task" / "train" / "out.tfrecord"
    assert (report.tasks, report.converted["train"], report.bytes_written) == (1, 1, path.stat().st_size)
    (features,) = read_features(path)
    frames = np.stack([expected_frame(3, 0, t) for t in range(5)])
    second = np.stack([expected_frame(3, 1, t) for t in range(5)])
    expected = {
        "observations/images0": frames[:-1],
        "observations/images1": second[:-1],
        "next_observations/images1": second[1:],
        "observations/state": states[:-1].astype(np.float32),
        "next_observations/images0": frames[1:],
        "next_observations/state": states[1:].astype(np.float32),
        "actions": actions.astype(np.float32),
        "terminals": np.zeros(4, bool),
        "truncates": np.array([False, False, False, True]),
    }
    assert features.pop("language") == [b"lift", b"raise"]
    assert features.pop("path") == [f"task/{DATE}/raw/traj_group0/traj0".encode()]
    assert features.keys() == expected.keys()
    for key, value in expected.items():
        assert features[key].dtype == value.dtype
        np.testing.assert_array_equal(features[key], value)


def original_trajectory(steps: int = 3, **changes) -> dict:
    """A trajectory dict as bridge_data_v2 saves it."""
    frames = np.random.default_rng(0).integers(0, 256, (steps + 1, SIZE, SIZE, 3), dtype=np.uint8)
    steps_of = [
        {"images0": frame, "state": np.arange(7.0) + t, "time_stamp": float(t)} for t, frame in enumerate(frames)
    ]
    trajectory = {
        "observations": steps_of[:-1],
        "next_observations": steps_of[1:],
        "actions": [np.ones(7)] * steps,
        "terminals": np.zeros(steps),
        "language": ["lift"],
    }
    return trajectory | changes


def save_npy(folder: pathlib.Path, split: str, trajectories: list) -> None:
    (folder / split).mkdir(parents=True)
    array = np.empty(len(trajectories), object)
    array[:] = trajectories
    np.save(folder / split / "out.npy", array)


def test_files_of_bridge_data_v2_are_converted(tmp_path):
    save_npy(tmp_path / "np" / "task", "train", [original_trajectory(), original_trajectory(5)])
    save_npy(tmp_path / "np" / "task", "val", [])
    to_tfrecord(tmp_path / "np", tmp_path / "tf")
    assert set(files_of(tmp_path / "tf")) == {"task/train/out.tfrecord"}
    short, long = read_features(tmp_path / "tf" / "task" / "train" / "out.tfrecord")
    assert short["observations/images0"].shape == (3, SIZE, SIZE, 3)
    np.testing.assert_array_equal(long["next_observations/state"][:, 0], [1, 2, 3, 4, 5])
    assert "path" not in long


STEPS = original_trajectory()["observations"]


@pytest.mark.parametrize(
    ("trajectory", "reason"),
    [
        ("words", "not a trajectory"),
        ({"observations": []}, "not a trajectory"),
        (original_trajectory(actions=None), "not a trajectory"),
        (original_trajectory(actions=[np.ones(7)] * 2), "lengths disagree"),
        (original_trajectory(1), "fewer than 2 transitions"),
        (original_trajectory(actions=[np.full(7, np.nan)] * 3), "not finite"),
        (original_trajectory(actions=[np.ones(6)] * 3), r"not \[steps, 7\]"),
        (original_trajectory(actions=[np.ones(7), np.ones(6), np.ones(7)]), "no table of numbers"),
        (original_trajectory(observations=[{"state": np.ones(7)}] * 3), "no camera images0"),
        (original_trajectory(observations=[{"images0": STEPS[0]["images0"]}] * 3), "no state"),
        (
            original_trajectory(observations=[STEPS[0] | {"images0": np.zeros((4, 4, 3), np.uint8)}, *STEPS[1:]]),
            "sizes",
        ),
        (original_trajectory(observations=[STEPS[0] | {"images0": np.zeros((SIZE, SIZE, 3))}] * 3), "not uint8"),
        (original_trajectory(observations=[STEPS[0] | {"images1": STEPS[0]["images0"]}, *STEPS[1:]]), "no images1"),
        (original_trajectory(language=["lift", "\udcff"]), "text that is not Unicode"),
        (original_trajectory(path="ta\udcff"), "text that is not Unicode"),
        (original_trajectory(actions=np.array(1.0)), "not a trajectory"),
        (original_trajectory(observations=[STEPS[0] | {"images0": [[1], [1, 2]]}, *STEPS[1:]]), "not uint8"),
        (original_trajectory(taught=np.array(True)), "`taught` is no list of bools"),
        (original_trajectory(taught=[True, False]), "lengths disagree"),
        (original_trajectory(taught=[1, 0, 1]), "`taught` is no list of bools"),
        (original_trajectory(language="lift"), "language is no list"),
        (original_trajectory(path=3), "path is no string"),
    ],
)
def test_a_faulty_trajectory_of_an_out_npy_is_skipped(tmp_path, trajectory, reason):
    save_npy(tmp_path / "np" / "task", "train", [trajectory, original_trajectory()])
    report = to_tfrecord(tmp_path / "np", tmp_path / "tf")
    assert report.converted["train"] == 1
    ((found, details),) = report.skipped.items()
    with pytest.raises(DataError, match=reason):
        raise DataError(found)
    assert "task/train/out.npy: trajectory 0" in details[0]


def test_a_damaged_out_npy_does_not_stop_the_others(tmp_path):
    save_npy(tmp_path / "np" / "cut", "train", [original_trajectory()] * 3)
    save_npy(tmp_path / "np" / "evil", "train", [original_trajectory(language=Bomb())])
    save_npy(tmp_path / "np" / "good", "train", [original_trajectory()])
    (tmp_path / "np" / "numbers" / "val").mkdir(parents=True)
    np.save(tmp_path / "np" / "numbers" / "val" / "out.npy", np.zeros(3))
    whole = tmp_path / "np" / "cut" / "train" / "out.npy"
    whole.write_bytes(whole.read_bytes()[:-100])
    report = to_tfrecord(tmp_path / "np", tmp_path / "tf")
    assert set(files_of(tmp_path / "tf")) == {"good/train/out.tfrecord"}
    assert {reason: len(details) for reason, details in report.skipped.items()} == {
        "damaged or refused out.npy": 2,
        "out.npy holds no trajectories": 1,
    }
    assert sum(report.lost.values()) == 5
    report.check(max_skipped=0.9)
    with pytest.raises(DataError, match=r"5 of 6 trajectories .* more than --max_skipped 0.8, 4 for: damaged"):
        report.check(max_skipped=0.8)


def test_tfrecords_parse_as_in_the_loader_of_bridge_data_v2(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tf = pytest.importorskip("tensorflow")
    folder = tmp_path / "raw" / "task" / DATE / "raw" / "traj_group0" / "traj0"
    cameras = ("images0", "images1")
    states, actions = make_trajectory(folder, seed=4, lang="lift\nhoch ü\n".encode(), cameras=cameras)
    to_numpy(tmp_path / "raw", tmp_path / "np")
    to_tfrecord(tmp_path / "np", tmp_path / "tf")
    kinds = {
        "observations/images0": tf.uint8,
        "observations/state": tf.float32,
        "next_observations/images0": tf.uint8,
        "next_observations/state": tf.float32,
        "actions": tf.float32,
        "terminals": tf.bool,
        "truncates": tf.bool,
        "language": tf.string,
    }

    def decode(record):
        spec = {key: tf.io.FixedLenFeature([], tf.string) for key in kinds}
        parsed = tf.io.parse_single_example(record, spec)
        return {key: tf.io.parse_tensor(parsed[key], kind) for key, kind in kinds.items()}

    path = str(tmp_path / "tf" / "task" / "train" / "out.tfrecord")
    (trajectory,) = tf.data.TFRecordDataset(path).map(decode).as_numpy_iterator()
    np.testing.assert_array_equal(trajectory["actions"], actions.astype(np.float32))
    np.testing.assert_array_equal(trajectory["next_observations/state"], states[1:].astype(np.float32))
    np.testing.assert_array_equal(trajectory["observations/images0"][2], expected_frame(4, 0, 2))
    np.testing.assert_array_equal(trajectory["truncates"], [False, False, False, True])
    assert not trajectory["terminals"].any()
    assert trajectory["language"].tolist() == [b"lift", "hoch ü".encode()]
    (record,) = tf.data.TFRecordDataset(path).as_numpy_iterator()
    more = {"path", "observations/images1", "next_observations/images1"}  # not asked for, not parsed
    assert set(tf.train.Example.FromString(record).features.feature) == {*kinds, *more}
    parsed = tf.io.parse_single_example(record, {"path": tf.io.FixedLenFeature([], tf.string)})
    assert tf.io.parse_tensor(parsed["path"], tf.string).numpy() == [f"task/{DATE}/raw/traj_group0/traj0".encode()]
