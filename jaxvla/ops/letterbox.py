"""Images of any size on a canvas of one size, with their aspect ratio kept."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def resize_with_pad(images_bhwc: Float[Array, "b h w c"], height: int, width: int) -> Float[Array, "b y x c"]:
    """The largest image of the same aspect ratio that fits, at the bottom right of a canvas of zeros.

    Bilinear, and not smoothed where it shrinks, as LeRobot's policies see their cameras. An image that has the size of
    the canvas stays as it is.

    Args:
        images_bhwc: any float values.
        height, width: of the canvas.
    """
    b, h, w, c = images_bhwc.shape
    if (h, w) == (height, width):
        return images_bhwc
    ratio = max(w / width, h / height)
    inner = (int(h / ratio), int(w / ratio))
    resized = jax.image.resize(images_bhwc, (b, *inner, c), "linear", antialias=False)
    return jnp.pad(resized, ((0, 0), (height - inner[0], 0), (width - inner[1], 0), (0, 0)))
