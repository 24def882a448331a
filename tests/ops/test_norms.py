import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.ops.norms import group_norm


def oracle(x, scale, bias, groups, epsilon):
    b, h, w, c = x.shape
    grouped = x.astype(np.float64).reshape(b, h * w, groups, c // groups)
    mean = grouped.mean((1, 3), keepdims=True)
    variance = grouped.var((1, 3), keepdims=True)
    return ((grouped - mean) / np.sqrt(variance + epsilon)).reshape(x.shape) * scale + bias


@pytest.mark.parametrize("offset", [0, 100])
def test_group_norm_is_the_definition(offset):
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((3, 5, 4, 12)) * 0.5 + offset).astype(np.float32)
    scale, bias = rng.standard_normal((2, 12)).astype(np.float32)
    y = group_norm(jnp.asarray(x), jnp.asarray(scale), jnp.asarray(bias), 4, 1e-3)
    np.testing.assert_allclose(y, oracle(x, scale, bias, 4, 1e-3), atol=5e-5)


def test_statistics_are_float32_for_bfloat16():
    # 20000 values of mean 8: a bfloat16 sum of them stalls at 2048.
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 100, 50, 4)) + 8, jnp.bfloat16)
    y = group_norm(x, jnp.ones(4), jnp.zeros(4), 1)
    assert y.dtype == jnp.bfloat16
    y = np.asarray(y, np.float32)
    assert abs(y.mean()) < 0.01
    assert abs(y.std() - 1) < 0.01
