"""Text generation: one while loop that ends when every sample has ended, behind anything that a cache holds."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxvla.errors import ConfigError
from jaxvla.models.cache import Cache, extend
from jaxvla.models.text_decoder import TextDecoder


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        max_new_tokens: when to end at the latest.
        temperature: by which logits are divided; 0 takes the likeliest token.
        top_p: draw from the smallest set of tokens whose probabilities sum to this; 1 for all.
        stop_tokens: a sample ends with the first of these.
        pad_token: what fills a sample after its end.

    Raises:
        ConfigError: a value out of its range.
    """

    max_new_tokens: int
    temperature: float = 0.0
    top_p: float = 1.0
    stop_tokens: tuple[int, ...] = ()
    pad_token: int = 0

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ConfigError(f"sampling needs max_new_tokens >= 1, temperature >= 0 and 0 < top_p <= 1, not {self}")


class Generated(NamedTuple):
    """What was generated.

    Attributes:
        tokens_bm: the new tokens, `pad_token` after each sample's end.
        length_b: how many there are, the stop token included.
        hidden_bmd: the hidden state at each of them, the last included, before the final norm; 0 after the end.
    """

    tokens_bm: Int[Array, "b m"]
    length_b: Int[Array, " b"]
    hidden_bmd: Float[Array, "b m d"]


class _State(NamedTuple):
    step: Int[Array, ""]
    hidden_b1d: Float[Array, "b 1 d"]
    finished_b: Bool[Array, " b"]
    cache: Cache
    tokens_bm: Int[Array, "b m"]
    hidden_bmd: Float[Array, "b m d"]


def continue_text(
    decoder: TextDecoder, cache: Cache, hidden_b1d: Float[Array, "b 1 d"], rng: Key[Array, ""], *, sampling: Sampling
) -> Generated:
    """Goes on behind anything that a cache holds.

    Args:
        decoder: bound to its parameters, best after `cast_matrices`.
        cache: with room for `sampling.max_new_tokens` more; what does not fit would be forgotten.
        hidden_b1d: the hidden state at the last entry of each sample, before the final norm.
        rng: for temperatures above 0.
        sampling: how tokens are chosen.
    """
    b, _, d = hidden_b1d.shape
    stop_tokens = jnp.array(sampling.stop_tokens, jnp.int32)

    def advance(state: _State) -> _State:
        logits_bv = decoder.logits(decoder.norm(state.hidden_b1d))[:, 0]
        token_b = choose_token(logits_bv, jax.random.fold_in(rng, state.step), sampling)
        token_b = jnp.where(state.finished_b, sampling.pad_token, token_b)
        # The token is read in the step that chose it, so that the last one has a hidden state, too.
        hidden_b1d, cache = extend(decoder, state.cache, decoder.embed_tokens(token_b[:, None]))
        kept_bd = jnp.where(state.finished_b[:, None], 0, hidden_b1d[:, 0])
        return _State(
            state.step + 1,
            hidden_b1d,
            state.finished_b | jnp.isin(token_b, stop_tokens),
            cache,
            state.tokens_bm.at[:, state.step].set(token_b),
            state.hidden_bmd.at[:, state.step].set(kept_bd),
        )

    def unfinished(state: _State) -> Array:
        return (state.step < sampling.max_new_tokens) & ~state.finished_b.all()

    tokens_bm = jnp.full((b, sampling.max_new_tokens), sampling.pad_token, jnp.int32)
    hidden_bmd = jnp.zeros((b, sampling.max_new_tokens, d), hidden_b1d.dtype)
    state = _State(jnp.int32(0), hidden_b1d, jnp.zeros(b, bool), cache, tokens_bm, hidden_bmd)
    state = jax.lax.while_loop(unfinished, advance, state)
    is_end_bm = jnp.isin(state.tokens_bm, stop_tokens)
    length_b = jnp.where(is_end_bm.any(1), is_end_bm.argmax(1) + 1, state.step)
    return Generated(state.tokens_bm, length_b, state.hidden_bmd)


def choose_token(logits_bv: Float[Array, "b v"], rng: Key[Array, ""], sampling: Sampling) -> Int[Array, " b"]:
    """One token per sample."""
    if sampling.temperature == 0:
        return jnp.argmax(logits_bv, axis=-1)
    logits_bv = logits_bv / sampling.temperature
    if sampling.top_p < 1:
        sorted_bv = jnp.sort(logits_bv, axis=-1, descending=True)
        probabilities_bv = jax.nn.softmax(sorted_bv, axis=-1)
        # A token is kept if those before it do not yet reach top_p, so the likeliest always is.
        kept_bv = jnp.cumsum(probabilities_bv, axis=-1) - probabilities_bv < sampling.top_p
        least_b1 = jnp.min(jnp.where(kept_bv, sorted_bv, jnp.inf), axis=-1, keepdims=True)
        logits_bv = jnp.where(logits_bv >= least_b1, logits_bv, -jnp.inf)
    return jax.random.categorical(rng, logits_bv, axis=-1)
