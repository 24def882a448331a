import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.ops import gaussian


def test_seven_dimensions_at_the_mean():
    zeros = jnp.zeros((2, 7))
    np.testing.assert_allclose(gaussian.log_prob(zeros, zeros, zeros), [-6.4326, -6.4326], atol=1e-4)


def test_log_prob_is_the_density():
    actions, mean, log_std = np.random.default_rng(0).standard_normal((3, 4, 2, 5)).astype(np.float32)
    std = np.exp(log_std)
    density = np.exp(-0.5 * ((actions - mean) / std) ** 2) / (std * math.sqrt(2 * math.pi))
    result = gaussian.log_prob(*map(jnp.asarray, (actions, mean, log_std)))
    np.testing.assert_allclose(result, np.log(density).sum(-1), rtol=1e-5)


def test_deviations():
    log_std = np.linspace(-3, 2, 5, dtype=np.float32)
    np.testing.assert_allclose(gaussian.deviation(jnp.asarray(log_std)), np.exp(log_std), rtol=1e-6)
    np.testing.assert_allclose(gaussian.deviation(jnp.asarray(log_std), True), np.tanh(np.exp(log_std)), rtol=1e-6)


@pytest.mark.parametrize(("mean", "log_std"), [(0.0, -1.0), (0.7, 0.0), (-1.2, -0.5)])
def test_the_squashed_density_integrates_to_one(mean, log_std):
    edges = np.linspace(-1, 1, 200001)
    actions = jnp.asarray((edges[1:] + edges[:-1]) / 2, jnp.float32)[:, None]
    rows = jnp.full_like(actions, mean), jnp.full_like(actions, log_std)
    density = np.exp(np.asarray(gaussian.log_prob(actions, *rows, tanh=True), np.float64))
    assert abs(density.sum() * 1e-5 - 1) < 1e-3


def test_squashed_actions_at_the_edge_stay_finite_with_their_gradients():
    actions = jnp.asarray([[-1.0, 1.0, 1.5, 0.0]])

    def log_prob(mean, log_std):
        return gaussian.log_prob(actions, mean, log_std, tanh=True).sum()

    value, gradients = jax.value_and_grad(log_prob, (0, 1))(jnp.zeros((1, 4)), jnp.zeros((1, 4)))
    assert all(jnp.isfinite(x).all() for x in (value, *gradients))


@pytest.mark.parametrize("tanh", [False, True])
def test_temperature_multiplies_the_standard_deviation(tanh):
    mean, log_std = jnp.full((20000, 2), 0.3), jnp.full((20000, 2), math.log(0.5))
    for temperature in (0.5, 1.0, 2.0):
        draws = gaussian.sample(jax.random.key(0), mean, log_std, tanh, temperature)
        plain = np.arctanh(np.asarray(draws, np.float64)) if tanh else np.asarray(draws)
        assert abs(plain.mean() - 0.3) < 0.03 * temperature
        assert abs(plain.std() - 0.5 * temperature) < 0.02 * temperature
    frozen = gaussian.sample(jax.random.key(0), mean, log_std, tanh, 0.0)
    assert (frozen == gaussian.mode(mean, tanh)).all()


def test_mode():
    mean = jnp.asarray([[0.5, -3.0]])
    assert (gaussian.mode(mean) == mean).all()
    np.testing.assert_allclose(gaussian.mode(mean, tanh=True), np.tanh([[0.5, -3.0]]), rtol=1e-6)
