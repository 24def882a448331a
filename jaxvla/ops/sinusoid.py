"""Sinusoids of a step number, the input of time embeddings."""

import math

import jax.numpy as jnp
from jaxtyping import Array, Float, Int


def sinusoid_angles(step_b: Int[Array, " b"], num_frequencies: int, last: int) -> Float[Array, "b f"]:
    """step * 10000^(-i / last) for i = 0 .. num_frequencies - 1, float32.

    Args:
        step_b: whole steps.
        num_frequencies: f.
        last: the index that has the frequency 1 / 10000: f, or f - 1 where the slowest frequency is to be that.
    """
    exponents_f = jnp.arange(num_frequencies, dtype=jnp.float32) / last
    return step_b[:, None].astype(jnp.float32) * jnp.exp(-math.log(10000) * exponents_f)
