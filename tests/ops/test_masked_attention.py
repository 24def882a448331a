import jax
import jax.numpy as jnp
import numpy as np

from jaxvla.ops import masked_attention
from jaxvla.ops.dropout import dropout
from jaxvla.ops.masked_attention import Keys, weights_where

B, T, S, N, H = 3, 5, 6, 2, 4
attend_where = jax.jit(masked_attention.attend_where)
VISIBLE = np.array([[0, 1, 0, 1, 1, 0], [1] * 6, [0] * 6], bool)


def arrays(dtype=jnp.float32):
    rng = np.random.default_rng(0)
    q = rng.standard_normal((B, T, N, H))
    k, v = rng.standard_normal((2, B, S, N, H))
    return jnp.asarray(q, dtype), Keys(jnp.asarray(k, dtype), jnp.asarray(v, dtype))


def oracle(q, keys, visible):
    out = np.zeros(q.shape)
    k, v = (np.asarray(x, float) for x in keys)
    for b, t, n in np.ndindex(B, T, N):
        weights = np.exp(k[b, visible[b], n] @ np.asarray(q[b, t, n], float) / np.sqrt(H))
        out[b, t, n] = weights @ v[b, visible[b], n] / weights.sum() if visible[b].any() else 0
    return out


def test_only_visible_keys_count_whichever_they_are():
    q, keys = arrays()
    np.testing.assert_allclose(attend_where(q, keys, jnp.asarray(VISIBLE)), oracle(q, keys, VISIBLE), atol=1e-6)
    everything = np.ones((B, S), bool)
    np.testing.assert_allclose(attend_where(q, keys), oracle(q, keys, everything), atol=1e-6)


def test_hidden_keys_have_no_effect_and_no_gradient():
    q, keys = arrays()
    hidden = ~VISIBLE[:, :, None, None]
    loud = jax.tree.map(lambda x: jnp.where(hidden, 1e6, x), keys)
    visible = jnp.asarray(VISIBLE)
    assert (attend_where(q, keys, visible) == attend_where(q, loud, visible)).all()
    grads = jax.jit(jax.grad(lambda keys: (attend_where(q, keys, visible) ** 2).sum()))(loud)
    for grad in grads:
        assert np.isfinite(grad).all()
        assert (np.where(hidden, grad, 0) == 0).all()
        assert np.asarray(grad[0, 1]).any()


def test_one_visible_key_is_copied():
    q, keys = arrays()
    visible = jnp.arange(S) == jnp.array([[4], [0], [2]])
    found = attend_where(q, keys, visible)
    for b, chosen in enumerate([4, 0, 2]):
        np.testing.assert_allclose(found[b], np.broadcast_to(keys.v_bsnh[b, chosen], (T, N, H)), rtol=1e-6)


def test_bfloat16_has_a_float32_softmax():
    q, keys = arrays(jnp.bfloat16)
    # In bfloat16 these logits would all round to 256.
    close = Keys(jnp.full_like(keys.k_bsnh, 16).at[:, 0].add(0.125), keys.v_bsnh)
    found = attend_where(jnp.full_like(q, 8), close)
    assert found.dtype == jnp.bfloat16
    expected = oracle(np.full(q.shape, 8.0), jax.tree.map(lambda x: np.asarray(x, float), close), np.ones((B, S), bool))
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.02)


def test_weights_are_what_values_are_averaged_with():
    rng = np.random.default_rng(3)
    q, k = (jnp.asarray(rng.standard_normal((2, 5, 3, 5)), jnp.float32) for _ in range(2))
    visible = jnp.array([[1, 1, 0, 1, 0], [0, 0, 0, 0, 0]], bool)
    one_hot = jnp.broadcast_to(jnp.eye(5)[:, None], (2, 5, 3, 5))
    weights = weights_where(q, k, visible)
    np.testing.assert_allclose(attend_where(q, Keys(k, one_hot), visible), weights.transpose(0, 2, 1, 3), atol=1e-6)
    np.testing.assert_allclose(weights.sum(-1), np.broadcast_to([[[1.0]], [[0.0]]], (2, 3, 5)), atol=1e-6)


def test_dropped_weights_are_those_of_the_key():
    q, keys = arrays()
    rng, visible = jax.random.key(1), jnp.asarray(VISIBLE)
    found = masked_attention.attend_where(q, keys, visible, 0.5, rng)
    weights = dropout(weights_where(q, keys.k_bsnh, visible), 0.5, rng)
    assert 0.3 < (np.asarray(weights)[1] == 0).mean() < 0.7
    np.testing.assert_allclose(found, np.einsum("bnts,bsnh->btnh", weights, keys.v_bsnh), atol=1e-6)
    assert (
        masked_attention.attend_where(q, keys, visible, 0.5) == masked_attention.attend_where(q, keys, visible)
    ).all()
