"""All trajectories of a split end to end: the columns of its files' indices, in memory or in one mapped file."""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jaxvla.data.formats.arrays import Opened, Pieces
from jaxvla.data.formats.index import Index
from jaxvla.data.formats.strings import Annotations, Strings, arrays_of

# By what the rows of each array of an index are counted.
_ROWS = {
    "lengths": "trajectories",
    "actions": "transitions",
    "proprio": "frames",
    "taught": "transitions",
    "texts": "transitions",
    "vectors": "annotations",
    "steps": "frames",
    "stored": "trajectories",
}
_GROUPS = ("offsets", "sizes", "beside_starts", "beside_ends", "beside_data", "language", "keys")


@dataclasses.dataclass(frozen=True, eq=False)
class Columns:
    """n trajectories of any number of files, end to end. Picklable; see `Index` for what stands in which.

    Attributes:
        lengths, actions, proprio, taught, texts, vectors, steps, stored, language, keys: of all trajectories, as in
            `Index`.
        file_of: int64 [n], the file of each.
        action_starts, frame_starts: int64 [n], where each begins among the transitions and among the frames.
        taught_ahead: int32 [sum T], how many transitions from here on, within the trajectory, are taught without a gap.
        offsets, sizes, shapes: by camera as it is called in batches, its `Frames`; a shape for each file.
        beside: by camera, the files of their own that its frames lie in, if they do.
        name: what files that are derived of these are called by; empty where none are kept.
        stamp: what they were made of.
    """

    lengths: np.ndarray
    actions: np.ndarray
    proprio: np.ndarray
    taught: np.ndarray
    texts: np.ndarray
    vectors: np.ndarray
    steps: np.ndarray
    stored: np.ndarray
    language: Annotations
    keys: Strings
    file_of: np.ndarray
    action_starts: np.ndarray
    frame_starts: np.ndarray
    taught_ahead: np.ndarray
    offsets: Mapping[str, np.ndarray]
    sizes: Mapping[str, np.ndarray]
    shapes: Mapping[str, Sequence[tuple[int, ...]]]
    beside: Mapping[str, "Beside"]
    name: str = ""
    stamp: str = ""

    @classmethod
    def of(cls, parts: Sequence["Part"], cameras: Sequence[tuple[str, str]]) -> "Columns":
        """In memory; see `layout`."""
        pieces, shapes = layout(parts, cameras)
        return cls.read(Opened({name: np.concatenate(list(part())) for name, part in pieces.items()}, None), shapes)

    @classmethod
    def read(
        cls, opened: Opened, shapes: Mapping[str, Sequence[tuple[int, ...]]], name: str = "", stamp: str = ""
    ) -> "Columns":
        """From arrays as `layout` names them."""
        arrays = dict(opened.arrays)
        grouped: dict[str, dict[str, np.ndarray]] = {group: {} for group in _GROUPS}
        for key in [key for key in arrays if "/" in key]:
            group, _, rest = key.partition("/")
            grouped[group][rest] = arrays.pop(key)
        language = grouped.pop("language")
        distinct = Strings(language.pop("ends"), language.pop("data"))
        starts, ends, data = (grouped.pop(f"beside_{part}") for part in ("starts", "ends", "data"))
        return cls(
            **arrays,
            language=Annotations(**language, distinct=distinct),
            keys=Strings(**grouped.pop("keys")),
            **grouped,
            beside={camera: Beside(starts[camera], Strings(ends[camera], data[camera])) for camera in starts},
            shapes=shapes,
            name=name,
            stamp=stamp,
        )


class Beside(NamedTuple):
    """The files beside the data files that a camera's frames lie in, see `Frames.files`.

    `starts` int64 [data files + 1] says where the `names` of each data file begin; one without any holds its frames
    itself.
    """

    starts: np.ndarray
    names: Strings


class Part(NamedTuple):
    """The trajectories of an index where bool [n] is True; nothing is copied before it is asked for."""

    index: Index
    keep: np.ndarray

    @property
    def numbers(self) -> list[int]:
        """Which trajectories of the index."""
        return np.flatnonzero(self.keep).tolist()

    def column(self, name: str) -> np.ndarray:
        """An array of the index."""
        return self.select(getattr(self.index, name), _ROWS[name])

    def select(self, values: np.ndarray, rows: str) -> np.ndarray:
        """Those of `values`, one of each row, that are of these trajectories."""
        if self.keep.all():
            return values
        counts = {
            "trajectories": lambda: 1,
            "transitions": lambda: self.index.lengths,
            "frames": lambda: self.index.lengths + 1,
            "annotations": lambda: [len(texts) for texts in self.index.language],
        }
        return values[np.repeat(self.keep, counts[rows]())]


