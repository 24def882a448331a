"""Latent thinking: a few of the model's own hidden states are read again before it says words.

After Coconut (Hao et al., 2024). The columns of a batch are static, the same for all samples:

    [ prefix, padded on the left ][ k slots, of which a sample uses the first n ][ suffix, padded on the right ]

The prefix is read once. Slot 0 is fed the hidden state of the prefix's last column in place of an embedding, slot i
that of slot i - 1; then one pass reads the suffix. Gradients flow through all slots. The loop over the slots carries a
hidden state and the slots' own keys and values; those of the prefix stay outside. For the backward pass it keeps every
slot's hidden state and one set of these keys and values, and computes each slot again: a slot sees no others than
those before it, so the set that the last one left behind serves them all. Automatic differentiation of the loop would
keep the whole set once per slot.
"""

import functools
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxvla.errors import ConfigError
from jaxvla.models.adapter import Still, put_still, take_still
from jaxvla.models.cache import Cache, append, start_cache
from jaxvla.models.module import Params, bind, params_of
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.positions import Grids, TokenLayout
from jaxvla.models.text_decoder import DecoderOutput
from jaxvla.ops.attention import KeyValues
from jaxvla.ops.masks import valid_range

# What a slot is fed: a hidden state before the final norm, as LaRA-VLA does, or after it, as Coconut does.
LATENT_HIDDEN = ("pre_norm", "post_norm")


class Thought(NamedTuple):
    """What reading, thinking and reading on gives.

    Attributes:
        hidden_btd: prefix, slots and suffix, t = p + k + s, before the final norm. Entries that are not valid are
            finite and otherwise unspecified.
        valid_bt: False at padding, at slots that a sample does not use, and at image tokens that count as absent.
        predictors_bsd: the hidden state that predicts each suffix token, after the final norm, for
            `Qwen3VL.token_losses`: that of the entry before it.
        last_b1d: of `hidden_btd`, the last valid entry of each sample, which predicts the token after the suffix.
    """

    hidden_btd: Float[Array, "b t d"]
    valid_bt: Bool[Array, "b t"]
    predictors_bsd: Float[Array, "b s d"]
    last_b1d: Float[Array, "b 1 d"]


class _Slots(NamedTuple):
    """The slots of a batch: hidden states, keys and values, and what each sample's last entry up to here is."""

    hidden_bkd: Array
    keys: KeyValues
    last_b1d: Array


def check_latent_hidden(name: str) -> None:
    """Raises ConfigError unless `name` says what a slot is fed; for configurations that hold one."""
    if name not in LATENT_HIDDEN:
        raise ConfigError(f"no latent_hidden named {name!r}; there are: {', '.join(LATENT_HIDDEN)}")


def think(
    model: Qwen3VL,
    text: Mapping[str, Array],
    patches_bpf: Float[Array, "b p f"] | None = None,
    grids: Grids = (),
    *,
    latent_hidden: str = "pre_norm",
    shown_bi: Bool[Array, "b i"] | None = None,
) -> Thought:
    """Hidden states of prefix, slots and suffix, for training and wherever all words are given.

    Args:
        model: bound to its parameters.
        text: `prefix` int32 [b, p], `prefix_start` int32 [b], `slots` bool [b, k], `suffix` int32 [b, s] and
            `suffix_stop` int32 [b], see `jaxvla.data.schema`; other keys are not read. k and s may be 0.
        patches_bpf, grids: images, as in `Qwen3VL.forward`.
        latent_hidden: one of `LATENT_HIDDEN`.
        shown_bi: False at image tokens that count as absent, such as those of a camera that a robot has not.

    Raises:
        ConfigError: an unknown `latent_hidden`, or images and grids that do not fit.
    """
    return _think(model, text, patches_bpf, grids, latent_hidden, shown_bi)[0]


def prefill(
    model: Qwen3VL,
    text: Mapping[str, Array],
    patches_bpf: Float[Array, "b p f"] | None = None,
    grids: Grids = (),
    *,
    room: int,
    latent_hidden: str = "pre_norm",
    shown_bi: Bool[Array, "b i"] | None = None,
) -> tuple[Thought, Cache]:
    """`think`, and a cache of all that it read, behind which words can be generated.

    The suffix is what the model is made to say, possibly nothing; it goes on behind that:

        thought, cache = prefill(model, text, patches_bpf, grids, room=sampling.max_new_tokens)
        generated = continue_text(model.text, cache, thought.last_b1d, rng, sampling=sampling)

    Args:
        model, text, patches_bpf, grids, latent_hidden, shown_bi: as in `think`.
        room: how many tokens the cache can take besides.
    """
    thought, prefix, later = _think(model, text, patches_bpf, grids, latent_hidden, shown_bi)
    output, layout = prefix
    keys, next_position_b = start_cache(output, layout.next_position_b, capacity=thought.hidden_btd.shape[1] + room)
    for run in later:
        keys, next_position_b = append(keys, run, run.stop_b), next_position_b + run.stop_b
    return thought, Cache(keys, next_position_b)


