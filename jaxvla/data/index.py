"""The offset index: everything of a data file but its pixels, and where each frame's pixels lie in it.

One format module per storage format builds it; what stands in it is the same for all. It is kept beside the file.
"""

import dataclasses
import json
import os
import pathlib
import zlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from tqdm import tqdm

from jaxvla.data import sidecar
from jaxvla.data.files import reading
from jaxvla.errors import DataError

# Goals lie ahead of a transition, so a trajectory of one transition shows a policy nothing but its own end.
MIN_TRANSITIONS = 2
_VERSION = 3
_ARRAYS = ("lengths", "actions", "proprio", "vectors")


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """Where one camera's frames lie: byte offsets int64 and sizes int64, each [number of frames].

    `shape` is (h, w, 3) where the pixels are stored raw, and () where each frame is a JPEG or PNG of its own.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """The n trajectories of one or several files, in order, laid end to end.

    lengths   int64 [n]           transitions of each; a trajectory of T transitions has T + 1 frames
    actions   float32 [sum T, d]
    proprio   float32 [sum (T + 1), p]
    language  n tuples of annotations, empty strings left out
    vectors   float32 [annotations, k] that the file holds for them, in their order; k is 0 where it holds none
    keys      n names, each unique in its file
    frames    by stored camera name; arrays of sum (T + 1) frames
    """

    lengths: np.ndarray
    actions: np.ndarray
    proprio: np.ndarray
    language: tuple[tuple[str, ...], ...]
    vectors: np.ndarray
    keys: tuple[str, ...]
    frames: dict[str, Frames]

    def dumps(self, stamp: str) -> bytes:
        """One JSON line (stamp, strings, array shapes) and the raw arrays."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for camera, frames in self.frames.items():
            arrays |= {f"offsets/{camera}": frames.offsets, f"sizes/{camera}": frames.sizes}
        header = {
            "stamp": stamp,
            "language": self.language,
            "keys": self.keys,
            "frames": {camera: frames.shape for camera, frames in self.frames.items()},
            "arrays": {name: (array.dtype.str, array.shape) for name, array in arrays.items()},
        }
        body = b"".join(array.tobytes() for array in arrays.values())
        header["crc32"] = zlib.crc32(body)
        return json.dumps(header).encode() + b"\n" + body

    @classmethod
    def loads(cls, content: bytes, stamp: str) -> "Index | None":
        """The inverse of `dumps`; None where `content` was made for another state of the file or is not whole.

        Raises:
            Any error, where it is none of ours.
        """
        line, _, body = content.partition(b"\n")
        header = json.loads(line)
        if header["stamp"] != stamp or header["crc32"] != zlib.crc32(body):
            return None
        arrays, offset = {}, 0
        for name, (dtype, shape) in header["arrays"].items():
            arrays[name] = np.frombuffer(body, dtype, int(np.prod(shape)), offset).reshape(shape)
            offset += arrays[name].nbytes
        frames = {
            camera: Frames(arrays[f"offsets/{camera}"], arrays[f"sizes/{camera}"], tuple(shape))
            for camera, shape in header["frames"].items()
        }
        language = tuple(tuple(texts) for texts in header["language"])
        return cls(
            language=language, keys=tuple(header["keys"]), frames=frames, **{name: arrays[name] for name in _ARRAYS}
        )


@dataclasses.dataclass
class IndexBuilder:
    """Collects trajectories into an `Index`, checking each as it comes."""

    path: str

    def __post_init__(self) -> None:
        self._rows: list[tuple[np.ndarray, np.ndarray, np.ndarray, tuple[str, ...], str]] = []
        self._frames: dict[str, list[Frames]] = {}

    def add(
        self,
        actions: np.ndarray,
        proprio: np.ndarray,
        language: tuple[str, ...],
        key: str,
        frames: dict[str, Frames],
        vectors: np.ndarray | None = None,
    ) -> None:
        """Adds one trajectory: actions [T, d], proprio [T + 1, p], and T + 1 frames of each camera.

        `vectors` are those of its annotations [len(language), k]; None where the data has none.

        Raises:
            DataError: too few transitions, lengths that disagree, other cameras or sizes than the trajectories before,
                or a value that is not finite.
        """
        vectors = np.empty((len(language), 0)) if vectors is None else vectors
        where = f"{self.path}: trajectory {key!r} (number {len(self._rows)})"
        if len(actions) < MIN_TRANSITIONS:
            raise DataError(
                f"{where} has {len(actions)} transitions, at least {MIN_TRANSITIONS} are needed; convert the data again"
            )
        lengths = {"proprio": len(proprio)} | {camera: len(f.offsets) for camera, f in frames.items()}
        for name, length in lengths.items():
            if length != len(actions) + 1:
                raise DataError(
                    f"{where} has {len(actions)} actions but {length} steps of {name}, not {len(actions) + 1}"
                )
        for name, values in {"actions": actions, "proprio": proprio, "language vectors": vectors}.items():
            if not np.isfinite(values).all():
                step = int(np.argwhere(~np.isfinite(values))[0, 0])
                raise DataError(f"{where} has {name} that are not finite at step {step}; leave it out or repair it")
        if self._rows and set(frames) != set(self._frames):
            raise DataError(f"{where} has cameras {sorted(frames)}, those before it {sorted(self._frames)}")
        for camera, stored in frames.items():
            before = self._frames.setdefault(camera, [])
            if before and before[0].shape != stored.shape:
                raise DataError(f"{where} has {camera} of shape {stored.shape}, those before it {before[0].shape}")
            before.append(stored)
        tables = (values.astype(np.float32) for values in (actions, proprio, vectors))
        self._rows.append((*tables, language, key))

    def build(self) -> Index:
        """The index of all trajectories added.

        Raises:
            DataError: there were none.
        """
        if not self._rows:
            raise DataError(f"{self.path}: holds no trajectories; convert the data again")
        actions, proprio, vectors, language, keys = zip(*self._rows)
        frames = {
            camera: Frames(
                np.concatenate([f.offsets for f in parts]), np.concatenate([f.sizes for f in parts]), parts[0].shape
            )
            for camera, parts in self._frames.items()
        }
        lengths = np.array([len(a) for a in actions], np.int64)
        actions, proprio, vectors = map(np.concatenate, (actions, proprio, vectors))
        return Index(lengths, actions, proprio, language, vectors, keys, frames)


def open_indices(paths: Sequence[str], build: Callable[[str], Index], options: str = "") -> list[Index]:
    """The index of each file: read from beside it, or built and kept there where it is missing or out of date.

    Args:
        paths: data files.
        build: makes a file's index from the file.
        options: what the result of `build` depends on beside the file.

    Raises:
        DataError: a file that cannot be read, or whatever `build` finds.
    """

    def one(path: str) -> Index:
        with reading(path):
            stamp = sidecar.fingerprint([path], _VERSION, options)
            return sidecar.kept(
                pathlib.Path(f"{path}.index"),
                lambda content: Index.loads(content, stamp),
                lambda: build(path),
                lambda index: index.dumps(stamp),
            )

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return list(tqdm(pool.map(one, paths), "indexing", len(paths), unit="file", delay=1.0, leave=False))
