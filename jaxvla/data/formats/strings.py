"""Many texts as arrays, which can be mapped: a tuple of Python strings takes ten times the memory, on the heap."""

import dataclasses
import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import overload

import numpy as np


@dataclasses.dataclass(frozen=True, eq=False)
class Strings(Sequence[str]):
    """Texts, decoded when they are asked for.

    Attributes:
        ends: int64 [n], where each ends in `data`.
        data: uint8, their UTF-8 end to end; what UTF-8 cannot say is kept by `surrogatepass`.
    """

    ends: np.ndarray
    data: np.ndarray

    @classmethod
    def of(cls, texts: Sequence[str]) -> "Strings":
        """Those of a sequence."""
        return cls(*arrays_of(texts))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[str, ...]: ...

    def __getitem__(self, i: int | slice) -> str | tuple[str, ...]:
        if isinstance(i, slice):
            return tuple(self[k] for k in range(*i.indices(len(self))))
        i = range(len(self))[i]  # which knows negative numbers, and those that are too large
        start = int(self.ends[i - 1]) if i else 0
        return self.data[start : int(self.ends[i])].tobytes().decode("utf-8", "surrogatepass")

    def __iter__(self) -> Iterator[str]:
        start = 0
        for end in self.ends.tolist():
            yield self.data[start:end].tobytes().decode("utf-8", "surrogatepass")
            start = end

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None


@dataclasses.dataclass(frozen=True, eq=False)
class Annotations(Sequence[tuple[str, ...]]):
    """The different texts of each of n trajectories; what several have is there once.

    Attributes:
        counts: int64 [n], how many texts each trajectory has.
        starts: int64 [n], where they begin in `numbers`.
        numbers: int32, of the texts of all trajectories, end to end: which of `distinct` each is.
        distinct: the texts.
    """

    counts: np.ndarray
    starts: np.ndarray
    numbers: np.ndarray
    distinct: Strings

    @classmethod
    def of(cls, texts: Iterable[Sequence[str]]) -> "Annotations":
        """Those of n trajectories, in memory."""
        numbers: dict[str, int] = {}
        counts, own = [], []
        for each in texts:
            counts.append(len(each))
            own += [numbers.setdefault(text, len(numbers)) for text in each]
        totals = np.array(counts, np.int64)
        return cls(totals, np.cumsum(totals) - totals, np.array(own, np.int32), Strings.of([*numbers]))

    def __len__(self) -> int:
        return len(self.counts)

    @overload
    def __getitem__(self, i: int) -> tuple[str, ...]: ...
    @overload
    def __getitem__(self, i: slice) -> tuple[tuple[str, ...], ...]: ...

    def __getitem__(self, i: int | slice) -> tuple[str, ...] | tuple[tuple[str, ...], ...]:
        if isinstance(i, slice):
            return tuple(self[k] for k in range(*i.indices(len(self))))
        start, count = int(self.starts[i]), int(self.counts[i])
        return tuple(self.distinct[k] for k in self.numbers[start : start + count].tolist())

    def __iter__(self) -> Iterator[tuple[str, ...]]:
        texts = iter(self.all())
        return (tuple(itertools.islice(texts, count)) for count in self.counts.tolist())

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and len(self) == len(other) and tuple(self) == tuple(other)

    __hash__ = None

    def all(self) -> tuple[str, ...]:
        """The texts of all trajectories, end to end."""
        distinct = tuple(self.distinct)
        return tuple(distinct[k] for k in self.numbers.tolist())


def arrays_of(texts: Sequence[str], start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """`ends`, from `start` on, and `data` of `Strings`."""
    encoded = [text.encode("utf-8", "surrogatepass") for text in texts]
    lengths = np.fromiter(map(len, encoded), np.int64, len(encoded))
    return start + np.cumsum(lengths, dtype=np.int64), np.frombuffer(b"".join(encoded), np.uint8)
