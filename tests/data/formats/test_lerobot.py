"""LeRobotDatasets against the values that LeRobot's own readers give, and against what was written."""

import hashlib
import itertools
import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from data import lerobot_files
from data.lerobot_files import CAMERA, FPS, TASKS, action, frame, state, write

from jaxvla.data.dataset import DataConfig, open_dataset
from jaxvla.data.formats.lerobot import LeRobotFormat
from jaxvla.data.loader import training_batches
from jaxvla.data.mixture import Mixture
from jaxvla.data.rows import Rows
from jaxvla.data.schema import BATCH_KEYS
from jaxvla.data.source_config import SourceConfig
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.errors import ConfigError, DataError

ROOT = pathlib.Path(__file__).resolve().parents[3]
KEYS = tuple(key for key in BATCH_KEYS if key not in ("instruction", "text"))
# rad. LeRobot adds up float32 columns in float32, episode after episode; here it is float64.
STATISTICS_ATOL = 1e-6


def settings(root, **changes):
    return SourceConfig("lerobot", str(root), **changes)


def open_split(root, split="train", data=None, **changes):
    return open_dataset(settings(root, **changes), DataConfig(normalization="none", **(data or {})), split)


def copy(folder, to):
    """Of a sample, so that what is derived from it lies beside the copy."""
    shutil.copytree(folder, to, copy_function=shutil.copyfile)
    for path in (to, *to.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    return to


@pytest.fixture(scope="module", params=["v21", "v30"])
def real(request, samples, tmp_path_factory):
    folder = samples / f"lerobot_{request.param}"
    root = copy(folder, tmp_path_factory.mktemp("real") / request.param)
    golden = json.loads((folder / "DERIVED_golden.json").read_text())
    return open_split(root, data={"action_horizon": 16}), golden


def test_episodes_are_those_of_lerobot(real):
    dataset, golden = real
    source = dataset.source
    assert [*source.lengths] == [episode["length"] for episode in golden["episodes"]]
    assert [*source.action_starts] == [episode["first_index"] for episode in golden["episodes"]]
    assert (len(source), dataset.num_transitions) == (golden["num_episodes"], golden["num_frames"])


def test_states_actions_tasks_and_padding_are_those_of_lerobot(real):
    dataset, golden = real
    for record in golden["records"]:
        episode, step = record["episode"], record["frame"]
        table = dataset.source.table(episode)
        assert table.actions[step].tolist() == record["action"]
        assert table.proprio[step].tolist() == record["state"]
        assert table.language == (record["task"],)
        row = np.array([record["index"]])
        drawn = Rows.draw(dataset, 0, (0, 0), row, np.zeros((1, 3)))
        assert (drawn.trajectory, drawn.step) == (episode, step)
        (chunk,), (mask,) = drawn.make("actions", dataset.spec), drawn.make("action_pad_mask", dataset.spec)
        assert [*~mask] == record["action_chunk_is_pad"]
        assert hashlib.md5(chunk.astype("<f4").tobytes()).hexdigest() == record["action_chunk_md5"]
        assert chunk[-1].tolist() == record["action_chunk_last"]


def test_frames_are_those_of_lerobot(real):
    dataset, golden = real
    for record in golden["records"]:
        (pixels,) = dataset.source.stored_frames(record["episode"], [record["frame"]], "images0")
        # Another FFmpeg may round colours otherwise; the neighbours of a frame differ by more.
        assert abs(pixels.mean((0, 1)) - record["frame_rgb_mean_per_channel"]).max() < 0.5
        assert abs(pixels.mean() - record["frame_rgb_mean"]) < 0.5
        for place, colour in record["pixels_yx_rgb"].items():
            y, x = map(int, place.split(","))
            assert abs(pixels[y, x].astype(int) - colour).max() <= 2


def test_statistics_are_those_of_lerobot(real):
    dataset, golden = real
    for name, field in (("action", dataset.statistics.actions), ("observation.state", dataset.statistics.proprio)):
        expected = golden["stats"][name]
        assert [dataset.statistics.num_transitions] == expected["count"]
        for key, within in {"min": 0, "max": 0, "mean": STATISTICS_ATOL, "std": STATISTICS_ATOL}.items():
            np.testing.assert_allclose(getattr(field, key), expected[key], 0, within, err_msg=key)


def assert_equal(a, b):
    if isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_equal(a[key], b[key])
    else:
        np.testing.assert_array_equal(a, b)


def batches(root, **changes):
    dataset = open_split(root, data={"action_horizon": 3, "obs_horizon": 2, "image_size": (8, 12)}, **changes)
    return dataset, training_batches(Mixture.of(dataset), 16, 0, KEYS)


def test_versions_of_the_same_real_data_give_the_same_batches(samples, tmp_path):
    roots = [copy(samples / f"lerobot_{version}", tmp_path / version) for version in ("v21", "v30")]
    (a, own), (b, other) = (batches(root, validation_share=0.3) for root in roots)
    for one, two in itertools.islice(zip(own, other), 2):
        assert_equal(one, two)
    assert a.source.keys == b.source.keys
    assert a.statistics.to_json() == b.statistics.to_json()


@pytest.mark.parametrize("images", [False, True], ids=["video", "image"])
def test_versions_of_the_same_data_give_the_same_batches(tmp_path, images):
    streams = [batches(write(tmp_path / v, v, images=images))[1] for v in ("v2.0", "v2.1", "v3.0")]
    for a, b, c in itertools.islice(zip(*streams), 4):
        assert_equal(a, b)
        assert_equal(a, c)


@pytest.mark.parametrize("images", [False, True], ids=["video", "image"])
@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_every_frame_is_found_whatever_the_order(tmp_path, version, images):
    source = open_split(write(tmp_path / "d", version, (5, 4, 6), images)).source
    places = [(e, t) for e, length in enumerate((5, 4, 6)) for t in range(length + 1)]
    places = [places[i] for i in np.random.default_rng(0).permutation(len(places))]
    out = np.empty((len(places), 16, 24, 3), np.uint8)
    source.read_frames(*np.array(places).T, "images0", out)
    for (e, t), pixels in zip(places, out):
        np.testing.assert_array_equal(pixels, frame(e, min(t, (5, 4, 6)[e] - 1)))
    for e, length in enumerate((5, 4, 6)):
        table = source.table(e)
        np.testing.assert_allclose(table.actions, [action(e, t) for t in range(length)], rtol=1e-6)
        steps = [*range(length), length - 1]
        np.testing.assert_allclose(table.proprio, [state(e, t) for t in steps], rtol=1e-6)
        assert (table.language, table.key) == ((TASKS[e % 2],), f"{e}#0")
    assert source.stored_sizes == {"images0": (16, 24)}
    assert source.pixel_path() == ("images0      camera -> 16 x 24 encoded -> 16 x 24",)


def test_actions_made_of_states_end_before_the_last_frame(tmp_path):
    root = write(tmp_path / "d")
    dataset = open_split(root, actions=ActionConvention(relabel=True, gripper=(1,), open=0.0, closed=-9.0))
    assert [*dataset.source.lengths] == [4, 3, 5]
    np.testing.assert_allclose(dataset.actions[:4][:, 0], 0, atol=1e-6)  # the episode's number, which does not move
    assert [*open_split(root, data={"relabel_actions": False}).source.lengths] == [5, 4, 6]


def test_tasks_may_change_within_an_episode(tmp_path):
    root = write(tmp_path / "d", lengths=(5, 4))
    path = root / "data/chunk-000/episode_000000.parquet"
    rows = pq.read_table(path)
    column = rows.schema.get_field_index("task_index")
    pq.write_table(rows.set_column(column, "task_index", pa.array([1, 1, 0, 0, 0], pa.int64())), path)
    source = open_split(root).source
    assert source.language[0] == (TASKS[1], TASKS[0])
    assert source.texts[:5].tolist() == [0, 0, 1, 1, 1]


def test_data_without_tasks_is_unlabelled(tmp_path):
    root = write(tmp_path / "d")
    features = json.loads((root / "meta/info.json").read_text())["features"]
    edit(root, features={name: entry for name, entry in features.items() if name != "task_index"}, total_episodes=5)
    (root / "meta/tasks.jsonl").unlink()
    dataset = open_split(root)
    assert dataset.source.language == ((),) * 3
    assert "language     frames have no task_index" in dataset.report
    assert any(line.endswith("info.json says 5 episodes, but 3 are listed beside it") for line in dataset.report)


def test_episodes_are_chosen_excluded_and_split(tmp_path):
    root = write(tmp_path / "d", lengths=(4, 3, 5, 6, 2))

    def keys(**changes):
        return [key.removesuffix("#0") for key in open_split(root, **changes).source.keys]

    assert keys(episodes="3:5,0") == ["0", "3", "4"]
    assert keys(exclude_episodes="1:3") == ["0", "3", "4"]
    assert keys(episodes="0:4", exclude_episodes="2") == ["0", "1", "3"]
    assert keys(train_split="train[:60%]") == ["0", "1", "2"]
    assert keys(train_split="train[:60%]", exclude_episodes="0,4") == ["1", "2"]
    assert keys(split="val", val_split="train[60%:]") == ["3", "4"]
    held_out = keys(split="val", validation_share=0.3)
    assert sorted(held_out + keys(validation_share=0.3)) == ["0", "1", "2", "3", "4"]
    dataset = open_split(root, "val", val_split="train[3:]", train_split="train[:4]")
    assert (
        "warning: train[3:] and train[:4] share episodes: policies are validated on what they learned" in dataset.report
    )


def test_downloaded_episodes_are_read_without_the_others(samples, tmp_path):
    root = copy(samples / "lerobot_v21_partial", tmp_path / "d")
    with pytest.raises(DataError) as error:
        open_split(root)
    assert "97 of 100 train trajectories cannot be used, over bridgedata_config.max_skipped=0.1" in str(error.value)
    assert "set bridgedata_config.episodes='29:31,59'" in str(error.value)
    assert "episode_000000.parquet is missing: download it" in str(error.value)
    chosen = open_split(root, episodes="29:31,59")
    assert chosen.source.keys == ("29#0", "30#0", "59#0")
    assert not any(line.startswith("skipped") for line in chosen.report)
    skipping = open_split(root, max_skipped=0.97)
    assert skipping.source.keys == chosen.source.keys
    assert any(line.startswith("skipped      97 of 100 train trajectories") for line in skipping.report)


def test_other_names_are_mapped(samples):
    root = samples / "lerobot_libero_keys"
    with pytest.raises(
        DataError, match=r"have no numbers 'action'; numbers are state, actions, .*_config.action_key to"
    ):
        LeRobotFormat.of(root, "action", "state", False)
    reader = LeRobotFormat.of(root, "actions", "state", False)
    assert [reader.camera(name, name, "") for name in ("wrist_image", "images0", "images1")] == [
        *("wrist_image", "image", "wrist_image")
    ]
    with pytest.raises(DataError, match=r"^x: no camera 'images2', the frames have image, wrist_image: set "):
        reader.camera("images2", "images2", "x")
    assert reader.info.features["actions"].shape == (7,)
    assert len(reader.info.tasks()) == 40
    assert sum(episode.length for episode in reader.info.episodes) == 273465


def test_only_who_reads_them_waits_for_arrow_and_ffmpeg():
    code = (
        "import sys, jaxvla.data.loader; print([n for n in ('pyarrow', 'av', 'torch', 'datasets') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout == "[]\n"


def edit(root, **changes):
    path = root / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def replace_column(root, name, values):
    path = root / "data/chunk-000/episode_000001.parquet"
    rows = pq.read_table(path)
    pq.write_table(rows.set_column(rows.schema.get_field_index(name), name, pa.array(values)), path)


def cut_off(path):
    with open(path, "r+b") as file:
        file.truncate(path.stat().st_size // 2)


DATA = "data/chunk-000/episode_000001.parquet"
VIDEO = f"videos/chunk-000/{CAMERA}/episode_000001.mp4"
REFUSED = [
    (lambda r: (r / "meta/info.json").unlink(), r"d has no meta/info.json: the data path of a LeRobotDataset is"),
    (lambda r: (r / "meta/info.json").write_text("{"), r"info.json: is damaged \(.*\): download it again"),
    (lambda r: (r / "meta/info.json").write_text("{}"), r"info.json: has no 'codebase_version': download it again"),
    (lambda r: edit(r, codebase_version="v1.6"), r"codebase_version is v1.6, v2.0, v2.1, v3.0 are read: convert"),
    (lambda r: edit(r, fps=0), r"info.json: fps 0 and chunks_size 2 must be positive"),
    (lambda r: edit(r, data_path="{episode}"), r"'\{episode\}' is no template of episode_chunk, episode_index"),
    (lambda r: edit(r, data_path="../{episode_index}"), r"leads out of the dataset, to \.\./0"),
    (lambda r: edit(r, splits={"test": "0:3"}), r"d has no train split, it has test: download or build it"),
    (lambda r: (r / "meta/tasks.jsonl").unlink(), r"meta/tasks.jsonl is missing: download it"),
    (lambda r: (r / "meta/episodes.jsonl").write_text('{"length": 3}'), r"entry 0 is damaged \(KeyError\('episode_ind"),
]


@pytest.mark.parametrize(("damage", "message"), REFUSED, ids=[message[:30] for _, message in REFUSED])
def test_what_is_no_dataset_is_refused(tmp_path, damage, message):
    root = write(tmp_path / "d")
    damage(root)
    with pytest.raises(DataError, match=message):
        open_split(root)


@pytest.mark.parametrize(
    ("lost", "message"),
    [
        ("meta/info.json", r"d has no meta/info.json: the data path of a LeRobotDataset is"),
        ("meta/tasks.parquet", r"meta/tasks.parquet is missing: download it"),
        ("meta/episodes", r"meta/episodes holds no Parquet files, which list the episodes: download it"),
    ],
)
def test_a_dataset_of_3_0_that_lacks_its_meta_is_refused(tmp_path, lost, message):
    root = write(tmp_path / "d", "v3.0")
    (root / lost).rename(tmp_path / "lost")
    with pytest.raises(DataError, match=message):
        open_split(root)


LEFT_OUT = [
    (lambda r: (r / DATA).unlink(), r"1 data file cannot be used, such as .*_000001.parquet is missing: download it"),
    (lambda r: cut_off(r / DATA), r"1 data file cannot be used, such as .*_000001.parquet: is cut off or damaged \("),
    (lambda r: (r / VIDEO).unlink(), rf"1 camera '{CAMERA}' cannot be used, such as .*_000001.mp4 is missing"),
    (
        lambda r: cut_off(r / VIDEO),
        rf"1 camera '{CAMERA}' cannot be used, such as .*_000001.mp4: is no video, or is cut",
    ),
    (lambda r: replace_column(r, "task_index", [7] * 4), r"1 no such task, such as .*: task_index 7, meta has 0:2"),
    (
        lambda r: replace_column(r, "action", [[0.0] * 4] * 4),
        r"'action' holds values of shape \[4\], by info.json of sha",
    ),
    (
        lambda r: replace_column(r, "action", [[0.0] * n for n in (2, 2, 3, 2)]),
        r"'action' holds lists of 2 or 3 values",
    ),
    (lambda r: replace_column(r, "action", ["a"] * 4), r"column 'action' holds string, no numbers"),
    (
        lambda r: replace_column(r, "observation.state", [[0.0, float("nan"), 0.0]] * 4),
        r"1 states are not finite, such as .*episode 1: .*: step 0, dimension 1: nan",
    ),
    (lambda r: replace_column(r, "timestamp", [0.0, 0.2, 0.4, 0.6]), r"1 times are not those of fps, such as .* 0.2 s"),
    (lambda r: replace_column(r, "frame_index", [1, 2, 3, 4]), r"1 frames are not numbered from 0 on, such as "),
    (lambda r: replace_column(r, "episode_index", [1, 1, 1, 2]), r"1 lengths disagree, such as .*: 3 rows, 4 frames"),
    (
        lambda r: lerobot_files.write_video(r / VIDEO, [frame(1, t) for t in range(3)]),
        r"episode_000001.mp4 has 3 frames, the episode needs number 0 to 3",
    ),
]


@pytest.mark.parametrize(("damage", "message"), LEFT_OUT, ids=[message[:30] for _, message in LEFT_OUT])
def test_a_damaged_episode_is_left_out_and_counted(tmp_path, damage, message):
    root = write(tmp_path / "d")
    damage(root)
    with pytest.raises(DataError, match=f"1 of 3 train trajectories cannot be used, .*{message}"):
        open_split(root)
    dataset = open_split(root, max_skipped=0.4)
    assert dataset.source.keys == ("0#0", "2#0")
    np.testing.assert_array_equal(dataset.source.frames(1, [5], "images0")[0], frame(2, 5))


def test_a_wrong_frequency_is_said(tmp_path):
    root = write(tmp_path / "d")
    edit(root, fps=2 * FPS)
    with pytest.raises(DataError, match=r"3 times are not those of fps, .* timestamp 0.1 s, by fps 20 it is 0.05 s"):
        open_split(root)


def test_a_wrong_place_in_a_video_is_said(tmp_path):
    root = write(tmp_path / "d", "v3.0")
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[2][f"videos/{CAMERA}/from_timestamp"] += 1 / FPS
    pq.write_table(pa.Table.from_pylist(rows), path)
    with pytest.raises(DataError, match=r"file-001.mp4 has 10 frames, the episode needs number 5 to 10"):
        open_split(root)
    rows[2][f"videos/{CAMERA}/from_timestamp"] -= 1.02 / FPS  # as durations that are added up drift
    pq.write_table(pa.Table.from_pylist(rows), path)
    np.testing.assert_array_equal(open_split(root).source.frames(2, [3], "images0")[0], frame(2, 3))
    shifted = [frame(0, 0)] * 5
    lerobot_files.write_video(root / f"videos/{CAMERA}/chunk-000/file-000.mp4", shifted, delay=1)
    with pytest.raises(DataError, match=r"file-000.mp4 shows frame 0 at 0.1 s, by fps 10 of info.json it is 0 s"):
        open_split(root)


def test_what_cannot_be_chosen_is_said(tmp_path):
    root = write(tmp_path / "d")
    with pytest.raises(
        ConfigError, match=r"has no episode 7, which bridgedata_config.episodes='0,7' names: .* are 0:3$"
    ):
        open_split(root, episodes="0,7")
    with pytest.raises(ConfigError, match=r"no episode of train is left by .*exclude_episodes='0:3'"):
        open_split(root, exclude_episodes="0:3")
    with pytest.raises(ConfigError, match=r"config.episodes='1-3' is no choice of episodes: write numbers and ranges"):
        settings(root, episodes="1-3")
    with pytest.raises(ConfigError, match=r"episodes has no effect with format 'rlds'; leave it as it was"):
        SourceConfig("rlds", str(root), episodes="1")
    with pytest.raises(
        DataError, match=r"has no val split, it has train: hold out a share of train with --bridgedata_c"
    ):
        open_split(root, "val")


def test_the_index_follows_its_files(tmp_path):
    root = write(tmp_path / "d")
    assert len(open_split(root).source) == 3
    assert len([*(root / "meta").glob("info.json.*.index")]) == 1
    (root / VIDEO).unlink()
    with pytest.raises(DataError, match=r"episode_000001.mp4 is missing"):
        open_split(root)
    lerobot_files.write_video(root / VIDEO, [frame(1, t) for t in range(4)])
    assert len(open_split(root).source) == 3
