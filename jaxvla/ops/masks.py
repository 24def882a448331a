"""Which key a query may look at, described by a flag and two numbers per sample instead of an array [t, s].

And which slots of an action chunk a network without attention may.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


def only_visible(x_bad: Float[Array, "b a d"], visible_ba: Bool[Array, "b a"]) -> Float[Array, "b a d"]:
    """0 in the slots that are not visible: nothing of what stands there gets through, nor does a gradient."""
    return jnp.where(visible_ba[..., None], x_bad, 0)


def valid_range(
    length: int, start_b: Int[Array, " b"] | None, stop_b: Int[Array, " b"] | None
) -> Bool[Array, "b s"] | None:
    """True at the entries start <= s < stop of each sample; None where neither bound is given."""
    steps_s = jnp.arange(length)
    bounds = []
    if start_b is not None:
        bounds.append(steps_s >= start_b[:, None])
    if stop_b is not None:
        bounds.append(steps_s < stop_b[:, None])
    return jnp.logical_and(*bounds) if len(bounds) == 2 else bounds[0] if bounds else None


def visible(
    num_queries: int,
    num_keys: int,
    *,
    causal: bool,
    start_b: Int[Array, " b"] | None = None,
    stop_b: Int[Array, " b"] | None = None,
    first_query: int | Int[Array, ""] = 0,
    shown_bs: Bool[Array, "b s"] | None = None,
) -> Bool[Array, "#b t s"] | None:
    """True where a query may look at a key; None where every one may. XLA fuses it into the softmax.

    Args:
        num_queries: t.
        num_keys: s.
        causal: query i sees the keys up to i.
        start_b: first valid key of each sample, the number of its left pads; None for 0.
        stop_b: end of each sample's valid keys; None for s.
        first_query: the number of the first query, where the queries are a part of a sequence.
        shown_bs: False at further keys that no query may look at; None for none.
    """
    valid_bs = valid_range(num_keys, start_b, stop_b)
    if shown_bs is not None:
        valid_bs = shown_bs if valid_bs is None else valid_bs & shown_bs
    visible_bts = None if valid_bs is None else valid_bs[:, None]
    if causal:
        earlier_ts = jnp.arange(num_keys) <= first_query + jnp.arange(num_queries)[:, None]
        visible_bts = earlier_ts[None] if visible_bts is None else visible_bts & earlier_ts
    return visible_bts
