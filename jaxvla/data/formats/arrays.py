"""Files of named arrays, memory-mapped: what is derived of all frames of a dataset, and must not live on the heap.

A file is the arrays end to end, each from a multiple of 64 bytes on, then a table of them in JSON (dtype, shape,
position and CRC-32C of each, the stamp, and notes), then a tail of fixed size that says where the table lies. A file
that is cut off has no tail, and one whose bytes changed has other checksums: neither is opened. It is written front to
back, a piece at a time, so that making it takes no more memory than a piece.
"""

import json
import os
import pathlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO, NamedTuple

import google_crc32c
import numpy as np
from tqdm import tqdm

from jaxvla.data.formats import sidecar
from jaxvla.data.formats.mapping import let_go, let_go_of, map_file
from jaxvla.errors import DataError

# An array in pieces along its first axis, at least one; made anew by every call.
Pieces = Callable[[], Iterable[np.ndarray]]

_TAIL = struct.Struct("<QQI12s")
_SIGNATURE = b"jaxvla-array"
_ALIGNMENT = 64
_BLOCK = 1 << 22
# After so many bytes of pieces, which may be of mapped files themselves, what was mapped is let go of.
_PASSED_BYTES = 64 << 20


class Opened(NamedTuple):
    """Named arrays, and what was noted with them (as JSON gives it back)."""

    arrays: dict[str, np.ndarray]
    notes: Any


class MappedArray(np.ndarray):
    """A read-only array of a file of arrays. It is pickled as its place, and mapped anew where that is undone."""

    place: tuple[str, str, str] | None = None  # path, stamp and name
    mapped: memoryview | None = None

    def __getitem__(self, rows: Any) -> Any:
        """What any array gives, as a plain one; what rows were gathered from does not stay in memory.

        The system maps 16 pages for each that is read, so that a batch of rows from everywhere takes a hundred times
        its size.
        """
        found = super().__getitem__(rows)
        if self.mapped is not None and isinstance(rows, np.ndarray):
            let_go_of(self.mapped)
        return found.view(np.ndarray) if isinstance(found, np.ndarray) else found

    def __reduce__(self) -> tuple:
        if self.place is None:
            return np.asarray(self).__reduce__()
        return _reopened, self.place


def kept(beside: pathlib.Path, stamp: str, make: Callable[[], tuple[Mapping[str, Pieces], Any]]) -> Opened:
    """Arrays from a file, or made and kept there; on the heap where no place takes them.

    Args:
        beside: see `sidecar.places`.
        stamp: what they were made of; a file of another stamp is made again.
        make: the pieces of each array, and notes.
    """
    found = sidecar.find(beside, lambda path: opened(path, stamp))
    if found is not None:
        return found
    pieces, notes = make()
    path = sidecar.keep(beside, lambda file: write(file, stamp, pieces, notes))
    # Another process may have put one of other files in its place meanwhile.
    found = sidecar.find(beside, lambda path: opened(path, stamp)) if path else None
    return found or Opened({name: np.concatenate(list(part())) for name, part in pieces.items()}, notes)


def write(file: BinaryIO, stamp: str, pieces: Mapping[str, Pieces], notes: Any) -> None:
    """Writes a whole file of arrays."""
    table: dict[str, Any] = {"stamp": stamp, "notes": notes, "arrays": {}}
    position = last = 0
    for name, parts in tqdm(pieces.items(), "tables", unit="table", delay=1.0, leave=False):
        position += file.write(bytes(-position % _ALIGNMENT))
        start, crc, rows = position, 0, 0
        for part in parts():
            flat = np.ascontiguousarray(part).reshape(-1).view(np.uint8)
            crc = google_crc32c.extend(crc, flat if len(flat) else b"")
            position += file.write(flat)
            rows += len(part)
            if position - last > _PASSED_BYTES:
                let_go()
                last = position
        table["arrays"][name] = [part.dtype.str, [rows, *part.shape[1:]], start, crc]
    content = json.dumps(table).encode()
    file.write(content)
    file.write(_TAIL.pack(position, len(content), google_crc32c.value(content), _SIGNATURE))


def opened(path: pathlib.Path, stamp: str) -> Opened | None:
    """The arrays of a file, every byte of it checked; None where it was made of something else, or is not whole.

    Raises:
        OSError, ValueError: what lies there is no such file.
    """
    with open(path, "rb") as file:
        table = _read_table(file)
        if table is None or table["stamp"] != stamp:
            return None
        if any(_checksum(file, *_extent(entry)) != entry[3] for entry in table["arrays"].values()):
            return None
        arrays = _map(os.fspath(path), file, table)
    return Opened(arrays, table["notes"])


def rows_at_a_time(count: int, rows: int = 1 << 18) -> Iterator[slice]:
    """Slices of so many rows that walk over `count`, letting go of what was mapped for each."""
    for start in range(0, count, rows):
        yield slice(start, min(start + rows, count))
        let_go()


def _read_table(file: BinaryIO) -> dict[str, Any] | None:
    size = file.seek(0, os.SEEK_END)
    if size < _TAIL.size:
        return None
    file.seek(size - _TAIL.size)
    position, length, crc, signature = _TAIL.unpack(file.read(_TAIL.size))
    if signature != _SIGNATURE or position + length + _TAIL.size != size:
        return None
    file.seek(position)
    content = file.read(length)
    return json.loads(content) if google_crc32c.value(content) == crc else None


def _extent(entry: Sequence[Any]) -> tuple[int, int]:
    """Position and bytes of an array."""
    dtype, shape, position, _ = entry
    return position, int(np.prod(shape)) * np.dtype(dtype).itemsize


def _checksum(file: BinaryIO, position: int, length: int) -> int:
    """Read rather than mapped: what is only looked through must not become memory of the process."""
    crc, block = 0, np.empty(min(length, _BLOCK), np.uint8)
    for start in range(position, position + length, _BLOCK):
        part = block[: min(_BLOCK, position + length - start)]
        if os.preadv(file.fileno(), [part], start) != len(part):
            return -1
        crc = google_crc32c.extend(crc, part)
    return crc


def _map(path: str, file: BinaryIO, table: Mapping[str, Any]) -> dict[str, np.ndarray]:
    stamp, mapped, arrays = table["stamp"], map_file(file), {}
    for name, entry in table["arrays"].items():
        dtype, shape, position, _ = entry
        flat = np.frombuffer(mapped, dtype, int(np.prod(shape)), position)
        arrays[name] = flat.reshape(shape).view(MappedArray)
        arrays[name].place, arrays[name].mapped = (path, stamp, name), mapped
    return arrays


def _reopened(path: str, stamp: str, name: str) -> np.ndarray:
    try:
        with open(path, "rb") as file:
            table = _read_table(file)
            if table is not None and table["stamp"] == stamp:
                return _map(path, file, table)[name]
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}; start again, which makes it anew") from error
    raise DataError(f"{path}: the data that it was made of changed meanwhile: start again, which makes it anew")
