"""Frame caches: every frame of a camera as a run sees it, in one file from which it is read as it is.

    <data>/frames/<camera>-<height>x<width>-<filter>.frames           pixels, frame after frame
    <data>/frames/<camera>-<height>x<width>-<filter>-jpeg<Q>.frames   JPEG of quality Q, likewise
    <the same>.arrays                                                 where each frame lies, and its checksum

A frame is known by the data file that indices know it by, and by its offset there (`Frames`), so that all splits and
choices of episodes share a cache. The table, which is mapped, also names the present content of every data file: a
cache of other data is not used. Frames are read, not mapped: a map would count as memory of the process, and kill it
where the file was cut off.
"""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Iterable, Sequence

import google_crc32c
import numpy as np

from jaxvla.data.formats import arrays, frame_files
from jaxvla.data.formats.records import RecordFile, open_records
from jaxvla.data.transforms import images
from jaxvla.errors import DataError

FOLDER, SUFFIX, TABLE = "frames", ".frames", ".arrays"
STAMP = "frame cache 1"
_MEND = "make it again with data_processing/cache_frames.py"


@dataclasses.dataclass(frozen=True)
class Key:
    """What a cache is of, beside the data.

    Attributes:
        camera: its stored name.
        size: (height, width) of the frames, pixels.
        resize: how they got there, one of `images.FILTERS`.
        jpeg: the quality of JPEG, 1 to 100; 0 for pixels.
    """

    camera: str
    size: tuple[int, int]
    resize: str
    jpeg: int = 0

    @property
    def name(self) -> str:
        """Of its file, without the suffix."""
        return f"{self.prefix}{self.size[0]}x{self.size[1]}-{self.resize}" + (f"-jpeg{self.jpeg}" if self.jpeg else "")

    @property
    def prefix(self) -> str:
        """With which the names of all caches of its camera begin."""
        return f"{self.camera.replace('/', '.')}-"


@dataclasses.dataclass(frozen=True, eq=False)
class FrameCache:
    """An open cache of m frames. Picklable; holds no open file and no pixels.

    Attributes:
        path: of its frames.
        key: what it is of.
        files: int64 [k], which of the cache's data files each of those of a run is.
        starts: int64 [data files + 1], where the frames of each begin.
        offsets: int64 [m], of the frames in these, ascending for each.
        positions, sizes, checksums: int64, int32 and uint32 (CRC-32C), each [m], of their bytes in the cache.
    """

    path: str
    key: Key
    files: np.ndarray
    starts: np.ndarray
    offsets: np.ndarray
    positions: np.ndarray
    sizes: np.ndarray
    checksums: np.ndarray
    _checked: np.ndarray = dataclasses.field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_checked", np.zeros(len(self.offsets), bool))

    def find(self, files: np.ndarray, offsets: np.ndarray) -> np.ndarray:
        """The places of frames at `offsets` int64 [n] of a run's data files int [n]: int64 [n], -1 for none."""
        found = np.full(len(offsets), -1, np.int64)
        files = self.files[files]
        for file in np.unique(files).tolist():
            start, stop = self.starts[file : file + 2].tolist()
            own, rows = self.offsets[start:stop], np.flatnonzero(files == file)
            if not len(own):
                continue
            places = np.minimum(np.searchsorted(own, offsets[rows]), len(own) - 1)
            found[rows] = np.where(own[places] == offsets[rows], start + places, -1)
        return found

    def read(self, file: RecordFile, places: np.ndarray, rows: np.ndarray, out: np.ndarray) -> None:
        """Reads frames of the open `file` into rows int [n] of `out`, uint8 [m, h, w, 3] and C-contiguous.

        They are read in the order in which they lie there, and checked when they are read for the first time.

        Raises:
            DataError: their bytes are not those that were written; names the file and their position.
        """
        columns = (self.positions, self.sizes, self.checksums, self._checked)
        listed = sorted(zip(rows.tolist(), *(column[places].tolist() for column in columns)), key=lambda own: own[1])
        for row, position, size, crc, checked in listed:
            frame = out[row]
            data = np.empty(size, np.uint8) if self.key.jpeg else frame
            whole = size == data.nbytes and file.read_into(position, data) == size
            if not whole or not (checked or checksum(data) == crc):
                raise DataError(
                    f"{self.path}: the frame at byte {position} is damaged, or the file is cut off: {_MEND}"
                )
            if self.key.jpeg:
                frame[:] = images.decode(data.tobytes(), f"{self.path}: frame at byte {position}")
        self._checked[places] = True

    def damaged(self) -> str:
        """Reads every frame's bytes and says what is wrong with the first that changed; "" where none did."""
        file = open_records(self.path)
        for place in range(len(self.offsets)):
            data = file.read(int(self.positions[place]), int(self.sizes[place]))
            if len(data) != self.sizes[place] or checksum(np.frombuffer(data, np.uint8)) != self.checksums[place]:
                return f"the frame at byte {self.positions[place]} is damaged"
        return ""


