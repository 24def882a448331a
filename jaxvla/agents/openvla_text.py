"""The tokens that OpenVLA puts around a prompt: [first][prompt][space][token of each action value][end]."""

import dataclasses
from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxvla.data.schema import NO_TOKEN


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """Tokens with a meaning of their own, those of Llama-2 by default.

    Attributes:
        first: begins every sequence.
        space: what a tokenizer makes of the space between prompt and actions.
        end: follows the last action.
        actions_end: one above the highest token of an action; the 256 below it are those of the bins.
    """

    first: int = 1
    space: int = 29871
    end: int = 2
    actions_end: int = 32000


class Text(NamedTuple):
    """Tokens around and behind the prompts, where padding begins, and where the space before the actions stands."""

    tokens_bt: Int[Array, "b t"]
    stop_b: Int[Array, " b"]
    space_b: Int[Array, " b"]

    @property
    def valid_bt(self) -> Bool[Array, "b t"]:
        """False at the padding."""
        return jnp.arange(self.tokens_bt.shape[1]) < self.stop_b[:, None]

    @property
    def slots_bt(self) -> Bool[Array, "b t"]:
        """True at the values of actions, between space and end."""
        place_t = jnp.arange(self.tokens_bt.shape[1])
        return (place_t > self.space_b[:, None]) & (place_t < self.stop_b[:, None] - 1)


def lay_out(tokens: TokenIds, prompt_bl: Int[Array, "b l"], actions_bn: Int[Array, "b n"] | None) -> Text:
    """Prompts with what stands around them; without actions they end in the space.

    Args:
        tokens: with a meaning of their own.
        prompt_bl: token ids, `NO_TOKEN` behind the last.
        actions_bn: the token of each value; None for none.
    """
    b = len(prompt_bl)

    def column(token: int) -> Int[Array, "b 1"]:
        return jnp.full((b, 1), token, jnp.int32)

    before = jnp.concatenate([column(tokens.first), jnp.maximum(prompt_bl, 0)], axis=1)
    behind = [column(tokens.space)]
    behind += [] if actions_bn is None else [actions_bn, column(tokens.end)]
    behind = jnp.concatenate(behind, axis=1)
    space_b = 1 + (prompt_bl != NO_TOKEN).sum(1)
    place_t = jnp.arange(before.shape[1] + behind.shape[1])
    own = jnp.pad(before, ((0, 0), (0, behind.shape[1])))
    shifted = jnp.clip(place_t - space_b[:, None], 0, behind.shape[1] - 1)
    later = jnp.take_along_axis(behind, shifted, axis=1)
    return Text(jnp.where(place_t < space_b[:, None], own, later), space_b + behind.shape[1], space_b)
