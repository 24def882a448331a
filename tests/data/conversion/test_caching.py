"""Frame caches: the very frames that decoding gives, made once, and refused where they are of anything else."""

import dataclasses
import os
import pathlib
import pickle
import shutil

import numpy as np
import pytest
from data import bridge_files, lerobot_files, rlds_episodes

from jaxvla.data.conversion import caching
from jaxvla.data.dataset import DataConfig, open_dataset
from jaxvla.data.formats.frame_cache import Key
from jaxvla.data.inspection.recordings import find_config, open_recordings
from jaxvla.data.source_config import SourceConfig
from jaxvla.errors import ConfigError, DataError

SIZE = (10, 12)
LENGTHS = (5, 4, 6)
EPISODES = [rlds_episodes.episode(n, steps) for n, steps in enumerate((6, 5))]
RLDS = {"cameras": {"images0": "image_0"}}


def make_lerobot(root, images=False, version="v2.1"):
    return lerobot_files.write(root / "data", version, LENGTHS, images)


def make_rlds(root):
    return rlds_episodes.write_dataset(root / "x" / "1.0.0", {"train": [EPISODES[:1], EPISODES[1:]], "val": [EPISODES]})


def make_bridge(root):
    return bridge_files.write_dataset(root / "data", {"lift": [5, 4], "turn": [3]})


KINDS = {
    "video": make_lerobot,
    "video_of_3": lambda root: make_lerobot(root, version="v3.0"),
    "pictures": lambda root: make_lerobot(root, images=True),
    "rlds": make_rlds,
    "tfrecord": make_bridge,
}


def jobs(root, size=SIZE, resize="lanczos", jpeg=0, folder=None):
    recordings = open_recordings(find_config(root), False, 0, 0)
    found = []
    for camera in recordings.cameras:
        source = recordings.views(camera, np.flatnonzero(recordings.seen(camera)), size, resize)
        key = Key(camera, size, resize, jpeg)
        found.append(caching.Job.of(source, camera, key, recordings.root, folder or recordings.root / "frames"))
    return found


def cached(root, **options):
    """A cache of the one camera."""
    (job,) = jobs(root, **options)
    assert caching.make(job, 2) == 0
    return job


def opened(root, split="train", size=SIZE, resize="lanczos", **changes):
    given = find_config(root)
    own = {"include": given.include} | (RLDS if given.format == "rlds" else {}) | changes
    config = SourceConfig(given.format, str(root), **own)
    return open_dataset(config, DataConfig(normalization="none", image_size=size, resize=resize), split)


def all_frames(dataset):
    source = dataset.source
    return [source.frames(i, range(length + 1), "images0") for i, length in enumerate(source.lengths.tolist())]


def assert_same(a, b):
    assert len(a) == len(b)
    for one, two in zip(a, b):
        np.testing.assert_array_equal(one, two)


def line_of(dataset, start):
    return [line for line in dataset.report if line.startswith(start)]


def forbid_decoding(monkeypatch):
    def refuse(*_):
        raise AssertionError("a frame was decoded")

    monkeypatch.setattr("jaxvla.data.source.images.to_array", refuse)


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_without_it(tmp_path, kind, monkeypatch):
    root = KINDS[kind](tmp_path)
    splits = ("train", "val") if kind in ("rlds", "tfrecord") else ("train",)
    expected = [all_frames(opened(root, split)) for split in splits]
    job = cached(root)
    datasets = [opened(root, split) for split in splits]
    forbid_decoding(monkeypatch)
    for dataset, frames in zip(datasets, expected):
        assert line_of(dataset, "frames") == [f"frames       {job.key.camera} from {job.path}"]
        assert_same(all_frames(dataset), frames)
    # Loader processes get the source pickled.
    assert_same(all_frames(pickle.loads(pickle.dumps(datasets[0]))), expected[0])


def test_each_different_frame_is_kept_once(tmp_path):
    job = cached(make_lerobot(tmp_path))
    assert len(job.rows) == sum(LENGTHS)  # the last frame of an episode stands twice in its trajectory
    assert job.path.stat().st_size == sum(LENGTHS) * 10 * 12 * 3


