"""Statistics of an episode and of all, as LeRobot defines them.

Source: lerobot 0.3.3 and 0.4.4, lerobot/datasets/compute_stats.py. Quantiles are those of all values, where LeRobot
averages those of the episodes; it finds them by 5000 bins, and so within a 5000th of the range.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

QUANTILES = {"q01": 0.01, "q10": 0.1, "q50": 0.5, "q90": 0.9, "q99": 0.99}
MOMENTS = ("min", "max", "mean", "std", "count")
# Of an episode of n frames n ** 0.75 are looked at, and between these.
_FEWEST, _MOST, _POWER = 100, 10_000, 0.75
# Pictures whose longer side is this or more are thinned out until it has about the other.
_LARGE, _THINNED = 300, 150
_LEVELS = 256

Statistics = dict[str, Any]  # by name, nested lists


def of_numbers(values: np.ndarray) -> Statistics:
    """Of a column [n, ...] over its rows; scalars count as vectors of one."""
    values = values.reshape(len(values), -1, *values.shape[2:]).astype(np.float64)
    found = {"min": values.min(0), "max": values.max(0), "mean": values.mean(0), "std": values.std(0)}
    return {name: x.tolist() for name, x in found.items()} | {"count": [len(values)]} | quantiles_of(values)


def quantiles_of(values: np.ndarray) -> Statistics:
    """Of a column [n, ...]: the smallest value that so large a share of them does not exceed."""
    found = np.quantile(values.reshape(len(values), -1), [*QUANTILES.values()], axis=0, method="inverted_cdf")
    return {name: own.reshape(values.shape[1:] or (1,)).tolist() for name, own in zip(QUANTILES, found)}


def sampled_frames(count: int) -> list[int]:
    """Which of so many frames statistics of pictures are made of."""
    number = max(min(count, _FEWEST), min(int(count**_POWER), _MOST))
    return np.round(np.linspace(0, count - 1, number)).astype(int).tolist()


@dataclasses.dataclass(frozen=True, eq=False)
class Levels:
    """How often each of 256 levels is in each channel of some pictures: int64 [3, 256]; and of how many pictures."""

    counts: np.ndarray
    pictures: int

    @classmethod
    def none(cls) -> "Levels":
        """Of no picture."""
        return cls(np.zeros((3, _LEVELS), np.int64), 0)

    def __add__(self, other: "Levels") -> "Levels":
        return Levels(self.counts + other.counts, self.pictures + other.pictures)

    @classmethod
    def of(cls, picture: np.ndarray) -> "Levels":
        """Of a picture uint8 [h, w, 3], thinned out as LeRobot does it."""
        height, width = picture.shape[:2]
        if max(height, width) >= _LARGE:
            step = int((width if width > height else height) / _THINNED)
            picture = picture[::step, ::step]
        return cls(np.stack([np.bincount(picture[..., c].ravel(), minlength=_LEVELS) for c in range(3)]), 1)

    def statistics(self) -> Statistics:
        """Of values from 0 to 1, each [3, 1, 1] but the number of pictures."""
        levels, total = np.arange(_LEVELS) / (_LEVELS - 1), self.counts.sum(1)
        mean = self.counts @ levels / total
        variance = (self.counts * (levels - mean[:, None]) ** 2).sum(1) / total
        reached = np.cumsum(self.counts, 1) / total[:, None]
        found = {
            "min": levels[(self.counts > 0).argmax(1)],
            "max": levels[_LEVELS - 1 - (self.counts[:, ::-1] > 0).argmax(1)],
            "mean": mean,
            "std": np.sqrt(variance),
        }
        found |= {name: levels[(reached >= share).argmax(1)] for name, share in QUANTILES.items()}
        return {name: x[:, None, None].tolist() for name, x in found.items()} | {"count": [self.pictures]}


@dataclasses.dataclass(eq=False)
class Joined:
    """Minimum, maximum, mean, deviation and number of many episodes, of those of each, as LeRobot aggregates them.

    `spread` is the sum of squared distances from the mean.
    """

    lower: np.ndarray | float = np.inf
    upper: np.ndarray | float = -np.inf
    mean: np.ndarray | float = 0.0
    spread: np.ndarray | float = 0.0
    count: int = 0

    def add(self, part: Mapping[str, Any]) -> None:
        """Adds the statistics of an episode."""
        lower, upper, mean, deviation = (np.asarray(part[name], np.float64) for name in MOMENTS[:4])
        (number,) = part["count"]
        total = self.count + number
        moved = mean - self.mean
        self.lower, self.upper = np.minimum(self.lower, lower), np.maximum(self.upper, upper)
        self.spread = self.spread + deviation**2 * number + moved**2 * (self.count * number / total)
        self.mean, self.count = self.mean + moved * (number / total), total

    def statistics(self) -> Statistics:
        """Of all."""
        found = (self.lower, self.upper, self.mean, np.sqrt(self.spread / self.count))
        return {name: np.asarray(x).tolist() for name, x in zip(MOMENTS, found)} | {"count": [self.count]}


def only(statistics: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> dict[str, Statistics]:
    """Of each feature those that are named."""
    return {key: {name: own[name] for name in names if name in own} for key, own in statistics.items()}
