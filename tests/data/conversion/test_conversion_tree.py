import os
import pathlib

import pytest
from data.raw_files import (
    DATE,
    files_of,
    first_values,
    make_session,
    make_trajectory,
    read_features,
    to_numpy,
    to_tfrecord,
)

from jaxvla.data.conversion.raw_to_numpy import split_sessions
from jaxvla.data.conversion.workers import alone_in, completed
from jaxvla.errors import ConfigError, DataError


@pytest.mark.parametrize(
    ("counts", "proportion", "expected"),
    [
        ([10], 0.9, (9, 1)),
        ([10, 5], 0.9, (13, 2)),
        ([1], 0.9, (1, 0)),
        ([1], 0.01, (1, 0)),
        ([1, 1, 1], 0.9, (1, 2)),
        ([2], 0.1, (1, 1)),
        ([2], 1.0, (2, 0)),
        ([3, 3], 1 / 3, (2, 4)),
    ],
)
def test_split_counts(counts, proportion, expected):
    sessions = {f"task/{i}": [(i, j) for j in range(count)] for i, count in enumerate(counts)}
    train, val = split_sessions(sessions, proportion, seed=0)
    assert (len(train), len(val)) == expected
    assert sorted(train + val) == sorted(item for items in sessions.values() for item in items)
    assert train == sorted(train)
    assert val == sorted(val)


def test_split_of_a_session_depends_on_seed_and_name_only():
    items = list(range(20))
    train, _ = split_sessions({"task/a": items}, 0.5, seed=0)
    with_others = split_sessions({"task/b": [99, 98], "task/a": items}, 0.5, seed=0)[0]
    assert [item for item in with_others if item < 90] == train
    assert split_sessions({"task/a": items}, 0.5, seed=1)[0] != train
    assert split_sessions({"task/c": items}, 0.5, seed=0)[0] != train
    assert train != list(range(10))


def test_output_is_the_same_for_any_workers_order_and_depth(tmp_path):
    for name, order in (("a", (0, 1, 2, 3, 4)), ("b", (3, 1, 4, 0, 2))):
        for number in order:
            folder = tmp_path / name / "task" / DATE / "raw" / "traj_group0" / f"traj{number}"
            make_trajectory(folder, number, steps=2)
    to_numpy(tmp_path / "a", tmp_path / "out_a")
    to_numpy(tmp_path / "b", tmp_path / "out_b", num_workers=2)
    to_numpy(tmp_path / "a" / "task", tmp_path / "out_c", depth=1)
    expected = files_of(tmp_path / "out_a")
    assert set(expected) == {"task/train/out.npy", "task/val/out.npy"}
    assert files_of(tmp_path / "out_b") == expected
    assert files_of(tmp_path / "out_c") == expected


def test_single_trajectory_is_for_training_and_the_summary_says_so(tmp_path):
    make_session(tmp_path / "raw" / "task", count=1)
    report = to_numpy(tmp_path / "raw", tmp_path / "out")
    assert set(files_of(tmp_path / "out")) == {"task/train/out.npy"}
    assert f"no val/out.npy, all usable trajectories (1) are in train: {tmp_path / 'out' / 'task'}" in report.table(1.0)


@pytest.mark.parametrize("proportion", [0.0, -0.5, 1.01, float("nan")])
def test_train_proportion_is_validated(tmp_path, proportion):
    with pytest.raises(ConfigError, match="train_proportion must be above 0"):
        to_numpy(tmp_path, tmp_path / "out", train_proportion=proportion)


def test_stray_entries_are_counted_not_fatal(tmp_path):
    task = tmp_path / "raw" / "task"
    make_session(task, count=2)
    (task / "notes.txt").write_text("x")
    (task / "2022-13-40_00-00-00").mkdir()
    (task / "2022-03-05_00-00-00").mkdir()
    (task / "lmdb").mkdir()
    make_session(task / "lmdb_copy", count=1)
    report = to_numpy(tmp_path / "raw", tmp_path / "out")
    assert report.converted == {"train": 1, "val": 1}
    ignored = {reason: sorted(pathlib.Path(path).name for path in paths) for reason, paths in report.ignored.items()}
    assert ignored == {
        "file beside dated folders": ["notes.txt"],
        "folder without a dated folder": ["2022-13-40_00-00-00"],
        "lmdb folder": ["lmdb", "lmdb_copy"],
        "dated folder without raw/traj_group*/traj*": ["2022-03-05_00-00-00"],
    }
    assert "ignored        5 files and folders" in report.table(1.0)


