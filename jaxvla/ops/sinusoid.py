"""Sinusoids of a step number or of a time, the input of time embeddings."""

import math

import jax.numpy as jnp
import numpy as np
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


def time_waves(time_b: Float[Array, " b"], dim: int, min_period: float, max_period: float) -> Float[Array, "b d"]:
    """Sines, then cosines, of 2 pi time / period, whose periods rise geometrically; float32.

    A phase of hundreds of turns, as short periods make it, is 1e-4 off when it is a float32. So time and frequency are
    split into parts whose products are exact, and whole turns are left out: what remains is 1e-6 off.

    Args:
        time_b: in [0, 1].
        dim: sines and cosines together; even.
        min_period, max_period: of the first wave and of the last; min_period at least 1 / 255.
    """
    frequencies = 1 / np.geomspace(min_period, max_period, dim // 2)
    coarse = np.floor(frequencies * 16) / 16
    coarse_f, fine_f = jnp.asarray(coarse, jnp.float32), jnp.asarray(frequencies - coarse, jnp.float32)
    time_b1 = time_b.astype(jnp.float32)[:, None]
    coarse_b1 = jnp.floor(time_b1 * 4096) / 4096
    turns_bf = coarse_b1 * coarse_f % 1 + (time_b1 - coarse_b1) * coarse_f + time_b1 * fine_f
    phases_bf = 2 * math.pi * (turns_bf - jnp.round(turns_bf))
    return jnp.concatenate([jnp.sin(phases_bf), jnp.cos(phases_bf)], axis=-1)
