"""Colours of pictures whose axes are b batch, c colour (red, green, blue), o frames of a history, h height, w width.

Every example has its own factor. Nothing is clipped: what is brighter than 1 comes out brighter than 1.
"""

import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def adjust_contrast(x_bcohw: Float[Array, "b c o h w"], factor_b: Float[Array, " b"]) -> Float[Array, "b c o h w"]:
    """Scales the distance of each pixel from its frame's mean colour: tf.image.adjust_contrast."""
    return blend(x_bcohw, x_bcohw.mean((-2, -1), keepdims=True), factor_b)


def adjust_saturation(x_bcohw: Float[Array, "b c o h w"], factor_b: Float[Array, " b"]) -> Float[Array, "b c o h w"]:
    """Scales the HSV saturation, up to 1, at constant hue and value: tf.image.adjust_saturation."""
    value, chroma = (x[:, None] for x in _value_and_chroma(x_bcohw))
    # Saturation is chroma / value, so it reaches 1 where the factor is value / chroma.
    factor = jnp.minimum(column(factor_b), value / jnp.where(chroma == 0, 1, chroma))
    return value - (value - x_bcohw) * factor


def adjust_hue(x_bcohw: Float[Array, "b c o h w"], turns_b: Float[Array, " b"]) -> Float[Array, "b c o h w"]:
    """Turns the HSV hue at constant saturation and value: tf.image.adjust_hue. One turn is the full colour circle."""
    red, green, blue = x_bcohw[:, 0], x_bcohw[:, 1], x_bcohw[:, 2]
    value, chroma = _value_and_chroma(x_bcohw)
    per_chroma = 1 / jnp.where(chroma == 0, 1, chroma)
    sector = jnp.where(
        value == red,
        (green - blue) * per_chroma,
        jnp.where(value == green, (blue - red) * per_chroma + 2, (red - green) * per_chroma + 4),
    )
    sector += 6 * turns_b[:, None, None, None]

    def colour(offset: int) -> Array:
        k = sector + offset
        k -= 6 * jnp.floor(k / 6)
        return value - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    return jnp.stack([colour(5), colour(3), colour(1)], 1)


def grey(x_bcohw: Float[Array, "b c o h w"]) -> Float[Array, "b 1 o h w"]:
    """How bright each pixel is to the eye, with the weights of ITU-R BT.601 that torchvision has."""
    red, green, blue = x_bcohw[:, :1], x_bcohw[:, 1:2], x_bcohw[:, 2:]
    return 0.2989 * red + 0.587 * green + 0.114 * blue


def blend(
    x_bcohw: Float[Array, "b c o h w"], base_bcohw: Float[Array, " b #c o #h #w"], factor_b: Float[Array, " b"]
) -> Float[Array, "b c o h w"]:
    """Scales the distance from a base."""
    return base_bcohw + (x_bcohw - base_bcohw) * column(factor_b)


def column(x_b: Shaped[Array, " b"]) -> Shaped[Array, "b 1 1 1 1"]:
    """One value of each example, against pictures."""
    return x_b[:, None, None, None, None]


def _value_and_chroma(x_bcohw: Array) -> tuple[Array, Array]:
    """The largest colour of each pixel, [b, o, h, w], and how far it lies above the smallest."""
    red, green, blue = x_bcohw[:, 0], x_bcohw[:, 1], x_bcohw[:, 2]
    value = jnp.maximum(jnp.maximum(red, green), blue)
    return value, value - jnp.minimum(jnp.minimum(red, green), blue)