def test_sessions_at_other_depths_keep_their_place(tmp_path):
    raw = tmp_path / "raw"
    make_session(raw / "rss" / "kitchen" / "pot" / "00", count=2)
    make_session(raw / "rss" / "kitchen" / "pot" / "01" / "again", count=2, first_seed=2)
    make_session(raw / "rss" / "kitchen" / "pot" / "01" / "more", count=2, first_seed=4)
    make_session(raw / "scripted" / "pick", count=2, first_seed=6)
    report = to_numpy(raw, tmp_path / "np", depth=5)
    to_tfrecord(tmp_path / "np", tmp_path / "tf", depth=5)
    tasks = ["rss/kitchen/pot/00", "rss/kitchen/pot/01", "scripted/pick"]
    for root, suffix in ((tmp_path / "np", "npy"), (tmp_path / "tf", "tfrecord")):
        assert set(files_of(root)) == {f"{task}/{split}/out.{suffix}" for task in tasks for split in ("train", "val")}
    merged = tmp_path / "np" / "rss" / "kitchen" / "pot" / "01"
    assert len(first_values(merged / "train" / "out.npy") + first_values(merged / "val" / "out.npy")) == 4
    assert [note.split(";")[0] for note in report.notes] == [
        "1 dated folders lie higher than depth 5",
        "2 dated folders lie deeper than depth 5",
    ]


def test_depth_one_gives_the_same_tree_from_both_scripts(tmp_path):
    make_session(tmp_path / "raw" / "set_table" / "00", count=2)
    to_numpy(tmp_path / "raw" / "set_table" / "00", tmp_path / "np", depth=1)
    to_tfrecord(tmp_path / "np", tmp_path / "tf", depth=1)
    to_tfrecord(tmp_path / "np" / "00", tmp_path / "tf_from_task", depth=1)
    expected = {"00/train/out.tfrecord", "00/val/out.tfrecord"}
    assert set(files_of(tmp_path / "tf")) == set(files_of(tmp_path / "tf_from_task")) == expected


@pytest.mark.parametrize("depth", [1, 3, 5])
def test_wrong_depth_names_the_right_one(tmp_path, depth):
    make_session(tmp_path / "raw" / "task", count=1)
    with pytest.raises(DataError, match=rf"the first is at task/{DATE}, for which --depth is 2"):
        to_numpy(tmp_path / "raw", tmp_path / "np", depth=depth)
    to_numpy(tmp_path / "raw", tmp_path / "np")
    if depth > 1:
        with pytest.raises(DataError, match="the first is at task, for which --depth is 2"):
            to_tfrecord(tmp_path / "np", tmp_path / "tf", depth=depth)


def test_inputs_that_hold_nothing(tmp_path):
    make_session(tmp_path / "raw" / "task", count=1)
    (tmp_path / "elsewhere").mkdir()
    for convert in (to_numpy, to_tfrecord):
        with pytest.raises(DataError, match=r"no input folder .*gone: correct --input_path"):
            convert(tmp_path / "gone", tmp_path / "out")
    with pytest.raises(DataError, match=r"holds no dated folder .*: the input path lies inside one"):
        to_numpy(tmp_path / "raw" / "task" / DATE / "raw", tmp_path / "out")
    with pytest.raises(DataError, match=r"holds no dated folder .*: give a folder above them"):
        to_numpy(tmp_path / "elsewhere", tmp_path / "out")
    with pytest.raises(DataError, match=r"holds no \(train\|val\)/out.npy: convert the raw data"):
        to_tfrecord(tmp_path / "raw", tmp_path / "out")


