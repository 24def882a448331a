"""Normalizations between LeRobot's statistics and ours, against LeRobot's formulas."""

import dataclasses

import numpy as np
import pytest

from jaxvla.data.transforms.normalization import FieldStatistics, Normalizer
from jaxvla.errors import WeightsError
from jaxvla.interchange.statistics import KINDS, MODES, kind_of, read_field, written_field

# A dimension that is constant, one whose rare values are no outliers, and one that is not normalized.
VALUES = np.random.default_rng(0).normal(2.0, 3.0, (400, 5))
VALUES[:, 1], VALUES[:, 2] = 0.25, (np.arange(400) % 200 == 0)
MASK, ENDS = (True, True, True, False, True), (2,)


def forward(mode, stored, x):
    """As lerobot 0.4.4, processor/normalize_processor.py."""
    if mode == "IDENTITY":
        return x
    if mode == "MEAN_STD":
        return (x - stored["mean"]) / (stored["std"] + 1e-8)
    low, high = (stored[name] for name in (("min", "max") if mode == "MIN_MAX" else ("q01", "q99")))
    return 2 * (x - low) / np.where(high == low, 1e-8, high - low) - 1


def inverse(mode, stored, y):
    if mode == "IDENTITY":
        return y
    if mode == "MEAN_STD":
        return y * stored["std"] + stored["mean"]
    low, high = (stored[name] for name in (("min", "max") if mode == "MIN_MAX" else ("q01", "q99")))
    return (y + 1) / 2 * np.where(high == low, 1e-8, high - low) + low


@pytest.mark.parametrize("kind", MODES)
@pytest.mark.parametrize("mask", [None, MASK])
def test_lerobot_does_with_our_statistics_what_we_do(kind, mask):
    normalizer = Normalizer(kind, FieldStatistics.of(VALUES), mask, ENDS if kind == "bounds_q99" else ())
    mode, y = MODES[kind], np.random.default_rng(1).uniform(-1, 1, (50, 5))
    acting, seeing = (written_field(normalizer, 400, acts) for acts in (True, False))
    np.testing.assert_allclose(inverse(mode, acting, y), normalizer.inverse(y), rtol=1e-5, atol=1e-5)
    inside = np.clip(VALUES, np.quantile(VALUES, 0.02, 0), np.quantile(VALUES, 0.98, 0))
    np.testing.assert_allclose(forward(mode, seeing, inside), normalizer.forward(inside), rtol=1e-4, atol=1e-4)
    assert acting["count"].tolist() == [400]


@pytest.mark.parametrize("mode", KINDS)
def test_we_do_with_their_statistics_what_lerobot_does(mode):
    own = FieldStatistics.of(VALUES)
    stored = {field.name: getattr(own, field.name) for field in dataclasses.fields(own)}
    stored["q01"][2] = stored["q99"][2] = 0  # the middle 98 % are all the same
    names = {"MEAN_STD": ("mean", "std"), "MIN_MAX": ("min", "max"), "QUANTILES": ("q01", "q99"), "IDENTITY": ()}[mode]
    y = np.random.default_rng(1).uniform(-1, 1, (50, 5))
    for given in (stored, {name: stored[name] for name in names}):
        normalizer = Normalizer(kind_of(mode, "it"), read_field(given, mode, 5, "it"))
        np.testing.assert_allclose(normalizer.inverse(y), inverse(mode, stored, y), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        ({"mean": np.zeros(3, np.float32)}, "its statistics std are missing; there are: mean"),
        ({"mean": np.zeros(3, np.float32), "std": np.ones(2, np.float32)}, r"std has shape \[2\], not \[3\]"),
        ({"mean": np.zeros(3, np.float32), "std": np.full(3, np.inf, np.float32)}, "it was never computed"),
    ],
)
def test_statistics_that_cannot_be_used(stored, message):
    with pytest.raises(WeightsError, match=message):
        read_field(stored, "MEAN_STD", 3, "x: action")


def test_a_mode_that_is_not_done_here():
    with pytest.raises(WeightsError, match="normalized by QUANTILE10, which is not done here; known are MEAN_STD"):
        kind_of("QUANTILE10", "x: action")
