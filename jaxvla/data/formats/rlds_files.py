"""The files of an RLDS dataset's version folder: its splits, their shards, and what dataset_info.json says of them.

Shards are called <dataset>-<split>.<format>-<number>-of-<count>, or as `filepathTemplate` in dataset_info.json says.
Source of the templates: `ShardedFileTemplate` of tensorflow_datasets/core/naming.py.
"""

import dataclasses
import json
import os
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence

from jaxvla.data.files import reading
from jaxvla.data.formats.records import open_records
from jaxvla.data.formats.split_slices import SplitSlice
from jaxvla.errors import DataError

FEATURES = "features.json"
FORMATS = ("tfrecord", "array_record")
_TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
_SHARD = re.compile(r"(?P<name>.+)\.(?P<format>[a-z_]+)-(?P<number>\d+)-of-(?P<count>\d+)")
_VARIABLES = {
    "DATASET": r"(?P<name>.+)",
    "FILEFORMAT": r"(?P<format>\w+)",
    "SHARD_INDEX": r"(?P<number>\d{5,})",
    "NUM_SHARDS": r"(?P<count>\d{5,})",
    "SHARD_X_OF_Y": r"(?P<number>\d{5,})-of-(?P<count>\d{5,})",
}


@dataclasses.dataclass(frozen=True)
class Part:
    """The episodes `start` to `stop` of one file, but those `left_out`.

    `count` is how many it has by dataset_info.json, None if unknown.
    """

    path: str
    start: int
    stop: int
    count: int | None
    left_out: frozenset[int] = frozenset()


@dataclasses.dataclass(frozen=True)
class _Info:
    """What dataset_info.json says: of each split how many episodes its shards have, and what they are called."""

    name: str = ""
    format: str = ""
    lengths: Mapping[str, list[int]] = dataclasses.field(default_factory=dict)
    templates: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class _Shard:
    """A file, by its path below the version folder; a count of 0 where its name does not say it."""

    path: str
    name: str
    format: str
    number: int
    count: int


def check_version(folder: pathlib.Path) -> None:
    """Refuses what is no version folder.

    Raises:
        DataError: it is missing, or has no features.json; names the version folders that lie below it.
    """
    if not folder.is_dir():
        raise DataError(
            f"no data folder {folder}: set the data path to an RLDS version folder, as bridge_dataset/1.0.0"
        )
    if (folder / FEATURES).exists():
        return
    below = sorted(path.parent for pattern in ("*", "*/*", "*/*/*") for path in folder.glob(f"{pattern}/{FEATURES}"))
    if below:
        shown = ", ".join([str(path.relative_to(folder)) for path in below[:5]] + ["..."] * (len(below) > 5))
        raise DataError(
            f"{folder} is no RLDS version folder, below it lie {shown}: set the data path to one of these, "
            f"such as {below[-1]}, or bridgedata_config.tfds_name"
        )
    raise DataError(
        f"{folder}/features.json: cannot be read: No such file or directory: the data path of an RLDS dataset is its "
        "version folder, such as bridge_dataset/1.0.0"
    )


def find_parts(folder: pathlib.Path, which: SplitSlice) -> list[Part]:
    """The files of a split of the dataset version `folder`, or of a slice of it, in their order.

    Raises:
        DataError: there are none, some are missing, or they are stored in another format.
        ConfigError: the split has not as many episodes, or the slice is empty.
    """
    files = find_files(folder, which.split)
    stated = _read_info(folder).lengths.get(which.split)
    if which.is_whole and not stated:
        return [Part(path, 0, sys.maxsize, None) for path in files]
    counts = stated or [_count(path) for path in files]
    chosen = which.range(counts, str(folder))
    parts, first = [], 0
    for path, count in zip(files, counts):
        start, stop = max(chosen.start - first, 0), min(chosen.stop - first, count)
        if start < stop or which.is_whole:
            parts.append(Part(path, start, stop, count))
        first += count
    return parts


def find_files(folder: pathlib.Path, split: str) -> list[str]:
    """The shards of one split of the dataset version `folder`, in their order.

    Raises:
        DataError: there are none, some are missing, or they are stored in another format.
    """
    info = _read_info(folder)
    found = _shards_by_split(folder, info)
    if split not in found:
        raise DataError(f"{folder} has no {split} split, {_mend(folder, info, split, sorted(found))}")
    shards = found[split]
    counts = {shard.count for shard in shards}
    if len(counts) > 1 or len({shard.name for shard in shards}) > 1:
        ends = ", ".join(
            f"{shard.name}.{shard.format}-*-of-{shard.count:05}" for shard in shards[:: max(len(shards) - 1, 1)]
        )
        raise DataError(f"{folder} mixes {split} shards of several datasets ({ends}): remove those that do not belong")
    stated = info.lengths.get(split)
    expected = counts.pop() or len(stated or shards)
    missing = sorted(set(range(expected)) - {shard.number for shard in shards})
    if stated and len(stated) != expected:
        raise DataError(
            f"{folder} has {len(shards)} of {expected} {split} shards by the files' names, but dataset_info.json says "
            f"{len(stated)}: the files are of another version, or were renamed; download the split again"
        )
    if missing:
        shown = ", ".join([*map(str, missing[:5])] + ["..."] * (len(missing) > 5))
        raise DataError(
            f"{folder} has {len(shards)} of {expected} {split} shards, it lacks number {shown}: download those too"
        )
    return [os.fspath(folder / shard.path) for shard in shards]


