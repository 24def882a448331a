import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.errors import ConfigError
from jaxvla.ops.attention import KeyValues, attend, check_implementation

B, T, N, K, H = 2, 7, 4, 2, 8
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def oracle(q, runs, masks):
    """float64, one sample, query and head at a time; zeros where a query sees nothing."""
    out = np.zeros(q.shape)
    for b, t, n in np.ndindex(*q.shape[:3]):
        keys = np.concatenate([k[b, mask[b, t], n // (N // K)] for (k, _), mask in zip(runs, masks)])
        values = np.concatenate([v[b, mask[b, t], n // (N // K)] for (_, v), mask in zip(runs, masks)])
        if len(keys):
            weights = np.exp(keys @ q[b, t, n] / np.sqrt(H))
            out[b, t, n] = weights @ values / weights.sum()
    return out


def random_arrays(seed, *lengths):
    rng = np.random.default_rng(seed)
    return [(rng.standard_normal((B, s, K, H)), rng.standard_normal((B, s, K, H))) for s in lengths]


def between(num_queries, num_keys, start=0, stop=None):
    """[b, t, s], True from start to stop."""
    start, stop = (np.broadcast_to(num_keys if x is None else x, B)[:, None, None] for x in (start, stop))
    steps = np.arange(num_keys)
    return np.broadcast_to((steps >= start) & (steps < stop), (B, num_queries, num_keys))


CAUSAL = np.tril(np.ones((T, T), bool))
START, STOP = np.array([0, 3]), np.array([7, 5])
SHOWN = np.random.default_rng(0).random((2, T)) < 0.6
PAST_START, PAST_STOP = np.array([2, 0]), np.array([5, 4])
# Own mask, options of the own keys, lengths of earlier runs, their masks and ranges, causal.
SHOWN = np.array([[1, 0, 1, 1, 0, 0, 1], [0, 1, 0, 0, 1, 1, 0]], bool)
VARIANTS = {
    "any keys": (
        np.broadcast_to(SHOWN[:, None], (B, T, T)) & between(T, T, START) & CAUSAL,
        {"shown_bs": SHOWN, "start_b": START},
        (5,),
        (np.broadcast_to(SHOWN[:, None, :5], (B, T, 5)),),
        ({"shown_bs": SHOWN[:, :5]},),
        True,
    ),
    "all": (between(T, T), {}, (), (), (), False),
    "causal": (between(T, T) & CAUSAL, {}, (), (), (), True),
    "left padding": (between(T, T, START) & CAUSAL, {"start_b": START}, (), (), (), True),
    "right padding": (between(T, T, 0, STOP), {"stop_b": STOP}, (), (), (), False),
    "both": (between(T, T, START, STOP) & CAUSAL, {"start_b": START, "stop_b": STOP}, (), (), (), True),
    "single keys hidden": (
        between(T, T, START) & SHOWN[:, None],
        {"start_b": START, "shown_bs": SHOWN},
        (),
        (),
        (),
        False,
    ),
    "hidden in an earlier run": (
        between(T, T) & CAUSAL,
        {},
        (5,),
        (between(T, 5) & SHOWN[:, None, :5],),
        ({"shown_bs": SHOWN[:, :5]},),
        True,
    ),
    "behind two runs": (
        between(T, T, 0, STOP) & CAUSAL,
        {"stop_b": STOP},
        (5, 3),
        (between(T, 5, PAST_START, PAST_STOP), between(T, 3, 0, [0, 2])),
        ({"start_b": PAST_START, "stop_b": PAST_STOP}, {"stop_b": np.array([0, 2])}),
        True,
    ),
}


def run(options, pair, dtype=jnp.float32):
    return KeyValues(*(jnp.asarray(x, dtype) for x in pair), **{k: jnp.asarray(v) for k, v in options.items()})


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
@pytest.mark.parametrize("name", VARIANTS)
def test_equals_the_oracle(name, implementation):
    own_mask, own_options, past_lengths, past_masks, past_options, causal = VARIANTS[name]
    q = np.random.default_rng(1).standard_normal((B, T, N, H))
    *past_arrays, own_arrays = random_arrays(2, *past_lengths, T)
    own = run(own_options, own_arrays)
    past = tuple(run(options, pair) for options, pair in zip(past_options, past_arrays))
    found = quick_jit(functools.partial(attend, causal=causal, implementation=implementation, query_block=3))(
        jnp.asarray(q, jnp.float32), own, past
    )
    masks = [*past_masks, own_mask]
    sees_some = np.any([mask.any(-1) for mask in masks], axis=0)[..., None, None]
    np.testing.assert_allclose(
        np.where(sees_some, found, 0), oracle(q, [*past_arrays, own_arrays], masks), rtol=1e-5, atol=1e-6
    )
    assert np.isfinite(found).all()


@pytest.mark.parametrize("implementation", ["xla", "chunked"])
def test_gradients_equal_those_of_a_dense_softmax(implementation):
    own_mask, own_options, past_lengths, past_masks, past_options, causal = VARIANTS["behind two runs"]
    rng = np.random.default_rng(3)
    q, weights = rng.standard_normal((2, B, T, N, H))
    *past_arrays, own_arrays = random_arrays(4, *past_lengths, T)
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (q, own_arrays, tuple(past_arrays)))

    def ours(q, own, past):
        past = tuple(run(options, pair) for options, pair in zip(past_options, past))
        own = run(own_options, own)
        out = attend(q, own, past, causal=causal, implementation=implementation, query_block=3)
        return (out * weights).sum()

    def dense(q, own, past):
        k, v = (jnp.concatenate(x, axis=1).repeat(N // K, axis=2) for x in zip(*past, own))
        logits = jnp.einsum("btnh,bsnh->bnts", q, k) / np.sqrt(H)
        mask = np.concatenate([*past_masks, own_mask], axis=-1)[:, None]
        probabilities = jax.nn.softmax(jnp.where(mask, logits, -jnp.inf), axis=-1)
        return (jnp.einsum("bnts,bsnh->btnh", probabilities, v) * weights).sum()

    found, expected = (quick_jit(jax.grad(f, argnums=(0, 1, 2)))(*arrays) for f in (ours, dense))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, expected)


def test_queries_that_see_nothing_give_finite_gradients():
    (own_arrays,) = random_arrays(5, T)
    own = run({"start_b": START}, own_arrays)
    grads = quick_jit(jax.grad(lambda q, own: attend(q, own, causal=True).sum()))(jnp.ones((B, T, N, H)), own)
    assert np.isfinite(grads).all()


def test_bfloat16_has_a_float32_softmax():
    (own_arrays,) = random_arrays(6, T)
    q = np.random.default_rng(7).standard_normal((B, T, N, H))
    found = quick_jit(attend)(jnp.asarray(q, jnp.bfloat16), run({}, own_arrays, jnp.bfloat16))
    assert found.dtype == jnp.bfloat16
    rounded = [jnp.asarray(x, jnp.bfloat16).astype(float) for x in (q, *own_arrays)]
    expected = oracle(np.asarray(rounded[0]), [tuple(map(np.asarray, rounded[1:]))], [between(T, T)])
    np.testing.assert_allclose(found.astype(jnp.float32), expected, atol=0.01)


@pytest.mark.parametrize("name", ["all", "causal", "left padding", "right padding", "both"])
def test_what_cudnn_is_told_means_the_same(name, monkeypatch):
    """Without a GPU: XLA computes what the call to cuDNN describes, which has neither left padding nor a mask."""
    own_mask, own_options, _, _, _, causal = VARIANTS[name]
    plain = jax.nn.dot_product_attention

    def stand_in(q, k, v, *, is_causal, key_value_seq_lengths, implementation):
        assert implementation == "cudnn"
        assert q.shape[1] % 2 == k.shape[1] % 2 == 0, "jax has no gradient of the kernel for odd lengths"
        return plain(q, k, v, is_causal=is_causal, key_value_seq_lengths=key_value_seq_lengths, implementation="xla")

    monkeypatch.setattr(jax.nn, "dot_product_attention", stand_in)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    (own_arrays,) = random_arrays(8, T)
    q = np.random.default_rng(9).standard_normal((B, T, N, H))
    rounded = [np.asarray(jnp.asarray(x, jnp.bfloat16).astype(jnp.float32), float) for x in (q, *own_arrays)]
    narrow = jnp.asarray(q, jnp.bfloat16), run(own_options, own_arrays, jnp.bfloat16)
    found = attend(*narrow, causal=causal, implementation="cudnn")
    expected = oracle(rounded[0], [tuple(rounded[1:])], [own_mask])
    valid = own_mask.any(-1)[..., None, None]
    np.testing.assert_allclose(np.where(valid, found.astype(jnp.float32), 0), expected, atol=0.03)

    def gradient(implementation):
        def loss(q, k, v):
            out = attend(q, narrow[1]._replace(k_bskh=k, v_bskh=v), causal=causal, implementation=implementation)
            return (jnp.where(valid, out, 0) * rounded[0]).sum()

        return quick_jit(jax.grad(loss, (0, 1, 2)))(narrow[0], *narrow[1][:2])

    for ours, other in zip(gradient("cudnn"), gradient("xla")):
        np.testing.assert_allclose(ours.astype(jnp.float32), other.astype(jnp.float32), atol=0.1)


def test_memory_of_chunks_is_linear_in_the_number_of_queries():
    def largest(num_queries, implementation):
        q = jnp.zeros((1, num_queries, 1, 4))
        keys = KeyValues(jnp.zeros((1, 512, 1, 4)), jnp.zeros((1, 512, 1, 4)))
        attention = functools.partial(attend, implementation=implementation, query_block=16)
        compiled = jax.jit(jax.grad(lambda q: attention(q, keys).sum())).lower(q).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert largest(512, "chunked") < largest(512, "xla") / 4


def test_unusable_implementations_are_refused(monkeypatch):
    (own_arrays,) = random_arrays(10, T)
    q = jnp.zeros((B, T, N, H))
    own = run({}, own_arrays)
    with pytest.raises(ConfigError, match="no attention named 'flash'; there are: xla, cudnn, chunked"):
        check_implementation("flash")
    with pytest.raises(ConfigError, match="takes one run of keys; use 'xla'"):
        attend(q, own, (own,), implementation="cudnn")
    with pytest.raises(ConfigError, match="needs dtype 'bfloat16'"):
        attend(q, own, implementation="cudnn")
    with pytest.raises(ConfigError, match="needs a GPU, not cpu; set attention to 'xla'"):
        attend(q.astype(jnp.bfloat16), run({}, own_arrays, jnp.bfloat16), implementation="cudnn")
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    narrow = jnp.zeros((B, T, N, 12), jnp.bfloat16)
    with pytest.raises(ConfigError, match=r"takes heads of 8, 16, 24 ... values, not 12; use 'xla'"):
        attend(narrow, KeyValues(narrow, narrow), implementation="cudnn")
