"""The offset index: everything of a data file but its pixels, and where each frame's pixels lie in it.

One format module per storage format builds it; what stands in it is the same for all. `indexing.py` keeps it.
"""

import collections
import contextlib
import dataclasses
import json
import re
import zlib
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence

import numpy as np

from jaxvla.data.skipping import Skipped, UnusableError

# Goals lie ahead of a transition, so a trajectory of one transition shows a policy nothing but its own end.
MIN_TRANSITIONS = 2
OTHER_KIND = "other dimensions than the rest"
# What stands in `Index.texts` where a transition has no text of its own.
ANY_TEXT, NO_TEXT = -1, -2
# Of the indices, and of what is made of them.
VERSION = 8
_NO_ROWS = {
    "actions": np.empty((0, 0), np.float32),
    "proprio": np.empty((0, 0), np.float32),
    "taught": np.empty(0, bool),
    "texts": np.empty(0, np.int32),
    "vectors": np.empty((0, 0), np.float32),
    "steps": np.empty(0, np.int32),
}
_ARRAYS = ("lengths", *_NO_ROWS, "numbers", "stored")
_ALIGNMENT = 64


@dataclasses.dataclass(frozen=True, eq=False)
class Frames:
    """Where one camera's frames lie: byte offsets int64 and sizes int64, each [number of frames].

    `shape` is () where each frame is a JPEG or PNG of its own, and (h, w, 3) or (h, w, 1) where the pixels are stored
    raw. Of these a frame of more bytes than it has pixels is a row of varints (`protobuf.byte_values`).

    Frames of `files`, paths from the folder of the indexed file, lie in none of its bytes, but in videos (raw) or in
    rows of Parquet files (encoded). Offsets hold the number of the file and of the frame in it (frame_files.py), and
    sizes are 1.
    """

    offsets: np.ndarray
    sizes: np.ndarray
    shape: tuple[int, ...]
    files: tuple[str, ...] = ()

    def select(self, keep: np.ndarray) -> "Frames":
        """Those where bool or int [n] says."""
        return dataclasses.replace(self, offsets=self.offsets[keep], sizes=self.sizes[keep])


