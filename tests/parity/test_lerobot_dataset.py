"""LeRobot's own reader on datasets that were written here: every value, task, padding, frame and statistic."""

import itertools
import os

import numpy as np
import pytest
from data import lerobot_files

from jaxvla.data.conversion.lerobot.convert import Options, write_lerobot
from jaxvla.data.conversion.lerobot.from_lerobot import open_lerobot
from jaxvla.data.conversion.lerobot.from_recordings import open_recordings_of
from jaxvla.data.conversion.lerobot.statistics import QUANTILES
from jaxvla.data.dataset import DataConfig, open_dataset
from jaxvla.data.inspection.recordings import find_config, open_recordings
from jaxvla.data.source_config import SourceConfig

pytestmark = [pytest.mark.parity, pytest.mark.filterwarnings("ignore")]

# Which version is written follows from what is installed; LeRobot 0.3.3, with datasets 3.6, reads 2.1.
# LeRobot decodes by torchvision's reader here, which later ones lack; torchcodec would need FFmpeg's libraries.
VENV = (
    "needs LeRobot in an environment of its own: uv venv lerobot --python 3.11 && uv pip install --python "
    "lerobot/bin/python lerobot==0.4.4 torch==2.10.0 torchvision==0.25.0 'jax>=0.10.2,<0.11' 'flax>=0.12.8,<0.12.12' "
    "grain google-crc32c ml_collections array_record jaxtyping beartype pytest && uv pip install --python "
    "lerobot/bin/python 'av>=18,<19' && PYTHONPATH=. lerobot/bin/python -m pytest -m parity "
    "tests/parity/test_lerobot_dataset.py"
)
CHUNK = 4
# Of 255: two builds of FFmpeg may round colours otherwise.
ROUNDING = 2


@pytest.fixture(scope="module")
def lerobot():
    os.environ["HF_HUB_OFFLINE"] = "1"
    pytest.importorskip("lerobot", reason=VENV, exc_type=ImportError)
    io = pytest.importorskip("torchvision", reason=VENV).io
    if not hasattr(io, "VideoReader"):
        pytest.skip(VENV)
    from lerobot.datasets import lerobot_dataset

    return lerobot_dataset


def theirs(lerobot, root, fps):
    deltas = {"action": [k / fps for k in range(CHUNK)]}
    return lerobot.LeRobotDataset("any/name", root=root, delta_timestamps=deltas, video_backend="pyav")


def compare(lerobot, root, fps, steps=1):
    """Items of LeRobot with what is read here, every so many steps."""
    source = open_dataset(SourceConfig("lerobot", str(root)), DataConfig(normalization="none"), "train").source
    dataset = theirs(lerobot, root, fps)
    (camera,) = dataset.meta.camera_keys
    assert (dataset.num_episodes, len(dataset)) == (len(source), int(source.lengths.sum()))
    for i in range(0, len(dataset), steps):
        (e,), (t,) = (x.tolist() for x in source.locate(np.array([i])))
        item = dataset[i]
        table, length = source.table(e), int(source.lengths[e])
        assert (int(item["episode_index"]), int(item["frame_index"]), int(item["index"])) == (e, t, i)
        assert float(item["timestamp"]) == np.float32(t / fps)
        np.testing.assert_array_equal(item["observation.state"].numpy(), table.proprio[t])
        ahead = t + np.arange(CHUNK)
        np.testing.assert_array_equal(item["action"].numpy(), table.actions[np.minimum(ahead, length - 1)])
        np.testing.assert_array_equal(item["action_is_pad"].numpy(), ahead >= length)
        assert item["task"] in (table.language or ("",))
        pixels = np.round(item[camera].numpy().transpose(1, 2, 0) * 255)
        assert abs(pixels - source.stored_frames(e, [t], "images0")[0]).max() <= ROUNDING
    return dataset


@pytest.mark.parametrize("pictures", ["video", "image"])
@pytest.mark.parametrize("version", ["v2.0", "v2.1", "v3.0"])
def test_a_converted_dataset(lerobot, tmp_path, version, pictures):
    given = lerobot_files.write(tmp_path / "given", version, (5, 4, 6), pictures == "image")
    write_lerobot(open_lerobot(given), tmp_path / "out", Options(lerobot.CODEBASE_VERSION, data_mb=1, video_mb=1))
    compare(lerobot, tmp_path / "out", lerobot_files.FPS)


def test_the_real_one(lerobot, samples, tmp_path):
    given = samples / {"v3.0": "lerobot_v21", "v2.1": "lerobot_v30"}[lerobot.CODEBASE_VERSION]
    write_lerobot(open_lerobot(given), tmp_path / "out", Options(lerobot.CODEBASE_VERSION, video_mb=5))
    dataset = compare(lerobot, tmp_path / "out", 30, 29)
    expected = theirs(lerobot, samples / f"lerobot_{lerobot.CODEBASE_VERSION.replace('.', '')}", 30)
    for i in range(0, len(dataset), 97):
        one, two = dataset[i], expected[i]
        assert one.keys() == two.keys()
        for key in one:
            assert one[key] == two[key] if key == "task" else bool((one[key] == two[key]).all()), key
    for feature, known in expected.meta.stats.items():
        for key, value in known.items():
            np.testing.assert_allclose(dataset.meta.stats[feature][key], value, 1e-5, 1e-6, err_msg=feature)


def write_rlds(root):
    from data import rlds_episodes

    episodes = [rlds_episodes.episode(n, steps) for n, steps in enumerate((9, 7, 8))]
    return rlds_episodes.write_dataset(root / "x" / "1.0.0", {"train": [episodes]})


@pytest.mark.parametrize("pictures", ["video", "image"])
def test_a_dataset_of_another_format_and_its_statistics(lerobot, tmp_path, pictures):
    if lerobot.CODEBASE_VERSION == "v2.1":
        pytest.skip(f"quantiles are of 3.0: {VENV}")
    from lerobot.datasets.compute_stats import aggregate_stats, compute_episode_stats

    recordings = open_recordings(find_config(write_rlds(tmp_path)), False, 0, 0)
    episodes = open_recordings_of(recordings, (), (32, 32), 5.0)
    write_lerobot(episodes, tmp_path / "out", Options("v3.0", pictures=pictures))
    dataset = compare(lerobot, tmp_path / "out", 5)
    own = [name for name, feature in dataset.features.items() if feature["dtype"] not in ("video", "image")]
    known = []
    for episode in dataset.meta.episodes:
        rows = dataset.hf_dataset.with_format("numpy")[episode["dataset_from_index"] : episode["dataset_to_index"]]
        values = {name: np.asarray(rows[name], np.float64) for name in own}
        known.append(compute_episode_stats(values, dataset.features))
    together = aggregate_stats(known)
    for name, key in itertools.product(own, ("min", "max", "mean", "std", "count")):
        found, expected = dataset.meta.stats[name][key], together[name][key]
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, 1e-5, 1e-6, err_msg=f"{name} {key}")
    # LeRobot finds quantiles by bins of a 5000th of the range, here of all episodes as if they were one.
    every = {name: np.asarray(dataset.hf_dataset.with_format("numpy")[name], np.float64) for name in own}
    for name, whole in compute_episode_stats(every, dataset.features).items():
        for key in QUANTILES:
            bin_width = (whole["max"] - whole["min"]) / 5000
            assert (abs(dataset.meta.stats[name][key] - whole[key]) <= bin_width + 1e-6).all(), f"{name} {key}"
