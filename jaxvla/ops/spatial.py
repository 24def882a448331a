"""Functions of feature maps that know where a feature stands."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def coordinate_grid(height: int, width: int) -> Float[Array, "h w 2"]:
    """Row and column of every pixel, in this order, each from -1 (top, left) to 1 (bottom, right)."""
    rows, columns = jnp.linspace(-1, 1, height), jnp.linspace(-1, 1, width)
    return jnp.stack(jnp.meshgrid(rows, columns, indexing="ij"), axis=-1)


def max_pool(
    x_bhwc: Float[Array, "b h w c"], window: int = 3, stride: int = 2, padding: int | None = None
) -> Float[Array, "b y x c"]:
    """Max pooling, with as much padding at every edge as is given; else with SAME padding, y = ceil(h / stride).

    Rows and columns are reduced one after the other by maxima of strided slices. The gradient of these is a few
    elementwise passes, where that of `reduce_window` is a scatter, four times slower on CPU.
    """
    for axis in (1, 2):
        size = x_bhwc.shape[axis]
        edges = [(0, 0)] * 4
        if padding is None:
            pooled = -(-size // stride)
            total = max((pooled - 1) * stride + window - size, 0)
            edges[axis] = (total // 2, total - total // 2)
        else:
            pooled = (size + 2 * padding - window) // stride + 1
            edges[axis] = (padding, padding)
        padded = jnp.pad(x_bhwc, edges, constant_values=-jnp.inf)
        span = (pooled - 1) * stride + 1
        slices = [jax.lax.slice_in_dim(padded, i, i + span, stride, axis) for i in range(window)]
        x_bhwc = functools.reduce(jnp.maximum, slices)
    return x_bhwc


def spatial_softmax(x_bhwc: Float[Array, "b h w c"]) -> Float[Array, "b f"]:
    """Where each channel is largest: the mean row and the mean column under a softmax over all pixels.

    Finn et al., "Deep Spatial Autoencoders for Visuomotor Learning" (2016).

    Returns:
        float32 [b, 2 c]: all rows, then all columns, in [-1, 1].
    """
    b, h, w, c = x_bhwc.shape
    weights_bpc = jax.nn.softmax(x_bhwc.astype(jnp.float32).reshape(b, h * w, c), axis=1)
    expected_bkc = jnp.einsum("bpc,pk->bkc", weights_bpc, coordinate_grid(h, w).reshape(h * w, 2))
    return expected_bkc.reshape(b, 2 * c)
