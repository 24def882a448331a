import json

import numpy as np
import pytest

from jaxvla.data.formats.arrays import rows_at_a_time
from jaxvla.data.transforms import normalization
from jaxvla.data.transforms.normalization import FieldStatistics, Normalizer, Statistics
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


def kinds_of_dimensions(rows):
    """Columns that move, stand still, move rarely (one and two steps), and move little far from zero."""
    rng = np.random.default_rng(1)
    columns = {
        "moving": rng.normal(0, 0.02, rows),
        "constant": np.full(rows, 0.25),
        "far constant": np.full(rows, 1234.5),
        "rare": np.where(np.arange(rows) == 5, 0.3, 0.0),
        "rarely closed gripper": np.where(np.arange(rows) < 2, 0.0, 1.0),
        "noisy gripper": np.where(np.arange(rows) < 2, 0.0, 1.0) + rng.uniform(0, 0.02, rows),
        "far and small": 1000 + rng.integers(0, 3, rows) * np.spacing(np.float32(1000)),
        "large": rng.normal(0, 1e4, rows),
    }
    return np.stack(list(columns.values()), 1).astype(np.float32)


@pytest.mark.parametrize("rows", [1, 2, 195, 2000])
@pytest.mark.parametrize("masked", [None, "all", "none", "every other"])
@pytest.mark.parametrize("kind", ["normal", "bounds", "bounds_q99", "none"])
def test_inverse_undoes_forward_within_the_bounds(kind, masked, rows):
    data = kinds_of_dimensions(rows)
    dims = data.shape[1]
    mask = {None: None, "all": (True,) * dims, "none": (False,) * dims, "every other": (True, False) * (dims // 2)}
    normalizer = Normalizer(kind, FieldStatistics.of(data), mask[masked], ends=(4,))
    low, high = (normalizer.inverse(np.full(dims, bound)) for bound in (-np.inf, np.inf))
    inside = np.clip(data, low, high)
    y = normalizer.forward(data)
    assert (abs(normalizer.inverse(y) - inside) <= 3e-7 * abs(data).max(0)).all()
    np.testing.assert_array_equal(normalizer.forward(inside), y)
    limits = np.array(normalizer.limits())
    assert (limits[:, 0] <= y).all()
    assert (y <= limits[:, 1]).all()
    # Only outliers of dimensions that move steadily are cut.
    cut = (inside != data).any(0)
    assert not cut[1:5].any()
    assert not (cut.any() and kind != "bounds_q99")


def test_a_gripper_that_closes_rarely_closes():
    for rows in (195, 400, 5000):
        data = kinds_of_dimensions(rows)
        normalizer = Normalizer("bounds_q99", FieldStatistics.of(data))
        np.testing.assert_array_equal(normalizer.forward(data)[:, 4], np.where(np.arange(rows) < 2, -1, 1))
        np.testing.assert_array_equal(normalizer.inverse(normalizer.forward(data))[:, 3:5], data[:, 3:5])


def test_the_ends_of_a_gripper_are_no_outliers():
    width = np.clip(np.linspace(-0.001, 0.08, 1000), 0.02, 0.08).astype(np.float32)[::-1, None]
    width[-4:] = 0  # closed in four steps, 0.02 and more in the others
    width[-8:-4] = 0.01
    s = FieldStatistics.of(width)
    assert Normalizer("bounds_q99", s).inverse(np.array([-1.0])) == s.q01 == np.float32(0.02)
    assert Normalizer("bounds_q99", s, ends=(0,)).inverse(np.array([-1.0])) == 0


def test_limits_are_what_the_inverse_tells_apart(values):
    mask = (True, False, True, True)
    s, free = FieldStatistics.of(values), (-np.inf, np.inf)
    assert Normalizer("bounds", s, mask).limits() == ((-1, 1), free, (-1, 1), (0, 0))
    assert Normalizer("normal", s, mask).limits() == (free, free, free, (0, 0))
    assert Normalizer("none", s).limits() == (free,) * 4
    beyond = np.array([[-5.0] * 4, [5.0] * 4])
    robot = Normalizer("bounds", s, mask).inverse(beyond)
    np.testing.assert_array_equal(robot[:, 0], [s.min[0], s.max[0]])
    np.testing.assert_array_equal(robot[:, 1], [-5, 5])


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


def test_a_mask_goes_with_the_statistics_that_have_one(values):
    s = FieldStatistics.of(values)
    assert "action_mask" not in Statistics(s, s, 500, 9).to_json()
    masked = Statistics(s, s, 500, 9, (True, True, False, True))
    assert Statistics.from_json(json.loads(masked.dumps())).action_mask == (True, True, False, True)


def test_bad_settings_are_refused(values):
    s = FieldStatistics.of(values)
    with pytest.raises(ConfigError, match="action_mask has 3 entries for 4 action dimensions"):
        Statistics(s, s, 500, 9, (True,) * 3)
    with pytest.raises(ConfigError, match="bounds_q99"):
        Normalizer("z-score", s)
    with pytest.raises(ConfigError, match="3 entries for 4"):
        Normalizer("normal", s, (True,) * 3)


@pytest.mark.parametrize("dims", [1, 2, 7])
def test_a_table_in_pieces_has_the_statistics_of_one_array_to_the_bit(dims, monkeypatch):
    """What checkpoints were normalized by must not move when a dataset is read in another way."""
    rng = np.random.default_rng(dims)
    values = rng.normal(3, 2, (30_000, dims)).astype(np.float32)
    values[:, -1] = rng.random(30_000) < 0.005
    monkeypatch.setattr(normalization, "rows_at_a_time", lambda count: rows_at_a_time(count, 777))
    found = FieldStatistics.of(values)
    moments = values.mean(0, dtype=np.float64), values.std(0, dtype=np.float64)
    expected = [np.asarray(x, np.float32) for x in (*moments, values.min(0), values.max(0))]
    for x, y in zip((found.mean, found.std, found.min, found.max), expected):
        np.testing.assert_array_equal(x, y)
    between = np.quantile(values[:, :-1], [0.01, 0.99], axis=0).astype(np.float32)
    np.testing.assert_array_equal([found.q01[:-1], found.q99[:-1]], between)
    assert (found.q01[-1], found.q99[-1]) == (0, 0)
