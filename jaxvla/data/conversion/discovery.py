"""Finds the folders to convert, and decides which part of their path the output keeps.

    <input>/<task folder>/<YYYY-MM-DD_HH-MM-SS>/raw/traj_group<K>/traj<N>     raw
    <input>/<task folder>/(train|val)/out.npy                                 numpy

`depth` says how many components of a raw path lie between the input and the trajectories' dated folder, that folder
included: the task folder has depth - 1. The output keeps these components; at depth 1 the input is the task folder
itself and its name is kept. What lies beside all this is listed by kind, so that nothing is left out without a word.
"""

import collections
import dataclasses
import datetime
import fnmatch
import os
import pathlib
import re
from collections.abc import Mapping, Sequence

from jaxvla.data.formats.folders import distinct, is_hidden, walk
from jaxvla.errors import DataError

DATE_FORMAT = "%Y-%m-%d_%H-%M-%S"
SPLITS = ("train", "val")
PARTIAL = ".partial"  # what a conversion writes before it is whole

Ignored = dict[str, list[pathlib.Path]]  # paths by what they are

_GROUP = "traj_group"
_AGAIN = "another path to what is converted already"
_DEAD = "link that leads nowhere or back up, or no file"
# Files that every collection has, and that hold nothing of a trajectory.
_METADATA = {"collection_metadata.json", "config.json", "diagnostics.png", "hparams.json"}


@dataclasses.dataclass(frozen=True)
class DatedFolder:
    """One recording session, and when it began."""

    path: pathlib.Path
    date: datetime.datetime

    def trajectories(self, ignored: Ignored) -> list[pathlib.Path]:
        """The trajectory folders, in order of recording; whatever else lies in the dated folder goes to `ignored`."""
        names = ("raw", f"{_GROUP}*", "traj*")  # at each level
        other = ignored["entry of a dated folder that is no trajectory"]
        found = []
        for folder in walk(self.path, lambda path: _is_at(path, names[:2])):
            here, level = self.path / folder.path, len(folder.path.parts)
            right = [here / name for name in folder.folders if _is_at(folder.path / name, names)]
            found += right if level == 2 else []
            other += [here / name for name in folder.folders if here / name not in right]
            other += [here / name for name in folder.files if name not in _METADATA and not is_hidden(name)]
            ignored[_DEAD] += [here / name for name in folder.dead]
        found, again = distinct(found)
        ignored[_AGAIN] += again
        return sorted(found, key=lambda path: (_numbers(path.parent.name), _numbers(path.name), path.name))


@dataclasses.dataclass(frozen=True)
class RawTree:
    """Dated folders by the path that the output keeps for them, the entries beside them that are none, and notes.

    `root` is the folder that trajectories are named relative to: the input, or the one above it where the input is a
    task folder, whose name counts.
    """

    root: pathlib.Path
    tasks: dict[pathlib.PurePath, list[DatedFolder]]
    ignored: Ignored
    notes: list[str]


@dataclasses.dataclass(frozen=True)
class NumpyTree:
    """Task folders by the path that the output keeps for them, and other entries that might have been data."""

    tasks: dict[pathlib.PurePath, pathlib.Path]
    ignored: Ignored


def find_raw(input_path: pathlib.Path, depth: int) -> RawTree:
    """Looks for dated folders below `input_path`, at any depth.

    At least one must lie where `depth` says. Others may lie higher (`scripted/<task>/<date>` beside folders with an
    environment): their whole path is kept. Or deeper: they join the task folder that `depth` cuts off.

    Raises:
        DataError: no such folder, no dated folder, or none where `depth` says; then the fitting depth is named. Or a
            folder that cannot be read.
    """
    input_path = _existing(input_path)
    dated, ignored = _find_dated(input_path)
    if not dated:
        raise DataError(f"{input_path} holds no dated folder (like 2021-07-23_14-05-59): {_mend(input_path, ignored)}")
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


