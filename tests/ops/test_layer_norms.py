import jax.numpy as jnp
import numpy as np

from jaxvla.ops.norms import layer_norm, rms_norm

RNG = np.random.default_rng(0)
X, SCALE, BIAS = RNG.standard_normal((2, 3, 8)) + 2, RNG.standard_normal(8), RNG.standard_normal(8)


def f32(*arrays):
    return [jnp.asarray(x, jnp.float32) for x in arrays]


def test_layer_norm():
    expected = (X - X.mean(-1, keepdims=True)) / np.sqrt(X.var(-1, keepdims=True) + 1e-3) * SCALE + BIAS
    np.testing.assert_allclose(layer_norm(*f32(X, SCALE, BIAS), 1e-3), expected, rtol=1e-5, atol=1e-6)


def test_rms_norm():
    expected = X / np.sqrt((X**2).mean(-1, keepdims=True) + 1e-3) * SCALE
    np.testing.assert_allclose(rms_norm(*f32(X, SCALE), 1e-3), expected, rtol=1e-5, atol=1e-6)


def test_bfloat16_has_float32_statistics():
    # 20000 values of mean 8: a bfloat16 sum of them stalls at 2048.
    x = jnp.asarray(np.random.default_rng(0).standard_normal((1, 20000)) + 8, jnp.bfloat16)
    centred, scaled = layer_norm(x, jnp.ones(20000), jnp.zeros(20000)), rms_norm(x, jnp.ones(20000))
    assert centred.dtype == scaled.dtype == jnp.bfloat16
    centred, scaled = np.asarray(centred, float), np.asarray(scaled, float)
    assert abs(centred.mean()) < 0.01
    assert abs(centred.std() - 1) < 0.01
    assert abs((scaled**2).mean() - 1) < 0.01
