"""Statistics and normalizations, from LeRobot's to ours and back.

MEAN_STD    (x - mean) / (std + 1e-8)           normal
MIN_MAX     2 (x - min) / (max - min) - 1       bounds, which is kept within [-1, 1]
QUANTILES   2 (x - q01) / (q99 - q01) - 1       bounds_q99, likewise
IDENTITY    x                                   none
"""

from collections.abc import Mapping

import numpy as np

from jaxvla.data.transforms.normalization import FieldStatistics, Normalizer
from jaxvla.errors import WeightsError

# LeRobot's mode of a normalization, and our kind.
KINDS = {"MEAN_STD": "normal", "MIN_MAX": "bounds", "QUANTILES": "bounds_q99", "IDENTITY": "none"}
MODES = {kind: mode for mode, kind in KINDS.items()}

_NEEDED = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "IDENTITY": ()}


def kind_of(mode: str, what: str) -> str:
    """Our kind of a mode of LeRobot.

    Args:
        mode: of the normalization.
        what: of which file and feature, for errors.

    Raises:
        WeightsError: there is none.
    """
    if mode not in KINDS:
        raise WeightsError(f"{what} is normalized by {mode}, which is not done here; known are {', '.join(KINDS)}")
    return KINDS[mode]


def read_field(stored: Mapping[str, np.ndarray], mode: str, dims: int, what: str) -> FieldStatistics:
    """The statistics of one feature.

    Those that its normalization does not use may lack; they are then put where one deviation, or the ends that it does
    use, would have them, and nothing reads them.

    Args:
        stored: by name, each [d].
        mode: LeRobot's of the normalization.
        dims: d.
        what: of which file and feature, for errors.

    Raises:
        WeightsError: one that is used is missing, has other dimensions, or was never set.
    """
    missing = [name for name in _NEEDED[mode] if name not in stored]
    if missing:
        raise WeightsError(
            f"{what} is normalized by {mode}, and its statistics {', '.join(missing)} are missing; there are: "
            f"{', '.join(stored) or 'none'}"
        )
    values = {name: x.astype(np.float32) for name, x in stored.items() if x.dtype.kind == "f" and x.shape == (dims,)}
    for name in _NEEDED[mode]:
        if name not in values:
            raise WeightsError(f"{what}: its statistic {name} has shape {list(stored[name].shape)}, not [{dims}]")
        if not np.isfinite(values[name]).all():
            raise WeightsError(f"{what}: its statistic {name} is {values[name].tolist()}: it was never computed")
    values = {name: x for name, x in values.items() if np.isfinite(x).all()}
    low, high = _ends(values, dims)
    mean = values.get("mean", (low + high) / 2)
    std = values.get("std", (high - low) / 2)
    low, high = values.get("min", mean - std), values.get("max", mean + std)
    q01, q99 = values.get("q01", low), values.get("q99", high)
    if mode == "QUANTILES":
        # Where both are the same, LeRobot gives this one value, whatever the ends are.
        low, high = np.where(q01 == q99, q01, low), np.where(q01 == q99, q99, high)
    return FieldStatistics(mean, std, low, high, q01, q99)


def written_field(normalizer: Normalizer, count: int, acts: bool) -> dict[str, np.ndarray]:
    """The statistics by which LeRobot does what a normalizer does, [d] each, and the `count` of what they are of.

    Those that its mode uses say what is done: a dimension that is not normalized has them of the identity. Of one that
    is constant in the data actions become the constant, and states 0.

    Args:
        normalizer: of the feature.
        count: transitions.
        acts: it is inverted, to act; else a state goes forward through it.
    """
    own = normalizer.statistics
    values = {name: getattr(own, name) for name in ("mean", "std", "min", "max", "q01", "q99")}
    shift, scale = normalizer.affine()
    still = scale == 0
    if normalizer.kind == "normal":
        values |= {"mean": shift, "std": scale if acts else np.where(still, 1, scale)}
    elif normalizer.kind != "none":
        reach = scale if acts else np.where(still, 1, scale)
        values |= dict(zip(_NEEDED[MODES[normalizer.kind]], (shift - reach, shift + reach)))
    return {name: x.astype(np.float32) for name, x in values.items()} | {"count": np.array([count], np.int64)}


def _ends(values: Mapping[str, np.ndarray], dims: int) -> tuple[np.ndarray, np.ndarray]:
    """What is known of where the values lie, for the moments that lack."""
    for names in (("min", "max"), ("q01", "q99")):
        if all(name in values for name in names):
            return values[names[0]], values[names[1]]
    return -np.ones(dims, np.float32), np.ones(dims, np.float32)
