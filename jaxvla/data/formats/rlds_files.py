"""The folder of an RLDS dataset: its version, its splits and their shards, and what dataset_info.json says of them.

Shards are called <dataset>-<split>.tfrecord-<number>-of-<count>.
"""

import json
import os
import pathlib
import re
from collections.abc import Sequence

from jaxvla.data.files import reading
from jaxvla.errors import DataError

_SHARD = re.compile(
    r"(?P<name>.+)\.(?P<format>tfrecord|array_record|riegeli|parquet)-(?P<number>\d+)-of-(?P<count>\d+)"
)


def check_version(folder: pathlib.Path) -> None:
    """Refuses what is no version folder.

    Raises:
        DataError: it is missing, or has no features.json; names the version folders that lie below it.
    """
    if not folder.is_dir():
        raise DataError(
            f"no data folder {folder}: set the data path to an RLDS version folder, as bridge_dataset/1.0.0"
        )
    if (folder / "features.json").exists():
        return
    below = sorted(path.parent for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(f"{pattern}/features.json"))
    if below:
        shown = ", ".join([str(path.relative_to(folder)) for path in below[:5]] + ["..."] * (len(below) > 5))
        raise DataError(
            f"{folder} is no RLDS version folder, below it lie {shown}: set the data path to one of these, "
            f"such as {below[-1]}"
        )
    raise DataError(
        f"{folder}/features.json: cannot be read: No such file or directory: the data path of an RLDS dataset is its "
        "version folder, such as bridge_dataset/1.0.0"
    )


def find_files(folder: pathlib.Path, split: str) -> list[str]:
    """The shards of one split of the dataset version `folder`, in their order.

    Raises:
        DataError: there are none, some are missing, or they are stored in another format.
    """
    found = _shards_by_split(folder)
    if split not in found:
        raise DataError(f"{folder} has no {split} split, {_mend(folder, split, sorted(found))}")
    shards = found[split]
    counts = {int(shard["count"]) for shard in shards}
    names = {shard["name"] for shard in shards}
    if len(counts) > 1 or len(names) > 1:
        ends = ", ".join(
            f"{shard['name']}.tfrecord-*-of-{shard['count']}" for shard in shards[:: max(len(shards) - 1, 1)]
        )
        raise DataError(f"{folder} mixes {split} shards of several datasets ({ends}): remove those that do not belong")
    expected, stated = counts.pop(), _shard_lengths(folder, split)
    missing = sorted(set(range(expected)) - {int(shard["number"]) for shard in shards})
    if stated is not None and len(stated) != expected:
        raise DataError(
            f"{folder} has {len(shards)} of {expected} {split} shards by the files' names, but dataset_info.json says "
            f"{len(stated)}: the files are of another version, or were renamed; download the split again"
        )
    if missing:
        shown = ", ".join([*map(str, missing[:5])] + ["..."] * (len(missing) > 5))
        raise DataError(
            f"{folder} has {len(shards)} of {expected} {split} shards, it lacks number {shown}: download those too"
        )
    return [os.fspath(folder / shard.string) for shard in shards]


def check_counts(folder: pathlib.Path, split: str, files: Sequence[str], counts: Sequence[int]) -> None:
    """Compares how many episodes each shard holds with dataset_info.json, where that says it.

    Raises:
        DataError: a shard holds another number, which an interrupted download or copy leaves behind.
    """
    for path, count, stated in zip(files, counts, _shard_lengths(folder, split) or ()):
        if count != stated:
            raise DataError(f"{path} holds {count} episodes, dataset_info.json says {stated}: download it again")


def splits(folder: pathlib.Path) -> tuple[str, ...]:
    """The names of the splits that have TFRecords.

    Raises:
        DataError: dataset_info.json is damaged.
    """
    return tuple(sorted(_shards_by_split(folder)))


def _shard_lengths(folder: pathlib.Path, split: str) -> list[int] | None:
    """How many episodes each shard of a split has by dataset_info.json; None where it does not say."""
    return _info(folder)[1].get(split) or None


def _info(folder: pathlib.Path) -> tuple[str, dict[str, list[int]]]:
    """The dataset's name by dataset_info.json, and how many episodes the shards of each split have."""
    path = folder / "dataset_info.json"
    if not path.exists():
        return "", {}
    try:
        with reading(path):
            info = json.loads(path.read_text())
        lengths = {entry["name"]: [*map(int, entry.get("shardLengths") or ())] for entry in info.get("splits") or ()}
        return str(info.get("name", "")), lengths
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({error}): download it again, or remove it") from error


def _shards(folder: pathlib.Path) -> list[re.Match[str]]:
    return [match for path in folder.iterdir() if (match := _SHARD.fullmatch(path.name))]


def _shards_by_split(folder: pathlib.Path) -> dict[str, list[re.Match[str]]]:
    """The TFRecord shards by split, in order. The dataset's name may hold dashes, as may that of a split."""
    prefix = f"{_info(folder)[0]}-"
    found: dict[str, list[re.Match[str]]] = {}
    for shard in _shards(folder):
        if shard["format"] == "tfrecord":
            name = shard["name"]
            split = name.removeprefix(prefix) if name.startswith(prefix) else name.rpartition("-")[2]
            found.setdefault(split, []).append(shard)
    return {split: sorted(shards, key=lambda s: (s["name"], int(s["number"]))) for split, shards in found.items()}


def _mend(folder: pathlib.Path, split: str, there: Sequence[str]) -> str:
    """What the folder has instead of a split, and what to do."""
    others = sorted({shard["format"] for shard in _shards(folder)} - {"tfrecord"})
    if not there and others:
        return (
            f"its shards are {', '.join(others)}, which is not read: write TFRecords with tfds convert_format "
            f"--dataset_dir={folder} --out_file_format=tfrecord --out_dir=NEW_FOLDER"
        )
    if not there:
        return "it has no files <dataset>-<split>.tfrecord-<number>-of-<count>: download it again"
    have = f"it has {', '.join(there)}"
    if split in _info(folder)[1]:
        return f"{have}, but dataset_info.json names it: download its files"
    if split == "val":
        return f"{have}: hold out a share of train with --bridgedata_config.validation_share=0.05"
    return f"{have}: download or build a {split} split"
