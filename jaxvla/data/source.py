"""TrajectorySource: random access to the trajectories and frames of any number of files, whatever their format."""

import collections
import dataclasses
import functools
import math
import os
import threading
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from PIL import Image

from jaxvla.data.columns import Columns, FirstFrame, Part, first_frames
from jaxvla.data.files import reading
from jaxvla.data.formats import frame_cache, frame_files
from jaxvla.data.formats.frame_cache import FrameCache
from jaxvla.data.formats.index import ANY_TEXT, NO_TEXT, Index
from jaxvla.data.formats.protobuf import byte_values
from jaxvla.data.formats.records import RecordFile, open_records
from jaxvla.data.formats.strings import Annotations
from jaxvla.data.schema import Trajectory
from jaxvla.data.transforms import images
from jaxvla.data.transforms.tasks import add_paraphrases
from jaxvla.errors import DataError

_OPEN_FILES = 256
_COLUMNS = (
    *("lengths", "actions", "proprio", "taught", "texts", "vectors", "keys", "steps", "stored", "taught_ahead"),
    *("file_of", "action_starts", "frame_starts"),
)


class _OpenFiles:
    """The files opened last, per process: datasets have more files than a process may hold open."""

    def __init__(self) -> None:
        self._files: collections.OrderedDict[str, RecordFile] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: str) -> RecordFile:
        """The open file at `path`; thread-safe."""
        with self._lock:
            file = self._files.pop(path, None)
            if file is None:
                file = open_records(path)
                if len(self._files) >= _OPEN_FILES:
                    self._files.popitem(last=False)
            self._files[path] = file
            return file


_open_files = _OpenFiles()


