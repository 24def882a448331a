"""Statistics of actions and proprio, and the normalizations made of them, which the policy inverts for the robot."""

import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxvla.data.formats.arrays import rows_at_a_time
from jaxvla.errors import ConfigError, DataError

KINDS = ("normal", "bounds", "bounds_q99", "none")

# A dimension that moves less than this over a whole dataset (m, rad, gripper opening) holds no signal, only rounding.
CONSTANT_BELOW = 1e-6


@dataclasses.dataclass(frozen=True, eq=False)
class FieldStatistics:
    """Per-dimension statistics of one field over all transitions; each float32 [d], in robot units."""

    mean: np.ndarray
    std: np.ndarray
    min: np.ndarray
    max: np.ndarray
    q01: np.ndarray
    q99: np.ndarray

    @classmethod
    def of(cls, values: np.ndarray) -> "FieldStatistics":
        """Computes the statistics of `values` [n, d]; moments in float64. No more than a column of it is copied.

        Quantiles are interpolated linearly, but not over a jump of more than half of the range: between the two
        positions of a gripper there is no value, so the one farther out is taken.

        Raises:
            DataError: no rows, or a value that is not finite.
        """
        if not len(values):
            raise DataError("no transitions to compute statistics from")
        low, high, row = np.inf, -np.inf, 0
        for part in _rows(values):
            if not np.isfinite(part).all():
                at, column = np.argwhere(~np.isfinite(part))[0]
                raise DataError(f"value at transition {row + at}, dimension {column} is {part[at, column]}")
            low, high, row = np.minimum(part.min(0), low), np.maximum(part.max(0), high), row + len(part)
        mean = _sum(values, lambda part: part) / len(values)
        deviation = np.sqrt(_sum(values, lambda part: np.square(part - mean)) / len(values))
        bounds = [_quantiles(values[:, d]) for d in range(values.shape[1])]
        q01, q99 = np.array(bounds).T if bounds else np.empty((2, 0))
        return cls(*(np.asarray(x, np.float32) for x in (mean, deviation, low, high, q01, q99)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "FieldStatistics":
        """The inverse of `to_json`.

        Raises:
            ValueError: values that are no lists of finite numbers, as many in each.
        """
        arrays = {field.name: np.asarray(values[field.name], np.float32) for field in dataclasses.fields(cls)}
        for name, array in arrays.items():
            if array.ndim != 1 or len(array) != len(arrays["mean"]) or not np.isfinite(array).all():
                raise ValueError(f"{name} is {array.tolist()}, not {arrays['mean'].size} numbers")
        return cls(**arrays)

    def to_json(self) -> dict[str, list[float]]:
        """Plain lists; float32 values survive the round trip exactly."""
        return {field.name: getattr(self, field.name).astype(float).tolist() for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of a dataset's actions [d] and proprio [p], and its size.

    `action_mask` are the action dimensions that are normalized by them; empty for all.
    """

    actions: FieldStatistics
    proprio: FieldStatistics
    num_transitions: int
    num_trajectories: int
    action_mask: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        dims = len(self.actions.mean)
        if self.action_mask and len(self.action_mask) != dims:
            raise ConfigError(f"action_mask has {len(self.action_mask)} entries for {dims} action dimensions")

    def to_json(self) -> dict[str, Any]:
        """The content of dataset_statistics.json."""
        mask = {"action_mask": list(self.action_mask)} if self.action_mask else {}
        return {
            "actions": self.actions.to_json(),
            "proprio": self.proprio.to_json(),
            "num_transitions": self.num_transitions,
            "num_trajectories": self.num_trajectories,
            **mask,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Statistics":
        """The inverse of `to_json`."""
        return cls(
            FieldStatistics.from_json(values["actions"]),
            FieldStatistics.from_json(values["proprio"]),
            int(values["num_transitions"]),
            int(values["num_trajectories"]),
            tuple(values.get("action_mask", ())),
        )

    def dumps(self) -> str:
        """dataset_statistics.json as text."""
        return json.dumps(self.to_json(), indent=1)


class _Map(NamedTuple):
    """y = (x - shift) / scale, kept within [low, high]; each float64 [d]."""

    shift: np.ndarray
    scale: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Normalizer:
    """An invertible per-dimension affine map, clipped for the bounded kinds.

    normal      (x - mean) / std
    bounds      2 (x - min) / (max - min) - 1, clipped to [-1, 1]
    bounds_q99  2 (x - q01) / (q99 - q01) - 1, clipped to [-1, 1]    (OpenVLA BOUNDS_Q99)
    none        x

    Dimensions outside `mask` pass through; those that are constant in the data become 0 and come back as the constant.
    A dimension that moves, but in so few steps that q01 = q99, has no quantiles to be scaled by: bounds_q99 takes its
    min and max, and so it does for `ends`, dimensions whose rare values are no outliers, such as a gripper that closes
    rarely. Within the bounds `inverse` undoes `forward`; beyond them both give the bound.
    bridge_data_v2 maps bounds to [0, 1]; [-1, 1] is used here, as Octo and OpenVLA do, so that both kinds agree.
    """

    kind: str
    statistics: FieldStatistics
    mask: tuple[bool, ...] | None = None
    ends: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"normalization must be one of {', '.join(KINDS)}, not {self.kind!r}")
        dims = len(self.statistics.mean)
        if self.mask is not None and len(self.mask) != dims:
            raise ConfigError(f"the normalization mask has {len(self.mask)} entries for {dims} dimensions")

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Robot units [..., d] to normalized float32 [..., d]."""
        m = self._map
        return np.clip((np.asarray(x, np.float64) - m.shift) / m.scale, m.low, m.high).astype(np.float32)

    def inverse(self, y: np.ndarray) -> np.ndarray:
        """Normalized [..., d] to robot units, float32 [..., d]; values beyond the limits count as the limits."""
        m = self._map
        return (np.clip(np.asarray(y, np.float64), m.low, m.high) * m.scale + m.shift).astype(np.float32)

    def limits(self) -> tuple[tuple[float, float], ...]:
        """The lowest and the highest normalized value of each dimension that `inverse` tells apart from others.

        (-1, 1) where a kind has bounds, (0, 0) where the data is constant, (-inf, inf) elsewhere.
        """
        return tuple(zip(self._map.low.tolist(), self._map.high.tolist()))

    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """(shift, scale) of y = (x - shift) / scale between the limits, float64 [d]; scale 0 where data is constant."""
        return self._map.shift, np.where(self._map.high == 0, 0.0, self._map.scale)

    @functools.cached_property
    def _map(self) -> _Map:
        """What is constant, and the scale of what is not; in float64, for ranges that are small beside their offset."""
        values = {
            f.name: getattr(self.statistics, f.name).astype(np.float64) for f in dataclasses.fields(FieldStatistics)
        }
        low, high = values["min"], values["max"]
        active = np.full(len(low), self.kind != "none") & (True if self.mask is None else np.asarray(self.mask))
        constant = active & (high - low < CONSTANT_BELOW)
        if self.kind == "bounds_q99":
            inner = values["q99"] - values["q01"] >= CONSTANT_BELOW
            inner[list(self.ends)] = False
            low, high = np.where(inner, values["q01"], low), np.where(inner, values["q99"], high)
        shift, scale, limit = (low + high) / 2, (high - low) / 2, 1.0
        if self.kind == "normal":
            shift, scale, limit = values["mean"], values["std"], np.inf
        limit = np.where(constant, 0.0, np.where(active, limit, np.inf))
        return _Map(np.where(active, shift, 0.0), np.where(active & ~constant, scale, 1.0), 0.0 - limit, limit)


def _rows(values: np.ndarray) -> Iterator[np.ndarray]:
    """The rows of a table, some at a time."""
    return (values[rows] for rows in rows_at_a_time(len(values)))


def _sum(values: np.ndarray, of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The sum of what becomes of rows, in float64: to the bit that of all of them in one array."""
    if values.shape[1] == 1:  # numpy adds up a single column in pairs, several a row after the other
        return of(values.astype(np.float64)).sum(0)
    total = np.zeros((0, values.shape[1]))
    for part in _rows(values):
        total = np.add.reduce(np.concatenate([total, of(part.astype(np.float64))]), axis=0, keepdims=True)
    return total[0]


def _quantiles(column: np.ndarray) -> tuple[float, float]:
    """q01 and q99 of the values of one dimension, see `FieldStatistics.of`."""
    methods = ("linear", "lower", "higher")
    between, below, above = (np.quantile(column, [0.01, 0.99], method=method) for method in methods)
    jump = above - below > (column.max() - column.min()) / 2
    return tuple(np.where(jump, [below[0], above[1]], between).tolist())
