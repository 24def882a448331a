"""A static key/value cache: a buffer of fixed length, filled by a prefill and extended by some tokens at a time."""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxvla.errors import ConfigError
from jaxvla.models.text_decoder import DecoderOutput, TextDecoder
from jaxvla.ops.attention import KeyValues


class Cache(NamedTuple):
    """Keys and values of all layers.

    Attributes:
        keys: [l, b, s, k, h]; each sample is filled from its `start_b` to its `stop_b`.
        next_position_b: the rope position of the token that comes next.
    """

    keys: KeyValues
    next_position_b: Int[Array, " b"]


def start_cache(output: DecoderOutput, next_position_b: Int[Array, " b"], capacity: int) -> Cache:
    """The cache after a prefill, with room for `capacity` tokens in all.

    Args:
        output: of a `TextDecoder` with `keep_keys`.
        next_position_b: the rope position of what comes next.
        capacity: of the cache.

    Raises:
        ConfigError: the prompt is longer than the capacity, or its keys were not kept.
    """
    if output.keys is None:
        raise ConfigError("a cache needs the keys of the prompt; decode it with keep_keys=True")
    _, b, t, _, _ = output.keys.k_bskh.shape
    if t > capacity:
        raise ConfigError(f"a cache of {capacity} tokens does not hold a prompt of {t}; give it at least that capacity")
    room = ((0, 0), (0, 0), (0, capacity - t), (0, 0), (0, 0))
    k, v = (jnp.pad(x, room) for x in output.keys[:2])
    stop_b = jnp.full(b, t) if output.keys.stop_b is None else output.keys.stop_b
    shown_bs = output.keys.shown_bs
    if shown_bs is not None:
        shown_bs = jnp.pad(shown_bs, room[1:3], constant_values=True)
    return Cache(KeyValues(k, v, output.keys.start_b, stop_b, shown_bs), next_position_b)


def append(keys: KeyValues, own: KeyValues, count_b: Int[Array, " b"]) -> KeyValues:
    """Writes the first `count` entries of `own` behind what each sample already holds.

    What does not fit into the buffer is dropped; the caller sees to it that it fits.
    """
    _, b, t, _, _ = own.k_bskh.shape
    rows_b1, steps_bt = jnp.arange(b)[:, None], keys.stop_b[:, None] + jnp.arange(t)

    def write(buffer: Array, new: Array) -> Array:
        return buffer.at[:, rows_b1, steps_bt].set(new, mode="drop", unique_indices=True)

    k, v = write(keys.k_bskh, own.k_bskh), write(keys.v_bskh, own.v_bskh)
    return keys._replace(k_bskh=k, v_bskh=v, stop_b=keys.stop_b + count_b)


def extend(
    decoder: TextDecoder, cache: Cache, x_btd: Float[Array, "b t d"], count_b: Int[Array, " b"] | None = None
) -> tuple[Float[Array, "b t d"], Cache]:
    """Runs further embeddings, of text or of anything that counts as text, behind what the cache holds.

    Args:
        x_btd: one step or several.
        count_b: how many of them each sample really has, the others being padding on the right; None for all.

    Returns:
        Hidden states before the final norm, and the longer cache.
    """
    b, t, _ = x_btd.shape
    positions_bt = cache.next_position_b[:, None] + jnp.arange(t)
    output = decoder(x_btd, decoder.config.line(positions_bt), stop_b=count_b, past=(cache.keys,), keep_keys=True)
    count_b = jnp.full(b, t) if count_b is None else count_b
    return output.hidden_btd, Cache(append(cache.keys, output.keys, count_b), cache.next_position_b + count_b)
