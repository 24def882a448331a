"""Makes frame caches: every frame of a camera decoded once, a piece at a time, noted when it is on the disk.

Frames are appended to `<cache>.part`, and after each piece its sizes and checksums to `<cache>.journal`. A run that was
killed goes on behind the last piece that both have.
"""

import collections
import dataclasses
import io
import json
import os
import pathlib
import shutil
import struct
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import BinaryIO

import google_crc32c
import numpy as np
from PIL import Image
from tqdm import tqdm

from jaxvla.data.conversion.workers import writing
from jaxvla.data.formats import arrays, frame_cache
from jaxvla.data.formats.frame_cache import STAMP, TABLE, Key
from jaxvla.data.source import TrajectorySource
from jaxvla.errors import DataError

_PIECE = 256  # frames at most; and no more than one trajectory's
_AHEAD = 2  # pieces that wait for each thread
_SAMPLE = 16  # frames by which the size of a JPEG cache is estimated
_ENTRY = struct.Struct("<QI")  # frames of a piece, CRC-32C of its sizes and checksums
_SPARE = 64 << 20  # bytes of a disk that are left


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """A cache to make.

    Attributes:
        source: the trajectories, with frames of one camera as they are to be kept.
        camera: its name there.
        key: what the cache is of.
        root: of the dataset.
        path: of the cache.
        rows: int64 [m], of all frames of the source, each different one once, in its order.
        offsets, files: int64 [m], by which indices know them; files are numbered as in `stamps`.
    """

    source: TrajectorySource
    camera: str
    key: Key
    root: pathlib.Path
    path: pathlib.Path
    rows: np.ndarray
    offsets: np.ndarray
    files: np.ndarray

    @classmethod
    def of(cls, source: TrajectorySource, camera: str, key: Key, root: pathlib.Path, folder: pathlib.Path) -> "Job":
        """The frames of a source that are to be kept in a folder."""
        offsets = np.asarray(source.columns.offsets[camera])
        numbers = {path: number for number, path in enumerate(dict.fromkeys(source.paths))}  # splits may share them
        own = np.array([numbers[path] for path in source.paths])
        files = np.repeat(own[source.file_of], source.lengths + 1)
        order = np.lexsort((offsets, files))
        first = np.ones(len(order), bool)
        first[1:] = (np.diff(files[order]) != 0) | (np.diff(offsets[order]) != 0)
        rows = np.sort(order[first])
        return cls(
            source, camera, key, root, folder / f"{key.name}{frame_cache.SUFFIX}", rows, offsets[rows], files[rows]
        )

    @property
    def stamps(self) -> dict[str, str]:
        """That of each data file, by its name."""
        data = self.source.data_files(self.camera)
        return {frame_cache.name_of(path, self.root): frame_cache.stamp_of(files) for path, *files in data}

    def frames(self, rows: np.ndarray) -> np.ndarray:
        """Frames of these rows of all: uint8 [n, h, w, 3]."""
        trajectories = np.searchsorted(self.source.frame_starts, rows, side="right") - 1
        out = np.empty((len(rows), *self.key.size, 3), np.uint8)
        self.source.read_frames(trajectories, rows - self.source.frame_starts[trajectories], self.camera, out)
        return out

    def pieces(self) -> list[np.ndarray]:
        """The rows, each piece of one trajectory."""
        trajectories = np.searchsorted(self.source.frame_starts, self.rows, side="right") - 1
        own = np.split(self.rows, np.flatnonzero(np.diff(trajectories)) + 1)
        return [rows[i : i + _PIECE] for rows in own for i in range(0, len(rows), _PIECE)]

    def estimate(self) -> int:
        """How many bytes the cache will have: of JPEG about so many, by a few of the frames."""
        if not self.key.jpeg:
            return len(self.rows) * int(np.prod(self.key.size)) * 3
        chosen = self.rows[np.unique(np.linspace(0, len(self.rows) - 1, _SAMPLE).astype(int))]
        return int(np.mean([len(self.encode(frame)) for frame in self.frames(chosen)]) * len(self.rows))

    def encode(self, frame: np.ndarray) -> bytes:
        """What is kept of a frame."""
        if not self.key.jpeg:
            return frame.tobytes()
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "JPEG", quality=self.key.jpeg)
        return file.getvalue()


def is_done(job: Job) -> tuple[bool, str]:
    """Whether the cache is there, is of this data and every byte of it is right; and a line that says what is not."""
    if not job.path.exists():
        return False, ""
    found = frame_cache.open_cache(job.path)
    if isinstance(found, str):
        return False, f"{job.path} {found}"
    cache, stamps = found
    if (cache.key, stamps) != (job.key, job.stamps) or len(cache.offsets) != len(job.rows):
        return False, f"{job.path} is of other data"
    wrong = cache.damaged()
    return not wrong, f"{job.path}: {wrong}" if wrong else ""