def _think(
    model: Qwen3VL,
    text: Mapping[str, Array],
    patches_bpf: Array | None,
    grids: Grids,
    latent_hidden: str,
    shown_bi: Array | None,
) -> tuple[Thought, tuple[DecoderOutput, TokenLayout], tuple[KeyValues, ...]]:
    """The thought, the pass over the prefix, and the keys and values of slots and suffix, as many as are valid."""
    check_latent_hidden(latent_hidden)
    used_bk, stop_b = text["slots"], text["suffix_stop"]
    images = None if patches_bpf is None else model.encode_images(patches_bpf, grids)
    prefix, layout = model.decode_tokens(
        text["prefix"], start_b=text["prefix_start"], images=images, grids=grids, shown_bi=shown_bi, keep_keys=True
    )
    slots = _run_slots(model, prefix, layout.next_position_b, used_bk, latent_hidden)
    suffix_bsd, suffix_keys = _read_suffix(model, (prefix.keys, slots.keys), layout.next_position_b, text)
    before_bsd = jnp.concatenate([slots.last_b1d, suffix_bsd], axis=1)
    prefix_valid_bp = valid_range(text["prefix"].shape[1], text["prefix_start"], None)
    valid = (
        prefix_valid_bp if shown_bi is None else prefix_valid_bp & prefix.keys.shown_bs,
        used_bk,
        valid_range(suffix_bsd.shape[1], None, stop_b),
    )
    thought = Thought(
        hidden_btd=jnp.concatenate([prefix.hidden_btd, slots.hidden_bkd, suffix_bsd], axis=1),
        valid_bt=jnp.concatenate(valid, axis=1),
        predictors_bsd=model.text.norm(before_bsd[:, :-1]),
        last_b1d=jnp.take_along_axis(before_bsd, stop_b[:, None, None], axis=1),
    )
    return thought, (prefix, layout), (slots.keys, suffix_keys)


def _run_slots(
    model: Qwen3VL,
    prefix: DecoderOutput,
    position_b: Int[Array, " b"],
    used_bk: Bool[Array, "b k"],
    latent_hidden: str,
) -> _Slots:
    """Feeds each slot the hidden state before it. A slot that is not used hands on what it was fed."""
    start_b1d, empty = prefix.hidden_btd[:, -1:], _empty(prefix.keys, used_bk.shape[1])
    if used_bk.shape[1] == 0:
        return _Slots(start_b1d[:, :0], empty, start_b1d)
    static = _Static(nnx.split(model.text, nnx.Param)[0], latent_hidden)
    params, still = take_still(params_of(model.text))
    layout = _Layout(prefix.keys[2:], position_b, used_bk, still)
    inputs = _Inputs(params, prefix.keys[:2], start_b1d)
    hidden_kb1d, buffers = _loop(static, layout, inputs, empty[:2])
    keys = KeyValues(*buffers, stop_b=used_bk.sum(1))
    return _Slots(jnp.moveaxis(hidden_kb1d[:, :, 0], 0, 1), keys, hidden_kb1d[-1])


class _Static(NamedTuple):
    """The decoder without its parameters, and what a slot is fed."""

    decoder: nnx.GraphDef
    latent_hidden: str


class _Layout(NamedTuple):
    """Which columns of the prefix are valid (start, stop, shown), which position follows it, which slots are used; and
    of the parameters what has no gradient, among it the keys of dropout, of which every slot makes its own."""

    prefix_range: tuple[Array | None, ...]
    position_b: Array
    used_bk: Array
    still: Still


class _Inputs(NamedTuple):
    """What gradients flow to: parameters of the decoder, keys and values of the prefix, what slot 0 is fed."""

    params: Params
    prefix: tuple[Array, Array]
    start_b1d: Array


# Keys and values of slots, [layers, b, k, heads, head_dim] each.
_Buffers = tuple[Array, Array]