@dataclasses.dataclass(frozen=True, eq=False)
class Index:
    """The n trajectories of a file that can be used, in order, laid end to end, and what became of the others.

    lengths   int64 [n]           transitions of each; a trajectory of T transitions has T + 1 frames
    actions   float32 [sum T, d]
    proprio   float32 [sum (T + 1), p]
    taught    bool [sum T]        False where a policy is not to learn the action
    language  n tuples of different annotations, empty strings left out
    texts     int32 [sum T]       which of its trajectory's annotations a transition has; `ANY_TEXT` where they are
                                  paraphrases that hold for the whole trajectory, `NO_TEXT` where there is none
    vectors   float32 [annotations, k] that the file holds for them, in their order; k is 0 where it holds none
    keys      n names, each unique in its file
    frames    by stored camera name; arrays of sum (T + 1) frames, of which those of no use have size 0
    faults    (trajectory, stored camera name, what is wrong) where a trajectory cannot be used with that camera
    skipped   why, and which, for each trajectory that is left out
    numbers   int64 [n], which of all trajectories of the file each is, ascending; None for 0 to n - 1
    steps     int32 [sum (T + 1)], which step of the stored episode each frame is; None for 0 to T of each
    stored    int64 [n], how many steps the stored episode of each has; None for T + 1
    """

    lengths: np.ndarray
    actions: np.ndarray
    proprio: np.ndarray
    taught: np.ndarray
    language: tuple[tuple[str, ...], ...]
    texts: np.ndarray
    vectors: np.ndarray
    keys: tuple[str, ...]
    frames: dict[str, Frames]
    faults: tuple[tuple[int, str, str], ...] = ()
    skipped: tuple[Skipped, ...] = ()
    numbers: np.ndarray | None = None
    steps: np.ndarray | None = None
    stored: np.ndarray | None = None

    def __post_init__(self) -> None:
        frames = self.lengths + 1
        every = {
            "numbers": lambda: np.arange(len(frames)),
            "steps": lambda: np.concatenate([np.arange(count, dtype=np.int32) for count in (0, *frames.tolist())]),
            "stored": lambda: frames,
        }
        for name in [name for name in every if getattr(self, name) is None]:
            object.__setattr__(self, name, every[name]())

    @property
    def total(self) -> int:
        """How many trajectories the file has, those left out included."""
        return len(self.lengths) + len(self.skipped)

    @property
    def kind(self) -> tuple[int, int, int]:
        """The dimensions of actions, proprio and vectors: what all trajectories of a dataset must agree in."""
        return self.actions.shape[1], self.proprio.shape[1], self.vectors.shape[1]

    def select(self, keep: np.ndarray) -> "Index":
        """The trajectories where bool [n] is True, without their faults."""
        if keep.all() and not self.faults:
            return self
        steps, frames = np.repeat(keep, self.lengths), np.repeat(keep, self.lengths + 1)
        annotations = np.repeat(keep, [len(texts) for texts in self.language])
        chosen = np.flatnonzero(keep).tolist()
        return dataclasses.replace(
            self,
            lengths=self.lengths[keep],
            actions=self.actions[steps],
            proprio=self.proprio[frames],
            taught=self.taught[steps],
            language=tuple(self.language[i] for i in chosen),
            texts=self.texts[steps],
            vectors=self.vectors[annotations],
            keys=tuple(self.keys[i] for i in chosen),
            frames={camera: found.select(frames) for camera, found in self.frames.items()},
            faults=(),
            numbers=self.numbers[keep],
            steps=self.steps[frames],
            stored=self.stored[keep],
        )

    def between(self, start: int, stop: int, left_out: Collection[int] = ()) -> "Index":
        """Those of the trajectories `start` to `stop` of the file, skipped ones counted, that are not left out."""
        if start <= 0 and stop >= self.total and not left_out:
            return self
        wanted = np.zeros(self.total, bool)
        wanted[max(start, 0) : stop] = True
        wanted[[*left_out]] = False
        keep = wanted[self.numbers]
        place = np.cumsum(keep) - 1
        lost = np.setdiff1d(np.arange(self.total), self.numbers)
        return dataclasses.replace(
            self.select(keep),
            faults=tuple((int(place[i]), camera, what) for i, camera, what in self.faults if keep[i]),
            skipped=tuple(why for number, why in zip(lost.tolist(), self.skipped) if wanted[number]),
        )

    def dumps(self, stamp: str) -> bytes:
        """One JSON line (stamp, strings, array shapes), filled up so that they are aligned, and the raw arrays."""
        arrays = {name: getattr(self, name) for name in _ARRAYS}
        for camera, frames in self.frames.items():
            arrays |= {f"offsets/{camera}": frames.offsets, f"sizes/{camera}": frames.sizes}
        header = {
            "stamp": stamp,
            "language": self.language,
            "keys": self.keys,
            "faults": self.faults,
            "skipped": self.skipped,
            "frames": {camera: (frames.shape, frames.files) for camera, frames in self.frames.items()},
            "arrays": {name: (array.dtype.str, array.shape) for name, array in arrays.items()},
        }
        body = b"".join(array.tobytes() for array in arrays.values())
        header["crc32"] = zlib.crc32(body)
        line = json.dumps(header).encode()
        return line + b" " * (-(len(line) + 1) % _ALIGNMENT) + b"\n" + body

    @classmethod
    def loads(cls, content: bytes | memoryview, stamp: str) -> "Index | None":
        """The inverse of `dumps`; None where `content` was made for another state of the file or is not whole.

        The arrays are views of `content`.

        Raises:
            Any error, where it is none of ours.
        """
        end = re.search(rb"\n", content).end()
        header, body = json.loads(bytes(content[:end])), memoryview(content)[end:]
        if header["stamp"] != stamp or header["crc32"] != zlib.crc32(body):
            return None
        arrays, offset = {}, 0
        for name, (dtype, shape) in header["arrays"].items():
            arrays[name] = np.frombuffer(body, dtype, int(np.prod(shape)), offset).reshape(shape)
            offset += arrays[name].nbytes
        frames = {
            camera: Frames(arrays[f"offsets/{camera}"], arrays[f"sizes/{camera}"], tuple(shape), tuple(files))
            for camera, (shape, files) in header["frames"].items()
        }
        rows = {name: tuple(map(tuple, header[name])) for name in ("language", "faults", "skipped")}
        return cls(keys=tuple(header["keys"]), frames=frames, **rows, **{name: arrays[name] for name in _ARRAYS})


@dataclasses.dataclass(frozen=True, eq=False)
class _Row:
    """One trajectory; `number` is which of the file it is, `where` names it in messages."""

    number: int
    where: str
    key: str
    actions: np.ndarray
    proprio: np.ndarray
    taught: np.ndarray
    language: tuple[str, ...]
    texts: np.ndarray
    vectors: np.ndarray
    frames: dict[str, Frames | str]
    steps: np.ndarray
    stored: int

    @property
    def kind(self) -> tuple[int, int, int]:
        return self.actions.shape[1], self.proprio.shape[1], self.vectors.shape[1]


