"""Datasets written as LeRobotDatasets and read back: tables bit for bit, frames as far as the codec keeps them."""

import json
import pathlib
import shutil

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data import bridge_files, lerobot_files, raw_files, rlds_episodes
from data.lerobot_files import CAMERA, FPS, TASKS, action, frame, state

from jaxvla.data.conversion.lerobot import convert, films, staging
from jaxvla.data.conversion.lerobot.convert import Options, write_lerobot
from jaxvla.data.conversion.lerobot.episode import Clip
from jaxvla.data.conversion.lerobot.from_lerobot import open_lerobot
from jaxvla.data.conversion.lerobot.from_recordings import open_numpy, open_raw, open_recordings_of
from jaxvla.data.dataset import DataConfig, open_dataset
from jaxvla.data.formats import video
from jaxvla.data.inspection.recordings import find_config, open_recordings
from jaxvla.data.source_config import SourceConfig
from jaxvla.errors import ConfigError, DataError

OTHER = {"v2.1": "v3.0", "v3.0": "v2.1"}
LENGTHS = (5, 4, 6)
# Of 255. H.264 halves the colours of neighbouring pixels; smooth pictures lose little.
CODEC = 6


def read(root, **changes):
    """The source of a LeRobotDataset that was written."""
    return open_dataset(SourceConfig("lerobot", str(root), **changes), DataConfig(normalization="none"), "train").source


def written(source, output, version="v2.1", **options):
    lines = write_lerobot(source, output, Options(version, **options))
    return output, "\n".join(lines)


def meta(root):
    return json.loads((root / "meta/info.json").read_text())


def smooth(seed: int, size=(32, 48)):
    """uint8 [h, w, 3] without edges, whose level tells the seed."""
    y, x = np.mgrid[: size[0], : size[1]]
    return np.stack([40 + 4 * seed + 2 * y, 60 + x, np.full(size, 90 + 3 * seed)], -1).astype(np.uint8)


def bridge(root, lengths=(5, 4), size=(32, 48), tasks=("go left", "go right"), untaught=()):
    """TFRecords of smooth pictures; steps `untaught` of the first trajectory are not taught."""
    for number, length in enumerate(lengths):
        own = bridge_files.trajectory(number, length, (tasks[number % 2],))
        frames = np.stack([smooth(10 * number + t, size) for t in range(length + 1)])
        own |= {"observations/images0": frames[:-1], "next_observations/images0": frames[1:]}
        own |= {"taught": ~np.isin(np.arange(length), untaught)} if untaught and number == 0 else {}
        bridge_files.write(root / f"task{number}" / "train" / "out.tfrecord", [own])
    return root


def opened(root, cameras=(), image_size=(), fps=0.0):
    return open_recordings_of(open_recordings(find_config(root), False, 0, 0), cameras, image_size, fps)


@pytest.mark.parametrize("images", [False, True], ids=["video", "image"])
@pytest.mark.parametrize("version", OTHER)
def test_versions_become_each_other_and_come_back(tmp_path, version, images):
    given = lerobot_files.write(tmp_path / "given", version, LENGTHS, images)
    there, said = written(open_lerobot(given), tmp_path / "there", OTHER[version], data_mb=1, video_mb=1)
    back, _ = written(open_lerobot(there), tmp_path / "back", version)
    assert "episodes     3 of 3: 3 train" in said
    assert "encoded again" not in said
    for root, own in ((there, OTHER[version]), (back, version)):
        assert meta(root)["codebase_version"] == own
        source = read(root)
        assert [*source.lengths] == [*LENGTHS]
        for e, length in enumerate(LENGTHS):
            table = source.table(e)
            np.testing.assert_array_equal(table.actions, np.float32([action(e, t) for t in range(length)]))
            steps = [*range(length), length - 1]
            np.testing.assert_array_equal(table.proprio, np.float32([state(e, t) for t in steps]))
            assert table.language == (TASKS[e % 2],)
            for t, pixels in enumerate(source.frames(e, range(length), "images0")):
                np.testing.assert_array_equal(pixels, frame(e, t))
    for name, entry in meta(given)["features"].items():
        for root in (there, back):
            found = meta(root)["features"][name]
            assert {key: found[key] for key in ("dtype", "shape", "names")} == entry


