"""The folders of RLDS datasets: versions, splits and shards, and what dataset_info.json says of them."""

import os
import pathlib

import numpy as np
import pytest
from data.rlds_episodes import FOUR, TEMPLATE, episode, one_line, opened, write, write_dataset

from jaxvla.data.dataset import SourceConfig
from jaxvla.data.loader import training_batches
from jaxvla.data.mixture import Mixture
from jaxvla.errors import ConfigError


def test_a_share_of_train_is_held_out(tmp_path):
    folder = write_dataset(tmp_path, {"train": [[episode(i) for i in range(9)]], "test": [FOUR]})
    message = one_line(folder, r"has no val split, it has test, train: hold out", split="val")
    assert message.endswith("--bridgedata_config.validation_share=0.05")
    train, val = (opened(folder, split, validation_share=0.05) for split in ("train", "val"))
    assert len(val.source) >= 1
    assert len(train.source) + len(val.source) == 9
    assert not {*train.source.keys} & {*val.source.keys}
    assert train.statistics.num_trajectories == len(train.source)
    said = f"held out     {len(val.source)} of 9 trajectories for val, which has no files of its own"
    assert train.report[0] == val.report[0] == f"{said} (validation_share=0.05)"
    write(folder / "my-set-val.tfrecord-00000-of-00001", FOUR)
    one_line(folder, "has a val split of its own", ConfigError, validation_share=0.05)


def test_episodes_without_names_are_told_apart_by_their_shards(tmp_path):
    shards = [
        [{k: v for k, v in episode(10 * s + i).items() if "metadata" not in k} for i in range(5)] for s in range(8)
    ]
    folder = write_dataset(tmp_path, {"train": shards})
    train, val = (opened(folder, split, validation_share=0.3) for split in ("train", "val"))
    assert len({*train.source.keys, *val.source.keys}) == 40
    assert 4 <= len(val.source) <= 20


def test_shards_may_be_empty(tmp_path):
    folder = write_dataset(tmp_path, {"train": [[], FOUR[:1], [], FOUR[1:]]}, info={"train": [0, 1, 0, 3]})
    dataset = opened(folder)
    assert len(dataset.source) == 4
    assert len(dataset.source.paths) == 2
    assert dataset.source.frames(3, [1], "images0")[0, 0, 0].tolist() == [3, 1, 7]
    one_line(write_dataset(tmp_path / "b", {"train": [[], []]}), "train files hold no trajectories")


@pytest.mark.parametrize(
    ("shards", "info", "match"),
    [
        ([FOUR, []], [4, 4], r"00001-of-00002 holds 0 episodes, dataset_info\.json says 4: download it again"),
        ([FOUR[:3]], [4], r"00000-of-00001 holds 3 episodes, dataset_info\.json says 4: download it again"),
        ([FOUR, FOUR], [4], r"2 of 2 train shards by the files' names, but dataset_info\.json says 1"),
    ],
)
def test_counts_are_compared_with_dataset_info(tmp_path, shards, info, match):
    one_line(write_dataset(tmp_path, {"train": shards}, info={"train": info}), match)
    for damaged in (
        "{",
        "[]",
        '{"splits": [{"shardLengths": 3}]}',
        '{"splits": [{"name": "train", "shardLengths": 3}]}',
    ):
        (tmp_path / "dataset_info.json").write_text(damaged)
        one_line(tmp_path, r"dataset_info\.json: is damaged .*download it again, or remove it")


def test_missing_and_mixed_shards_are_named(tmp_path):
    folder = write_dataset(tmp_path, {"train": [[e] for e in FOUR], "val": [FOUR]})
    assert opened(folder, "val").source.keys[0] == "/raw/0#0"
    (folder / "my-set-train.tfrecord-00002-of-00004").unlink()
    one_line(folder, r"has 3 of 4 train shards, it lacks number 2: download those too")
    write(folder / "my-set-train.tfrecord-00000-of-00002", FOUR)
    one_line(folder, r"mixes train shards .*my-set-train\.tfrecord-\*-of-00002.*remove those")
    one_line(folder, r"has no test split, it has train, val: download or build a test split", split="test")


def test_a_split_that_only_dataset_info_names_is_to_be_downloaded(tmp_path):
    folder = write_dataset(tmp_path, {"train": [FOUR]}, info={"train": [4], "val": [1]})
    one_line(folder, r"no val split, it has train, but dataset_info\.json names it: download its files", split="val")


