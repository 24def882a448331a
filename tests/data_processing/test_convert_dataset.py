"""Datasets converted by the main: RLDS copied into TFRecords, and others written as LeRobotDatasets."""

import importlib.util
import json
import os
import pathlib
import subprocess
import sys
import time

import pytest
from data.bridge_files import write_dataset as write_bridge
from data.rlds_episodes import FOUR, episode, opened, write_dataset

from jaxvla.data.conversion import rlds_copy
from jaxvla.data.conversion.rlds_copy import copy_dataset, of_folder
from jaxvla.data.dataset import DataConfig, open_dataset
from jaxvla.data.source_config import SourceConfig
from jaxvla.errors import DataError

SCRIPT = pathlib.Path(__file__).resolve().parents[2] / "data_processing" / "convert_dataset.py"


def run(*arguments, **environment):
    command = [sys.executable, str(SCRIPT), *map(str, arguments)]
    given = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=given)


@pytest.fixture
def folder(tmp_path):
    splits = {"train": [FOUR[:3], FOUR[3:]], "val": [[episode(9)]]}
    info = {"train": [3, 1], "val": [1]}
    return write_dataset(tmp_path / "in" / "my-set" / "1.0.0", splits, info=info, file_format="array_record")


def test_array_records_become_tfrecords_with_the_same_episodes(folder, tmp_path):
    done = run("--from", f"rlds:{folder}", "--output_path", tmp_path / "out")
    copy = tmp_path / "out" / "my-set" / "1.0.0"
    assert (done.returncode, done.stdout) == (0, f"{copy}: 5 episodes in 3 files, of which 3 were written now\n")
    names = sorted(path.name for path in copy.iterdir())
    assert names == [
        "dataset_info.json",
        "features.json",
        "my-set-train.tfrecord-00000-of-00002",
        "my-set-train.tfrecord-00001-of-00002",
        "my-set-val.tfrecord-00000-of-00001",
    ]
    same = write_dataset(tmp_path / "same", {"train": [FOUR[:3], FOUR[3:]], "val": [[episode(9)]]})
    for name in names[2:]:
        assert (copy / name).read_bytes() == (same / name).read_bytes()
    source = opened(tmp_path / "out", tfds_name="my-set").source
    assert source.keys == tuple(f"/raw/{i}#{i}" for i in range(4))
    assert source.frames(3, [5], "images0")[0, 0, 0].tolist() == [3, 5, 7]
    assert opened(copy, "val").source.keys == ("/raw/9#9",)


def test_a_copy_is_finished_by_running_it_again(folder, tmp_path, monkeypatch):
    written = []
    write_shard = rlds_copy._write_shard

    def interrupted(path, shard):
        if len(written) == 1:
            raise KeyboardInterrupt
        written.append(path.name)
        write_shard(path, shard)

    with monkeypatch.context() as patch:
        patch.setattr(rlds_copy, "_write_shard", interrupted)
        with pytest.raises(KeyboardInterrupt):
            copy_dataset(of_folder(folder), tmp_path)
    copy = tmp_path / "my-set" / "1.0.0"
    assert sorted(path.name for path in copy.glob("*.tfrecord-*")) == written
    assert copy_dataset(of_folder(folder), tmp_path).endswith("5 episodes in 3 files, of which 2 were written now")
    assert copy_dataset(of_folder(folder), tmp_path).endswith("of which 0 were written now")
    assert copy_dataset(of_folder(folder), tmp_path, overwrite=True).endswith("of which 3 were written now")


def test_damage_is_not_copied(tmp_path):
    folder = write_dataset(tmp_path / "in" / "my-set" / "1.0.0", {"train": [FOUR]})
    (path,) = folder.glob("*-train.tfrecord-*")
    data = bytearray(path.read_bytes())
    data[40] ^= 1
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"^{path}: the record at byte \d+ does not match its checksum"):
        copy_dataset(of_folder(folder), tmp_path / "out")
    assert not [*tmp_path.glob("out/**/*.tfrecord-*")]


def test_splits_are_copied_one_after_the_other(folder, tmp_path):
    copy_dataset(of_folder(folder), tmp_path, ["val"])
    assert len(opened(tmp_path / "my-set" / "1.0.0", "val").source) == 1
    copy_dataset(of_folder(folder), tmp_path, ["train"])
    info = json.loads((tmp_path / "my-set" / "1.0.0" / "dataset_info.json").read_text())
    assert {entry["name"]: entry["shardLengths"] for entry in info["splits"]} == {"val": ["1"], "train": ["3", "1"]}
    with pytest.raises(DataError, match=r"my-set has no split test, it has train, val: correct --splits"):
        copy_dataset(of_folder(folder), tmp_path, ["test"])


def test_a_damaged_file_leaves_no_half_of_it(folder, tmp_path):
    (path,) = folder.glob("*-train.array_record-00001*")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(DataError, match=rf"{path}: record 0 is damaged"):
        copy_dataset(of_folder(folder), tmp_path, ["train"])
    copy = tmp_path / "my-set" / "1.0.0"
    assert {path.name for path in copy.iterdir()} == {"features.json", "my-set-train.tfrecord-00000-of-00002"}


