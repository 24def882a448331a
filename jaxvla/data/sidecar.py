"""Derived files beside the data: built once, rebuilt when what they were made from changed."""

import contextlib
import hashlib
import os
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import BinaryIO


def fingerprint(paths: Iterable[str | os.PathLike], *extra: object) -> str:
    """Names the present content of files by their absolute paths, sizes and modification times, and of `extra`."""
    digest = hashlib.sha256(repr(extra).encode())
    for path in paths:
        status = os.stat(path)
        digest.update(f"{os.path.realpath(path)}|{status.st_size}|{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def place(beside: pathlib.Path) -> pathlib.Path:
    """Where the derived file `beside` really goes: there, or below the user's cache where that folder is read-only.

    The cache is $XDG_CACHE_HOME/jaxvla or ~/.cache/jaxvla. A folder without any write bit counts as read-only for root
    too, who could write into it.
    """
    if os.access(beside.parent, os.W_OK) and beside.parent.stat().st_mode & 0o222:
        return beside
    cache = pathlib.Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "jaxvla"
    folder = hashlib.sha256(os.path.realpath(beside.parent).encode()).hexdigest()[:16]
    return cache / folder / beside.name


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[BinaryIO]:
    """A file that is `path` when all of it is written, or nothing: written aside in the same folder, then renamed.

    Processes may race; each writes the same.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with open(descriptor, "wb") as file:
            yield file
        os.chmod(temporary, 0o644)  # mkstemp makes it private, but others may read the data
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a whole file or none, see `writing`."""
    with writing(path) as file:
        file.write(content)