def open_cache(path: pathlib.Path) -> tuple[FrameCache, dict[str, str]] | str:
    """The cache whose frames lie at `path`, and the stamp of each of its data files by name; or why there is none.

    All of its table is checked, and the size of the file, but no frame.
    """
    try:
        opened = arrays.opened(path.with_name(f"{path.name}{TABLE}"), STAMP)
        size = os.path.getsize(path)
    except (OSError, ValueError, LookupError, TypeError) as error:
        return f"is not whole ({error})"
    if opened is None:
        return "is not whole, or of another version"
    said = opened.notes
    if size != said["bytes"]:
        return f"is cut off: it has {size} bytes of {said['bytes']}"
    key = Key(said["camera"], tuple(said["size"]), said["resize"], said["jpeg"])
    return FrameCache(str(path), key, np.arange(len(said["data"])), **opened.arrays), said["data"]


def find_cache(
    folder: pathlib.Path, key: Key, root: pathlib.Path, data: Sequence[Sequence[str]]
) -> tuple[FrameCache | None, tuple[str, ...]]:
    """The cache of a camera that fits a run, and lines that say which it is or why none is used.

    Pixels are taken before JPEG, and of that the best.

    Args:
        folder: where caches lie.
        key: what it is to be of; `jpeg` does not count.
        root: of the dataset.
        data: of each data file, the file that indices know frames by, and those in which the pixels are.
    """
    lines, there = [], sorted(path for path in folder.iterdir() if path.suffix == SUFFIX)
    paths = [path for path in there if path.stem == key.name or path.stem.startswith(f"{key.name}-jpeg")]
    for path in sorted(paths, key=lambda path: (path.stem != key.name, -_quality(path.stem))):
        found = open_cache(path)
        wrong = found if isinstance(found, str) else _compare(*found, key, root, data)
        if not wrong:
            cache, stamps = found
            numbers = {name: number for number, name in enumerate(stamps)}
            files = np.array([numbers[name_of(own[0], root)] for own in data], np.int64)
            return dataclasses.replace(cache, files=files), (f"frames       {key.camera} from {path}",)
        lines.append(f"warning: {path} is not used: it {wrong}: {_MEND}")
    others = [path.stem for path in there if path.stem.startswith(key.prefix)]
    if others and not lines:
        lines.append(f"frames       of {key.camera} are decoded: {folder} has {', '.join(others)}, not {key.name}")
    return None, tuple(lines)


def checksum(data: np.ndarray) -> int:
    """CRC-32C of uint8, C-contiguous."""
    return google_crc32c.extend(0, data.reshape(-1))


def stamp_of(files: Iterable[str]) -> str:
    """Names the present content of files by their names, sizes and times of modification, wherever they lie."""
    digest = hashlib.sha256()
    for path in files:
        try:
            status = os.stat(path)
            digest.update(f"{os.path.basename(path)}|{status.st_size}|{status.st_mtime_ns}".encode())
        except FileNotFoundError:
            digest.update(b"missing")
    return digest.hexdigest()[:16]


def files_of(path: str, beside: Sequence[str]) -> tuple[str, ...]:
    """In which files the pixels of the frames lie that an indexed file knows, whose `Frames` name those `beside` it."""
    offsets = (number << frame_files.FILE_BITS for number in range(len(beside)))
    return tuple(frame_files.locate(path, beside, offset)[0] for offset in offsets) or (path,)


def name_of(path: str, root: pathlib.Path) -> str:
    """What a data file is called in a cache."""
    return os.path.relpath(path, root)


def _compare(
    cache: FrameCache, stamps: dict[str, str], key: Key, root: pathlib.Path, data: Sequence[Sequence[str]]
) -> str:
    """Why a cache does not fit; "" where it does."""
    if dataclasses.replace(cache.key, jpeg=0) != dataclasses.replace(key, jpeg=0):
        return f"is of {cache.key.name}"
    for path, *files in data:
        name = name_of(path, root)
        if name not in stamps:
            return f"has no frames of {name}"
        if stamps[name] != stamp_of(files):
            return f"is of other data: {name}, or what its frames lie in, changed since"
    return ""


def _quality(stem: str) -> int:
    quality = stem.rpartition("-jpeg")[2]
    return int(quality) if quality.isdecimal() else 0