def test_done_tasks_are_skipped_and_overwrite_replaces_only_their_files(tmp_path):
    make_session(tmp_path / "raw" / "task", count=4, steps=2)
    to_numpy(tmp_path / "raw", tmp_path / "np")
    to_tfrecord(tmp_path / "np", tmp_path / "tf")
    (tmp_path / "np" / "task" / "mine.txt").write_text("kept")
    before = files_of(tmp_path)
    report = to_numpy(tmp_path / "raw", tmp_path / "np", seed=7)
    assert "task folders   0 converted, 1 more already there" in report.table(1.0)
    assert to_tfrecord(tmp_path / "np", tmp_path / "tf").tasks_there == 1
    assert files_of(tmp_path) == before
    report = to_numpy(tmp_path / "raw", tmp_path / "np", overwrite=True, train_proportion=1.0)
    assert report.converted == {"train": 4, "val": 0}
    assert set(files_of(tmp_path / "np")) == {"task/train/out.npy", "task/mine.txt"}
    old = (tmp_path / "tf" / "task" / "train" / "out.tfrecord").stat().st_mtime
    os.utime(tmp_path / "np" / "task" / "train" / "out.npy", (old + 5, old + 5))
    assert "older than its out.npy" in to_tfrecord(tmp_path / "np", tmp_path / "tf").notes[0]
    to_tfrecord(tmp_path / "np", tmp_path / "tf", overwrite=True)
    assert set(files_of(tmp_path / "tf")) == {"task/train/out.tfrecord"}
    assert len(read_features(tmp_path / "tf" / "task" / "train" / "out.tfrecord")) == 4


def test_a_killed_run_is_finished_by_the_next(tmp_path):
    make_session(tmp_path / "raw" / "task", count=2, steps=2)
    to_numpy(tmp_path / "raw", tmp_path / "np")
    to_tfrecord(tmp_path / "np", tmp_path / "tf")
    expected = files_of(tmp_path / "np") | files_of(tmp_path / "tf")
    (tmp_path / "np" / "task" / "train" / "out.npy").unlink()
    (tmp_path / "np" / "task" / ".partial").mkdir()
    (tmp_path / "np" / "task" / ".partial" / "0.pkl").write_bytes(b"half")
    (tmp_path / "tf" / "task" / "train" / ".partial.tfrecord").write_bytes(b"half")
    (tmp_path / "tf" / "task" / "val" / "out.tfrecord").rename(tmp_path / "tf" / "task" / "val" / ".partial.tfrecord")
    to_numpy(tmp_path / "raw", tmp_path / "np")
    report = to_tfrecord(tmp_path / "np", tmp_path / "tf")
    assert report.converted == {"train": 0, "val": 1}
    assert files_of(tmp_path / "np") | files_of(tmp_path / "tf") == expected


@pytest.mark.parametrize("convert", [to_numpy, to_tfrecord])
def test_output_that_cannot_be_written_is_one_line(tmp_path, convert):
    make_session(tmp_path / "in" / "task", count=1)
    to_numpy(tmp_path / "in", tmp_path / "in")
    (tmp_path / "blocked").write_text("a file")
    with pytest.raises(DataError, match=r"blocked.*: cannot be written: a file is in the way"):
        convert(tmp_path / "in", tmp_path / "blocked")


def test_killed_worker_is_one_line():
    with pytest.raises(DataError, match="a worker process was killed"):
        list(completed(os._exit, [1], num_workers=2))


@pytest.mark.parametrize("convert", [to_numpy, to_tfrecord])
def test_two_conversions_into_one_folder_are_refused(tmp_path, convert):
    make_session(tmp_path / "in" / "task", count=2)
    to_numpy(tmp_path / "in", tmp_path / "in")
    message = r"another conversion writes into .*out: wait for its end, or give another --output_path"
    with alone_in(tmp_path / "out"), pytest.raises(DataError, match=message):
        convert(tmp_path / "in", tmp_path / "out")
    assert sum(convert(tmp_path / "in", tmp_path / "out").converted.values()) == 2


def test_a_file_in_the_place_of_a_task_folder_is_named(tmp_path):
    make_session(tmp_path / "raw" / "task", count=2)
    make_session(tmp_path / "raw" / "zoo", count=2)
    (tmp_path / "np").mkdir()
    (tmp_path / "np" / "zoo").write_bytes(b"")
    with pytest.raises(DataError, match=r"np/zoo.*: cannot be written: a file is in the way"):
        to_numpy(tmp_path / "raw", tmp_path / "np")
    assert set(files_of(tmp_path / "np")) == {"zoo", "task/train/out.npy", "task/val/out.npy"}
