"""uint8 pixels to the normalised patches that Qwen3-VL's vision tower takes, on device.

Axis letters: b any leading axes, h height, w width, c colour, n patches, p values of a patch.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from jaxvla.errors import DataError


def patchify(
    images: UInt8[Array, "*b h w c"], patch_size: int = 16, temporal_patch_size: int = 2, merge_size: int = 2
) -> Float[Array, "*b n p"]:
    """Patches in float32, in the order and layout of transformers' Qwen2VLImageProcessor (models/qwen2_vl).

    Patches that merge into one token stand together: row by row over squares of `merge_size` x `merge_size` patches,
    row by row within a square. A patch is flattened as (colour, time, row, column); an image is a film of
    `temporal_patch_size` equal frames.

    Raises:
        DataError: a side is not a multiple of `patch_size * merge_size`.
    """
    *leading, height, width, colors = images.shape
    unit = patch_size * merge_size
    if height % unit or width % unit:
        raise DataError(
            f"images of {height} x {width} pixels are off the model's grid of {unit}: resize them to it first"
        )
    rows, columns = height // unit, width // unit
    pixels = normalize(images).reshape(-1, rows, merge_size, patch_size, columns, merge_size, patch_size, colors)
    patches = pixels.transpose(0, 1, 4, 2, 5, 7, 3, 6)[..., None, :, :]
    patches = jnp.broadcast_to(patches, (*patches.shape[:6], temporal_patch_size, patch_size, patch_size))
    return patches.reshape(*leading, rows * columns * merge_size**2, -1)


def normalize(pixels: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """(pixels / 255 - 0.5) / 0.5, bit for bit as numpy gives it in float32 with a rounding after each operation.

    Compilers multiply by 1 / 255 and fuse the subtraction into it, which rounds otherwise, up to 1.2e-7 off. Integers
    leave nothing to round: x / 255 is 0.xxx... with the eight bits of x for each x, so that the result times 2**24
    is 0x020202 x - 2**24, plus what the rounding of x / 255 to 24 significant bits adds.
    """
    x = pixels.astype(jnp.int32)
    return (0x020202 * x - 2**24 + jnp.minimum(x >> 6, 2)).astype(jnp.float32) * 2.0**-24
