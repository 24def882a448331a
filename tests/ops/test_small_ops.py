import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.errors import ConfigError
from jaxvla.ops.activations import activation
from jaxvla.ops.dropout import dropout
from jaxvla.ops.losses import masked_mean


def test_dropout_keeps_the_expectation():
    x = jnp.full((100, 100), 3.0)
    y = np.asarray(dropout(x, 0.25, jax.random.key(0)))
    np.testing.assert_allclose(np.unique(y), [0, 4])
    assert abs((y == 0).mean() - 0.25) < 0.02
    assert (y != np.asarray(dropout(x, 0.25, jax.random.key(1)))).any()


def test_dropout_without_a_key_or_rate_is_the_identity():
    x = jnp.arange(4.0)
    assert dropout(x, 0.5, None) is x
    assert dropout(x, 0.0, jax.random.key(0)) is x


def test_masked_mean_counts_what_is_valid():
    x = jnp.asarray([[1.0, 3.0, jnp.nan], [5.0, 0.0, 0.0], [jnp.nan] * 3])
    mask = jnp.asarray([[True, True, False], [True, False, False], [False] * 3])
    np.testing.assert_allclose(masked_mean(x, mask), 3)
    np.testing.assert_allclose(masked_mean(x, mask, 1), [2, 5, 0])


def test_activations_by_name():
    x = jnp.asarray([-1.0, 2.0])
    np.testing.assert_allclose(activation("relu")(x), [0, 2])
    np.testing.assert_allclose(activation("swish")(x), x / (1 + np.exp(-x)), rtol=1e-6)
    with pytest.raises(ConfigError, match="no activation named 'selu'"):
        activation("selu")
