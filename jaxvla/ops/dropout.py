"""Dropout with an explicit key."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key


def dropout(x: Float[Array, "..."], rate: float, rng: Key[Array, ""] | None) -> Float[Array, "..."]:
    """Sets each entry to 0 with probability `rate`, in [0, 1), and scales the others by 1 / (1 - rate).

    Without a key, the identity: a model runs in evaluation mode when it is given no key.
    """
    if rng is None or rate == 0:
        return x
    keep = jax.random.bernoulli(rng, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0)
