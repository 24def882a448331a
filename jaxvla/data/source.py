"""TrajectorySource: random access to the trajectories and frames of any number of files, whatever their format."""

import collections
import dataclasses
import os
import threading
from collections.abc import Sequence

import numpy as np

from jaxvla.data import images
from jaxvla.data.index import Index
from jaxvla.data.schema import Trajectory
from jaxvla.errors import DataError

_OPEN_FILES = 256


class _OpenFile:
    """A descriptor that is closed when the last reader lets go of it, even after it left the cache."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class _OpenFiles:
    """The files opened last, per process: datasets have more files than a process may hold open."""

    def __init__(self) -> None:
        self._files: collections.OrderedDict[str, _OpenFile] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str) -> _OpenFile:
        """The open file at `path`; thread-safe."""
        with self._lock:
            file = self._files.pop(path, None)
            if file is None:
                file = _OpenFile(os.open(path, os.O_RDONLY))
                if len(self._files) >= _OPEN_FILES:
                    self._files.popitem(last=False)
            self._files[path] = file
            return file


_open_files = _OpenFiles()


@dataclasses.dataclass(frozen=True, eq=False)
class TrajectorySource:
    """The trajectories of `paths`, file after file. Picklable; holds no open files and no pixels.

    Args:
        paths: data files.
        indices: their indices.
        cameras: (name in batches, name in the files) of each camera that is used.
        image_size: (height, width) of the frames that are given out; () for the stored size.

    Raises:
        DataError: a camera that a file lacks, frames that are missing, sizes or dimensions that differ between files.
    """

    paths: tuple[str, ...]
    indices: dataclasses.InitVar[Sequence[Index]]
    cameras: tuple[tuple[str, str], ...]
    image_size: tuple[int, ...] = ()

    def __post_init__(self, indices: Sequence[Index]) -> None:
        for path, index in zip(self.paths, indices):
            self._check(path, index, indices[0])
        counts = [len(index.lengths) for index in indices]
        fields = {
            "lengths": np.concatenate([index.lengths for index in indices]),
            "actions": np.concatenate([index.actions for index in indices]),
            "proprio": np.concatenate([index.proprio for index in indices]),
            "language": tuple(texts for index in indices for texts in index.language),
            "vectors": np.concatenate([index.vectors for index in indices]),
            "keys": tuple(key for index in indices for key in index.keys),
            "file_of": np.repeat(np.arange(len(indices)), counts),
            "_offsets": {n: np.concatenate([i.frames[s].offsets for i in indices]) for n, s in self.cameras},
            "_sizes": {n: np.concatenate([i.frames[s].sizes for i in indices]) for n, s in self.cameras},
            "_shapes": {n: [i.frames[s].shape for i in indices] for n, s in self.cameras},
        }
        fields["action_starts"] = np.cumsum(fields["lengths"]) - fields["lengths"]
        fields["frame_starts"] = fields["action_starts"] + np.arange(len(fields["lengths"]))
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        if not self.image_size:
            object.__setattr__(self, "image_size", self._stored_size())

    def __len__(self) -> int:
        return len(self.lengths)

    def table(self, i: int) -> Trajectory:
        """The low-dimensional part of trajectory `i`, in robot units."""
        length, action, frame = (int(x[i]) for x in (self.lengths, self.action_starts, self.frame_starts))
        return Trajectory(
            self.actions[action : action + length],
            self.proprio[frame : frame + length + 1],
            self.language[i],
            self.keys[i],
        )

    def frames(self, i: int, steps: Sequence[int], camera: str) -> np.ndarray:
        """Frames `steps` (0..T) of trajectory `i`: uint8 [n, h, w, 3]."""
        out = np.empty((len(steps), *self.image_size, 3), np.uint8)
        self.read_frames(np.full(len(steps), i), np.asarray(steps), camera, out)
        return out

    def read_frames(self, trajectories: np.ndarray, steps: np.ndarray, camera: str, out: np.ndarray) -> None:
        """Reads frame steps[k] of trajectory trajectories[k] into out[k], for each k.

        Raw pixels go from the file straight into `out`. A memory map would count its pages as memory of the process,
        and kill it where the file was cut off.

        Args:
            trajectories: int [n].
            steps: int [n], each in 0..T.
            camera: a camera's name in batches.
            out: uint8 [n, h, w, 3], C-contiguous, of `image_size`.

        Raises:
            DataError: a file that ends too early or cannot be read, or an image that cannot be decoded.
        """
        rows = self.frame_starts[trajectories] + steps
        offsets, sizes = self._offsets[camera][rows].tolist(), self._sizes[camera][rows].tolist()
        shapes = self._shapes[camera]
        for k, file in enumerate(self.file_of[trajectories].tolist()):
            try:
                opened = _open_files.get(self.paths[file])
                if shapes[file][:2] == self.image_size:
                    if os.preadv(opened.descriptor, [out[k]], offsets[k]) != sizes[k]:
                        raise self._cut_off(file, offsets[k])
                else:
                    data = os.pread(opened.descriptor, sizes[k], offsets[k])
                    if len(data) != sizes[k]:
                        raise self._cut_off(file, offsets[k])
                    out[k] = self._image(data, shapes[file], f"{self.paths[file]}: {camera} at byte {offsets[k]}")
            except OSError as error:
                raise DataError(f"{self.paths[file]}: cannot be read: {error.strerror}") from error

    def _image(self, data: bytes, shape: tuple[int, ...], name: str) -> np.ndarray:
        image = np.frombuffer(data, np.uint8).reshape(shape) if shape else images.decode(data, name)
        return images.resize(image[None], self.image_size)[0]

    def _cut_off(self, file: int, offset: int) -> DataError:
        return DataError(f"{self.paths[file]}: ends before the frame at byte {offset}; it changed, make it again")

    def _check(self, path: str, index: Index, first: Index) -> None:
        for name, stored in self.cameras:
            if stored not in index.frames:
                raise DataError(
                    f"{path}: no camera {stored!r}, it has {', '.join(sorted(index.frames))}: "
                    f"set bridgedata_config.cameras.{name}"
                )
            missing = np.flatnonzero(index.frames[stored].sizes == 0)
            if len(missing):
                raise DataError(
                    f"{path}: camera {stored!r} has no picture in {len(missing)} of {len(index.frames[stored].sizes)} "
                    f"frames: set bridgedata_config.cameras.{name} to another one"
                )
        for name in ("actions", "proprio", "vectors"):
            dims, expected = getattr(index, name).shape[1], getattr(first, name).shape[1]
            if dims != expected:
                raise DataError(f"{path}: {name} have {dims} dimensions, those of {self.paths[0]} have {expected}")

    def _stored_size(self) -> tuple[int, ...]:
        sizes = {shape[:2] for shapes in self._shapes.values() for shape in shapes}
        if len(sizes) > 1 or () in sizes:
            found = ", ".join(str(size) if size else "encoded images" for size in sorted(sizes))
            raise DataError(
                f"{self.paths[0]}: frames are stored as {found}: set bridgedata_config.image_size=(height,width)"
            )
        return sizes.pop()