def _slot(
    static: _Static, layout: _Layout, slot: Array, inputs: _Inputs, buffers: _Buffers
) -> tuple[Float[Array, "b 1 d"], _Buffers]:
    """The hidden state after one slot, which is fed `inputs.start_b1d`, and its own keys and values."""
    decoder = bind(static.decoder, put_still(inputs.params, layout.still, slot + 1))
    fed_b1d = inputs.start_b1d
    if static.latent_hidden == "post_norm":
        fed_b1d = decoder.norm(fed_b1d)
    b = len(layout.position_b)
    positions_3b1 = jnp.broadcast_to((layout.position_b + slot)[:, None], (3, b, 1))
    past = (KeyValues(*inputs.prefix, *layout.prefix_range), KeyValues(*buffers, stop_b=jnp.full(b, slot)))
    output = decoder(fed_b1d, positions_3b1, past=past, keep_keys=True)
    used_b11 = jnp.take(layout.used_bk, slot, axis=1)[:, None, None]
    return jnp.where(used_b11, output.hidden_btd, inputs.start_b1d), output.keys[:2]


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _loop(
    static: _Static, layout: _Layout, inputs: _Inputs, buffers: _Buffers
) -> tuple[Float[Array, "k b 1 d"], _Buffers]:
    """The hidden states after all slots, and the buffers, which were empty, with their keys and values."""

    def step(carry: tuple[Array, _Buffers], slot: Array) -> tuple[tuple[Array, _Buffers], Array]:
        hidden_b1d, buffers = carry
        hidden_b1d, own = _slot(static, layout, slot, inputs._replace(start_b1d=hidden_b1d), buffers)
        put = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=slot, axis=2)
        return (hidden_b1d, jax.tree.map(put, buffers, own)), hidden_b1d

    (_, buffers), hidden_kb1d = jax.lax.scan(step, (inputs.start_b1d, buffers), jnp.arange(layout.used_bk.shape[1]))
    return hidden_kb1d, buffers


def _loop_forward(static: _Static, layout: _Layout, inputs: _Inputs, buffers: _Buffers) -> tuple:
    outputs = _loop(static, layout, inputs, buffers)
    return outputs, (layout, inputs, *outputs)


def _loop_backward(static: _Static, kept: tuple, cotangents: tuple) -> tuple[None, _Inputs, None]:
    """From the last slot to the first; each hands its share to what it was fed and to the keys that it saw."""
    layout, inputs, hidden_kb1d, buffers = kept
    from_outside_kb1d, to_buffers = cotangents
    fed_kb1d = jnp.concatenate([inputs.start_b1d[None], hidden_kb1d[:-1]])

    def step(carry: tuple[_Inputs, _Buffers], x: tuple[Array, Array, Array]) -> tuple[tuple[_Inputs, _Buffers], None]:
        so_far, to_buffers = carry
        slot, fed_b1d, from_outside_b1d = x
        take = functools.partial(jax.lax.dynamic_slice_in_dim, start_index=slot, slice_size=1, axis=2)
        run = functools.partial(_slot, static, layout, slot)
        _, pull_back = jax.vjp(run, inputs._replace(start_b1d=fed_b1d), buffers)
        to_hidden_b1d = so_far.start_b1d + from_outside_b1d
        to_inputs, to_seen = pull_back((to_hidden_b1d, jax.tree.map(take, to_buffers)))
        added = jax.tree.map(jnp.add, so_far._replace(start_b1d=jnp.zeros_like(fed_b1d)), to_inputs)
        return (added, jax.tree.map(jnp.add, to_buffers, to_seen)), None

    slots = jnp.arange(len(hidden_kb1d))
    carry = (jax.tree.map(jnp.zeros_like, inputs), to_buffers)
    (to_inputs, _), _ = jax.lax.scan(step, carry, (slots, fed_kb1d, from_outside_kb1d), reverse=True)
    return None, to_inputs, None


_loop.defvjp(_loop_forward, _loop_backward)


def _read_suffix(
    model: Qwen3VL, past: tuple[KeyValues, KeyValues], position_b: Int[Array, " b"], text: Mapping[str, Array]
) -> tuple[Float[Array, "b s d"], KeyValues]:
    """One pass over the suffix behind the prefix, which ends at `position_b`, and the slots."""
    prefix, slots = past
    x_bsd = model.embed(text["suffix"])
    if x_bsd.shape[1] == 0:
        return x_bsd, _empty(prefix, 0)
    positions_bs = (position_b + slots.stop_b)[:, None] + jnp.arange(x_bsd.shape[1])
    graphdef, params = nnx.split(model.text, nnx.Param)[0], params_of(model.text)
    decoder = bind(graphdef, put_still(*take_still(params), text["slots"].shape[1] + 1))
    output = decoder(
        x_bsd,
        jnp.broadcast_to(positions_bs, (3, *positions_bs.shape)),
        stop_b=text["suffix_stop"],
        past=past if slots.k_bskh.shape[2] else (prefix,),
        keep_keys=True,
    )
    return output.hidden_btd, output.keys


def _empty(like: KeyValues, length: int) -> KeyValues:
    """A buffer of so many entries, none of them valid."""
    num_layers, b, _, *heads = like.k_bskh.shape
    zeros = jnp.zeros((num_layers, b, length, *heads), like.k_bskh.dtype)
    return KeyValues(zeros, zeros, stop_b=jnp.zeros(b, jnp.int32))
