"""Links, odd names, and all that lies in the folders without being converted: followed, or counted where it is met."""

import collections
import os
import pathlib
import pickle

import numpy as np
import pytest
from data.raw_files import (
    DATE,
    EARLY,
    files_of,
    jpeg,
    load,
    make_session,
    read_features,
    to_numpy,
    to_tfrecord,
)

from jaxvla.data.conversion.report import Report
from jaxvla.data.formats import bridge_tfrecord
from jaxvla.data.skipping import UnusableError
from jaxvla.errors import DataError


def kinds(entries: dict[str, list[str]], root: pathlib.Path) -> dict[str, list[str]]:
    return {kind: sorted(os.path.relpath(path, root) for path in paths) for kind, paths in entries.items()}


def find(root, *patterns, exclude=(), split="train"):
    found, _ = bridge_tfrecord.find_files(root, patterns or ("**",), exclude, split)
    return [pathlib.Path(path).relative_to(root).parts[:-2] for path in found]


def test_links_to_task_folders_are_followed_by_every_finder(tmp_path):
    make_session(tmp_path / "disk" / "kitchen" / "a", count=2)
    make_session(tmp_path / "disk" / "sink" / "b", count=2, first_seed=2)
    (tmp_path / "disk" / "kitchen" / "loop").symlink_to(tmp_path / "disk")
    for name, convert in (("raw", to_numpy), ("np", to_tfrecord), ("tf", None)):
        (tmp_path / name).mkdir()
        for scene in ("kitchen", "sink"):
            (tmp_path / name / scene).symlink_to(tmp_path / "disk" / scene, target_is_directory=True)
        if convert:
            made = tmp_path / f"{name}_made"
            report = convert(tmp_path / name, made, depth=3)
            assert report.converted == {"train": 2, "val": 2}
            (tmp_path / "disk").rename(tmp_path / f"{name}_disk")
            made.rename(tmp_path / "disk")
            (tmp_path / "disk" / "kitchen" / "loop").symlink_to(tmp_path / "disk")
    assert find(tmp_path / "tf") == [("kitchen", "a"), ("sink", "b")]
    assert find(tmp_path / "tf", "?*/b", "kitchen/**") == [("kitchen", "a"), ("sink", "b")]
    assert find(tmp_path / "tf", "**", exclude=("sink/*",)) == [("kitchen", "a")]
    assert find(tmp_path / "tf", "**", exclude=("kitchen/**",), split="val") == [("sink", "b")]


def test_a_task_folder_is_converted_and_read_once_by_however_many_links(tmp_path):
    make_session(tmp_path / "raw" / "task", count=2)
    (tmp_path / "raw" / "again").symlink_to("task")
    group = tmp_path / "raw" / "task" / DATE / "raw" / "traj_group0"
    (group / "traj9").symlink_to("traj0")
    report = to_numpy(tmp_path / "raw", tmp_path / "np")
    assert kinds(report.ignored, tmp_path / "raw") == {
        "another path to what is converted already": [
            f"again/{DATE}",
            f"task/{DATE}/raw/traj_group0/traj9",
        ]
    }
    assert {path.split("/")[0] for path in files_of(tmp_path / "np")} == {"task"}
    (tmp_path / "np" / "again").symlink_to("task")
    report = to_tfrecord(tmp_path / "np", tmp_path / "tf")
    assert kinds(report.ignored, tmp_path / "np") == {"another path to what is converted already": ["again"]}
    (tmp_path / "tf" / "again").symlink_to("task")
    assert find(tmp_path / "tf") == [("task",)]
    assert find(tmp_path / "tf", "again") == [("again",)]


def test_links_that_lead_nowhere_are_not_passed_over(tmp_path):
    make_session(tmp_path / "raw" / "task", count=2)
    for folder in (tmp_path / "raw", tmp_path / "raw" / "task" / DATE / "raw" / "traj_group0"):
        (folder / "traj7").symlink_to("gone")
    report = to_numpy(tmp_path / "raw", tmp_path / "np")
    dead = "link that leads nowhere or back up, or no file"
    assert kinds(report.ignored, tmp_path / "raw") == {dead: [f"task/{DATE}/raw/traj_group0/traj7", "traj7"]}
    (tmp_path / "np" / "gone").symlink_to("nowhere")
    assert kinds(to_tfrecord(tmp_path / "np", tmp_path / "tf").ignored, tmp_path / "np") == {dead: ["gone"]}
    file = tmp_path / "tf" / "task" / "train" / "out.tfrecord"
    file.unlink()
    file.symlink_to("nowhere")
    with pytest.raises(DataError, match=r"task/train/out.tfrecord is no file, or a link that leads nowhere: mend it"):
        find(tmp_path / "tf", "task")