def test_real_data_keeps_every_value_and_every_frame(samples, tmp_path):
    there, _ = written(open_lerobot(samples / "lerobot_v21"), tmp_path / "v30", "v3.0", video_mb=5)
    back, _ = written(open_lerobot(there), tmp_path / "v21")
    assert len([*there.glob("videos/*/*/*.mp4")]) == 2  # 1.8 and 2.2 MB, and 2.3 MB, as in lerobot_v30
    for episode in range(3):
        name = f"data/chunk-000/episode_{episode:06d}.parquet"
        a, b = (pq.read_table(root / name) for root in (samples / "lerobot_v21", back))
        assert a.schema.names == b.schema.names
        for column in a.schema.names:
            assert (
                a.column(column).combine_chunks().equals(b.column(column).combine_chunks().cast(a.column(column).type))
            )
        video_name = f"videos/chunk-000/observation.images.cam_high/episode_{episode:06d}.mp4"
        first, second = (packets(root / video_name) for root in (samples / "lerobot_v21", back))
        assert first == second
    rows = [json.loads(line) for line in (samples / "lerobot_v21/meta/episodes_stats.jsonl").read_text().splitlines()]
    own = [json.loads(line) for line in (back / "meta/episodes_stats.jsonl").read_text().splitlines()]
    for row, found in zip(rows, own):
        assert row["stats"].keys() == found["stats"].keys()
        for feature, expected in row["stats"].items():
            for key, value in expected.items():
                np.testing.assert_allclose(found["stats"][feature][key], value, 1e-5, 1e-6, err_msg=f"{feature} {key}")


def packets(path):
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.dts is not None]


def test_statistics_of_all_are_those_of_the_frames(samples, tmp_path):
    root, _ = written(open_lerobot(samples / "lerobot_v21"), tmp_path / "v30", "v3.0")
    golden = json.loads((samples / "lerobot_v30/meta/stats.json").read_text())
    found = json.loads((root / "meta/stats.json").read_text())
    assert found.keys() == golden.keys()
    for feature, expected in golden.items():
        for key, value in expected.items():
            np.testing.assert_allclose(found[feature][key], value, 1e-5, 1e-6, err_msg=f"{feature} {key}")
    actions = read(root).actions
    for name, share in (("q01", 0.01), ("q50", 0.5), ("q99", 0.99)):
        below = (actions <= np.float32(found["action"][name])).mean(0)
        assert (below >= share - 1e-9).all()
        assert ((actions < np.float32(found["action"][name])).mean(0) <= share).all()


@pytest.mark.parametrize("version", OTHER)
def test_tfrecords_become_videos(tmp_path, version):
    root, said = written(opened(bridge(tmp_path / "in")), tmp_path / "out", version, fps=5.0, crf=10)
    assert "frames       9 at 5 Hz, 2 tasks" in said
    given = open_dataset(
        SourceConfig("bridge_tfrecord", str(tmp_path / "in"), (("**",),)), DataConfig(normalization="none"), "train"
    ).source
    source = read(root)
    info = meta(root)
    assert ("taught" in info["features"], source.taught.all()) == (False, True)
    assert info["features"]["observation.images.images0"]["shape"] == [32, 48, 3]
    assert info["features"]["observation.images.images0"]["info"]["video.codec"] == "h264"
    assert (info["fps"], info["total_frames"], info["splits"]) == (5, 9, {"train": "0:2"})
    for e, length in enumerate((5, 4)):
        expected, found = given.table(e), source.table(e)
        np.testing.assert_array_equal(found.actions, expected.actions)
        np.testing.assert_array_equal(found.proprio[:-1], expected.proprio[:-1])
        assert found.language == (("go left", "go right")[e],)
        for t, pixels in enumerate(source.frames(e, range(length), "images0")):
            assert abs(pixels.astype(int) - smooth(10 * e + t)).max() <= CODEC


@pytest.mark.parametrize("version", OTHER)
def test_what_is_not_taught_is_not_taught_then(tmp_path, version):
    given = opened(bridge(tmp_path / "in", untaught=(1, 2)))
    root, said = written(given, tmp_path / "out", version, fps=5.0, pictures="image")
    assert meta(root)["features"]["taught"]["dtype"] == "bool"
    assert read(root).taught.tolist() == [True, False, False, True, True, *[True] * 4]
    assert "lost" not in said
    again, _ = written(open_lerobot(root), tmp_path / "again", OTHER[version])
    assert read(again).taught.tolist() == read(root).taught.tolist()