def find_numpy(input_path: pathlib.Path, depth: int) -> NumpyTree:
    """The task folders below `input_path` that hold (train|val)/out.npy.

    Raises:
        DataError: no such folder, no out.npy, or none where `depth` says; then the fitting depth is named. Or a folder
            that cannot be read.
    """
    input_path = _existing(input_path)
    ignored: Ignored = collections.defaultdict(list)
    found = set()
    for folder in walk(input_path, lambda path: not is_hidden(path.name)):
        here = input_path / folder.path
        split = folder.path.name in SPLITS
        if split and "out.npy" in folder.files:
            found.add(here.parent)
        others = [name for name in folder.files if name.endswith(".npy") and not (split and name == "out.npy")]
        ignored[".npy file that is no (train|val)/out.npy"] += [here / name for name in others]
        ignored["hidden folder"] += [here / name for name in folder.folders if is_hidden(name) and name != PARTIAL]
        ignored[_DEAD] += [here / name for name in folder.dead]
    tasks, again = distinct(found)
    ignored[_AGAIN] += again
    kept = {path.relative_to(input_path): path for path in tasks}
    if not kept:
        raise DataError(f"{input_path} holds no (train|val)/out.npy: convert the raw data into it first")
    levels = {path: len(path.parts) for path in kept}
    if depth > 1 or 0 not in levels.values():  # at depth 1 the task folder is the input, or lies in it
        _check_depth(levels, input_path, depth, max(depth - 1, 1), "(train|val)/out.npy")
    return NumpyTree({pathlib.PurePath(*path.parts or (input_path.name,)): kept[path] for path in kept}, ignored)


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


_UNDATED = "trajectories in a folder whose name is no date"


def _find_dated(root: pathlib.Path) -> tuple[list[DatedFolder], Ignored]:
    """The dated folders below `root`, and by kind what neither is nor holds one."""
    ignored: Ignored = collections.defaultdict(list)
    dates: dict[pathlib.Path, datetime.datetime] = {}
    visited = []
    for folder in walk(root, lambda path: _special(path.name) is None and not _parse_date(path.name)):
        here = root / folder.path
        visited.append((here, folder.files))
        for name in folder.folders:
            if kind := _special(name):
                ignored[kind].append(here / name)
            elif date := _parse_date(name):
                dates[here / name] = date
        ignored[_DEAD] += [here / name for name in folder.dead]
    ignored[_UNDATED] = sorted({path.parents[path.parent.name == "raw"] for path in ignored[_UNDATED]})
    holding = {parent for path in dates for parent in path.parents}
    beside = {path.parent for path in dates}
    known = holding | {folder for path in ignored[_UNDATED] for folder in (path, *path.parents)}
    for here, files in visited:
        if here not in known and here.parent in known and here.parent not in ignored[_UNDATED]:
            ignored["folder without a dated folder"].append(here)
        if here in beside:
            ignored["file beside dated folders"] += [here / name for name in files if not is_hidden(name)]
    found, again = distinct(dates)
    ignored[_AGAIN] += again
    return [DatedFolder(path, dates[path]) for path in found], ignored


def _special(name: str) -> str | None:
    """The kind of a folder that is not looked into for dated ones, None for any other."""
    if name.startswith(_GROUP):
        return _UNDATED
    if is_hidden(name):
        return "hidden folder"
    return "lmdb folder" if "lmdb" in name else None


def _mend(root: pathlib.Path, ignored: Ignored) -> str:
    if any(_parse_date(part) for part in root.parts):
        return "the input path lies inside one, give a folder above it"
    if ignored[_UNDATED]:
        return f"rename {ignored[_UNDATED][0]}, which holds trajectories, to the date of their recording"
    return "give a folder above them as the input path"


def _parse_date(name: str) -> datetime.datetime | None:
    try:
        return datetime.datetime.strptime(name, DATE_FORMAT)
    except ValueError:
        return None


def _is_at(path: pathlib.PurePath, names: Sequence[str]) -> bool:
    """Whether the name of the folder `path` matches that of its level."""
    return len(path.parts) <= len(names) and fnmatch.fnmatchcase(path.name, names[len(path.parts) - 1])


def _numbers(name: str) -> tuple[int, ...]:
    return tuple(int(digits) for digits in re.findall(r"\d+", name))
