"""The one way in which folders are searched, by the conversions and by reading alike.

Links to folders are followed, but not back to a folder above; the order is that of names, not of the disk; what cannot
be read is an error. Hidden folders (`.name`) are entered only where a pattern names them.
"""

import dataclasses
import fnmatch
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence

from jaxvla.errors import DataError

_Identity = tuple[int, int]  # of a folder, whatever its path: device and inode


@dataclasses.dataclass(frozen=True)
class Folder:
    """One folder of a tree, and the names in it, sorted.

    path     below the root of the walk; `.` is the root
    folders  links to folders among them
    files    regular ones, links to them among them
    dead     what is neither: links that lead nowhere or back to a folder above, sockets and the like
    """

    path: pathlib.PurePath
    folders: tuple[str, ...]
    files: tuple[str, ...]
    dead: tuple[str, ...]


def walk(root: pathlib.Path, enters: Callable[[pathlib.PurePath], bool]) -> Iterator[Folder]:
    """`root` and the folders below it, each before those in it, by name.

    Args:
        root: a folder, may be a link.
        enters: whether to look into a folder, given its path below the root.

    Raises:
        DataError: a folder that cannot be read.
    """
    try:
        stack = [(pathlib.PurePath(), _with_parents(root))]
        while stack:
            path, above = stack.pop()
            names: dict[str, list[str]] = {"folders": [], "files": [], "dead": []}
            below = []
            with os.scandir(root / path) as entries:
                for entry in sorted(entries, key=lambda entry: entry.name):
                    kind, identities = _kind(entry, above)
                    names[kind].append(entry.name)
                    if kind == "folders" and enters(path / entry.name):
                        below.append((path / entry.name, above | identities))
            stack += reversed(below)
            yield Folder(path, **{kind: tuple(found) for kind, found in names.items()})
    except OSError as error:
        raise DataError(
            f"{error.filename or root}: cannot be read: {error.strerror}; mend it, or keep it out of what is searched"
        ) from None


def glob(root: pathlib.Path, pattern: str, lost: set[pathlib.Path]) -> Iterator[Folder]:
    """The folders at and below `root` whose path below it matches the glob `pattern`; no others are looked into.

    `**` stands for any number of folders, also for none; `*`, `?` and `[...]` for characters of one name. None of them
    matches the dot that a hidden folder's name begins with. Links that match, but lead nowhere, are added to `lost`.

    Raises:
        DataError: the pattern is absolute or holds `..`, or a folder cannot be read.
    """
    parts = pathlib.PurePath(pattern).parts
    if pathlib.PurePath(pattern).is_absolute() or ".." in parts:
        raise DataError(f"pattern {pattern!r} leads out of {root}: give it relative to that folder")
    for folder in walk(root, lambda path: bool(_used(parts, path.parts, hidden=False))):
        for name in folder.dead:
            link = root / folder.path / name
            if link.is_symlink() and not link.exists() and _used(parts, (*folder.path.parts, name), hidden=False):
                lost.add(link)
        if len(parts) in _used(parts, folder.path.parts, hidden=False):
            yield folder


def ends_with(path: pathlib.PurePath, pattern: str) -> bool:
    """Whether the last components of `path` (all of them, where the pattern is absolute) match the glob `pattern`."""
    parts = pathlib.PurePath(pattern).parts
    if not pathlib.PurePath(pattern).is_absolute():
        parts = ("**", *parts)
    return len(parts) in _used(parts, path.parts, hidden=True)


def distinct(paths: Iterable[pathlib.Path]) -> tuple[list[pathlib.Path], list[pathlib.Path]]:
    """`paths` sorted, each file or folder once, and those that lead to one of them again, through links.

    Of the paths to one file, that is kept which goes through no link, else the shortest.
    """
    found = [(real := os.path.realpath(path), real != os.path.abspath(path), len(path.parts), path) for path in paths]
    first: dict[str, pathlib.Path] = {}
    again = []
    for real, _, _, path in sorted(found):
        if first.setdefault(real, path) != path:
            again.append(path)
    return sorted(first.values()), sorted(again)


def is_hidden(name: str) -> bool:
    """Whether the name of a file or folder begins with a dot, or is what file systems keep at their root."""
    return name.startswith(".") or name == "lost+found"


def _kind(entry: os.DirEntry, above: frozenset[_Identity]) -> tuple[str, frozenset[_Identity]]:
    """The name of the `Folder` field that an entry belongs to, and what may not be entered below it."""
    try:
        if not entry.is_dir():
            return ("files" if entry.is_file() else "dead"), frozenset()
        identity = _identity(entry.path)
        if identity in above:
            return "dead", frozenset()
        return "folders", _with_parents(entry.path) if entry.is_symlink() else frozenset([identity])
    except OSError:
        if not entry.is_symlink():
            raise
        return "dead", frozenset()  # a link to itself, or into a folder that is not ours to read


def _identity(path: str | os.PathLike) -> _Identity:
    status = os.stat(path)
    return status.st_dev, status.st_ino


def _with_parents(path: str | os.PathLike) -> frozenset[_Identity]:
    """A folder and those above it. A link to one of these would lead to all of the disk, and to the link again."""
    real = pathlib.Path(os.path.realpath(path))
    return frozenset(map(_identity, (real, *real.parents)))


def _used(pattern: Sequence[str], names: Sequence[str], hidden: bool) -> set[int]:
    """How many leading components of `pattern` may match all of `names`; empty where no folder below can match."""
    used = _past_stars(pattern, {0})
    for name in names:
        stay = {i for i in used if i < len(pattern) and _fits(name, pattern[i], hidden)}
        used = _past_stars(pattern, {i if pattern[i] == "**" else i + 1 for i in stay})
    return used


def _past_stars(pattern: Sequence[str], used: set[int]) -> set[int]:
    for i, part in enumerate(pattern):
        if i in used and part == "**":
            used.add(i + 1)
    return used


def _fits(name: str, part: str, hidden: bool) -> bool:
    return fnmatch.fnmatchcase(name, part) and (hidden or not is_hidden(name) or is_hidden(part))
