"""What a dataset makes of all its transitions: kept in mapped files, or made of the rows that a batch asks for."""

import dataclasses
import pathlib
from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import DTypeLike

from jaxvla.data.formats import arrays, sidecar
from jaxvla.data.formats.mapping import let_go
from jaxvla.data.source import TrajectorySource
from jaxvla.data.transforms.normalization import Normalizer

# Transitions that are worked on at a time.
_BLOCK = 1 << 18


@dataclasses.dataclass(frozen=True, eq=False)
class Normalized:
    """A table float32 [n, d], normalized where it is indexed; of a whole one there is no copy."""

    table: np.ndarray
    normalizer: Normalizer

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the table."""
        return self.table.shape

    def __len__(self) -> int:
        return len(self.table)

    def __getitem__(self, rows: np.ndarray | slice | int | np.integer) -> np.ndarray:
        """Normalized rows float32 [..., d]."""
        return self.normalizer.forward(self.table[rows])

    def __array__(self, dtype: DTypeLike = None, copy: bool | None = None) -> np.ndarray:
        """The whole table, normalized, which numpy asks for."""
        return self[:].astype(dtype or np.float32, copy=False)


def kept_rows(
    root: pathlib.Path, name: str, source: TrajectorySource, settings: object, make: Callable[[slice], np.ndarray]
) -> np.ndarray:
    """What `make` gives of all trajectories, some successive ones at a time, end to end: kept in a mapped file.

    Args:
        root: the folder of the data; see `sidecar.places`.
        name: of what it is.
        source: the trajectories.
        settings: what it depends on beside them, with a `repr` that says all of it.
        make: of a slice of trajectories.
    """
    stamp = sidecar.fingerprint((), source.columns.stamp, settings)
    beside = root / f"{name}-{sidecar.fingerprint((), source.columns.name, settings)}.arrays"
    return arrays.kept(beside, stamp, lambda: ({name: lambda: map(make, blocks(source))}, None)).arrays[name]


def blocks(source: TrajectorySource, rows: int = _BLOCK) -> Iterator[slice]:
    """Slices of successive trajectories, each of about so many transitions; what was mapped for one is let go of."""
    first = np.append(source.action_starts, len(source.taught))
    start = 0
    while start < len(source):
        stop = max(start + 1, int(np.searchsorted(first, first[start] + rows, side="right")) - 1)
        yield slice(start, stop)
        let_go()
        start = stop


def steps_of(source: TrajectorySource, block: slice) -> tuple[slice, np.ndarray, np.ndarray]:
    """The transitions of successive trajectories, and of each of them its step and its trajectory's length."""
    lengths = source.lengths[block]
    first = int(source.action_starts[block.start])
    ends = np.cumsum(lengths)
    step = np.arange(ends[-1]) - np.repeat(ends - lengths, lengths)
    return slice(first, first + int(ends[-1])), step, np.repeat(lengths, lengths)
