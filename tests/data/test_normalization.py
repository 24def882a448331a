import json

import numpy as np
import pytest

from jaxvla.data.normalization import FieldStatistics, Normalizer, Statistics
from jaxvla.errors import ConfigError, DataError


@pytest.fixture
def values():
    values = np.random.default_rng(0).gamma(2.0, 0.1, (500, 4)).astype(np.float32)
    values[:, 3] = 0.25  # a dimension that never moves
    return values


def test_statistics_against_numpy(values):
    s = FieldStatistics.of(values)
    np.testing.assert_allclose(s.mean, values.mean(0), rtol=1e-6)
    np.testing.assert_allclose(s.std, values.std(0), rtol=1e-5, atol=1e-8)
    np.testing.assert_array_equal(s.max, values.max(0))
    np.testing.assert_allclose(s.q99, np.quantile(values, 0.99, axis=0), rtol=1e-6)


def test_not_finite_values_are_named(values):
    values[17, 2] = np.nan
    with pytest.raises(DataError, match="transition 17, dimension 2"):
        FieldStatistics.of(values)


@pytest.mark.parametrize("kind", ["normal", "bounds", "bounds_q99", "none"])
def test_inverse_undoes_forward_within_the_bounds(values, kind):
    normalizer = Normalizer(kind, FieldStatistics.of(values))
    s = normalizer.statistics
    inside = np.clip(values, s.q01, s.q99)
    np.testing.assert_allclose(normalizer.inverse(normalizer.forward(inside)), inside, atol=1e-6)


def test_normal_has_zero_mean_and_unit_deviation_where_data_moves(values):
    y = Normalizer("normal", FieldStatistics.of(values)).forward(values)
    np.testing.assert_allclose(y.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(y.std(0), [1, 1, 1, 0], atol=1e-5)


def test_bounds_reach_and_never_leave_one(values):
    s = FieldStatistics.of(values)
    y = Normalizer("bounds", s).forward(values)
    np.testing.assert_allclose(y[:, :3].min(0), -1, atol=1e-6)
    np.testing.assert_allclose(y[:, :3].max(0), 1, atol=1e-6)
    clipped = Normalizer("bounds_q99", s).forward(values)
    assert clipped.min() == -1
    assert clipped.max() == 1


def test_constant_dimensions_become_zero_and_return(values):
    for kind in ("normal", "bounds", "bounds_q99"):
        normalizer = Normalizer(kind, FieldStatistics.of(values))
        assert (normalizer.forward(values)[:, 3] == 0).all()
        noisy = np.random.default_rng(1).standard_normal((5, 4))
        np.testing.assert_array_equal(normalizer.inverse(noisy)[:, 3], np.float32(0.25))


def test_masked_dimensions_pass_through(values):
    normalizer = Normalizer("normal", FieldStatistics.of(values), (True, False, True, True))
    np.testing.assert_array_equal(normalizer.forward(values)[:, 1], values[:, 1])
    np.testing.assert_allclose(normalizer.inverse(normalizer.forward(values)), values, atol=1e-6)


def test_published_bridge_quantiles_unnormalize_as_openvla_does(samples):
    text = (samples / "bridge_statistics" / "openvla_bridge_orig_dataset_statistics.json").read_text()
    published = json.loads(text)["bridge_orig"]["action"]
    s = FieldStatistics.from_json({name: published[name] for name in ("mean", "std", "min", "max", "q01", "q99")})
    robot = Normalizer("bounds_q99", s, (True,) * 6 + (False,)).inverse(np.array([[0.0] * 7, [1.0] * 7]))
    np.testing.assert_allclose(robot[:, 0], [-0.00020879, 0.02830968], atol=1e-8)
    np.testing.assert_array_equal(robot[:, 6], [0, 1])


def test_json_round_trip_is_exact(values):
    s = Statistics(FieldStatistics.of(values), FieldStatistics.of(values[:, :2]), 500, 9)
    back = Statistics.from_json(json.loads(s.dumps()))
    assert (back.num_transitions, back.num_trajectories) == (500, 9)
    for name in ("mean", "std", "min", "max", "q01", "q99"):
        np.testing.assert_array_equal(getattr(back.actions, name), getattr(s.actions, name))


def test_bad_settings_are_refused(values):
    s = FieldStatistics.of(values)
    with pytest.raises(ConfigError, match="bounds_q99"):
        Normalizer("z-score", s)
    with pytest.raises(ConfigError, match="3 entries for 4"):
        Normalizer("normal", s, (True,) * 3)
