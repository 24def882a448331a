import numpy as np
import pytest

from jaxvla.data.transforms.goals import GoalConfig
from jaxvla.errors import ConfigError

DRAWS = 40_000


def draw(config, step, length, n=DRAWS, seed=0):
    uniforms = np.random.default_rng(seed).random((n, 2))
    return config.draw(np.full(n, step), np.full(n, length), uniforms)


@pytest.mark.parametrize("strategy", ["uniform", "last_state_upweighted", "geometric"])
def test_the_last_transition_reaches_the_last_frame(strategy):
    assert (draw(GoalConfig(strategy), 9, 10) == 10).all()


@pytest.mark.parametrize("strategy", ["uniform", "last_state_upweighted", "geometric"])
def test_reached_proportion(strategy):
    never = draw(GoalConfig(strategy), 2, 10)
    assert never.min() == 4
    assert never.max() == 10
    often = draw(GoalConfig(strategy, reached_proportion=0.3), 2, 10)
    assert abs((often == 3).mean() - 0.3) < 0.01


def test_uniform_is_uniform_over_the_frames_ahead():
    counts = np.bincount(draw(GoalConfig("uniform"), 2, 10), minlength=11)
    assert (counts[:4] == 0).all()
    np.testing.assert_allclose(counts[4:] / DRAWS, 1 / 7, atol=0.01)


def test_last_state_upweighted_piles_up_at_the_end():
    # goal = min(step + 1 + U{1..T-1}, T): with T = 10, step = 4 the offsets 5..9 all end at frame 10.
    counts = np.bincount(draw(GoalConfig("last_state_upweighted"), 4, 10), minlength=11) / DRAWS
    np.testing.assert_allclose(counts[6:10], 1 / 9, atol=0.01)
    np.testing.assert_allclose(counts[10], 5 / 9, atol=0.01)
    assert (draw(GoalConfig("last_state_upweighted"), 8, 10) == 10).all()


def test_geometric_falls_by_the_discount():
    counts = np.bincount(draw(GoalConfig("geometric", discount=0.7), 0, 8, 400_000), minlength=9).astype(float)
    assert counts[:2].sum() == 0
    np.testing.assert_allclose(counts[3:8] / counts[2:7], 0.7, atol=0.03)


def test_delta_goals_stay_within_their_window():
    config = GoalConfig("delta_goals", delta=(3, 6))
    assert set(draw(config, 2, 10)) == {5, 6, 7}
    assert set(draw(config, 6, 10)) == {9, 10}
    np.testing.assert_array_equal(config.has_goal(np.array([0, 6, 7, 0]), np.array([10, 10, 10, 3])), [1, 1, 0, 0])


def test_delta_goals_from_zero_drop_no_step_and_may_be_the_frame_itself():
    config = GoalConfig("delta_goals", delta=(0, 24))
    assert config.has_goal(np.array([0, 9, 1]), np.array([10, 10, 2])).all()
    assert set(draw(config, 8, 10)) == {8, 9, 10}


def test_extreme_uniforms_stay_in_range():
    for strategy in ("uniform", "last_state_upweighted", "geometric", "delta_goals"):
        for u in (0.0, np.nextafter(1, 0)):
            step, length = np.arange(10), np.full(10, 10)
            goal = GoalConfig(strategy).draw(step, length, np.full((10, 2), u))
            assert (goal <= 10).all()
            assert (goal >= step).all()


@pytest.mark.parametrize(
    "bad", [{"strategy": "nearest"}, {"reached_proportion": 1.5}, {"discount": 1.0}, {"delta": (5, 5)}]
)
def test_bad_settings_are_refused(bad):
    with pytest.raises(ConfigError, match=f"goal_relabeling.{next(iter(bad))}"):
        GoalConfig(**bad)
