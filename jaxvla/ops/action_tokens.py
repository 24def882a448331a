"""Actions as the last tokens of a vocabulary (RT-2, OpenVLA): 256 edges over [-1, 1], and the middles between them."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

NUM_BINS = 256

_EDGES = np.linspace(-1, 1, NUM_BINS)
_MIDDLES = ((_EDGES[:-1] + _EDGES[1:]) / 2).astype(np.float32)


def _up(values: np.ndarray) -> np.ndarray:
    """The smallest float32 that is not below each float64: what reaches the one reaches the other."""
    rounded = values.astype(np.float32)
    return np.where(rounded < values, np.nextafter(rounded, np.float32(np.inf)), rounded)


_EDGES_UP = _up(_EDGES)


def to_tokens(actions: Float[Array, "*shape"], end: int) -> Int[Array, "*shape"]:
    """The token of each value: end - n, where n edges, 1 to 256, are not above it. As numpy.digitize in float64.

    Args:
        actions: normalized; what lies beyond [-1, 1] counts as its ends.
        end: one above the highest token of an action, the size of the tokenizer's own vocabulary. The lowest value has
            token end - 1, the highest end - 256.
    """
    clipped = jnp.clip(actions, -1, 1)
    return end - (clipped[..., None] >= jnp.asarray(_EDGES_UP)).sum(-1, dtype=jnp.int32)


def to_actions(tokens: Int[Array, "*shape"], end: int) -> Float[Array, "*shape"]:
    """The middle of each token's bin, float32; the value 1, a bin of its own, shares the last one.

    Tokens that are no actions count as the nearest that are, as in OpenVLA: words as the highest value.
    """
    return jnp.asarray(_MIDDLES)[jnp.clip(end - tokens - 1, 0, NUM_BINS - 2)]
