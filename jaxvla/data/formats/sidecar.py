"""Derived files beside the data: built once, rebuilt when what they were made from changed.

They only save time. One that cannot be kept is made again at every start, and one that cannot be read is made anew.
"""

import contextlib
import hashlib
import os
import pathlib
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO, TypeVar

from jaxvla.errors import JaxvlaError

T = TypeVar("T")

# What reading a file raises that is gone, cut off or garbled.
_UNREADABLE = (ArithmeticError, AttributeError, EOFError, LookupError, OSError, TypeError, ValueError, JaxvlaError)

_warned = threading.Event()
_warning = threading.Lock()


def fingerprint(paths: Iterable[str | os.PathLike], *extra: object) -> str:
    """Names the present content of files by their absolute paths, sizes and modification times, and of `extra`."""
    digest = hashlib.sha256(repr(extra).encode())
    for path in paths:
        status = os.stat(path)
        digest.update(f"{os.path.realpath(path)}|{status.st_size}|{status.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def user_cache() -> pathlib.Path | None:
    """$XDG_CACHE_HOME/jaxvla or ~/.cache/jaxvla, which need not be there; None where no home is known.

    A variable that is empty or holds a relative path counts as not set, as the XDG specification says.
    """
    root = pathlib.Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not root.is_absolute():
        root = pathlib.Path(os.path.expanduser("~")) / ".cache"
    return root / "jaxvla" if root.is_absolute() else None


def places(beside: pathlib.Path) -> list[pathlib.Path]:
    """Where the derived file `beside` may lie: there, and below the user's cache, if there is one."""
    root, folder = user_cache(), hashlib.sha256(os.path.realpath(beside.parent).encode()).hexdigest()[:16]
    return [beside, *([] if root is None else [root / folder / beside.name])]


def find(beside: pathlib.Path, read: Callable[[pathlib.Path], T | None]) -> T | None:
    """What `read` makes of the derived file, wherever it lies; None where it is nowhere, or cannot be read.

    `read` gives None for a file that is out of date.
    """
    for path in places(beside):
        try:
            found = read(path) if path.is_file() else None
        except _UNREADABLE:
            found = None
        if found is not None:
            return found
    return None


def keep(beside: pathlib.Path, fill: Callable[[BinaryIO], None]) -> pathlib.Path | None:
    """Writes the derived file to the first of its places that takes it.

    Args:
        beside: see `places`. A folder without any write bit is left alone, also by root, who could write into it.
        fill: writes the content.

    Returns:
        Where it lies; None where no place takes it, which is said on stderr once in a process.
    """
    reasons = []
    for path in places(beside):
        try:
            if path == beside and not beside.parent.stat().st_mode & 0o222:
                raise PermissionError(0, "Read-only folder")
            with writing(path) as file:
                fill(file)
            return path
        except OSError as error:
            reasons.append(f"{path.parent}: {error.strerror}")
    _warn(beside, reasons)
    return None


def kept(
    beside: pathlib.Path, loads: Callable[[bytes], T | None], make: Callable[[], T], dumps: Callable[[T], bytes]
) -> T:
    """A derived value: read from where it was kept, or made, and kept.

    Args:
        beside: see `places`.
        loads: the inverse of `dumps`; None, or any error, where the content is out of date or garbled.
        make: the value.
        dumps: its content.
    """
    value = find(beside, lambda path: loads(path.read_bytes()))
    if value is None:
        value = make()
        content = dumps(value)
        keep(beside, lambda file: file.write(content))
    return value


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
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def _warn(beside: pathlib.Path, reasons: list[str]) -> None:
    with _warning:
        if not _warned.is_set():
            _warned.set()
            line = (
                f"warning: {beside.name} and what else is derived from the data cannot be kept ({'; '.join(reasons)}), "
                "and is made again at every start: make room, or set XDG_CACHE_HOME to a folder that can be written"
            )
            with contextlib.suppress(OSError):  # stderr may be a file on the same full disk
                print(line, file=sys.stderr, flush=True)