def test_dashes_belong_to_the_name_that_dataset_info_gives(tmp_path):
    folder = write_dataset(tmp_path, {"train": [FOUR]}, info={"train": [4]})
    write(folder / "my-set-held-train.tfrecord-00000-of-00001", [episode(9)])
    assert len(opened(folder).source) == 4


def test_other_formats_are_named_with_the_command_that_converts_them(tmp_path):
    folder = write_dataset(tmp_path, {})
    (folder / "my-set-train.riegeli-00000-of-00001").write_bytes(b"x")
    message = one_line(folder, r"its shards are riegeli, which is not read: write TFRecords with tfds convert_format")
    assert f"--dataset_dir={folder} --out_file_format=tfrecord" in message


@pytest.mark.parametrize(
    "template", [TEMPLATE, "{SPLIT}/part-{SHARD_INDEX}.{FILEFORMAT}", "{DATASET}.{SPLIT}.x-{SHARD_X_OF_Y}"]
)
@pytest.mark.parametrize("file_format", ["tfrecord", "array_record"])
def test_both_formats_and_names_of_any_kind_are_read(tmp_path, file_format, template):
    shards, info = [FOUR[:1], FOUR[1:3], FOUR[3:]], {"train": [1, 2, 1], "val": [1]}
    splits = {"train": shards, "val": [[episode(9)]]}
    folder = write_dataset(tmp_path, splits, info=info, file_format=file_format, template=template)
    for _ in range(2):  # with its indices made, and with those that are kept
        dataset = opened(folder)
        assert dataset.source.keys == tuple(f"/raw/{i}#{i}" for i in range(4))
        for number in range(4):
            frames = dataset.source.frames(number, range(6), "images0")
            assert frames[:, 0, 0].tolist() == [[number, step, 7] for step in range(6)]
            np.testing.assert_array_equal(dataset.source.table(number).actions, FOUR[number]["steps/action"][:-1])
    batch = next(stream := training_batches(Mixture.of(dataset), 16, 0, ("observations", "next_observations")))
    stream.close()
    now, later = (batch[key]["images0"][:, 0, 0, 0] for key in ("observations", "next_observations"))
    assert (later - now == [0, 1, 0]).all()
    assert opened(folder, "val").source.keys == ("/raw/9#9",)
    next(path for path in folder.rglob("*00001*") if path.suffix != ".index").unlink()
    one_line(folder, "has 2 of 3 train shards, it lacks number 1: download those too")


def test_of_two_formats_that_is_read_which_dataset_info_names(tmp_path):
    for number, file_format in enumerate(("tfrecord", "array_record")):
        info = {"train": [1]}
        folder = write_dataset(tmp_path, {"train": [[episode(number)]]}, info=info, file_format=file_format)
    assert opened(folder).source.keys == ("/raw/1#1",)
    (folder / "dataset_info.json").unlink()
    assert opened(folder).source.keys == ("/raw/0#0",)


def test_a_damaged_array_record_is_named(tmp_path):
    folder = write_dataset(tmp_path, {"train": [FOUR]}, file_format="array_record")
    (path,) = folder.glob("*.array_record-?????-of-?????")
    path.write_bytes(path.read_bytes()[:-70000])
    one_line(folder, rf"{path}: record 0 is damaged \(.*make the file again", max_skipped=1.0)


SIX = [[episode(0), episode(1, 1)], [episode(2)], [episode(3), episode(4), episode(5, dims=(7, 8))]]


@pytest.mark.parametrize("info", [{"train": [2, 1, 3]}, None])
def test_slices_count_all_episodes(tmp_path, info):
    folder = write_dataset(tmp_path, {"train": SIX}, info=info)

    def keys(text, **options):
        dataset = opened(folder, train_split=text, max_skipped=0.9, **options)
        return [int(key.split("#")[1]) for key in dataset.source.keys], dataset.report

    assert keys("train")[0] == [0, 2, 3, 4]
    found, report = keys("train[:50%]")
    assert found == [0, 2]
    assert report[0] == "split        train is train[:50%]"
    assert report[1] == "skipped      1 of 3 train trajectories (33.3%)"
    assert keys("train[2:5]")[0] == [2, 3, 4]
    assert keys("train[-2:]")[0] == [4]
    assert "other dimensions than the rest" in keys("train[-2:]")[1][2]
    assert keys("train[1shard:2shard]")[0] == [2]
    assert opened(folder, "val", val_split="train[4:]", train_split="train[:4]", max_skipped=0.9).source.keys == (
        "/raw/4#4",
    )
    one_line(folder, r"train\[:7\] is more than the split's 6 episodes", ConfigError, train_split="train[:7]")


