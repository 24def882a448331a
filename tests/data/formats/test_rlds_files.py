"""The folders of RLDS datasets: versions, splits and shards, and what dataset_info.json says of them."""

import os
import pathlib

import pytest
from data.rlds_episodes import FOUR, episode, one_line, opened, write, write_dataset

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


def test_array_records_are_named_with_the_command_that_converts_them(tmp_path):
    folder = write_dataset(tmp_path, {})
    (folder / "my-set-train.array_record-00000-of-00001").write_bytes(b"x")
    message = one_line(
        folder, r"its shards are array_record, which is not read: write TFRecords with tfds convert_format"
    )
    assert f"--dataset_dir={folder} --out_file_format=tfrecord" in message


def test_folders_that_are_no_version_say_where_the_versions_are(tmp_path):
    one_line(tmp_path / "nowhere", "no data folder .*set the data path to an RLDS version folder")
    one_line(tmp_path, r"features\.json: cannot be read")
    for version in ("1.0.0", "1.1.0"):
        write_dataset(tmp_path / "my_set" / version, {"train": [FOUR]})
    message = one_line(
        tmp_path / "my_set", r"is no RLDS version folder, below it lie 1\.0\.0, 1\.1\.0: set the data path"
    )
    assert message.endswith(f"such as {tmp_path / 'my_set' / '1.1.0'}")
    one_line(tmp_path, r"below it lie my_set/1\.0\.0, my_set/1\.1\.0")
    (tmp_path / "my_set" / "1.0.0" / "features.json").write_text('{"featuresDict": []}')
    one_line(tmp_path / "my_set" / "1.0.0", "does not describe an RLDS dataset with steps")


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
