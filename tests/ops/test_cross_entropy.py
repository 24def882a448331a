import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.ops.losses import IGNORE, chunked_cross_entropy

B, T, D, V = 2, 7, 5, 11
RNG = np.random.default_rng(0)
X, KERNEL = RNG.standard_normal((B, T, D)).astype(np.float32), RNG.standard_normal((D, V)).astype(np.float32)
LABELS = np.where(RNG.random((B, T)) < 0.3, IGNORE, RNG.integers(0, V, (B, T))).astype(np.int32)
WEIGHTS = RNG.standard_normal((B, T)).astype(np.float32)
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def oracle():
    """Losses, hits, and the gradients of the weighted sum of the losses, in float64."""
    logits = X.astype(float) @ KERNEL.astype(float)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    chosen = np.eye(V)[np.maximum(LABELS, 0)]
    valid = LABELS != IGNORE
    losses = np.where(valid, -np.log((probabilities * chosen).sum(-1)), 0)
    d_logits = (probabilities - chosen) * (valid * WEIGHTS)[..., None]
    hits = valid & (logits.argmax(-1) == LABELS)
    return losses, hits, d_logits @ KERNEL.T.astype(float), np.einsum("btd,btv->dv", X.astype(float), d_logits)


@pytest.mark.parametrize("chunk", [2, 3, 7, 100])
@pytest.mark.parametrize("tied", [False, True])
def test_losses_and_gradients(tied, chunk):
    def weighted(x, kernel):
        both = chunked_cross_entropy(x, kernel, jnp.asarray(LABELS), vocab_axis=0 if tied else 1, chunk=chunk)
        return (both[0] * WEIGHTS).sum(), both

    kernel = KERNEL.T if tied else KERNEL
    gradients = quick_jit(jax.grad(weighted, (0, 1), has_aux=True))
    (d_x, d_kernel), (losses, hits) = gradients(jnp.asarray(X), jnp.asarray(kernel))
    expected, expected_hits, expected_d_x, expected_d_kernel = oracle()
    np.testing.assert_allclose(losses, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(hits, expected_hits)
    assert 0 < hits.sum() < hits.size
    np.testing.assert_allclose(d_x, expected_d_x, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(d_kernel.T if tied else d_kernel, expected_d_kernel, rtol=1e-4, atol=1e-6)


def test_large_logits_do_not_overflow():
    losses, _ = chunked_cross_entropy(jnp.full((1, 1, 1), 1e4), jnp.array([[1.0, -1.0]]), jnp.array([[1]]), chunk=1)
    np.testing.assert_allclose(losses, 2e4)


def test_logits_are_never_all_there():
    b, t, v = 2, 512, 500

    def loss(x, kernel):
        return chunked_cross_entropy(x, kernel, jnp.zeros((b, t), jnp.int32), chunk=8)[0].mean()

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(jnp.zeros((b, t, 4)), jnp.zeros((4, v))).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < b * t * v * 4 / 8


def test_bfloat16_inputs_give_float32_losses_and_gradients_of_the_kernel():
    x, kernel = jnp.asarray(X, jnp.bfloat16), jnp.asarray(KERNEL)

    def total(x, kernel):
        losses, _ = chunked_cross_entropy(x, kernel, jnp.asarray(LABELS))
        return (losses * WEIGHTS).sum(), losses

    (d_x, d_kernel), losses = quick_jit(jax.grad(total, (0, 1), has_aux=True))(x, kernel)
    assert (losses.dtype, d_x.dtype, d_kernel.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    expected, _, _, expected_d_kernel = oracle()
    np.testing.assert_allclose(losses, expected, atol=0.05)
    np.testing.assert_allclose(d_kernel, expected_d_kernel, atol=0.05)
