"""Statistics of any number of rows in one pass: accumulators that merge, and a pass of all cores over trajectories."""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from tqdm import tqdm

from jaxvla.data.conversion.workers import completed
from jaxvla.data.formats import sidecar
from jaxvla.data.formats.mapping import let_go
from jaxvla.data.quantiles import CAPACITY, Sketch
from jaxvla.data.schema import Trajectory
from jaxvla.data.source import TrajectorySource
from jaxvla.data.transforms.normalization import FieldStatistics, Statistics
from jaxvla.errors import DataError

Transform = Callable[[Trajectory], Trajectory]

_VERSION = 1
# Rows that are added up one after another, for sums of millions so made are right to 11 digits only.
_PIECE = 1 << 12
# Transitions that a worker takes at a time.
_BLOCK_ROWS = 1 << 17
# Of relabelled actions so many take two seconds, in which a process has started.
_BLOCKS_PER_WORKER = 16
# Trajectories by which a transform is known that does something else than before.
_PROBES = 64
_ADDRESS = re.compile(r" at 0x[0-9a-f]+")


@runtime_checkable
class Tables(Protocol):
    """What statistics need of a `TrajectorySource`: lengths int64 [n], taught bool [sum T], and n tables."""

    lengths: np.ndarray
    taught: np.ndarray

    def table(self, i: int) -> Trajectory:
        """The low-dimensional part of trajectory `i`."""


@dataclasses.dataclass(frozen=True, eq=False)
class Moments:
    """How many rows there were, and per column their mean, sum of squared distances from it, minimum and maximum.

    Mean and sum are float64 [d]. Without rows they are 0, the minimum inf and the maximum -inf.
    """

    count: int
    mean: np.ndarray
    squares: np.ndarray
    min: np.ndarray
    max: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "Moments":
        """The moments of rows [n, d]."""
        if len(values) > _PIECE:
            return functools.reduce(cls.merge, map(cls.of, np.split(values, range(_PIECE, len(values), _PIECE))))
        mean = values.mean(0, dtype=np.float64) if len(values) else np.zeros(values.shape[1])
        low, high = values.min(0, initial=np.inf), values.max(0, initial=-np.inf)
        return cls(len(values), mean, np.square(values - mean).sum(0), low, high)

    def merge(self, other: "Moments") -> "Moments":
        """The moments of the rows of both (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        share = other.count / max(count, 1)
        step = other.mean - self.mean
        squares = self.squares + other.squares + np.square(step) * self.count * share
        low, high = np.minimum(self.min, other.min), np.maximum(self.max, other.max)
        return Moments(count, self.mean + step * share, squares, low, high)

    @property
    def std(self) -> np.ndarray:
        """The deviation of the rows themselves, divided by n, float64 [d]."""
        return np.sqrt(self.squares / max(self.count, 1))


@dataclasses.dataclass(frozen=True, eq=False)
class Accumulator:
    """What is known of the rows of one field after a part of them; its size does not grow with theirs.

    As long as there are no more rows than the sketch holds, the result is that of all rows in one array, to the bit.
    """

    moments: Moments
    sketch: Sketch

    @classmethod
    def of(cls, values: np.ndarray, capacity: int = CAPACITY) -> "Accumulator":
        """Takes rows [n, d], which may be none.

        Raises:
            DataError: a value that is not finite.
        """
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise DataError(f"value at transition {row}, dimension {column} is {values[row, column]}")
        return cls(Moments.of(values), Sketch.of(values, capacity))

    def merge(self, other: "Accumulator") -> "Accumulator":
        """The rows of both, those of `other` last.

        Raises:
            DataError: they have different dimensions.
        """
        dims = len(self.moments.mean), len(other.moments.mean)
        if dims[0] != dims[1]:
            raise DataError(f"there are rows of {dims[0]} and of {dims[1]} dimensions, which have no common statistics")
        return Accumulator(self.moments.merge(other.moments), self.sketch.merge(other.sketch))

    def finish(self) -> FieldStatistics:
        """The statistics.

        Quantiles of a sketch are values of the data, the outer ones of those between which the quantile lies; the error
        of their ranks is that of `Sketch`.

        Raises:
            DataError: there were no rows.
        """
        if self.sketch.exact:
            return FieldStatistics.of(self.sketch.levels[0])
        last, moments = self.moments.count - 1, self.moments
        quantiles = self.sketch.order(np.array([last // 100, last - last // 100]))
        values = moments.mean, moments.std, moments.min, moments.max, *quantiles
        return FieldStatistics(*(np.asarray(x, np.float32) for x in values))


@dataclasses.dataclass(frozen=True, eq=False)
class Tally:
    """What is known of a dataset's statistics after a part of its trajectories."""

    actions: Accumulator
    proprio: Accumulator
    num_transitions: int
    num_trajectories: int

    def merge(self, other: "Tally") -> "Tally":
        """The trajectories of both, those of `other` last.

        Raises:
            DataError: they have different dimensions.
        """
        return Tally(
            self.actions.merge(other.actions),
            self.proprio.merge(other.proprio),
            self.num_transitions + other.num_transitions,
            self.num_trajectories + other.num_trajectories,
        )

    def finish(self) -> Statistics:
        """The statistics.

        Raises:
            DataError: there was no transition that is taught.
        """
        return Statistics(self.actions.finish(), self.proprio.finish(), self.num_transitions, self.num_trajectories)


