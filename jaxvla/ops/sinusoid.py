"""Sinusoids of a step number or of a time, the input of time embeddings, and of places in a sequence or a map."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Num


def sinusoid_angles(steps: Int[Array, "*b"], num_frequencies: int, last: int) -> Float[Array, "*b f"]:
    """step * 10000^(-i / last) for i = 0 .. num_frequencies - 1, float32.

    Args:
        steps: whole ones.
        num_frequencies: f.
        last: the index that has the frequency 1 / 10000: f, or f - 1 where the slowest frequency is to be that.
    """
    exponents_f = jnp.arange(num_frequencies, dtype=jnp.float32) / last
    return steps[..., None].astype(jnp.float32) * jnp.exp(-math.log(10000) * exponents_f)


def time_waves(times: Float[Array, "*b"], dim: int, min_period: float, max_period: float) -> Float[Array, "*b d"]:
    """Sines, then cosines, of 2 pi time / period, whose periods rise geometrically; float32.

    A phase of hundreds of turns, as short periods make it, is 1e-4 off when it is a float32. So time and frequency are
    split into parts whose products are exact, and whole turns are left out: what remains is 1e-6 off.

    Args:
        times: in [0, 1].
        dim: sines and cosines together; even.
        min_period, max_period: of the first wave and of the last; min_period at least 1 / 255.
    """
    frequencies = 1 / np.geomspace(min_period, max_period, dim // 2)
    coarse = np.floor(frequencies * 16) / 16
    coarse_f, fine_f = jnp.asarray(coarse, jnp.float32), jnp.asarray(frequencies - coarse, jnp.float32)
    time = times.astype(jnp.float32)[..., None]
    coarse_time = jnp.floor(time * 4096) / 4096
    turns = coarse_time * coarse_f % 1 + (time - coarse_time) * coarse_f + time * fine_f
    phases = 2 * math.pi * (turns - jnp.round(turns))
    return jnp.concatenate([jnp.sin(phases), jnp.cos(phases)], axis=-1)


def place_table(place_n: Num[np.ndarray, " n"], dim: int) -> Float[np.ndarray, "n d"]:
    """sin and cos of place * 10000^(-2 i / dim) for i = 0 .. dim / 2 - 1, in turn; float64 until it is float32.

    Vaswani et al., "Attention Is All You Need" (2017), section 3.5.

    Args:
        place_n: of each token, such as 0, 1, 2.
        dim: d, even.
    """
    angles_nf = np.asarray(place_n, np.float64)[:, None] * 10000.0 ** (-np.arange(0, dim, 2) / dim)
    return np.stack([np.sin(angles_nf), np.cos(angles_nf)], -1).reshape(len(place_n), dim).astype(np.float32)


def grid_table(height: int, width: int, dim: int) -> Float[np.ndarray, "n d"]:
    """`place_table` of the row, then of the column, of every pixel of a feature map, row by row: [h * w, d].

    Rows are counted from 1 and scaled so that the last one is at 2 pi, columns likewise, as in DETR (Carion et al.,
    2020).

    Args:
        height, width: of the map.
        dim: d, a multiple of 4: half of it is the row's.
    """
    rows_hd, columns_wd = (
        place_table(2 * np.pi * np.arange(1, size + 1) / (size + 1e-6), dim // 2) for size in (height, width)
    )
    return np.concatenate([np.repeat(rows_hd, width, 0), np.tile(columns_wd, (height, 1))], -1)
