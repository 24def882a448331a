"""Statistics of actions and proprio, and the normalizations made of them, which the policy inverts for the robot."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

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
        """Computes the statistics of `values` [n, d]; moments in float64, quantiles with linear interpolation.

        Raises:
            DataError: no rows, or a value that is not finite.
        """
        if not len(values):
            raise DataError("no transitions to compute statistics from")
        if not np.isfinite(values).all():
            row, column = np.argwhere(~np.isfinite(values))[0]
            raise DataError(f"value at transition {row}, dimension {column} is {values[row, column]}")
        q01, q99 = np.quantile(values, [0.01, 0.99], axis=0)
        moments = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
        return cls(*(np.asarray(x, np.float32) for x in (*moments, values.min(0), values.max(0), q01, q99)))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "FieldStatistics":
        """The inverse of `to_json`."""
        return cls(**{field.name: np.asarray(values[field.name], np.float32) for field in dataclasses.fields(cls)})

    def to_json(self) -> dict[str, list[float]]:
        """Plain lists; float32 values survive the round trip exactly."""
        return {field.name: getattr(self, field.name).astype(float).tolist() for field in dataclasses.fields(self)}


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """Statistics of a dataset's actions [d] and proprio [p], and its size."""

    actions: FieldStatistics
    proprio: FieldStatistics
    num_transitions: int
    num_trajectories: int

    def to_json(self) -> dict[str, Any]:
        """The content of dataset_statistics.json."""
        return {
            "actions": self.actions.to_json(),
            "proprio": self.proprio.to_json(),
            "num_transitions": self.num_transitions,
            "num_trajectories": self.num_trajectories,
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Statistics":
        """The inverse of `to_json`."""
        return cls(
            FieldStatistics.from_json(values["actions"]),
            FieldStatistics.from_json(values["proprio"]),
            int(values["num_transitions"]),
            int(values["num_trajectories"]),
        )

    def dumps(self) -> str:
        """dataset_statistics.json as text."""
        return json.dumps(self.to_json(), indent=1)


@dataclasses.dataclass(frozen=True, eq=False)
class Normalizer:
    """An invertible per-dimension affine map, clipped forward for the bounded kinds.

    normal      (x - mean) / std
    bounds      2 (x - min) / (max - min) - 1, clipped to [-1, 1]
    bounds_q99  2 (x - q01) / (q99 - q01) - 1, clipped to [-1, 1]    (OpenVLA BOUNDS_Q99)
    none        x

    Dimensions outside `mask` pass through; those that are constant in the data become 0 and come back as the constant.
    bridge_data_v2 maps bounds to [0, 1]; [-1, 1] is used here, as Octo and OpenVLA do, so that both kinds agree.
    """

    kind: str
    statistics: FieldStatistics
    mask: tuple[bool, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ConfigError(f"normalization must be one of {', '.join(KINDS)}, not {self.kind!r}")
        dims = len(self.statistics.mean)
        if self.mask is not None and len(self.mask) != dims:
            raise ConfigError(f"the normalization mask has {len(self.mask)} entries for {dims} dimensions")

    def forward(self, x: np.ndarray) -> np.ndarray:
        """Robot units [..., d] to normalized float32 [..., d]."""
        shift, scale = self._affine()
        y = (np.asarray(x, np.float32) - shift) / scale
        if self.kind.startswith("bounds"):
            y = np.where(self._active(), np.clip(y, -1, 1), y)
        return y.astype(np.float32)

    def inverse(self, y: np.ndarray) -> np.ndarray:
        """Normalized [..., d] to robot units, float32 [..., d]."""
        shift, scale = self._affine()
        moving = self._range() > CONSTANT_BELOW
        y = np.where(self._active() & ~moving, 0, np.asarray(y, np.float32))
        return (y * scale + shift).astype(np.float32)

    def _active(self) -> np.ndarray:
        mask = np.ones(len(self.statistics.mean), bool) if self.mask is None else np.asarray(self.mask)
        return mask & (self.kind != "none")

    def _range(self) -> np.ndarray:
        s = self.statistics
        return {"normal": s.max - s.min, "bounds": s.max - s.min, "bounds_q99": s.q99 - s.q01}.get(
            self.kind, np.full_like(s.mean, np.inf)
        )

    def _affine(self) -> tuple[np.ndarray, np.ndarray]:
        s = self.statistics
        shift, scale = {
            "normal": (s.mean, s.std),
            "bounds": ((s.max + s.min) / 2, (s.max - s.min) / 2),
            "bounds_q99": ((s.q99 + s.q01) / 2, (s.q99 - s.q01) / 2),
            "none": (np.zeros_like(s.mean), np.ones_like(s.mean)),
        }[self.kind]
        scale = np.where(self._range() > CONSTANT_BELOW, scale, 1)
        active = self._active()
        return np.where(active, shift, 0).astype(np.float32), np.where(active, scale, 1).astype(np.float32)