def collect(
    source: Tables, transform: Transform | None = None, num_workers: int | None = None, capacity: int = CAPACITY
) -> Tally:
    """Walks over all trajectories, many at a time in each of several processes.

    As everywhere, actions are those that are taught, and states those from which a transition leads on. The result
    depends neither on the number of processes nor on which of them is faster.

    Args:
        source: the trajectories.
        transform: what becomes of each; it keeps the number of transitions, and can be pickled.
        num_workers: processes; by default as many as have enough to do, and no more than there are cores. Two million
            transitions are walked over in this one.
        capacity: of the sketches.

    Raises:
        DataError: no trajectories, or what the transform makes of one is not finite, or not of the shape of the others.
    """
    blocks = _blocks(source.lengths)
    if not blocks:
        raise DataError("no trajectories to compute statistics from")
    num_workers = num_workers or min(os.cpu_count() or 1, -(-len(blocks) // _BLOCKS_PER_WORKER))
    num_workers = min(num_workers, len(blocks))
    return _merge_in_order(completed(_accumulate, _jobs(source, blocks, transform, capacity), num_workers), len(blocks))


def open_statistics(
    root: pathlib.Path,
    source: TrajectorySource,
    transform: Transform | None = None,
    num_workers: int | None = None,
) -> Statistics:
    """The statistics of a source: read from where they were kept, or collected and kept.

    They are collected anew where files, trajectories or numbers are others than before, or the transform: it is told by
    its `repr`, without the addresses of functions, and by what it makes of a sample of the trajectories.

    Args:
        root: the folder of the data; see `sidecar.places`.
        source: see `collect`; one of a split that was opened, whose columns say by their stamp what they are made of.
        transform: see `collect`.
        num_workers: see `collect`.

    Raises:
        DataError: see `collect`.
    """
    probed = hashlib.sha256()
    if transform is not None:
        for i in np.unique(np.linspace(0, len(source) - 1, _PROBES).astype(int)).tolist():
            table = transform(source.table(i))
            for array in (table.actions, table.proprio):
                probed.update(np.ascontiguousarray(array))
    settings = _VERSION, _ADDRESS.sub("", repr(transform)), probed.hexdigest()
    # Files alone are not enough: features and trajectories are chosen, which the stamp says.
    name = sidecar.fingerprint((), source.columns.stamp, settings)
    return sidecar.kept(
        root / f"dataset_statistics-{name}.json",
        lambda content: Statistics.from_json(json.loads(content)),
        lambda: collect(source, transform, num_workers).finish(),
        lambda statistics: statistics.dumps().encode(),
    )


@dataclasses.dataclass(frozen=True, eq=False)
class _Block:
    """Successive trajectories and, end to end, which of their transitions are taught."""

    number: int
    tables: tuple[Trajectory, ...]
    taught: np.ndarray
    transform: Transform | None
    capacity: int


def _blocks(lengths: np.ndarray) -> list[tuple[int, int]]:
    """First trajectory of each block, and the one behind its last; they follow from the lengths alone."""
    number = (np.cumsum(lengths) - lengths) // _BLOCK_ROWS
    starts = np.flatnonzero(np.diff(number, prepend=-1)).tolist()
    return list(zip(starts, [*starts[1:], len(lengths)]))


def _jobs(
    source: Tables, blocks: Sequence[tuple[int, int]], transform: Transform | None, capacity: int
) -> Iterator[_Block]:
    rows = np.append(0, np.cumsum(source.lengths))
    for number, (start, stop) in enumerate(blocks):
        let_go()
        tables = tuple(source.table(i) for i in range(start, stop))
        yield _Block(number, tables, source.taught[rows[start] : rows[stop]], transform, capacity)


def _accumulate(block: _Block) -> tuple[int, Tally]:
    """The number of a block and what it adds."""
    tables = block.tables if block.transform is None else [block.transform(table) for table in block.tables]
    for table, given in zip(tables, block.tables):
        _check("actions", table.key, table.actions, (given.num_transitions, *tables[0].actions.shape[1:]))
        _check("states", table.key, table.proprio, (given.num_transitions + 1, *tables[0].proprio.shape[1:]))
    actions = np.concatenate([table.actions for table in tables])[block.taught]
    observed = np.concatenate([table.proprio[:-1] for table in tables])
    fields = (Accumulator.of(values, block.capacity) for values in (actions, observed))
    return block.number, Tally(*fields, len(block.taught), len(tables))


def _check(what: str, key: str, values: np.ndarray, shape: tuple[int, ...]) -> None:
    """Raises DataError for values of a trajectory that statistics cannot be made of."""
    if values.shape != shape or values.ndim != 2:
        raise DataError(f"trajectory {key!r}: {what} have the shape {list(values.shape)}, not {list(shape)}")
    if not np.isfinite(values).all():
        step, dimension = np.argwhere(~np.isfinite(values))[0].tolist()
        value = values[step, dimension]
        raise DataError(f"trajectory {key!r}: {what} are not finite: step {step}, dimension {dimension}: {value}")


def _merge_in_order(parts: Iterator[tuple[int, Tally]], count: int) -> Tally:
    """Merges `count` numbered parts, in whichever order they come: always the same pairs, as soon as both are there."""
    waiting: dict[tuple[int, int], Tally] = {}
    for number, part in tqdm(parts, "statistics", count, unit="block", delay=1.0, leave=False):
        height = 0
        while (other := waiting.pop((height, number ^ 1), None)) is not None:
            part = other.merge(part) if number & 1 else part.merge(other)
            number, height = number >> 1, height + 1
        waiting[height, number] = part
    return functools.reduce(Tally.merge, (waiting[key] for key in sorted(waiting, key=lambda key: key[1] << key[0])))
