"""Pixels to the patches that vision towers take, and what they make of these to fewer image tokens, on device.

Axis letters: b any leading axes, h height, w width, c colour, n patches, p values of a patch, d width of a token.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, UInt8

from jaxvla.errors import ConfigError, DataError


def patchify(
    images: UInt8[Array, "*b h w c"], patch_size: int = 16, temporal_patch_size: int = 2, merge_size: int = 2
) -> Float[Array, "*b n p"]:
    """Normalised patches in float32, in the order and layout of transformers' Qwen2VLImageProcessor (models/qwen2_vl).

    Raises:
        DataError: see `cut_patches`.
    """
    return cut_patches(normalize(images), patch_size, temporal_patch_size, merge_size)


def cut_patches(
    pixels: Float[Array, "*b h w c"], patch_size: int, temporal_patch_size: int = 1, merge_size: int = 1
) -> Float[Array, "*b n p"]:
    """Patches of images.

    Patches that merge into one token stand together: row by row over squares of `merge_size` x `merge_size` patches,
    row by row within a square. A patch is flattened as (colour, time, row, column); an image is a film of
    `temporal_patch_size` equal frames.

    Raises:
        DataError: a side is not a multiple of `patch_size * merge_size`.
    """
    *leading, height, width, colors = pixels.shape
    unit = patch_size * merge_size
    if height % unit or width % unit:
        raise DataError(
            f"images of {height} x {width} pixels are off the model's grid of {unit}: resize them to it first"
        )
    rows, columns = height // unit, width // unit
    pixels = pixels.reshape(-1, rows, merge_size, patch_size, columns, merge_size, patch_size, colors)
    patches = pixels.transpose(0, 1, 4, 2, 5, 7, 3, 6)[..., None, :, :]
    patches = jnp.broadcast_to(patches, (*patches.shape[:6], temporal_patch_size, patch_size, patch_size))
    return patches.reshape(*leading, rows * columns * merge_size**2, -1)


def pixel_shuffle(x_bnd: Float[Array, "b n d"], factor: int) -> Float[Array, "b i e"]:
    """Joins the tokens of each square of `factor` x `factor` patches to one, as transformers' models/smolvlm does.

    Args:
        x_bnd: of the patches of a square image, row by row.
        factor: side of the squares.

    Returns:
        n / factor^2 tokens of width d factor^2, row by row; within one, the tokens of its patches, row by row.

    Raises:
        ConfigError: the patches are no square, or its side is no multiple of `factor`.
    """
    b, n, d = x_bnd.shape
    side = round(n**0.5)
    if side**2 != n or side % factor:
        raise ConfigError(f"{n} patches are no square whose side is a multiple of {factor}")
    x = x_bnd.reshape(b, side // factor, factor, side // factor, factor, d)
    return x.swapaxes(2, 3).reshape(b, n // factor**2, d * factor**2)


def normalize(pixels: UInt8[Array, "*shape"]) -> Float[Array, "*shape"]:
    """(pixels / 255 - 0.5) / 0.5, bit for bit as numpy gives it in float32 with a rounding after each operation.

    Compilers multiply by 1 / 255 and fuse the subtraction into it, which rounds otherwise, up to 1.2e-7 off. Integers
    leave nothing to round: x / 255 is 0.xxx... with the eight bits of x for each x, so that the result times 2**24
    is 0x020202 x - 2**24, plus what the rounding of x / 255 to 24 significant bits adds.
    """
    x = pixels.astype(jnp.int32)
    return (0x020202 * x - 2**24 + jnp.minimum(x >> 6, 2)).astype(jnp.float32) * 2.0**-24
