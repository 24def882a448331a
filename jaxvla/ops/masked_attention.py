"""Attention to keys that any mask picks, for sequences short enough that all logits fit in memory."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxvla.ops.dropout import dropout
from jaxvla.ops.matmul import contract

# Finite, so that a sample that sees no key has a softmax without NaN.
_HIDDEN = -1e30


class Keys(NamedTuple):
    """Keys and values of a sequence; those of a stack of layers have a leading axis more."""

    k_bsnh: Float[Array, "*l b s n h"]
    v_bsnh: Float[Array, "*l b s n h"]


def attend_where(
    q_btnh: Float[Array, "b t n h"],
    keys: Keys,
    visible_bs: Bool[Array, "b s"] | None = None,
    dropout_rate: float = 0.0,
    rng: Key[Array, ""] | None = None,
) -> Float[Array, "b t n h"]:
    """softmax(q k / sqrt(h)) v over the keys that are visible to their sample; the softmax is float32.

    Keys that are not visible leave outputs and gradients exactly as they were without them. A sample that sees no key
    gives zeros.

    Args:
        q_btnh: queries.
        keys: as many heads as the queries have.
        visible_bs: which keys the queries of each sample see; None for all.
        dropout_rate: share of the weights that are dropped, after the softmax.
        rng: draws which; None for none of them.
    """
    weights_bnts = dropout(weights_where(q_btnh, keys.k_bsnh, visible_bs), dropout_rate, rng)
    return jnp.einsum("bnts,bsnh->btnh", weights_bnts.astype(keys.v_bsnh.dtype), keys.v_bsnh).astype(q_btnh.dtype)


def weights_where(
    q_btnh: Float[Array, "b t n h"], k_bsnh: Float[Array, "b s n h"], visible_bs: Bool[Array, "b s"] | None = None
) -> Float[Array, "b n t s"]:
    """How much each query looks at each key, see `attend_where`: float32, 1 over the visible keys, 0 at the others."""
    logits_bnts = contract("btnh,bsnh->bnts", q_btnh, k_bsnh)
    logits_bnts *= q_btnh.shape[-1] ** -0.5
    shown = True if visible_bs is None else visible_bs[:, None, None]
    return jnp.where(shown, jax.nn.softmax(jnp.where(shown, logits_bnts, _HIDDEN)), 0)