@dataclasses.dataclass(frozen=True, eq=False)
class TrajectorySource:
    """The trajectories of `paths`, file after file. Picklable; holds no open files and no pixels.

    Args:
        paths: data files, each with a trajectory at least.
        columns: their tables, and where their frames lie.
        cameras: (name in batches, name in the files) of each camera that is used.
        found_sizes: by camera, the different sizes of the first frame of each file, see `find_sizes`.
        image_size: (height, width) of the frames that are given out; () for the stored size.
        resize: how frames get there, one of `images.FILTERS`.
        paraphrases: by annotation, other words for it, which stand in `language` behind a trajectory's annotations.
        camera_sizes: by camera, the size of frames of another size than `image_size`.
        caches: by camera, where its frames are read from as they are given out.

    Attributes:
        lengths, actions, proprio, taught, texts, vectors, keys, steps, stored, taught_ahead, file_of, action_starts,
            frame_starts: see `Columns`.
        language: the annotations of each trajectory; those of the columns, or in memory where there are paraphrases.
        rephrasings: which of all annotations are paraphrases of which; None where there are none.
        stored_sizes: (height, width) at which the frames of a camera are stored; cameras with several sizes are left
            out. Of encoded images, each file's first frame of a camera says it for the file.

    Raises:
        DataError: frames that are no pictures, or no image size where they are stored in several.
    """

    paths: tuple[str, ...]
    columns: Columns
    cameras: tuple[tuple[str, str], ...]
    found_sizes: Mapping[str, Collection[tuple[int, int]]]
    image_size: tuple[int, ...] = ()
    resize: str = "lanczos"
    paraphrases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    camera_sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    caches: Mapping[str, FrameCache] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        fields = {name: getattr(self.columns, name) for name in _COLUMNS}
        fields |= {"language": self.columns.language, "rephrasings": None}
        if self.paraphrases:
            language, fields["rephrasings"] = add_paraphrases(self.columns.language, self.paraphrases)
            fields["language"] = Annotations.of(language)
        only = {camera: min(sizes) for camera, sizes in self.found_sizes.items() if len(sizes) == 1}
        for name, value in (fields | {"stored_sizes": only}).items():
            object.__setattr__(self, name, value)
        if not self.image_size:
            object.__setattr__(self, "image_size", self._only_size())

    @classmethod
    def of(
        cls,
        paths: Sequence[str],
        indices: Sequence[Index],
        cameras: Sequence[tuple[str, str]],
        image_size: tuple[int, ...] = (),
        resize: str = "lanczos",
    ) -> "TrajectorySource":
        """In memory, of whole indices: of trajectories that fit each other and have frames of all cameras."""
        parts = [Part(index, np.ones(len(index.lengths), bool)) for index in indices]
        found = find_sizes(paths, first_frames(parts, cameras))
        return cls(tuple(paths), Columns.of(parts, cameras), tuple(cameras), found, image_size, resize)

    def __len__(self) -> int:
        return len(self.lengths)

    def size_of(self, camera: str) -> tuple[int, int]:
        """(height, width) of the frames of a camera that are given out."""
        return self.camera_sizes.get(camera, self.image_size)

    def table(self, i: int) -> Trajectory:
        """The low-dimensional part of trajectory `i`, in robot units."""
        length, action, frame = (int(x[i]) for x in (self.lengths, self.action_starts, self.frame_starts))
        return Trajectory(
            self.actions[action : action + length],
            self.proprio[frame : frame + length + 1],
            self.language[i],
            self.keys[i],
        )

    def locate(self, transitions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The trajectory and the step in it of transitions int [...], rows of `actions`; each int64 [...]."""
        trajectory = np.searchsorted(self.action_starts, transitions, side="right") - 1
        return trajectory, transitions - self.action_starts[trajectory]

    def stored_steps(self, transitions: np.ndarray) -> np.ndarray:
        """Which steps of the stored episode transitions int [...] begin at: int32 [...].

        The numbers by which annotations know them; a run may do without some of the stored ones.
        """
        return self.steps[transitions + self.locate(transitions)[0]]

    def draw_annotations(self, trajectories: np.ndarray, steps: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """An annotation of each transition: its own, or one of those that hold for its whole trajectory.

        Args:
            trajectories, steps: int [b].
            uniforms: [b], random numbers in [0, 1) that choose.

        Returns:
            int32 [b], entries of all annotations, trajectory after trajectory; -1 where there is none.
        """
        text = self.texts[self.action_starts[trajectories] + steps]
        drawn = np.floor(uniforms * self.columns.language.counts[trajectories]).astype(np.int64)
        annotation = self.language.starts[trajectories] + np.where(text == ANY_TEXT, drawn, text)
        return np.where(text == NO_TEXT, -1, annotation).astype(np.int32)

    def frames(self, i: int, steps: Sequence[int], camera: str) -> np.ndarray:
        """Frames `steps` (0..T) of trajectory `i`: uint8 [n, h, w, 3]."""
        out = np.empty((len(steps), *self.size_of(camera), 3), np.uint8)
        self.read_frames(np.full(len(steps), i), np.asarray(steps), camera, out)
        return out

    def read_frames(self, trajectories: np.ndarray, steps: np.ndarray, camera: str, out: np.ndarray) -> None:
        """Reads frame steps[k] of trajectory trajectories[k] into out[k], for each k.

        They are read file after file, each in the order in which they lie there. Raw pixels go from the file straight
        into `out`. A memory map would count its pages as memory of the process, and kill it where the file was cut off.

        Args:
            trajectories: int [n].
            steps: int [n], each in 0..T.
            camera: a camera's name in batches.
            out: uint8 [n, h, w, 3], C-contiguous, of the size of the camera.

        Raises:
            DataError: a file that ends too early or cannot be read, or an image that cannot be decoded.
        """
        shapes, image_size = self.columns.shapes[camera], self.size_of(camera)
        left = self._read_cached(trajectories, steps, camera, out)
        places = self._places(trajectories[left], steps[left], camera)
        try:  # around all of them: `reading` would cost a tenth of the time of a frame
            for file, offset, size, k in sorted(zip(*places, left.tolist())):
                row = out[k]
                if size == row.nbytes and shapes[file] == row.shape:
                    if _open_files.get(self.paths[file]).read_into(offset, row) != size:
                        raise _cut_off(self.paths[file], offset)
                else:
                    row[:] = images.to_array(self._picture(camera, file, offset, size), image_size, self.resize)
        except OSError as error:
            raise DataError(f"{self.paths[file]}: cannot be read: {error.strerror}") from error

    def _read_cached(self, trajectories: np.ndarray, steps: np.ndarray, camera: str, out: np.ndarray) -> np.ndarray:
        """As `read_frames`, of those that lie in a cache; gives int64 [m], the others."""
        cache = self.caches.get(camera)
        if cache is None:
            return np.arange(len(out))
        rows = self.frame_starts[trajectories] + steps
        found = cache.find(self.file_of[trajectories], self.columns.offsets[camera][rows])
        there = np.flatnonzero(found >= 0)
        with reading(cache.path):
            cache.read(_open_files.get(cache.path), found[there], there, out)
        return np.flatnonzero(found < 0)

    def stored_frames(self, i: int, steps: Sequence[int], camera: str) -> list[np.ndarray]:
        """Frames `steps` of trajectory `i` as they are stored, each uint8 [h, w, 3]."""
        places = self._places(np.full(len(steps), i), np.asarray(steps), camera)
        return [images.to_array(self._picture(camera, *place)) for place in zip(*places)]

    def data_files(self, camera: str) -> list[tuple[str, ...]]:
        """Of each of `paths`, it and the files in which the pixels of a camera are."""
        beside = self.columns.beside[camera]
        named = [beside.names[start:stop] for start, stop in zip(beside.starts.tolist(), beside.starts[1:].tolist())]
        return [(path, *frame_cache.files_of(path, own)) for path, own in zip(self.paths, named)]

    def pixel_path(self) -> tuple[str, ...]:
        """The sizes through which the frames of each camera go, a line for each; says where one enlarges."""
        return tuple(f"{camera:<12} {self._path_of(camera)}" for camera, _ in self.cameras)

    def _path_of(self, camera: str) -> str:
        encoded = () in self.columns.shapes[camera] or len(self.columns.beside[camera].names) > 0
        sizes, own = sorted(self.found_sizes[camera]), self.size_of(camera)
        last = images.size_text(own)
        way = f"camera -> {' or '.join(map(images.size_text, sizes))} {'encoded' if encoded else 'stored'} -> {last}"
        if len(sizes) > 1:
            way += f" (several sizes: a policy resizes its camera's frames straight to {last})"
        small = [size for size in sizes if images.enlarges(size, own)]
        if small:
            again = "" if encoded else f"convert again with --im_size {max(own)}, or "
            key = f"camera_sizes.{camera}" if camera in self.camera_sizes else "image_size"
            way += f": enlarged, which adds no detail; {again}set config.data.{key}=({small[0][0]},{small[0][1]})"
        return way

    def _places(self, trajectories: np.ndarray, steps: np.ndarray, camera: str) -> tuple[list[int], ...]:
        """The files, offsets and sizes of frames."""
        rows = self.frame_starts[trajectories] + steps
        where = self.file_of[trajectories], self.columns.offsets[camera][rows], self.columns.sizes[camera][rows]
        return tuple(found.tolist() for found in where)

    def _picture(self, camera: str, file: int, offset: int, size: int) -> Image.Image:
        """One frame as it is stored."""
        place, shape = self._place(camera, file, offset, size), self.columns.shapes[camera][file]
        data, name = _read(place, dict(self.cameras)[camera]), _name(place, camera)
        if shape:
            pixels = byte_values(data) if size > math.prod(shape) else np.frombuffer(data, np.uint8)
            if pixels is None or pixels.size != math.prod(shape):
                raise DataError(f"{name}: no picture of {list(shape)}; the file changed, make it again")
            return images.raw_picture(pixels, shape)
        picture = images.open_picture(data, name)
        if picture.size[::-1] not in self.found_sizes[camera]:
            known = " or ".join(map(images.size_text, sorted(self.found_sizes[camera])))
            raise DataError(
                f"{name}: {images.size_text(picture.size[::-1])} pixels, but the files begin with frames of {known}: "
                "encode all frames of a camera at one size"
            )
        return picture

    def _place(self, camera: str, file: int, offset: int, size: int) -> "_Place":
        beside = self.columns.beside[camera]
        first, end = beside.starts[file : file + 2].tolist()
        if first == end:
            return _Place(self.paths[file], offset, size)
        return _Place(*frame_files.locate(self.paths[file], beside.names, offset, first), None)

    def _only_size(self) -> tuple[int, int]:
        """The one size at which all frames of all cameras are stored."""
        sizes = sorted(set().union(*self.found_sizes.values()))
        if len(sizes) > 1:
            raise DataError(
                f"{self.paths[0]} and others store frames of {', '.join(map(images.size_text, sizes))} pixels: set "
                "config.data.image_size=(height,width)"
            )
        return sizes[0]


def find_sizes(paths: Sequence[str], first: Mapping[str, Sequence[FirstFrame]]) -> dict[str, set[tuple[int, int]]]:
    """By camera, the sizes (height, width) of the first frame of each file.

    Raises:
        DataError: one is no picture, or its file ends before it.
    """

    def size_of(camera: str, path: str, frame: FirstFrame) -> tuple[int, int]:
        if frame.shape:
            return tuple(frame.shape[:2])
        place = _Place(path, frame.offset, frame.size)
        if frame.files:
            place = _Place(*frame_files.locate(path, frame.files, frame.offset), None)
        return images.read_size(_read(place, frame.stored), _name(place, camera))

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        return {
            camera: set(pool.map(functools.partial(size_of, camera), paths, frames)) for camera, frames in first.items()
        }


class _Place(NamedTuple):
    """Where a frame lies: `size` bytes from `at` on, or, without a size, frame `at` of a video or Parquet file."""

    path: str
    at: int
    size: int | None


def _read(place: _Place, stored: str) -> bytes | np.ndarray:
    """The bytes of a frame of a camera, by its name in the files, or the pixels of a video's."""
    with reading(place.path):
        if place.size is None:
            return frame_files.read_frame(place.path, stored, place.at)
        data = _open_files.get(place.path).read(place.at, place.size)
    if len(data) != place.size:
        raise _cut_off(place.path, place.at)
    return data


def _name(place: _Place, camera: str) -> str:
    return f"{place.path}: {camera} at {'frame' if place.size is None else 'byte'} {place.at}"


def _cut_off(path: str, offset: int) -> DataError:
    return DataError(f"{path}: ends before the frame at byte {offset}; it changed, make it again")