def check_counts(parts: Sequence[Part], counts: Sequence[int]) -> None:
    """Compares how many episodes each shard holds with dataset_info.json, where that says it.

    Raises:
        DataError: a shard holds another number, which an interrupted download or copy leaves behind.
    """
    for part, count in zip(parts, counts):
        if part.count not in (None, count):
            raise DataError(
                f"{part.path} holds {count} episodes, dataset_info.json says {part.count}: download it again"
            )


def splits(folder: pathlib.Path) -> tuple[str, ...]:
    """The names of the splits that have files that can be read.

    Raises:
        DataError: dataset_info.json is damaged.
    """
    return tuple(sorted(_shards_by_split(folder, _read_info(folder))))


def dataset_name(folder: pathlib.Path) -> str:
    """What dataset_info.json calls the dataset; "" where it does not say.

    Raises:
        DataError: it is damaged.
    """
    return _read_info(folder).name


def shard_lengths(folder: pathlib.Path) -> dict[str, list[int]]:
    """How many episodes the shards of each split have by dataset_info.json; empty where that is not there.

    Raises:
        DataError: it is damaged.
    """
    return dict(_read_info(folder).lengths)


def _count(path: str) -> int:
    with reading(path):
        return open_records(path).count()


def _read_info(folder: pathlib.Path) -> _Info:
    path = folder / "dataset_info.json"
    if not path.exists():
        return _Info()
    try:
        with reading(path):
            info = json.loads(path.read_text())
        entries = {entry["name"]: entry for entry in info.get("splits") or ()}
        return _Info(
            str(info.get("name", "")),
            str(info.get("fileFormat", "")),
            {split: [*map(int, entry.get("shardLengths") or ())] for split, entry in entries.items()},
            {split: str(entry.get("filepathTemplate") or _TEMPLATE) for split, entry in entries.items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({error}): download it again, or remove it") from error


def _shards_by_split(folder: pathlib.Path, info: _Info) -> dict[str, list[_Shard]]:
    """The shards by split, in order: of the format that dataset_info.json names, else of the first that is there."""
    every = _all_shards(folder, info)
    there = {shard.format for shards in every.values() for shard in shards}
    wanted = next((name for name in (info.format, *FORMATS) if name in FORMATS and name in there), None)
    found = {split: [shard for shard in shards if shard.format == wanted] for split, shards in every.items()}
    return {split: sorted(own, key=lambda shard: (shard.name, shard.number)) for split, own in found.items() if own}


def _all_shards(folder: pathlib.Path, info: _Info) -> dict[str, list[_Shard]]:
    """The shards of all formats. The dataset's name may hold dashes, as may that of a split."""
    own = {split: template for split, template in info.templates.items() if template != _TEMPLATE}
    found = {split: _by_template(folder, info, split, template) for split, template in own.items()}
    prefix = f"{info.name}-"
    for path in folder.iterdir():
        match = _SHARD.fullmatch(path.name)
        if match is None:
            continue
        name = match["name"]
        split = name.removeprefix(prefix) if name.startswith(prefix) else name.rpartition("-")[2]
        if split not in own:
            shard = _Shard(path.name, name, match["format"], int(match["number"]), int(match["count"]))
            found.setdefault(split, []).append(shard)
    return found


def _by_template(folder: pathlib.Path, info: _Info, split: str, template: str) -> list[_Shard]:
    """The shards of a split whose files have names of their own."""
    template = template.partition("%")[0].replace("{SPLIT}", split)
    above, _, name = template.replace("{DATASET}", info.name).rpartition("/")
    pattern = re.sub(r"\\{(\w+)\\}", lambda match: _VARIABLES.get(match[1], match[0]), re.escape(name))
    shards = []
    for path in (folder / above).iterdir() if (folder / above).is_dir() else ():
        if match := re.fullmatch(pattern, path.name):
            parts = {"name": "", "format": info.format, "number": "0", "count": "0"} | match.groupdict()
            inside = str(path.relative_to(folder))
            shards.append(_Shard(inside, parts["name"], parts["format"], int(parts["number"]), int(parts["count"])))
    return shards


def _mend(folder: pathlib.Path, info: _Info, split: str, there: Sequence[str]) -> str:
    """What the folder has instead of a split, and what to do."""
    every = _all_shards(folder, info)
    formats = sorted({shard.format for shards in every.values() for shard in shards} - {*FORMATS})
    if not there and formats:
        return (
            f"its shards are {', '.join(formats)}, which is not read: write TFRecords with tfds convert_format "
            f"--dataset_dir={folder} --out_file_format=tfrecord --out_dir=NEW_FOLDER"
        )
    if not there and any(template != _TEMPLATE for template in info.templates.values()):
        return f"no files are called {', '.join(sorted({*info.templates.values()}))}: download it again"
    if not there:
        return "it has no files <dataset>-<split>.tfrecord-<number>-of-<count>: download it again"
    have = f"it has {', '.join(there)}"
    if split in info.lengths:
        return f"{have}, but dataset_info.json names it: download its files"
    if split == "val":
        return f"{have}: hold out a share of train with --bridgedata_config.validation_share=0.05"
    return f"{have}: download or build a {split} split"
