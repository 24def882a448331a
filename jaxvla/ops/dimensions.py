"""Reductions over the dimensions of actions, of which a sample may lack some: datasets of a mixture differ in width.

Axis letters: b batch, a action horizon, d action dimension. `present_bd` is True in the dimensions that a sample has;
None where all have all, and then nothing is masked.
"""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def only_present(x_bad: Float[Array, "b a d"], present_bd: Bool[Array, "b d"] | None) -> Float[Array, "b a d"]:
    """0 in the dimensions that a sample lacks: nothing of what stands there gets through, nor does a gradient."""
    return x_bad if present_bd is None else jnp.where(present_bd[:, None], x_bad, 0)


def sum_present(x_bad: Float[Array, "b a d"], present_bd: Bool[Array, "b d"] | None) -> Float[Array, "b a"]:
    """The sum over the dimensions that a sample has."""
    return jnp.sum(only_present(x_bad, present_bd), -1)


def mean_present(x_bad: Float[Array, "b a d"], present_bd: Bool[Array, "b d"] | None) -> Float[Array, "b a"]:
    """The mean over the dimensions that a sample has; 0 where it has none, as rows have that only fill up a batch."""
    if present_bd is None:
        return jnp.mean(x_bad, -1)
    return sum_present(x_bad, present_bd) / jnp.maximum(present_bd.sum(-1, keepdims=True), 1)