def make(job: Job, num_threads: int) -> int:
    """Makes a cache, or goes on with it; gives how many of its frames were there already.

    Raises:
        DataError: a frame cannot be read, or the disk is full.
    """
    part, journal = (job.path.with_name(f"{job.path.name}.{end}") for end in ("part", "journal"))
    table = job.path.with_name(f"{job.path.name}{TABLE}")
    pieces = job.pieces()
    with writing(job.path):
        job.path.parent.mkdir(parents=True, exist_ok=True)
        for old in (table, job.path):  # in this order: without its table no run uses it
            old.unlink(missing_ok=True)
        header = json.dumps({"stamp": STAMP, "key": dataclasses.asdict(job.key), "data": job.stamps}) + "\n"
        done = _resume(part, journal, header, pieces)
        before = sum(map(len, done))
        _check_room(job, int(sum(own[:, 0].sum() for own in done)))
        bar = tqdm(total=len(job.rows), initial=before, desc=f"frames of {job.key.camera}", unit="frame", disable=None)
        with open(part, "ab") as frames, open(journal, "ab") as notes, bar:
            for encoded in _encoded(job, pieces[len(done) :], num_threads):
                done.append(_append(frames, notes, encoded))
                bar.update(len(encoded))
        _write_table(table, job, np.concatenate(done), part)
        os.replace(part, job.path)
        journal.unlink()
    return before


def _encoded(job: Job, pieces: Sequence[np.ndarray], num_threads: int) -> Iterator[list[bytes]]:
    """What is kept of each piece, in their order, made by threads that are a few pieces ahead."""

    def encode(rows: np.ndarray) -> list[bytes]:
        return [job.encode(frame) for frame in job.frames(rows)]

    waiting: collections.deque = collections.deque()
    with ThreadPoolExecutor(num_threads) as pool:
        try:
            for rows in pieces:
                waiting.append(pool.submit(encode, rows))
                if len(waiting) >= _AHEAD * num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            pool.shutdown(cancel_futures=True)


def _append(frames: BinaryIO, notes: BinaryIO, encoded: Sequence[bytes]) -> np.ndarray:
    """Writes a piece, then notes it; gives size and checksum of each frame, uint32 [n, 2]."""
    own = np.array([(len(data), google_crc32c.value(data)) for data in encoded], np.uint32)
    frames.write(b"".join(encoded))
    frames.flush()
    notes.write(_ENTRY.pack(len(own), google_crc32c.value(own.tobytes())) + own.tobytes())
    notes.flush()
    return own


def _resume(part: pathlib.Path, journal: pathlib.Path, header: str, pieces: Sequence[np.ndarray]) -> list[np.ndarray]:
    """What is noted of the pieces that are whole, and files that end behind them; anew where they are of others."""
    done: list[np.ndarray] = []
    content = journal.read_bytes() if journal.exists() and part.exists() else b""
    end, filled = len(header.encode()), 0
    if content[:end] == header.encode():
        there = part.stat().st_size
        for rows in pieces:
            own = _noted(content, end, len(rows))
            if own is None or filled + int(own[:, 0].sum()) > there:
                break
            done.append(own)
            filled += int(own[:, 0].sum())
            end += _ENTRY.size + own.nbytes
    else:
        journal.write_text(header)
    for path, size in ((journal, end), (part, filled)):
        with open(path, "ab") as file:
            file.truncate(size)
    return done


def _noted(content: bytes, start: int, count: int) -> np.ndarray | None:
    """The entry of a piece of so many frames; None where it is not whole."""
    body = content[start + _ENTRY.size : start + _ENTRY.size + 8 * count]
    if len(body) != 8 * count or _ENTRY.unpack_from(content, start) != (count, google_crc32c.value(body)):
        return None
    return np.frombuffer(body, np.uint32).reshape(count, 2)


def _check_room(job: Job, written: int) -> None:
    needed, free = job.estimate() - written, shutil.disk_usage(job.path.parent).free
    if needed + _SPARE > free:
        raise DataError(
            f"{job.path} needs {needed / 1e9:.2f} GB more, and {job.path.parent} has {free / 1e9:.2f} GB free: make "
            "room, give another --output_path, a smaller --image_size, or --jpeg 90"
        )


def _write_table(path: pathlib.Path, job: Job, written: np.ndarray, frames: pathlib.Path) -> None:
    """Where each frame lies, by its data file and its offset there."""
    order = np.lexsort((job.offsets, job.files))
    sizes = written[:, 0].astype(np.int64)
    columns = {
        "starts": np.searchsorted(job.files[order], np.arange(len(job.stamps) + 1)).astype(np.int64),
        "offsets": job.offsets[order],
        "positions": (np.cumsum(sizes) - sizes)[order],
        "sizes": sizes[order].astype(np.int32),
        "checksums": written[order, 1],
    }
    key = dataclasses.asdict(job.key)
    notes = {**key, "size": [*job.key.size], "data": job.stamps, "bytes": frames.stat().st_size}
    partial = path.with_name(f"{path.name}.part")
    with open(partial, "wb") as file:
        arrays.write(file, STAMP, {name: lambda own=own: [own] for name, own in columns.items()}, notes)
    os.replace(partial, path)
