"""What can be read from hidden states by a linear map, on episodes that the map was not made from.

Axis letters: n samples, d width of a hidden state, c numbers that are read.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

_PENALTIES = tuple(10.0 ** np.arange(-1, 6))
_HELD_OUT = 4  # every so many episodes of the map's own choose its penalty


@dataclasses.dataclass(frozen=True)
class Halves:
    """Two halves of the episodes: a map is made from one and judged on the other.

    Frames of one episode are so alike that a map which knew some of them would know the others.

    Args:
        episode_n: the episode of each sample.

    Attributes:
        own_n, judged_n: bool [n], the samples of each half.
        chosen_n: bool [n], those of the first half on which the penalty is chosen.
    """

    episode_n: np.ndarray
    own_n: np.ndarray = dataclasses.field(init=False)
    judged_n: np.ndarray = dataclasses.field(init=False)
    chosen_n: np.ndarray = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        rank = np.unique(self.episode_n, return_inverse=True)[1]
        own = rank % 2 == 0
        for name, value in (("own_n", own), ("judged_n", ~own), ("chosen_n", own & (rank // 2 % _HELD_OUT == 0))):
            object.__setattr__(self, name, value)


def read_classes(x_nd: np.ndarray, names: Sequence[str], halves: Halves) -> float:
    """The share of the second half whose name a linear map finds: the highest of one number for each name.

    A name that the first half does not have is never found.
    """
    known, label_n = np.unique(np.asarray(names), return_inverse=True)
    predicted_nc = _read(x_nd, np.eye(len(known))[label_n], halves)
    return float((predicted_nc.argmax(1) == label_n)[halves.judged_n].mean())


def most_frequent(names: Sequence[str], halves: Halves) -> float:
    """The share of the second half that has the name which is the most frequent in the first."""
    own, counts = np.unique(np.asarray(names)[halves.own_n], return_counts=True)
    return float((np.asarray(names)[halves.judged_n] == own[counts.argmax()]).mean())


def read_points(x_nd: np.ndarray, points_nc: np.ndarray, halves: Halves) -> tuple[float, float]:
    """How well numbers are read in the second half: the share of their variance that is explained, and the median
    distance, in the units of the numbers."""
    return _explained(_read(x_nd, points_nc, halves), points_nc, halves)


def mean_point(points_nc: np.ndarray, halves: Halves) -> tuple[float, float]:
    """`read_points` of who always says the mean of the first half."""
    return _explained(np.broadcast_to(points_nc[halves.own_n].mean(0), points_nc.shape), points_nc, halves)


def _explained(predicted_nc: np.ndarray, points_nc: np.ndarray, halves: Halves) -> tuple[float, float]:
    predicted, true = predicted_nc[halves.judged_n], points_nc[halves.judged_n]
    left = ((predicted - true) ** 2).sum() / max(((true - true.mean(0)) ** 2).sum(), 1e-12)
    return float(1 - left), float(np.median(np.linalg.norm(predicted - true, axis=1)))


def _read(x_nd: np.ndarray, y_nc: np.ndarray, halves: Halves) -> np.ndarray:
    """What ridge regression of the first half says of every sample."""
    fitted = halves.own_n & ~halves.chosen_n
    if not fitted.any() or not halves.chosen_n.any() or not halves.judged_n.any():
        raise ValueError("too few episodes to make, choose and judge a map from")
    errors = [((_ridge(x_nd, y_nc, fitted, p) - y_nc)[halves.chosen_n] ** 2).sum() for p in _PENALTIES]
    return _ridge(x_nd, y_nc, halves.own_n, _PENALTIES[int(np.argmin(errors))])


def _ridge(x_nd: np.ndarray, y_nc: np.ndarray, fitted_n: np.ndarray, penalty: float) -> np.ndarray:
    x_nd = x_nd.astype(np.float64)
    mean_d, std_d, offset_c = x_nd[fitted_n].mean(0), x_nd[fitted_n].std(0), y_nc[fitted_n].mean(0)
    x_nd = (x_nd - mean_d) / np.where(std_d > 1e-9, std_d, 1)
    own_nd = x_nd[fitted_n]
    gram_dd = own_nd.T @ own_nd + penalty * np.eye(x_nd.shape[1])
    return x_nd @ np.linalg.solve(gram_dd, own_nd.T @ (y_nc[fitted_n] - offset_c)) + offset_c