def test_a_choice_of_episodes_reads_from_the_same_cache(tmp_path, monkeypatch):
    root = make_lerobot(tmp_path)
    expected = all_frames(opened(root, episodes="1:3"))
    cached(root)
    dataset = opened(root, episodes="1:3")
    forbid_decoding(monkeypatch)
    assert_same(all_frames(dataset), expected)


def test_jpeg_loses_little_and_takes_less_room(tmp_path):
    root = make_lerobot(tmp_path)
    expected = all_frames(opened(root, size=(64, 96)))
    job = cached(root, size=(64, 96), jpeg=95)
    assert job.path.stat().st_size < 64 * 96 * 3 * sum(LENGTHS) / 3
    for one, two in zip(all_frames(opened(root, size=(64, 96))), expected):
        assert 0 < abs(one.astype(int) - two).mean() < 3
    pixels = cached(root, size=(64, 96))
    dataset = opened(root, size=(64, 96))
    assert line_of(dataset, "frames") == [f"frames       {pixels.key.camera} from {pixels.path}"]
    assert_same(all_frames(dataset), expected)


def test_caches_of_other_sizes_are_not_taken(tmp_path):
    root = make_lerobot(tmp_path)
    expected = all_frames(opened(root, size=(8, 8)))
    job = cached(root)
    for changes, wanted in (({"size": (8, 8)}, "8x8-lanczos"), ({"resize": "area"}, "10x12-area")):
        dataset = opened(root, **changes)
        said = f"frames       of {job.key.camera} are decoded: {job.path.parent} has {job.path.stem}, not "
        assert line_of(dataset, "frames") == [f"{said}{job.key.camera}-{wanted}"]
        assert not dataset.source.caches
    assert_same(all_frames(opened(root, size=(8, 8))), expected)


def test_a_cache_of_other_data_is_not_taken(tmp_path):
    root = make_lerobot(tmp_path)
    job = cached(root)
    video = next(root.glob("videos/*/*/episode_000001.mp4"))
    os.utime(video, (1, 1))
    dataset = opened(root)
    (line,) = line_of(dataset, "warning")
    what = "it is of other data: meta/info.json, or what its frames lie in, changed since"
    mend = "make it again with data_processing/cache_frames.py"
    assert line == f"warning: {job.path} is not used: {what}: {mend}"
    assert not dataset.source.caches
    other = make_lerobot(tmp_path / "other")
    shutil.copytree(job.path.parent, other / "frames")
    assert "is of other data" in line_of(opened(other), "warning")[0]
    assert caching.is_done(jobs(root)[0]) == (False, f"{job.path} is of other data")


def test_the_data_may_move_with_its_cache(tmp_path, monkeypatch):
    root = make_lerobot(tmp_path)
    expected = all_frames(opened(root))
    cached(root)
    moved = root.rename(tmp_path / "moved")
    dataset = opened(moved)
    forbid_decoding(monkeypatch)
    assert_same(all_frames(dataset), expected)


def test_a_flipped_bit_is_noticed(tmp_path):
    root = make_lerobot(tmp_path)
    job = cached(root)
    content = bytearray(job.path.read_bytes())
    content[3 * 360 + 7] ^= 1  # of the fourth frame
    job.path.write_bytes(content)
    dataset = opened(root)
    dataset.source.frames(0, [2, 4], "images0")
    with pytest.raises(
        DataError, match=rf"{job.path}: the frame at byte 1080 is damaged, or the file is cut off: make"
    ):
        dataset.source.frames(0, [3], "images0")
    assert caching.is_done(job) == (False, f"{job.path}: the frame at byte 1080 is damaged")
    caching.make(job, 1)
    assert caching.is_done(job) == (True, "")


@pytest.mark.parametrize("damage", ["cut", "table", "no_table"])
def test_what_is_not_whole_is_not_taken(tmp_path, damage):
    root = make_lerobot(tmp_path)
    expected = all_frames(opened(root))
    job = cached(root)
    table = job.path.with_name(f"{job.path.name}.arrays")
    if damage == "cut":
        job.path.write_bytes(job.path.read_bytes()[:-1])
    elif damage == "table":
        content = bytearray(table.read_bytes())
        content[5] ^= 1
        table.write_bytes(content)
    else:
        table.unlink()
    dataset = opened(root)
    message = "is cut off: it has 5399 bytes of 5400" if damage == "cut" else "is not whole"
    assert message in line_of(dataset, "warning")[0]
    assert_same(all_frames(dataset), expected)


