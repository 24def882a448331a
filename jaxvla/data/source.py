"""TrajectorySource: random access to the trajectories and frames of any number of files, whatever their format."""

import collections
import dataclasses
import functools
import math
import os
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from PIL import Image

from jaxvla.data.files import reading
from jaxvla.data.formats import frame_files
from jaxvla.data.formats.index import ANY_TEXT, NO_TEXT, Index
from jaxvla.data.formats.protobuf import byte_values
from jaxvla.data.formats.records import RecordFile, open_records
from jaxvla.data.schema import Trajectory
from jaxvla.data.transforms import images
from jaxvla.data.transforms.tasks import add_paraphrases
from jaxvla.errors import DataError

_OPEN_FILES = 256


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
        paths: data files.
        indices: their indices, of trajectories that fit each other and have frames of all cameras (`selection.usable`).
        cameras: (name in batches, name in the files) of each camera that is used.
        image_size: (height, width) of the frames that are given out; () for the stored size.
        resize: how frames get there, one of `images.FILTERS`.
        paraphrases: by annotation, other words for it, which stand in `language` behind a trajectory's annotations.
        camera_sizes: by camera, the size of frames of another size than `image_size`.

    Attributes:
        lengths, actions, proprio, taught, language, texts, vectors, keys, steps, stored: of all trajectories, as in
            `Index`.
        rephrasings: which of all annotations are paraphrases of which; None where there are none.
        taught_ahead: int64 [sum T], how many transitions from here on, within the trajectory, are taught without a gap.
        stored_sizes: (height, width) at which the frames of a camera are stored; cameras with several sizes are left
            out. Of encoded images, each file's first frame of a camera says it for the file.

    Raises:
        DataError: frames that are no pictures, or no image size where they are stored in several.
    """

    paths: tuple[str, ...]
    indices: dataclasses.InitVar[Sequence[Index]]
    cameras: tuple[tuple[str, str], ...]
    image_size: tuple[int, ...] = ()
    resize: str = "lanczos"
    paraphrases: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    camera_sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)

    def __post_init__(self, indices: Sequence[Index]) -> None:
        counts = [len(index.lengths) for index in indices]
        fields = {
            "lengths": np.concatenate([index.lengths for index in indices]),
            "actions": np.concatenate([index.actions for index in indices]),
            "proprio": np.concatenate([index.proprio for index in indices]),
            "taught": np.concatenate([index.taught for index in indices]),
            "language": tuple(texts for index in indices for texts in index.language),
            "texts": np.concatenate([index.texts for index in indices]),
            "vectors": np.concatenate([index.vectors for index in indices]),
            "keys": tuple(key for index in indices for key in index.keys),
            "steps": np.concatenate([index.steps for index in indices]),
            "stored": np.concatenate([index.stored for index in indices]),
            "file_of": np.repeat(np.arange(len(indices)), counts),
            "_offsets": {n: np.concatenate([i.frames[s].offsets for i in indices]) for n, s in self.cameras},
            "_sizes": {n: np.concatenate([i.frames[s].sizes for i in indices]) for n, s in self.cameras},
            "_shapes": {n: [i.frames[s].shape for i in indices] for n, s in self.cameras},
            "_files": {n: [i.frames[s].files for i in indices] for n, s in self.cameras},
        }
        fields["action_starts"] = np.cumsum(fields["lengths"]) - fields["lengths"]
        fields["frame_starts"] = fields["action_starts"] + np.arange(len(fields["lengths"]))
        fields["_text_counts"] = np.array([len(texts) for texts in fields["language"]], np.int64)
        fields["rephrasings"] = None
        if self.paraphrases:
            fields["language"], fields["rephrasings"] = add_paraphrases(fields["language"], self.paraphrases)
        totals = np.array([len(texts) for texts in fields["language"]], np.int64)
        fields["_text_starts"] = np.cumsum(totals) - totals
        fields["taught_ahead"] = _run_lengths(fields["taught"], fields["lengths"])
        for name, value in fields.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "_found_sizes", self._find_sizes())
        only = {camera: min(sizes) for camera, sizes in self._found_sizes.items() if len(sizes) == 1}
        object.__setattr__(self, "stored_sizes", only)
        if not self.image_size:
            object.__setattr__(self, "image_size", self._only_size())

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
        drawn = np.floor(uniforms * self._text_counts[trajectories]).astype(np.int64)
        annotation = self._text_starts[trajectories] + np.where(text == ANY_TEXT, drawn, text)
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
        shapes, image_size = self._shapes[camera], self.size_of(camera)
        try:  # around all of them: `reading` would cost a tenth of the time of a frame
            for file, offset, size, k in sorted(zip(*self._places(trajectories, steps, camera), range(len(out)))):
                row = out[k]
                if size == row.nbytes and shapes[file] == row.shape:
                    if _open_files.get(self.paths[file]).read_into(offset, row) != size:
                        raise self._cut_off(file, offset)
                else:
                    row[:] = images.to_array(self._picture(camera, file, offset, size), image_size, self.resize)
        except OSError as error:
            raise DataError(f"{self.paths[file]}: cannot be read: {error.strerror}") from error

    def stored_frames(self, i: int, steps: Sequence[int], camera: str) -> list[np.ndarray]:
        """Frames `steps` of trajectory `i` as they are stored, each uint8 [h, w, 3]."""
        places = self._places(np.full(len(steps), i), np.asarray(steps), camera)
        return [images.to_array(self._picture(camera, *place)) for place in zip(*places)]

    def pixel_path(self) -> tuple[str, ...]:
        """The sizes through which the frames of each camera go, a line for each; says where one enlarges."""
        return tuple(f"{camera:<12} {self._path_of(camera)}" for camera, _ in self.cameras)

    def _path_of(self, camera: str) -> str:
        encoded = () in self._shapes[camera] or any(self._files[camera])
        sizes, own = sorted(self._found_sizes[camera]), self.size_of(camera)
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
        where = self.file_of[trajectories], self._offsets[camera][rows], self._sizes[camera][rows]
        return tuple(found.tolist() for found in where)

    def _picture(self, camera: str, file: int, offset: int, size: int) -> Image.Image:
        """One frame as it is stored."""
        data, shape = self._read(camera, file, offset, size), self._shapes[camera][file]
        name = self._name(camera, file, offset)
        if shape:
            pixels = byte_values(data) if size > math.prod(shape) else np.frombuffer(data, np.uint8)
            if pixels is None or pixels.size != math.prod(shape):
                raise DataError(f"{name}: no picture of {list(shape)}; the file changed, make it again")
            return images.raw_picture(pixels, shape)
        picture = images.open_picture(data, name)
        if picture.size[::-1] not in self._found_sizes[camera]:
            known = " or ".join(map(images.size_text, sorted(self._found_sizes[camera])))
            raise DataError(
                f"{name}: {images.size_text(picture.size[::-1])} pixels, but the files begin with frames of {known}: "
                "encode all frames of a camera at one size"
            )
        return picture

    def _find_sizes(self) -> dict[str, set[tuple[int, int]]]:
        """By camera, the sizes (height, width) of the first frame of each file."""
        files = np.unique(self.file_of).tolist()
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return {c: set(pool.map(functools.partial(self._size_in, c), files)) for c, _ in self.cameras}

    def _size_in(self, camera: str, file: int) -> tuple[int, int]:
        """(height, width) of the first frame of a file."""
        shape, row = self._shapes[camera][file], int(self.frame_starts[np.searchsorted(self.file_of, file)])
        if shape:
            return tuple(shape[:2])
        offset, size = int(self._offsets[camera][row]), int(self._sizes[camera][row])
        return images.read_size(self._read(camera, file, offset, size), self._name(camera, file, offset))

    def _read(self, camera: str, file: int, offset: int, size: int) -> bytes:
        files = self._files[camera][file]
        if files:
            path, number = frame_files.locate(self.paths[file], files, offset)
            with reading(path):
                return frame_files.read_frame(path, dict(self.cameras)[camera], number)
        with reading(self.paths[file]):
            data = _open_files.get(self.paths[file]).read(offset, size)
        if len(data) != size:
            raise self._cut_off(file, offset)
        return data

    def _name(self, camera: str, file: int, offset: int) -> str:
        files = self._files[camera][file]
        if files:
            path, number = frame_files.locate(self.paths[file], files, offset)
            return f"{path}: {camera} at frame {number}"
        return f"{self.paths[file]}: {camera} at byte {offset}"

    def _cut_off(self, file: int, offset: int) -> DataError:
        return DataError(f"{self.paths[file]}: ends before the frame at byte {offset}; it changed, make it again")

    def _only_size(self) -> tuple[int, int]:
        """The one size at which all frames of all cameras are stored."""
        sizes = sorted(set().union(*self._found_sizes.values()))
        if len(sizes) > 1:
            raise DataError(
                f"{self.paths[0]} and others store frames of {', '.join(map(images.size_text, sizes))} pixels: set "
                "config.data.image_size=(height,width)"
            )
        return sizes[0]


def _run_lengths(taught: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """How many transitions from each on, within its trajectory, are True."""
    rows = np.arange(len(taught))
    gaps = np.minimum.accumulate(np.where(taught, len(taught), rows)[::-1])[::-1]
    ends = np.repeat(np.cumsum(lengths), lengths)
    return np.minimum(gaps, ends) - rows