def test_slices_read_no_more_files_than_they_need(tmp_path):
    folder = write_dataset(tmp_path, {"train": [FOUR[:2], FOUR[2:]]}, info={"train": [2, 2]})
    opened(folder, train_split="train[:2]")
    assert [path.name for path in folder.glob("*.index")] == ["my-set-train.tfrecord-00000-of-00002.index"]


def test_validation_has_two_names(tmp_path):
    folder = write_dataset(tmp_path, {"train": [FOUR[:3]], "validation": [FOUR[3:]], "test": [FOUR[:1]]})
    dataset = opened(folder, "val")
    assert dataset.source.keys == ("/raw/3#3",)
    assert dataset.report[0] == "split        val is validation"
    assert opened(folder, "val", val_split="test").source.keys == ("/raw/0#0",)
    one_line(folder, "has a val split of its own", ConfigError, validation_share=0.5)
    assert opened(write_dataset(folder, {"val": [FOUR[1:2]]}), "val").source.keys == ("/raw/1#1",)


def test_training_on_what_is_held_out_is_said(tmp_path):
    folder = write_dataset(tmp_path, {"train": [FOUR]})
    apart, both = (
        opened(folder, "val", val_split="train[50%:]", train_split=own).report for own in ("train[:50%]", "train[:75%]")
    )
    assert apart[0] == both[0] == "split        val is train[50%:]"
    assert both[1] == "warning: train[50%:] and train[:75%] share episodes: policies are validated on what they learned"
    assert not any("share episodes" in line for line in apart)


def test_splits_that_contradict_are_refused(tmp_path):
    folder = write_dataset(tmp_path, {"train": [FOUR]})
    one_line(
        folder,
        r"val_split='train\[:1\]' and validation_share=0\.5 both say",
        ConfigError,
        val_split="train[:1]",
        validation_share=0.5,
    )
    one_line(folder, r"bridgedata_config\.train_split='x\[' is no split", ConfigError, train_split="x[")
    with pytest.raises(ConfigError, match=r"val_split has no effect with format 'bridge_tfrecord'"):
        SourceConfig("bridge_tfrecord", str(folder), (("**",),), val_split="val")


def test_folders_that_are_no_version_say_where_the_versions_are(tmp_path):
    one_line(tmp_path / "nowhere", "no data folder .*set the data path to an RLDS version folder")
    one_line(tmp_path, r"features\.json: cannot be read")
    for version in ("1.0.0", "1.1.0"):
        write_dataset(tmp_path / "my_set" / version, {"train": [FOUR]})
    message = one_line(
        tmp_path / "my_set", r"is no RLDS version folder, below it lie 1\.0\.0, 1\.1\.0: set the data path"
    )
    assert message.endswith(f"such as {tmp_path / 'my_set' / '1.1.0'}, or bridgedata_config.tfds_name")
    one_line(tmp_path, r"below it lie my_set/1\.0\.0, my_set/1\.1\.0")
    (tmp_path / "my_set" / "1.0.0" / "features.json").write_text('{"featuresDict": []}')
    one_line(tmp_path / "my_set" / "1.0.0", "does not describe an RLDS dataset with steps")
    whole = (tmp_path / "my_set" / "1.1.0" / "features.json").read_bytes()
    for damaged in (whole[: len(whole) // 2], b"", b"\xff" + whole):
        (tmp_path / "my_set" / "1.1.0" / "features.json").write_bytes(damaged)
        one_line(tmp_path / "my_set" / "1.1.0", r"1\.1\.0/features\.json: is damaged \(.+\): download it again$")


@pytest.mark.parametrize("name", ["features.json", "dataset_info.json"])
@pytest.mark.parametrize("method", ["stat", "open"])
def test_folders_and_files_that_cannot_be_read(tmp_path, monkeypatch, name, method):
    """As an ordinary user finds them: one may list the folder, but not look into it; or not read the file."""
    folder = write_dataset(tmp_path, {"train": [FOUR]}, info={"train": [4]})
    real = getattr(pathlib.Path, method)

    def refuse(path, *args, **options):
        if path.name == name:
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return real(path, *args, **options)

    monkeypatch.setattr(pathlib.Path, method, refuse)
    one_line(folder, rf"^{folder}/{name}: cannot be read: Permission denied$")
