"""Finds the folders to convert, and decides which part of their path the output keeps.

    <input>/<task folder>/<YYYY-MM-DD_HH-MM-SS>/raw/traj_group<K>/traj<N>     raw
    <input>/<task folder>/(train|val)/out.npy                                 numpy

`depth` says how many components of a raw path lie between the input and the trajectories' dated folder, that folder
included: the task folder has depth - 1. The output keeps these components; at depth 1 the input is the task folder
itself and its name is kept.
"""

import dataclasses
import datetime
import glob
import os
import pathlib
import re
from collections.abc import Mapping

from jaxvla.errors import ConfigError, DataError

DATE_FORMAT = "%Y-%m-%d_%H-%M-%S"
SPLITS = ("train", "val")

_MAX_LEVELS = 12  # a link that points upwards must not be followed for ever


@dataclasses.dataclass(frozen=True)
class DatedFolder:
    """One recording session, and when it began."""

    path: pathlib.Path
    date: datetime.datetime

    def trajectories(self) -> list[pathlib.Path]:
        """The trajectory folders, in order of recording."""
        found = [path for path in self.path.glob("raw/traj_group*/traj*") if path.is_dir()]
        return sorted(found, key=lambda path: (_numbers(path.parent.name), _numbers(path.name), path.name))


@dataclasses.dataclass(frozen=True)
class RawTree:
    """Dated folders by the path that the output keeps for them, the entries beside them that are none, and notes.

    `root` is the folder that trajectories are named relative to: the input, or the one above it where the input is a
    task folder, whose name counts.
    """

    root: pathlib.Path
    tasks: dict[pathlib.PurePath, list[DatedFolder]]
    ignored: list[pathlib.Path]
    notes: list[str]


def local_path(text: str) -> pathlib.Path:
    """The path that a user typed.

    Raises:
        ConfigError: the address of a bucket or another remote place.
    """
    if "://" in text:
        raise ConfigError(f"{text} is no local folder: copy the data to a disk, or mount the bucket")
    return pathlib.Path(text)


def find_raw(input_path: pathlib.Path, depth: int) -> RawTree:
    """Looks for dated folders below `input_path`, at any depth.

    At least one must lie where `depth` says. Others may lie higher (`scripted/<task>/<date>` beside folders with an
    environment): their whole path is kept. Or deeper: they join the task folder that `depth` cuts off.

    Raises:
        DataError: no such folder, no dated folder, or none where `depth` says; then the fitting depth is named. Or a
            folder that cannot be read.
    """
    input_path = _existing(input_path)
    try:
        dated, ignored = _walk(input_path, 0)
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be read: {error.strerror}") from None
    if not dated:
        mend = "give a folder above them as the input path"
        if any(_parse_date(part) for part in input_path.parts):
            mend = "the input path lies inside one, give a folder above it"
        raise DataError(f"{input_path} holds no dated folder (like 2021-07-23_14-05-59): {mend}")
    paths = [folder.path.relative_to(input_path) for folder in dated]
    _check_depth({path: len(path.parts) - 1 for path in paths}, input_path, depth, depth - 1, "dated folder")
    tasks: dict[pathlib.PurePath, list[DatedFolder]] = {}
    for folder, path in zip(dated, paths):
        kept = path.parts[:-1][: depth - 1] or (input_path.name,)
        tasks.setdefault(pathlib.PurePath(*kept), []).append(folder)
    higher = [path for path in paths if len(path.parts) < depth]
    deeper = [path for path in paths if len(path.parts) > depth]
    notes = []
    if higher:
        notes.append(f"{len(higher)} dated folders lie higher than depth {depth}; their path is kept ({higher[0]})")
    if deeper:
        notes.append(f"{len(deeper)} dated folders lie deeper than depth {depth}; merged by task folder ({deeper[0]})")
    return RawTree(input_path if depth > 1 else input_path.parent, tasks, ignored, notes)


def find_numpy(input_path: pathlib.Path, depth: int) -> dict[pathlib.PurePath, pathlib.Path]:
    """The task folders below `input_path` that hold (train|val)/out.npy, by the path that the output keeps for them.

    Raises:
        DataError: no such folder, no out.npy, or none where `depth` says; then the fitting depth is named.
    """
    input_path = _existing(input_path)
    found = [path for s in SPLITS for path in glob.glob(f"**/{s}/out.npy", root_dir=input_path, recursive=True)]
    kept = sorted({pathlib.PurePath(path).parents[1] for path in found})
    if not kept:
        raise DataError(f"{input_path} holds no (train|val)/out.npy: convert the raw data into it first")
    levels = {path: len(path.parts) for path in kept}
    if depth > 1 or 0 not in levels.values():  # at depth 1 the task folder is the input, or lies in it
        _check_depth(levels, input_path, depth, max(depth - 1, 1), "(train|val)/out.npy")
    return {pathlib.PurePath(*path.parts or (input_path.name,)): input_path / path for path in kept}


def _existing(path: pathlib.Path) -> pathlib.Path:
    if not path.is_dir():
        raise DataError(f"no input folder {path}: correct --input_path")
    return pathlib.Path(os.path.abspath(path))


def _check_depth(levels: Mapping[pathlib.PurePath, int], root: pathlib.Path, depth: int, level: int, what: str) -> None:
    if level not in levels.values():
        first, found = next(iter(levels.items()))
        raise DataError(
            f"no {what} in {root} lies where --depth {depth} says: the first is at {first}, for which --depth is "
            f"{found + 1}"
        )


def _walk(folder: pathlib.Path, level: int) -> tuple[list[DatedFolder], list[pathlib.Path]]:
    """The dated folders at and below `folder`, and the entries beside them that neither are nor hold any."""
    dated, below, ignored, barren = [], [], [], []
    for entry in sorted(folder.iterdir()):
        if not entry.is_dir() or "lmdb" in entry.name or level == _MAX_LEVELS:
            barren.append(entry)
        elif date := _parse_date(entry.name):
            dated.append(DatedFolder(entry, date))
        else:
            found, strays = _walk(entry, level + 1)
            below += found
            ignored += strays
            barren += [] if found else [entry]
    return dated + below, ignored + (barren if dated else [])


def _parse_date(name: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(name, DATE_FORMAT)
    except ValueError:
        return None


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", name))