def test_every_entry_of_the_raw_tree_is_converted_or_counted(tmp_path):
    raw = tmp_path / "raw"
    make_session(raw / "kitchen" / "task", count=1)
    make_session(raw / "kitchen" / "undated", "first_try", count=1)
    make_session(raw / "kitchen" / "lmdb_task", count=1)
    make_session(raw / "kitchen" / ".snapshot", count=1)
    make_session(raw / "a" / "b" / "c" / "d" / "e" / "f" / "g" / "h" / "i" / "j" / "k" / "l" / "m" / "n", count=1)
    dated = raw / "kitchen" / "task" / DATE
    for name in ("collection_metadata.json", "config.json", "diagnostics.png", ".DS_Store", "notes.md", "raw/a.zip"):
        (dated / name).write_bytes(b"")
    for name in ("saved", "raw/lost", "raw/traj_group0/demo5"):
        (dated / name).mkdir()
    (dated / "raw" / "traj_group0" / "traj8").write_bytes(b"")
    (raw / "kitchen" / "empty" / "below").mkdir(parents=True)
    (raw / "README.txt").write_bytes(b"")
    report = to_numpy(raw, tmp_path / "np", depth=3)
    assert report.converted == {"train": 2, "val": 0}
    inside = f"kitchen/task/{DATE}"
    assert kinds(report.ignored, raw) == {
        "entry of a dated folder that is no trajectory": [
            *(f"{inside}/notes.md", f"{inside}/raw/a.zip", f"{inside}/raw/lost"),
            *(f"{inside}/raw/traj_group0/demo5", f"{inside}/raw/traj_group0/traj8", f"{inside}/saved"),
        ],
        "folder without a dated folder": ["kitchen/empty"],
        "hidden folder": ["kitchen/.snapshot"],
        "lmdb folder": ["kitchen/lmdb_task"],
        "trajectories in a folder whose name is no date": ["kitchen/undated/first_try"],
    }


def test_trajectories_without_any_date_are_named(tmp_path):
    make_session(tmp_path / "raw" / "task", "monday", count=1)
    with pytest.raises(DataError, match=r"holds no dated folder .*: rename .*/monday, which holds trajectories, to"):
        to_numpy(tmp_path / "raw", tmp_path / "np")


def test_entries_of_a_trajectory_that_nothing_is_made_from_are_counted(tmp_path):
    make_session(tmp_path / "raw" / "task", count=3)
    group = tmp_path / "raw" / "task" / DATE / "raw" / "traj_group0"
    for folder in (group / "traj0", group / "traj1"):
        for name in ("agent_data.pkl", "reward_data.pkl", "target_image.png", ".DS_Store", "map_1.pkl", "map_2.pkl"):
            (folder / name).write_bytes(b"")
        (folder / "depth_images0").mkdir()
        (folder / "images0" / "im_0.png").write_bytes(b"")
    (group / "traj2" / "lang.txt").write_bytes(b"lift \xff")
    report = to_numpy(tmp_path / "raw", tmp_path / "np")
    assert {kind: len(places) for kind, places in report.unread.items()} == {
        "map_<n>.pkl": 2,
        "depth_images<n>/": 2,
        "images<n>/im_<n>.png": 2,
        "bytes of lang.txt that are not UTF-8": 1,
    }
    table = report.table(1.0)
    assert "not converted  7 entries of trajectories\n" in table
    assert f"  2  map_<n>.pkl\n       {group}/traj0/map_1.pkl\n" in table
    assert "instructions   in 1 of 3\n" in table


FRAMES = {
    "png": ({"im_0.png": 5}, "frames are not called im_<t>.jpg", "images0/im_0.png"),
    "upper": ({"im_0.JPG": 5}, "frames are not called im_<t>.jpg", "images0/im_0.JPG"),
    "twice": ({"im_0.jpg": 5, "im_01.jpg": 1}, "two frames have one number", "images0/im_1.jpg"),
}


@pytest.mark.parametrize("case", FRAMES)
def test_frames_of_other_names_are_told_of(tmp_path, case):
    names, reason, detail = FRAMES[case]
    make_session(tmp_path / "raw" / "task", count=1)
    folder = tmp_path / "raw" / "task" / DATE / "raw" / "traj_group0" / "traj0" / "images0"
    for path in folder.iterdir():
        path.unlink()
    for first, count in names.items():
        for t in range(count):
            (folder / first.replace("0.", f"{t}.") if count > 1 else folder / first).write_bytes(jpeg(t))
    ((found, details),) = to_numpy(tmp_path / "raw", tmp_path / "np").skipped.items()
    assert found == reason
    assert details[0].endswith(detail)


def test_the_shift_of_old_rigs_is_said(tmp_path):
    make_session(tmp_path / "raw" / "task", EARLY, count=2)
    make_session(tmp_path / "raw" / "task", DATE, count=2, first_seed=2)
    (note, _) = [*to_numpy(tmp_path / "raw", tmp_path / "np").notes, ""]
    assert note.startswith("2 trajectories are from before 2021-07-23, when cameras lagged by one step")