class FirstFrame(NamedTuple):
    """Where the first frame of a camera, by its stored name, in a file lies; see `Frames`."""

    stored: str
    offset: int
    size: int
    shape: tuple[int, ...]
    files: tuple[str, ...]


def first_frames(parts: Sequence[Part], cameras: Sequence[tuple[str, str]]) -> dict[str, list[FirstFrame]]:
    """By camera, that of each part, which must have a trajectory."""
    found: dict[str, list[FirstFrame]] = {camera: [] for camera, _ in cameras}
    for part in parts:
        first = part.numbers[0]
        row = int((part.index.lengths[:first] + 1).sum())
        for camera, stored in cameras:
            frames = part.index.frames[stored]
            place = int(frames.offsets[row]), int(frames.sizes[row])
            found[camera].append(FirstFrame(stored, *place, frames.shape, frames.files))
    return found


def layout(
    parts: Sequence[Part], cameras: Sequence[tuple[str, str]]
) -> tuple[dict[str, Pieces], dict[str, list[tuple[int, ...]]]]:
    """The pieces of all columns, and the shapes of each camera's frames.

    Args:
        parts: of each file, trajectories that fit each other and have frames of all cameras (`selection.usable`).
        cameras: (name in batches, name in the files) of each.
    """
    numbers: dict[str, int] = {}
    for part in parts:
        for text in (text for i in part.numbers for text in part.index.language[i]):
            numbers.setdefault(text, len(numbers))
    pieces: dict[str, Pieces] = {name: _each(parts, lambda part, name=name: part.column(name)) for name in _ROWS}
    for camera, stored in cameras:
        for group in ("offsets", "sizes"):
            pieces[f"{group}/{camera}"] = _each(
                parts, lambda p, group=group, stored=stored: p.select(getattr(p.index.frames[stored], group), "frames")
            )
        files = [part.index.frames[stored].files for part in parts]
        starts = np.append(0, np.cumsum([*map(len, files)], dtype=np.int64))
        pieces |= {
            f"beside_starts/{camera}": lambda starts=starts: [starts],
            f"beside_ends/{camera}": lambda files=files: _ends(files),
            f"beside_data/{camera}": lambda files=files: (arrays_of(names)[1] for names in files),
        }
    pieces |= {
        "file_of": lambda: (np.full(int(part.keep.sum()), i, np.int64) for i, part in enumerate(parts)),
        "action_starts": lambda: _starts(part.column("lengths") for part in parts),
        "frame_starts": lambda: _starts(part.column("lengths") + 1 for part in parts),
        "taught_ahead": _each(parts, lambda part: _run_lengths(part.column("taught"), part.column("lengths"))),
        "language/counts": _each(parts, _count_texts),
        "language/starts": lambda: _starts(map(_count_texts, parts)),
        "language/numbers": _each(parts, lambda part: _number_texts(part, numbers)),
        "language/ends": lambda: [arrays_of([*numbers])[0]],
        "language/data": lambda: [arrays_of([*numbers])[1]],
        "keys/ends": lambda: _ends(map(_own_keys, parts)),
        "keys/data": _each(parts, lambda part: arrays_of(_own_keys(part))[1]),
    }
    return pieces, {camera: [part.index.frames[stored].shape for part in parts] for camera, stored in cameras}


def _each(parts: Sequence[Part], make: Callable[[Part], np.ndarray]) -> Pieces:
    return lambda: map(make, parts)


def _starts(counts: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Where each of many begins, from how many each has."""
    before = 0
    for own in counts:
        ends = before + np.cumsum(own, dtype=np.int64)
        yield ends - own
        before = int(ends[-1]) if len(ends) else before


def _ends(texts: Iterable[Sequence[str]]) -> Iterator[np.ndarray]:
    """`Strings.ends` of successive ones, as if they were one."""
    before = 0
    for own in texts:
        ends, _ = arrays_of(own, before)
        yield ends
        before = int(ends[-1]) if len(ends) else before


def _own_keys(part: Part) -> list[str]:
    return [part.index.keys[i] for i in part.numbers]


def _count_texts(part: Part) -> np.ndarray:
    return np.array([len(part.index.language[i]) for i in part.numbers], np.int64)


def _number_texts(part: Part, numbers: Mapping[str, int]) -> np.ndarray:
    return np.array([numbers[text] for i in part.numbers for text in part.index.language[i]], np.int32)


def _run_lengths(taught: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """How many transitions from each on, within its trajectory, are True."""
    rows = np.arange(len(taught))
    gaps = np.minimum.accumulate(np.where(taught, len(taught), rows)[::-1])[::-1]
    ends = np.repeat(np.cumsum(lengths), lengths)
    return (np.minimum(gaps, ends) - rows).astype(np.int32)