def test_frames_may_stay_pictures(tmp_path):
    root, _ = written(opened(bridge(tmp_path / "in", size=(31, 47))), tmp_path / "out", fps=5.0, pictures="image")
    source = read(root)
    assert not [*root.glob("videos/**/*.mp4")]
    assert (meta(root)["video_path"], meta(root)["total_videos"]) == (None, 0)
    for e, length in enumerate((5, 4)):
        for t, pixels in enumerate(source.frames(e, range(length), "images0")):
            np.testing.assert_array_equal(pixels, smooth(10 * e + t, (31, 47)))
    (row, _) = (json.loads(line) for line in (root / "meta/episodes_stats.jsonl").read_text().splitlines())
    every = np.stack([smooth(t, (31, 47)) for t in range(5)]).reshape(-1, 3) / 255
    stats = row["stats"]["observation.images.images0"]
    for key, expected in {"min": every.min(0), "max": every.max(0), "mean": every.mean(0), "std": every.std(0)}.items():
        np.testing.assert_allclose(np.reshape(stats[key], 3), expected, atol=1e-9)
    assert stats["count"] == [5]


def test_rlds_with_splits_becomes_one_dataset_of_the_same_splits(tmp_path):
    episodes = [rlds_episodes.episode(n, size) for n, size in enumerate((6, 5, 7))]
    given = rlds_episodes.write_dataset(tmp_path / "x" / "1.0.0", {"train": [episodes[:2]], "val": [episodes[2:]]})
    root, _ = written(opened(given, image_size=(16, 16)), tmp_path / "out", "v3.0", fps=10.0)
    assert meta(root)["splits"] == {"train": "0:2", "val": "2:3"}
    source = read(root)
    assert ([*source.lengths], source.language[0]) == ([5, 4], ("go",))
    assert abs(source.frames(1, [3], "images0")[0, 5, 5].astype(int) - (1, 3, 7)).max() <= CODEC


def test_raw_and_numpy_become_the_same_dataset(tmp_path):
    raw_files.make_session(tmp_path / "raw" / "task", count=2, cameras=("images0", "images1"), lang=b"lift it\nup\n")
    raw_files.to_numpy(tmp_path / "raw", tmp_path / "numpy", train_proportion=1.0)
    a, said = written(open_raw(tmp_path / "raw", 2, (), (16, 16)), tmp_path / "a")
    b, _ = written(open_numpy(tmp_path / "numpy", 2, ()), tmp_path / "b")
    assert "lost         of 2 episodes, other words for the instruction" in said
    assert meta(a)["fps"] == 5
    one, two = read(a, cameras={"images1": "images1"}), read(b, cameras={"images1": "images1"})
    assert [*one.lengths] == [*two.lengths] == [4, 4]
    np.testing.assert_array_equal(one.actions, two.actions)
    np.testing.assert_array_equal(one.proprio, two.proprio)
    np.testing.assert_array_equal(one.frames(1, range(4), "images1"), two.frames(1, range(4), "images1"))
    assert one.language[0] == ("lift it",)


def test_what_begins_between_key_frames_is_encoded_again(tmp_path):
    given = lerobot_files.write(tmp_path / "given", "v3.0", (5, 4, 5))
    path = given / f"videos/{CAMERA}/chunk-000/file-001.mp4"
    frames = [frame(1, t) for t in range(4)] + [frame(2, t) for t in range(5)]
    lerobot_files.write_video(path, frames, "libx264", g="3", bf="0", crf="1", sc_threshold="0")
    clip = Clip(str(path), 4, 5)
    assert (films.can_copy(clip), films.can_copy(Clip(str(path), 3, 3))) == (False, True)
    root, said = written(open_lerobot(given), tmp_path / "there", crf=5)
    assert (
        "lost         of 2 episodes, what videos lose that could not be cut at a key frame, and are encoded again"
        in said
    )
    for t, pixels in enumerate(read(root).frames(2, range(5), "images0")):
        assert abs(pixels.astype(int).mean((0, 1)) - frame(2, t).mean((0, 1))).max() < CODEC