def test_what_an_out_npy_holds_beyond_the_format_is_counted(tmp_path):
    make_session(tmp_path / "raw" / "task", count=2, steps=3)
    to_numpy(tmp_path / "raw", tmp_path / "np", train_proportion=1.0)
    path = tmp_path / "np" / "task" / "train" / "out.npy"
    trajectories = load(path)
    odd = trajectories[0]
    odd |= {"infos": 1, "terminals": [[0], [0, 1], "x"]}
    odd["next_observations"] = [step | {"saliency": 1, "state": step["state"] + 1} for step in odd["next_observations"]]
    np.save(path, trajectories)
    for name in ("task/train/out_old.npy", "task/test/out.npy", ".old/train/out.npy", "task/train/notes.txt"):
        (tmp_path / "np" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "np" / name).write_bytes(b"")
    report = to_tfrecord(tmp_path / "np", tmp_path / "tf")
    assert sorted(report.unread) == [
        "key 'infos' of the trajectory",
        "key 'saliency' of its steps",
        "next observations that differ from the observation after (training reads the latter, and the last one)",
        "terminals that are not 0",
    ]
    assert kinds(report.ignored, tmp_path / "np") == {
        ".npy file that is no (train|val)/out.npy": ["task/test/out.npy", "task/train/out_old.npy"],
        "hidden folder": [".old"],
    }
    (tmp_path / "np" / "task" / "train").rename(tmp_path / "np" / "task" / "val")
    report = to_tfrecord(tmp_path / "np", tmp_path / "tf2")
    assert report.notes == [f"no train/out.npy, only val: {tmp_path / 'np' / 'task'}"]
    assert find(tmp_path / "tf2", split="val") == [("task",)]


@pytest.mark.parametrize("name", ["größe 東", "ta\udcffsk", "new\nline", "[x]*?"])
def test_names_may_be_anything(tmp_path, name):
    make_session(tmp_path / "raw" / name, count=2)
    for _ in range(2):  # a rerun finds what is there
        to_numpy(tmp_path / "raw", tmp_path / "np")
        report = to_tfrecord(tmp_path / "np", tmp_path / "tf")
    assert report.tasks_there == 1
    (path,), _ = bridge_tfrecord.find_files(tmp_path / "tf", ("**",), (), "train")
    (features,) = read_features(pathlib.Path(path))
    key = features["path"][0].decode()
    assert key.split("/")[0] == os.fsencode(name).decode(errors="replace")
    assert bridge_tfrecord.build_index(path).keys == (f"{key}#0",)


def test_nothing_to_convert_is_an_error(tmp_path):
    (tmp_path / "raw" / "task" / DATE / "raw").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no trajectories were found; ignored were 1 .*: dated folder without raw/"):
        to_numpy(tmp_path / "raw", tmp_path / "np").check(1.0)
    (tmp_path / "np" / "task" / "train").mkdir(parents=True)
    np.save(tmp_path / "np" / "task" / "train" / "out.npy", np.empty(0, object))
    with pytest.raises(DataError, match="no trajectories were found"):
        to_tfrecord(tmp_path / "np", tmp_path / "tf").check(1.0)
    assert files_of(tmp_path / "tf") == {}


def broken_session(raw):
    make_session(raw / "task", count=4)
    make_session(raw / "bad", count=1, steps=1)
    path = raw / "task" / DATE / "raw" / "traj_group0" / "traj3" / "policy_out.pkl"
    path.write_bytes(pickle.dumps([]))


def test_more_than_max_skipped_is_an_error_of_what_this_run_met(tmp_path):
    broken_session(tmp_path / "raw")
    report = to_numpy(tmp_path / "raw", tmp_path / "np")
    with pytest.raises(DataError, match=r"^2 of 5 trajectories .* more than --max_skipped 0.39, 1 for: .*raise"):
        report.check(0.39)
    report.check(0.4)
    written = files_of(tmp_path / "np")
    assert set(written) == {"task/train/out.npy", "task/val/out.npy"}
    report = to_numpy(tmp_path / "raw", tmp_path / "np")
    assert (report.lost, report.there) == ({"fewer than 2 transitions": 1}, 4)
    report.check(0.2)
    assert files_of(tmp_path / "np") == written
    for _ in range(2):
        report = to_tfrecord(tmp_path / "np", tmp_path / "tf")
        report.check(0.0)
    assert report.there == 3


def test_pieces_of_a_report_add_up():
    whole = Report()
    for number in range(15):
        piece = Report(tasks=1, notes=[f"note {number}"])
        piece.converted["train"] += 2
        piece.skip(UnusableError(f"fault {number}", "here"), 3)
        piece.count(["images0"], [""], np.array([True, False]), {"extra": "there"})
        whole.add(piece)
    assert (whole.tasks, whole.transitions, whole.untaught, whole.labelled) == (15, 30, 15, 0)
    assert (whole.converted["train"], sum(whole.lost.values())) == (30, 45)
    assert whole.cameras == collections.Counter(images0=15)
    table = whole.table(1.0)
    assert "skipped        45 trajectories\n" in table
    assert "\n  9  of 3 more kinds\n" in table
