"""LayerNorm that a condition scales and shifts (adaptive LayerNorm; Peebles and Xie, 2023)."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def modulated_norm(
    x_btd: Float[Array, "b t d"],
    scale_bkd: Float[Array, "b k d"] | float = 0.0,
    shift_bkd: Float[Array, "b k d"] | float = 0.0,
    epsilon: float = 1e-5,
) -> Float[Array, "b t d"]:
    """norm(x) (1 + scale) + shift over the last axis, computed in float32; the result has x's dtype.

    Args:
        x_btd: any float dtype.
        scale_bkd, shift_bkd: of all tokens, k = 1, or of each; 0 for a LayerNorm without parameters.
        epsilon: added to the variance.
    """
    x32 = x_btd.astype(jnp.float32)
    centred = x32 - x32.mean(-1, keepdims=True)
    normed = centred * jax.lax.rsqrt(jnp.mean(centred**2, -1, keepdims=True) + epsilon)
    return (normed * (1 + scale_bkd) + shift_bkd).astype(x_btd.dtype)