@pytest.mark.parametrize("options", [{"bf": "2", "g": "6"}, {"bf": "0", "g": "2"}], ids=["with_later_frames", "plain"])
def test_joined_clips_have_their_frames_in_order(tmp_path, options):
    frames = [smooth(t) for t in range(12)]
    path = tmp_path / "a.mp4"
    lerobot_files.write_video(path, frames, "libx264", crf="5", sc_threshold="0", **options)
    clips = [Clip(str(path), 6, 6), Clip(str(path), 0, 6), Clip(str(path), 0, 12)]
    assert all(map(films.can_copy, clips))
    films.copy(tmp_path / "b.mp4", clips, float(FPS))
    expected = [*range(6, 12), *range(6), *range(12)]
    assert len(video.read_track(str(tmp_path / "b.mp4")).times) == 24
    for number in np.random.default_rng(0).permutation(24).tolist():
        found = video.read_frame(str(tmp_path / "b.mp4"), number)
        np.testing.assert_array_equal(found, video.read_frame(str(path), expected[number]))


def test_an_interrupted_conversion_goes_on(tmp_path, monkeypatch):
    given, output = bridge(tmp_path / "in", (5, 4, 6)), tmp_path / "out"
    whole, _ = written(opened(given), tmp_path / "whole", "v3.0", fps=5.0, crf=10)
    done = []
    add = staging.Stage.add

    def interrupted(self, number, place, read):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(number)
        return add(self, number, place, read)

    with monkeypatch.context() as patch:
        patch.setattr(staging.Stage, "add", interrupted)
        with pytest.raises(KeyboardInterrupt):
            written(opened(given), output, "v3.0", fps=5.0, crf=10)
    assert not output.exists()
    again = []
    monkeypatch.setattr(staging.Stage, "add", lambda self, n, place, read: again.append(n) or add(self, n, place, read))
    written(opened(given), output, "v3.0", fps=5.0, crf=10)
    assert (done, again) == ([0, 1], [2])
    assert not (tmp_path / "out.partial").exists()
    for path in (path.relative_to(whole) for path in whole.rglob("*") if path.is_file() and path.suffix != ".mp4"):
        assert (output / path).read_bytes() == (whole / path).read_bytes(), path
    for e, length in enumerate((5, 4, 6)):
        found = read(output).frames(e, range(length), "images0").astype(int)
        assert abs(found - [smooth(10 * e + t) for t in range(length)]).max() <= CODEC