def interrupt(monkeypatch, after):
    """Makes a run end after so many pieces, in the middle of writing the next one."""
    append, done = caching._append, []

    def interrupted(frames, notes, encoded):
        if len(done) == after:
            frames.write(encoded[0][:5])
            frames.flush()
            raise KeyboardInterrupt
        done.append(len(encoded))
        return append(frames, notes, encoded)

    monkeypatch.setattr(caching, "_append", interrupted)


@pytest.mark.parametrize("jpeg", [0, 90])
@pytest.mark.parametrize("lost", ["nothing", "journal", "frames"])
def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, jpeg, lost):
    root = make_lerobot(tmp_path)
    whole = cached(root, jpeg=jpeg, folder=tmp_path / "whole")
    (job,) = jobs(root, jpeg=jpeg)
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            caching.make(job, 1)
    assert not job.path.exists()
    assert not opened(root).source.caches
    part, journal = (job.path.with_name(f"{job.path.name}.{end}") for end in ("part", "journal"))
    if lost != "nothing":  # what a machine that went down had not written yet
        path = journal if lost == "journal" else part
        path.write_bytes(path.read_bytes()[: -3 if lost == "journal" else -6])
    assert caching.make(job, 1) == (9 if lost == "nothing" else 5)
    assert job.path.read_bytes() == whole.path.read_bytes()
    assert caching.is_done(job) == (True, "")
    assert sorted(path.name for path in job.path.parent.iterdir()) == [job.path.name, f"{job.path.name}.arrays"]


def test_what_was_begun_of_other_data_is_begun_anew(tmp_path, monkeypatch):
    root = make_lerobot(tmp_path)
    (job,) = jobs(root)
    with monkeypatch.context() as patch:
        interrupt(patch, 2)
        with pytest.raises(KeyboardInterrupt):
            caching.make(job, 1)
    os.utime(next(root.glob("videos/*/*/episode_000002.mp4")), (1, 1))
    (job,) = jobs(root)
    assert caching.make(job, 1) == 0
    assert caching.is_done(job) == (True, "")


def test_a_full_disk_is_one_error(tmp_path, monkeypatch):
    root = make_lerobot(tmp_path)
    (job,) = jobs(root)
    usage = shutil.disk_usage(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=1000))
        with pytest.raises(DataError, match=r"frames needs 0\.00 GB more, and .*frames has 0\.00 GB free: make room"):
            caching.make(job, 1)

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(caching, "_append", full)
        with pytest.raises(DataError, match=r"lanczos.frames: cannot be written: No space left on device"):
            caching.make(job, 1)
    assert caching.make(job, 1) == 0


def test_another_folder_is_named_by_the_config(tmp_path, monkeypatch):
    root = make_lerobot(tmp_path)
    expected = all_frames(opened(root))
    with pytest.raises(ConfigError, match=r"bridgedata_config.frame_cache: no folder .*elsewhere: correct it"):
        opened(root, frame_cache=str(tmp_path / "elsewhere"))
    cached(root, folder=tmp_path / "elsewhere")
    assert not opened(root).source.caches
    dataset = opened(root, frame_cache=str(tmp_path / "elsewhere"))
    forbid_decoding(monkeypatch)
    assert_same(all_frames(dataset), expected)


def test_frames_that_a_cache_lacks_are_decoded(tmp_path):
    root = make_lerobot(tmp_path)
    expected = all_frames(opened(root))
    (job,) = jobs(root)
    kept = dataclasses.replace(job, rows=job.rows[::2], offsets=job.offsets[::2], files=job.files[::2])
    caching.make(kept, 1)
    dataset = opened(root)
    assert dataset.source.caches
    assert_same(all_frames(dataset), expected)
    assert pathlib.Path(dataset.source.caches["images0"].path) == job.path
