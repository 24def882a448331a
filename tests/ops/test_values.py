import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.ops.values import (
    advantage_weights,
    contrastive_nce_loss,
    contrastive_td_loss,
    expectile_loss,
    pessimistic_odds,
)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def bce(logits, label):
    return -np.log(sigmoid(logits) if label else 1 - sigmoid(logits))


def test_expectile_loss_weighs_errors_above_and_below():
    np.testing.assert_allclose(expectile_loss(jnp.array([2.0, -2.0, 0.0]), 0.7), [0.7 * 4, 0.3 * 4, 0], rtol=1e-6)


@pytest.mark.parametrize(("expectile", "expected"), [(0.5, 3.0), (0.9, 7.4)])
def test_the_expectile_minimises_its_loss(expectile, expected):
    # Of the samples 0, 1, 2 and 9: the mean, and the point where 0.9 (9 - m) = 0.1 (m + (m - 1) + (m - 2)).
    guesses = jnp.linspace(0, 9, 901)
    losses = expectile_loss(jnp.array([0.0, 1.0, 2.0, 9.0])[:, None] - guesses, expectile).sum(0)
    found = float(guesses[losses.argmin()])
    assert found == pytest.approx(expected if expectile == 0.5 else (0.9 * 9 + 0.1 * 3) / 1.2, abs=0.01)


def test_advantage_weights_are_clipped():
    advantages = np.array([-3.0, 0, 1, 2.2, 2.4, 1e4], np.float32)
    expected = np.minimum(np.exp(np.minimum(advantages.astype(np.float64), 100) / 0.5), 100)
    found = advantage_weights(jnp.asarray(advantages), 0.5, 100.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    assert expected[3] < 100 == expected[4]


def test_odds_are_those_of_the_smaller_probability():
    logits = np.array([[0.5, 3.5, -2.0, 90.0], [1.0, 2.0, 4.0, 80.0]], np.float32)
    p = sigmoid(logits[:, :3].astype(np.float64)).min(0)
    expected = [*np.clip(p / (1 - p), 0, 20), 20]
    np.testing.assert_allclose(pessimistic_odds(jnp.asarray(logits), 20.0), expected, rtol=1e-5)


def test_contrastive_td_loss():
    rng = np.random.default_rng(0)
    positive, negative = rng.standard_normal((2, 2, 5))
    odds = rng.uniform(0, 20, 5)
    expected = 0.1 * bce(positive, 1) + 0.9 * odds * bce(negative, 1) + bce(negative, 0)
    found = contrastive_td_loss(*(jnp.asarray(x, jnp.float32) for x in (positive, negative, odds)), 0.9)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_contrastive_nce_loss():
    logits = np.random.default_rng(0).standard_normal((2, 3, 3))
    expected = np.where(np.eye(3), bce(logits, 1), bce(logits, 0))
    np.testing.assert_allclose(contrastive_nce_loss(jnp.asarray(logits, jnp.float32)), expected, rtol=1e-5)
