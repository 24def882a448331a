"""Rotary position embedding (Su et al., 2021), also of three axes interleaved over the frequencies, as in Qwen3-VL."""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int


class Rotation(NamedTuple):
    """Cosine and sine of the angle of each pair of features, float32; f is half the width of a head."""

    cos_btf: Float[Array, "#b t f"]
    sin_btf: Float[Array, "#b t f"]


def inverse_frequencies(dim: int, theta: float) -> np.ndarray:
    """float32 [dim / 2], theta^(-2 i / dim)."""
    return np.float32(1) / np.power(np.float32(theta), np.arange(0, dim, 2, dtype=np.float32) / np.float32(dim))


def interleaved_axes(section: tuple[int, int, int]) -> np.ndarray:
    """Which of time, row and column (0, 1, 2) turns each frequency: 0 1 2 0 1 2 ... until shares are used up, then 0.

    Args:
        section: frequencies per axis; their sum is half the width of a head.
    """
    axes = np.zeros(sum(section), np.int32)
    for axis in (1, 2):
        axes[axis : 3 * section[axis] : 3] = axis
    return axes


def multimodal_rotation(positions_3bt: Int[Array, "3 b t"], section: tuple[int, int, int], theta: float) -> Rotation:
    """The rotation of tokens that have a time, a row and a column each."""
    axes_f = interleaved_axes(section)
    positions_btf = jnp.moveaxis(positions_3bt, 0, -1)[..., axes_f]
    angles_btf = positions_btf.astype(jnp.float32) * inverse_frequencies(2 * len(axes_f), theta)
    return Rotation(jnp.cos(angles_btf), jnp.sin(angles_btf))


def rotation_at(positions_bt: Int[Array, "#b t"], head_dim: int, theta: float) -> Rotation:
    """The rotation of tokens that stand in one line.

    Args:
        positions_bt: of the tokens.
        head_dim: width of the heads.
        theta: base of the frequencies.
    """
    angles_btf = positions_bt[..., None].astype(jnp.float32) * inverse_frequencies(head_dim, theta)
    return Rotation(jnp.cos(angles_btf), jnp.sin(angles_btf))


def rotate(x_btnh: Float[Array, "b t n h"], rotation: Rotation) -> Float[Array, "b t n h"]:
    """Turns the pairs (x[i], x[i + h / 2]) of each head by angle i, in float32; the result has x's dtype."""
    first, second = jnp.split(x_btnh.astype(jnp.float32), 2, axis=-1)
    cos, sin = rotation.cos_btf[:, :, None], rotation.sin_btf[:, :, None]
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], -1).astype(x_btnh.dtype)
