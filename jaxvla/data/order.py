"""The order in which transitions are seen: a random permutation per epoch and group, computed, never stored.

The transition at any position of the endless training stream follows from (seed, position) alone. So the stream needs
no shuffle buffer, is the same for any number of processes and threads, and resumes from its position.
"""

import dataclasses

import numpy as np

_ROUNDS = 6
# Slots of the repeating pattern by which groups share the stream; weights are exact to 1 / _PATTERN.
_PATTERN = 1 << 16


def _mix(x: np.ndarray) -> np.ndarray:
    """splitmix64's finalizer (Steele, Lea and Flood 2014): uint64 to well-mixed uint64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def _keys(*parts: np.ndarray | int) -> np.ndarray:
    """One uint64 key per row from the parts (arrays broadcast), every part mixed in."""
    key = np.zeros(1, np.uint64)
    for part in parts:
        key = _mix(key + np.asarray(part).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15))
    return key


def permute(index: np.ndarray, size: np.ndarray, key: np.ndarray) -> np.ndarray:
    """Applies to each `index` the pseudo-random permutation of range(size) that `key` names.

    A balanced Feistel network on the next power of four, walked until the value falls below `size`.

    Args:
        index: int64 [n], 0 <= index < size.
        size: int64 [n], at least 1.
        key: uint64 [n].

    Returns:
        int64 [n]; a bijection of range(size) for every (size, key).
    """
    half = ((np.frexp(np.maximum(size - 1, 1).astype(np.float64))[1] + 1) // 2).astype(np.uint64)
    mask = (np.uint64(1) << half) - np.uint64(1)
    value, size = index.astype(np.uint64), size.astype(np.uint64)
    walking = np.ones(len(value), bool)
    while walking.any():
        v, h, m, k = value[walking], half[walking], mask[walking], key[walking]
        left, right = v >> h, v & m
        for r in range(_ROUNDS):
            left, right = right, left ^ (_mix(right + k + _mix(np.array([r + 1], np.uint64))) & m)
        value[walking] = (left << h) | right
        walking[walking] = value[walking] >= size[walking]
    return value.astype(np.int64)


@dataclasses.dataclass(frozen=True)
class Order:
    """The endless training stream over groups of transitions.

    Args:
        sizes: transitions in each group.
        weights: each group's share of the stream; positive, need not sum to 1.
        seed: any non-negative integer.
    """

    sizes: tuple[int, ...]
    weights: tuple[float, ...]
    seed: int

    def __post_init__(self) -> None:
        share = np.asarray(self.weights, np.float64) / np.sum(self.weights) * _PATTERN
        counts = np.floor(share).astype(np.int64)
        # Largest remainders get the slots that rounding down left over; every group keeps at least one.
        counts[np.argsort(-(share - counts), kind="stable")[: _PATTERN - counts.sum()]] += 1
        while (counts == 0).any():
            counts[np.argmax(counts == 0)] += 1
            counts[np.argmax(counts)] -= 1
        object.__setattr__(self, "_counts", counts)
        object.__setattr__(self, "_starts", np.cumsum(counts) - counts)

    def at(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The (group, transition of the group) at `positions` int64 [n] of the stream; each int64 [n].

        One group alone is gone through completely, in a new random order each time, before it starts again. Of several
        groups that holds of every block of 65,536 positions as a whole: within it, the next round of a group that is
        gone through more than once may begin before the last one ends.
        """
        block, slot = np.divmod(positions, _PATTERN)
        pattern = np.full(len(slot), _PATTERN)
        rank = slot if len(self.sizes) == 1 else permute(slot, pattern, _keys(self.seed, 0, block))
        group = np.searchsorted(self._starts, rank, side="right") - 1
        count = block * self._counts[group] + rank - self._starts[group]
        size = np.asarray(self.sizes, np.int64)[group]
        epoch, index = np.divmod(count, size)
        return group, permute(index, size, _keys(self.seed, 1, group, epoch))


def uniforms(seed: int, batch_index: int, shape: tuple[int, ...], stream: int = 0) -> np.ndarray:
    """The float64 random numbers in [0, 1) that belong to one batch; they depend on nothing else (Philox counters).

    Streams of another number are independent, so that one more use of random numbers leaves the others as they are.
    """
    return np.random.Generator(np.random.Philox(counter=[0, 0, 0, stream], key=[seed, batch_index])).random(shape)