def test_other_datasets_and_the_dataset_itself_are_spared(folder, tmp_path):
    with pytest.raises(DataError, match="is the dataset itself: give another --output_path"):
        copy_dataset(of_folder(folder), tmp_path / "in", overwrite=True)
    write_dataset(tmp_path / "my-set" / "1.0.0", {}, {"action": "tensor"})
    with pytest.raises(DataError, match=r"features\.json: is of another dataset: give another --output_path"):
        copy_dataset(of_folder(folder), tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("bridge", "--from='bridge' is no source for --to rlds: give tfds:NAME or rlds:FOLDER"),
        ("rlds:gs://bucket/x", "gs://bucket/x is no local path"),
    ],
)
def test_what_is_no_source_is_one_line(tmp_path, source, message):
    done = run("--from", source, "--output_path", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_without_tensorflow_it_says_how_to_get_it(tmp_path):
    if importlib.util.find_spec("tensorflow") is not None:
        pytest.skip("tensorflow is installed")
    done = run("--from", "tfds:bridge", "--output_path", tmp_path)
    assert done.returncode == 1
    assert done.stderr == "error: --from tfds: needs tensorflow, which is not installed: pip install -e '.[tf]'\n"


def test_what_tensorflow_datasets_reads_is_copied_byte_for_byte(samples, tmp_path):
    for package in ("tensorflow", "tensorflow_datasets"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"could not import {package!r}")
    root = samples / "bridge_rlds"
    done = run("--from", "tfds:bridge_dataset:1.0.0", "--data_dir", root, "--output_path", tmp_path, "--splits", "val")
    assert done.returncode == 0, done.stderr
    name = "bridge_dataset/1.0.0/bridge_dataset-val.tfrecord-00000-of-00001"
    assert (tmp_path / name).read_bytes() == (root / name).read_bytes()
    missing = run("--from", "tfds:no_such_dataset", "--data_dir", root, "--output_path", tmp_path)
    assert "error: --from tfds:no_such_dataset: Dataset no_such_dataset not found" in missing.stderr


def test_tfrecords_become_a_lerobot_dataset_as_the_config_says(tmp_path):
    given = write_bridge(tmp_path / "in", {"lift": [5, 4]})
    flags = ("--bridgedata_config", "data_config.py:bdv2_local", "--image_size", "16", "--crf", "10")
    done = run("--from", f"tfrecord:{given}", "--to", "lerobot30", "--output_path", tmp_path / "out", *flags)
    assert done.returncode == 0, done.stderr
    assert f"dataset      {tmp_path / 'out'}, LeRobotDataset v3.0" in done.stdout
    assert "frames       13 at 5 Hz, 2 tasks" in done.stdout
    info = json.loads((tmp_path / "out/meta/info.json").read_text())
    assert info["features"]["action"]["names"][-1] == "gripper (1 open)"
    assert info["splits"] == {"train": "0:2", "val": "2:3"}
    again = run("--from", f"tfrecord:{given}", "--to", "lerobot30", "--output_path", tmp_path / "out", *flags)
    assert again.stderr.endswith("out exists: pass --overwrite to replace it, or give another --output_path\n")


def test_a_killed_conversion_goes_on(tmp_path):
    given = write_bridge(tmp_path / "in", {"lift": [40] * 40})
    command = [sys.executable, str(SCRIPT), "--from", f"tfrecord:{given}", "--to", "lerobot21", "--fps", "5"]
    command += ["--output_path", str(tmp_path / "out"), "--image_size", "64"]
    marks = tmp_path / "out.partial" / "marks" / "000"
    with open(tmp_path / "log", "wb") as log, subprocess.Popen(command, stdout=log, stderr=log) as process:
        deadline = time.monotonic() + 120
        while not (marks / "000002.json").exists() and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -9, (tmp_path / "log").read_text()
    there = {path.name: path.stat().st_mtime_ns for path in marks.glob("*.json")}
    assert 3 <= len(there) < 41
    assert not (tmp_path / "out").exists()
    (marks / "000002.json").unlink()  # of which the files are there, as if it had been killed before the mark
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "episodes     41 of 41: 40 train, 1 val" in done.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "log", "out"]
    source = SourceConfig("lerobot", str(tmp_path / "out"))
    lengths = open_dataset(source, DataConfig(normalization="none"), "train").source.lengths
    assert [*lengths] == [40] * 40


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--from=mp4:{}", "--to=lerobot21"], "is no source for --to lerobot21: give raw:FOLDER or numpy:FOLDER or"),
        (["--from=lerobot:{}", "--to=lerobot30", "--crf=10", "--cameras=top"], "--cameras has no effect with --from l"),
        (["--from=rlds:{}", "--crf=10"], "--crf has no effect with --to rlds: leave it out"),
        (["--from=tfrecord:{}", "--to=lerobot30", "--image_size=big"], "--image_size must be HEIGHT or HEIGHT,WIDTH"),
        (["--from=rlds:{}", "--to=lerobot30"], "--from rlds: {} is of the format bridge_tfrecord: correct --from"),
    ],
)
def test_flags_that_cannot_be_are_one_line(tmp_path, flags, message):
    given = write_bridge(tmp_path / "in", {"lift": [5]})
    done = run("--output_path", tmp_path / "out", *(flag.format(given) for flag in flags))
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert message.format(given) in done.stderr
    assert not (tmp_path / "out").exists()
