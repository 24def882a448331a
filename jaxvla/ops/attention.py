"""Attention behind one entry: grouped heads, masks described rather than materialised, softmax in float32."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from jaxvla.errors import ConfigError
from jaxvla.ops.masks import visible
from jaxvla.ops.matmul import contract

# One softmax over all logits; cuDNN's flash attention; the first for one block of queries after the other, so that
# memory is linear in the number of queries.
IMPLEMENTATIONS = ("xla", "cudnn", "chunked")
QUERY_BLOCK = 256

# Finite, so that a query that sees no key gets some mean of the values, and a gradient without NaN.
_HIDDEN = -1e30


class KeyValues(NamedTuple):
    """A run of keys and values, with the range of each sample that may be looked at.

    Attributes:
        k_bskh, v_bskh: [b, s, k, h]; keys are already rotated. In a cache of all layers [l, b, s, k, h].
        start_b: first valid entry of each sample; None for 0.
        stop_b: end of the valid entries; None for s.
        shown_bs: False at further entries that nobody looks at; None for none.
    """

    k_bskh: Float[Array, "*l b s k h"]
    v_bskh: Float[Array, "*l b s k h"]
    start_b: Int[Array, " b"] | None = None
    stop_b: Int[Array, " b"] | None = None
    shown_bs: Bool[Array, "b s"] | None = None


def check_implementation(name: str) -> None:
    """Raises ConfigError unless `name` is an attention implementation; for configurations that hold one."""
    if name not in IMPLEMENTATIONS:
        raise ConfigError(f"no attention named {name!r}; there are: {', '.join(IMPLEMENTATIONS)}")


def flexible(name: str) -> str:
    """`name`, or "xla" in the place of "cudnn": for calls that its kernel does not take, with `past` or `shown_bs`."""
    return "xla" if name == "cudnn" else name


def attend(
    q_btnh: Float[Array, "b t n h"],
    own: KeyValues,
    past: tuple[KeyValues, ...] = (),
    *,
    causal: bool = False,
    implementation: str = "xla",
    query_block: int = QUERY_BLOCK,
) -> Float[Array, "b t n h"]:
    """softmax(q k / sqrt(h)) v, with n / k query heads per key head.

    One softmax runs over the keys of all of `past` and then `own`. No run is copied beside another, so a cache can stay
    where it is. Outputs of queries that see no key, such as padding, are finite and otherwise unspecified.

    Args:
        q_btnh: queries.
        own: the keys and values of the queries' own tokens, or of another sequence where `causal` is False.
        past: what came before: every valid key is seen by every query.
        causal: query i sees the keys of `own` up to i.
        implementation: one of `IMPLEMENTATIONS`.
        query_block: queries per block of "chunked".

    Raises:
        ConfigError: an unknown implementation, or "cudnn" with `past` or `shown_bs`, with float32 inputs, heads whose
            width is no multiple of 8, or without a GPU.
    """
    check_implementation(implementation)
    if implementation == "cudnn":
        return _cudnn(q_btnh, own, past, causal)
    if implementation == "chunked":
        return _chunked(q_btnh, own, past, causal, query_block)
    return _joint_softmax(q_btnh, own, past, causal, 0)


def _joint_softmax(
    q_btnh: Array, own: KeyValues, past: tuple[KeyValues, ...], causal: bool, first_query: int | Array
) -> Array:
    b, t, n, h = q_btnh.shape
    q_btkgh = q_btnh.reshape(b, t, own.k_bskh.shape[2], -1, h)
    runs = (*past, own)
    logits = []
    for run, is_causal in zip(runs, (*(False for _ in past), causal)):
        mask_bts = visible(
            t,
            run.k_bskh.shape[1],
            causal=is_causal,
            start_b=run.start_b,
            stop_b=run.stop_b,
            first_query=first_query,
            shown_bs=run.shown_bs,
        )
        logits_bkgts = contract("btkgh,bskh->bkgts", q_btkgh, run.k_bskh)
        logits_bkgts *= h**-0.5
        logits.append(logits_bkgts if mask_bts is None else jnp.where(mask_bts[:, None, None], logits_bkgts, _HIDDEN))
    largest = functools.reduce(jnp.maximum, [x.max(-1, keepdims=True) for x in logits])
    weights = [jnp.exp(x - jax.lax.stop_gradient(largest)) for x in logits]
    total_bkgt = sum(x.sum(-1) for x in weights)
    out_btkgh = sum(
        contract("bkgts,bskh->btkgh", x.astype(run.v_bskh.dtype), run.v_bskh) for x, run in zip(weights, runs)
    )
    out_btkgh /= jnp.moveaxis(total_bkgt, 3, 1)[..., None]
    return out_btkgh.astype(q_btnh.dtype).reshape(b, t, n, h)


def _chunked(q_btnh: Array, own: KeyValues, past: tuple[KeyValues, ...], causal: bool, query_block: int) -> Array:
    b, t, n, h = q_btnh.shape
    block = min(query_block, t)
    num_blocks = -(-t // block)
    padded = jnp.pad(q_btnh, ((0, 0), (0, num_blocks * block - t), (0, 0), (0, 0)))
    q_cbtnh = jnp.moveaxis(padded.reshape(b, num_blocks, block, n, h), 1, 0)

    @functools.partial(jax.checkpoint, prevent_cse=False)
    def one_block(args: tuple[Array, Array]) -> Array:
        q, index = args
        return _joint_softmax(q, own, past, causal, index * block)

    out_cbtnh = jax.lax.map(one_block, (q_cbtnh, jnp.arange(num_blocks)))
    return jnp.moveaxis(out_cbtnh, 0, 1).reshape(b, num_blocks * block, n, h)[:, :t]


def _cudnn(q_btnh: Array, own: KeyValues, past: tuple[KeyValues, ...], causal: bool) -> Array:
    if past:
        raise ConfigError("attention 'cudnn' takes one run of keys; use 'xla' for passes over cached keys")
    if own.shown_bs is not None:
        raise ConfigError("attention 'cudnn' hides no single keys, such as those of missing cameras; use 'xla'")
    if q_btnh.dtype == jnp.float32:
        raise ConfigError("attention 'cudnn' needs dtype 'bfloat16'; set it, or attention to 'xla'")
    if jax.default_backend() != "gpu":
        raise ConfigError(f"attention 'cudnn' needs a GPU, not {jax.default_backend()}; set attention to 'xla'")
    if q_btnh.shape[-1] % 8:
        raise ConfigError(f"attention 'cudnn' takes heads of 8, 16, 24 ... values, not {q_btnh.shape[-1]}; use 'xla'")
    k, v, start_b, stop_b, _ = own
    if start_b is not None:
        # The kernel knows only padding on the right: turn each sample until it begins with its first valid entry.
        stop_b = (k.shape[1] if stop_b is None else stop_b) - start_b
        k, v = _turn(k, start_b), _turn(v, start_b)
        q_btnh = _turn(q_btnh, start_b) if causal else q_btnh
    out_btnh = _fused(q_btnh, k, v, stop_b, causal)
    return _turn(out_btnh, -start_b) if start_b is not None and causal else out_btnh


def _fused(q_btnh: Array, k_bskh: Array, v_bskh: Array, stop_b: Array | None, causal: bool) -> Array:
    """The kernel, whose gradient jax gives for even lengths alone: odd ones get an entry that nobody looks at."""
    (b, t), s = q_btnh.shape[:2], k_bskh.shape[1]
    if s % 2:
        k_bskh, v_bskh = _longer(k_bskh), _longer(v_bskh)
        stop_b = jnp.full(b, s, jnp.int32) if stop_b is None else stop_b
    out_btnh = jax.nn.dot_product_attention(
        _longer(q_btnh) if t % 2 else q_btnh,
        k_bskh,
        v_bskh,
        is_causal=causal,
        key_value_seq_lengths=stop_b,
        implementation="cudnn",
    )
    return out_btnh[:, :t]


def _longer(x_bsnh: Array) -> Array:
    """With zeros as a further entry."""
    return jnp.pad(x_bsnh, ((0, 0), (0, 1), (0, 0), (0, 0)))


def _turn(x_bsnh: Array, shift_b: Array) -> Array:
    """Each sample rotated along s, so that entry `shift` comes first."""
    steps_bs = (jnp.arange(x_bsnh.shape[1]) + shift_b[:, None]) % x_bsnh.shape[1]
    return jax.vmap(lambda x, steps: x[steps])(x_bsnh, steps_bs)