class IndexBuilder:
    """Collects the trajectories of a file into an `Index`, and counts those that cannot be used."""

    def __init__(self) -> None:
        self._rows: list[_Row] = []
        self._skipped: dict[int, Skipped] = {}
        self._number = -1

    @contextlib.contextmanager
    def trajectory(self) -> Iterator[None]:
        """Where one trajectory is read and added: an `UnusableError` in it leaves that one out."""
        self._number += 1
        try:
            yield
        except UnusableError as error:
            self._skipped[self._number] = (error.reason, error.detail)

    def add(
        self,
        where: str,
        key: str,
        actions: np.ndarray,
        proprio: np.ndarray,
        language: tuple[str, ...],
        texts: np.ndarray,
        frames: dict[str, Frames | str],
        vectors: np.ndarray | None = None,
        taught: np.ndarray | None = None,
        chosen: tuple[np.ndarray, int] | None = None,
    ) -> None:
        """Adds one trajectory.

        Args:
            where, key: the file and the record of it, and its name.
            actions, proprio: [T, d] and [T + 1, p].
            language, texts: its annotations, and int [T], see `Index`.
            frames: T + 1 of each camera, or what is wrong with that camera's.
            vectors: those of its annotations [len(language), k]; None where the data has none.
            taught: bool [T], whether a policy is to learn each action; None for all.
            chosen: which steps of the stored episode its frames are, int [T + 1], and how many that has; None for all.

        Raises:
            UnusableError: too few transitions, lengths that disagree, or a value that is not finite.
        """
        vectors = np.empty((len(language), 0)) if vectors is None else vectors
        taught = np.ones(len(actions), bool) if taught is None else taught
        steps, stored = (np.arange(len(proprio)), len(proprio)) if chosen is None else chosen
        where = f"{where}: trajectory {key!r}"
        if len(actions) < MIN_TRANSITIONS:
            raise UnusableError(f"fewer than {MIN_TRANSITIONS} transitions", f"{where}: {len(actions)}")
        if len(proprio) != len(actions) + 1:
            raise UnusableError("lengths disagree", f"{where}: {len(actions)} actions, {len(proprio)} states")
        if len(taught) != len(actions):
            raise UnusableError("lengths disagree", f"{where}: {len(actions)} actions, `taught` for {len(taught)}")
        for name, values in {"actions": actions, "states": proprio, "language vectors": vectors}.items():
            if not np.isfinite(values).all():
                step, dimension = np.argwhere(~np.isfinite(values))[0].tolist()
                detail = f"step {step}, dimension {dimension}: {values[step, dimension]}"
                raise UnusableError(f"{name} are not finite", f"{where}: {detail}")
        tables = (values.astype(np.float32) for values in (actions, proprio))
        vectors, texts = vectors.astype(np.float32), texts.astype(np.int32)
        told = (language, texts, vectors, dict(frames), steps.astype(np.int32), stored)
        self._rows.append(_Row(self._number, where, key, *tables, taught, *told))

    def build(self) -> Index:
        """The index of the trajectories added, of which those of other dimensions than most are left out too."""
        kind = most_common(row.kind for row in self._rows)
        rows = [row for row in self._rows if row.kind == kind]
        odd = {
            row.number: (OTHER_KIND, f"{row.where}: {compare_kinds(row.kind, kind)}")
            for row in self._rows
            if row.kind != kind
        }
        lengths = np.array([len(row.actions) for row in rows], np.int64)
        frames, faults = {}, []
        for camera in sorted({camera for row in rows for camera in row.frames}):
            frames[camera], wrong = _join_frames([row.frames.get(camera, "no pictures") for row in rows], lengths + 1)
            faults += [(i, camera, what) for i, what in wrong.items()]
        tables = {
            name: np.concatenate([getattr(row, name) for row in rows]) if rows else empty
            for name, empty in _NO_ROWS.items()
        }
        return Index(
            lengths=lengths,
            language=tuple(row.language for row in rows),
            keys=tuple(row.key for row in rows),
            frames=frames,
            faults=tuple(faults),
            skipped=tuple(why for _, why in sorted((self._skipped | odd).items())),
            numbers=np.array([row.number for row in rows], np.int64),
            stored=np.array([row.stored for row in rows], np.int64),
            **tables,
        )


def most_common(values: Iterable[Hashable]) -> Hashable:
    """The value that comes most often, of several the first; None where there are none."""
    return next((value for value, _ in collections.Counter(values).most_common(1)), None)


def compare_kinds(own: tuple[int, int, int], most: tuple[int, int, int]) -> str:
    """In what an `Index.kind` differs from that of most."""
    pairs = zip(("actions", "states", "language vectors"), own, most)
    return ", ".join(f"{name} [{a}], most have [{b}]" for name, a, b in pairs if a != b)


def _join_frames(parts: Sequence[Frames | str], counts: np.ndarray) -> tuple[Frames, dict[int, str]]:
    """The frames of one camera of n trajectories that have `counts` of them each, and what is wrong in some."""
    shape = most_common(part.shape for part in parts if not isinstance(part, str)) or ()
    wrong: dict[int, str] = {}
    for i, (part, count) in enumerate(zip(parts, counts.tolist())):
        if isinstance(part, str):
            wrong[i] = part
        elif len(part.offsets) != count:
            wrong[i] = f"{len(part.offsets)} pictures for {count} states"
        elif part.shape != shape:
            wrong[i] = f"pictures of {list(part.shape)}, most have {list(shape)}"
        elif not part.sizes.all():
            wrong[i] = f"{int((part.sizes == 0).sum())} of {count} pictures are empty"
    none = [np.zeros(count, np.int64) for count in counts.tolist()]
    files = next((part.files for part in parts if not isinstance(part, str)), ())
    offsets, sizes = (
        np.concatenate([none[i] if i in wrong else getattr(part, name) for i, part in enumerate(parts)])
        for name in ("offsets", "sizes")
    )
    return Frames(offsets, sizes, shape, files), wrong
