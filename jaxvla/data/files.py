"""Files that cannot be read, as one line."""

import contextlib
import os
from collections.abc import Iterator

from jaxvla.errors import DataError


@contextlib.contextmanager
def reading(path: str | os.PathLike) -> Iterator[None]:
    """Makes a failure to read at `path` (no permission, a folder in its place, an error of the disk) a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or os.fspath(path)}: cannot be read: {error.strerror}") from error


def check_folder(path: str | os.PathLike) -> None:
    """Raises DataError for a folder that is there and cannot be read, in which a glob would find nothing."""
    with reading(path), contextlib.suppress(FileNotFoundError, NotADirectoryError):
        os.listdir(path)
