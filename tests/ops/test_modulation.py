import jax.numpy as jnp
import numpy as np

from jaxvla.ops.modulation import modulated_norm


def test_against_numpy():
    rng = np.random.default_rng(0)
    x = 3 + 2 * rng.standard_normal((2, 3, 8))
    scale, shift = rng.standard_normal((2, 2, 1, 8))
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 0.1)
    inputs = (jnp.asarray(a, jnp.float32) for a in (x, scale, shift))
    np.testing.assert_allclose(modulated_norm(*inputs, epsilon=0.1), normed * (1 + scale) + shift, rtol=1e-5, atol=1e-6)


def test_without_a_condition_it_is_a_plain_norm():
    x = jnp.asarray(np.random.default_rng(1).standard_normal((1, 2, 64)), jnp.float32)
    normed = np.asarray(modulated_norm(x))
    np.testing.assert_allclose(normed.mean(-1), 0, atol=1e-6)
    np.testing.assert_allclose(normed.std(-1), 1, rtol=1e-4)


def test_bfloat16_has_float32_statistics():
    x = jnp.asarray([[[256.0, 257, 258, 261]]])
    found = modulated_norm(x.astype(jnp.bfloat16))
    rounded = np.asarray(x.astype(jnp.bfloat16), float)
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(found.astype(float), (rounded - rounded.mean()) / rounded.std(), atol=0.01)