def test_what_cannot_be_used_is_left_out_and_counted(tmp_path):
    given = lerobot_files.write(tmp_path / "given", "v2.1", (5, 4, 6))
    (given / f"videos/chunk-000/{CAMERA}/episode_000001.mp4").unlink()
    with pytest.raises(
        DataError, match=r"1 of 3 train .* over --max_skipped=0.1: 1 camera .* is no video|No such file"
    ):
        written(open_lerobot(given), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    root, said = written(open_lerobot(given), tmp_path / "out", "v3.0", max_skipped=0.5)
    assert "skipped      1 of 3 train trajectories" in said
    source = read(root)
    assert source.keys == ("0#0", "1#0")
    np.testing.assert_array_equal(source.frames(1, [3], "images0")[0], frame(2, 3))


def test_values_that_are_not_finite_leave_an_episode_out_where_policies_read_them(tmp_path):
    given = lerobot_files.write(tmp_path / "given", "v2.1", LENGTHS)
    info = meta(given)
    info["features"]["next.reward"] = {"dtype": "float32", "shape": [1], "names": None}
    (given / "meta/info.json").write_text(json.dumps(info))
    for e, length in enumerate(LENGTHS):
        path = given / f"data/chunk-{e // 2:03d}/episode_{e:06d}.parquet"
        rows = pq.read_table(path)
        rewards = np.arange(length, dtype=np.float32)
        rewards[0] = np.nan if e == 2 else 0
        rows = rows.append_column("next.reward", pa.array(rewards))
        if e == 1:
            states = [[0.0, float("nan"), 0.0]] * length
            at = rows.schema.get_field_index("observation.state")
            rows = rows.set_column(at, "observation.state", pa.array(states, pa.list_(pa.float32(), 3)))
        pq.write_table(rows, path)
    root, said = written(open_lerobot(given), tmp_path / "out", "v3.0", max_skipped=0.5)
    assert "1 observation.state are not finite, such as " in said
    (found,) = (json.loads((root / "meta/stats.json").read_text())["next.reward"],)
    assert (found["count"], found["max"], found["q99"]) == ([5], [4.0], [5.0])
    assert pq.read_table(root / "data/chunk-000/file-000.parquet").column("next.reward").to_pylist()[1:5] == [
        1,
        2,
        3,
        4,
    ]


def test_a_picture_that_is_none_leaves_its_episode_out(tmp_path):
    given = lerobot_files.write(tmp_path / "given", "v2.1", LENGTHS, images=True)
    path = given / "data/chunk-000/episode_000001.parquet"
    rows = pq.read_table(path)
    pictures = rows.column(CAMERA).to_pylist()
    pictures[2]["bytes"] = pictures[2]["bytes"][:40]
    at = rows.schema.get_field_index(CAMERA)
    pq.write_table(rows.set_column(at, CAMERA, pa.array(pictures, rows.schema.field(CAMERA).type)), path)
    root, said = written(open_lerobot(given), tmp_path / "out", max_skipped=0.5)
    assert "1 frames cannot be read, such as " in said
    assert [*read(root).lengths] == [5, 6]


def test_what_is_there_is_spared(tmp_path):
    given = bridge(tmp_path / "in")
    (tmp_path / "out").mkdir()
    with pytest.raises(DataError, match=r"out exists and is no LeRobotDataset, which --overwrite would replace: give"):
        written(opened(given), tmp_path / "out", fps=5.0, overwrite=True)
    (tmp_path / "out").rmdir()
    written(opened(given), tmp_path / "out", fps=5.0)
    with pytest.raises(DataError, match=r"out exists: pass --overwrite to replace it, or give another --output_path"):
        written(opened(given), tmp_path / "out", fps=5.0)
    root, _ = written(opened(given), tmp_path / "out", "v3.0", fps=5.0, overwrite=True)
    assert meta(root)["codebase_version"] == "v3.0"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    (tmp_path / "new.partial").mkdir()
    (tmp_path / "new.partial" / "mine.txt").write_text("")
    with pytest.raises(DataError, match=r"new.partial/mine.txt is no part of a conversion: move it, or give another"):
        written(opened(given), tmp_path / "new", fps=5.0)
    assert (tmp_path / "new.partial" / "mine.txt").exists()


def test_a_folder_that_cannot_be_written_is_one_error(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    given = bridge(tmp_path / "in")
    monkeypatch.setattr(films, "encode", full)
    with pytest.raises(DataError, match=r"episode_000000.mp4: cannot be written: No space left on device"):
        written(opened(given), tmp_path / "out", fps=5.0)
    assert not (tmp_path / "out").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"file/out.partial: cannot be written: a file is in the way"):
        written(opened(given), tmp_path / "file" / "out", fps=5.0)


@pytest.mark.parametrize(
    ("open_it", "options", "message"),
    [
        (lambda r: opened(r), {}, r"nothing says how many frames a second has: give --fps"),
        (lambda r: opened(r, ["images3"]), {"fps": 5.0}, r"no camera images3, it has images0: see --cameras"),
        (
            lambda r: opened(r, image_size=(9, 8)),
            {"fps": 5.0},
            r"frames of 9 x 8 pixels, but H.264 needs even sides: g",
        ),
        (lambda r: opened(r), {"fps": 5.0, "crf": 60}, r"--crf must lie in \[0, 51\], not 60"),
        (lambda r: open_raw(r, 2, (), (8, 6)), {}, r"raw frames become squares, .* not \(8, 6\)"),
    ],
    ids=["fps", "camera", "odd", "crf", "square"],
)
def test_settings_that_cannot_be_are_one_error(tmp_path, open_it, options, message):
    with pytest.raises(ConfigError, match=message):
        written(open_it(bridge(tmp_path / "in")), tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_frames_of_several_sizes_need_one(tmp_path):
    given = bridge(tmp_path / "in", (5,), (32, 48))
    shutil.copytree(bridge(tmp_path / "more", (4,), (16, 24)) / "task0", given / "task9")
    with pytest.raises(ConfigError, match=r"images0 has frames of 16 x 24, 32 x 48 pixels: give --image_size"):
        written(opened(given), tmp_path / "out", fps=5.0)
    root, _ = written(opened(given, image_size=(16, 24)), tmp_path / "out", fps=5.0)
    assert [*read(root).lengths] == [5, 4]


def test_a_dataset_without_episodes_is_one_error(tmp_path):
    given = lerobot_files.write(tmp_path / "given", "v2.1", ())
    with pytest.raises(DataError, match=r"given: has no episodes to convert: download it again"):
        open_lerobot(given)
    with pytest.raises(DataError, match=r"no input folder"):
        open_numpy(pathlib.Path(tmp_path / "none"), 2, ())
    assert convert.VERSIONS.keys() == OTHER.keys()
