"""Image augmentation on device: uint8 batches in, uint8 batches out.

The operations are those of bridge_data_v2, with the pixel arithmetic of tf.image, and random_shift; behind them come
LeRobot's transforms. In those of bridge_data_v2 two things differ on purpose: every parameter is drawn independently
(the original draws scale, ratio and offsets of a crop, and all operations, from one seed, which correlates them fully),
and pixels are rounded, not truncated, to uint8.

Axis letters: b batch, c colour, o frames of a history, h height, w width, i resampled height, j resampled width,
k draws.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key, UInt8

from jaxvla.errors import ConfigError
from jaxvla.ops.colours import adjust_contrast, adjust_hue, adjust_saturation, column
from jaxvla.ops.image_transforms import ImageTransformsConfig, between, transform_images

_VIEWS = ("observations", "next_observations", "goals")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """What is drawn for each example, and in which order it is applied.

    Attributes:
        order: names of `OPERATIONS`, each at most once; empty for no augmentation.
        crop_scale: range of the crop's area, as a share of the image.
        crop_ratio: range of the crop's aspect ratio (width over height), drawn log-uniformly.
        brightness: largest shift either way, of pixels in [0, 1].
        contrast: range of the factor on the distance from the mean colour.
        saturation: range of the factor on the saturation.
        hue: largest shift either way, in turns of the colour circle.
        shift: of random_shift, the largest move either way, as a share of the image's side; in whole pixels, and what
            comes in shows the image's edge (Kostrikov et al., 2020, who move 84 pixels by up to 4).
        goals_differ: observations, next observations and goals of one example get separate draws, not the same.
        transforms: LeRobot's, behind all of `order`.

    Raises:
        ConfigError: an unknown or repeated operation, or a range that is empty or leaves the possible values.
    """

    order: tuple[str, ...] = ()
    crop_scale: tuple[float, float] = (0.8, 1.0)
    crop_ratio: tuple[float, float] = (0.9, 1.1)
    brightness: float = 0.2
    contrast: tuple[float, float] = (0.8, 1.2)
    saturation: tuple[float, float] = (0.8, 1.2)
    hue: float = 0.1
    shift: float = 0.05
    goals_differ: bool = False
    transforms: ImageTransformsConfig = dataclasses.field(default_factory=ImageTransformsConfig)

    def __post_init__(self) -> None:
        for name in self.order:
            if name not in OPERATIONS:
                raise ConfigError(f"augment.order names {name!r}; the operations are {', '.join(OPERATIONS)}")
        if len(set(self.order)) < len(self.order):
            raise ConfigError(f"augment.order names an operation twice: {', '.join(self.order)}")
        limits = {"crop_scale": (1e-6, 1), "crop_ratio": (1e-6, 1e6), "contrast": (0, 1e6), "saturation": (0, 1e6)}
        for name, (lowest, highest) in limits.items():
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                raise ConfigError(f"augment.{name} must rise within [{lowest:g}, {highest:g}], not {low, high}")
        for name, highest in {"brightness": 1, "hue": 0.5, "shift": 0.5}.items():
            if not 0 <= getattr(self, name) <= highest:
                raise ConfigError(f"augment.{name} must lie in [0, {highest}], not {getattr(self, name)}")


def augment_batch(batch: Mapping[str, Any], rng: Key[Array, ""], config: AugmentConfig) -> dict[str, Any]:
    """Augments the images (uint8 leaves) of observations, next_observations and goals; all else passes through.

    Every example and every camera has its own draws. The frames of a history share them, and so do observations,
    next_observations and goals of one example, unless `config.goals_differ`.

    Args:
        batch: nested mapping with images uint8 [b, o, h, w, 3] in (next_)observations and [b, h, w, 3] in goals.
        rng: a key; the same key gives the same images.
        config: what to do.

    Returns:
        A new batch of the same shapes and dtypes.
    """
    if not config.order and not config.transforms.enable:
        return dict(batch)
    rngs = jax.random.split(rng, len(_VIEWS)) if config.goals_differ else [rng] * len(_VIEWS)
    augmented = {
        view: _augment_cameras(batch[view], view_rng, config) for view, view_rng in zip(_VIEWS, rngs) if view in batch
    }
    return {**batch, **augmented}


def augment_images(
    images: UInt8[Array, "b *o h w 3"], rng: Key[Array, ""], config: AugmentConfig
) -> UInt8[Array, "b *o h w 3"]:
    """Augments the images of one camera, with or without a history axis; the frames of an example share its draws."""
    x_bohwc = images.reshape(len(images), -1, *images.shape[-3:])
    # Colours as planes: long rows of one colour fill vector units where interleaved triples do not.
    x = x_bohwc.transpose(0, 4, 1, 2, 3).astype(jnp.float32) / 255
    if config.order:
        # One call draws for all operations: each call of the generator takes as long to compile as a convolution.
        draws = dict(zip(OPERATIONS, jax.random.uniform(rng, (len(OPERATIONS), _MAX_DRAWS, len(x)))))
        for name in config.order:
            x = jnp.clip(OPERATIONS[name](x, draws[name], config), 0, 1)
    if config.transforms.enable:
        x = transform_images(x, jax.random.fold_in(rng, 1), config.transforms)
    return jnp.round(x * 255).astype(jnp.uint8).transpose(0, 2, 3, 4, 1).reshape(images.shape)


def crop_and_resize(
    x_bcohw: Float[Array, "b c o h w"],
    top_b: Float[Array, " b"],
    left_b: Float[Array, " b"],
    height_b: Float[Array, " b"],
    width_b: Float[Array, " b"],
) -> Float[Array, "b c o h w"]:
    """Cuts one box out of each example and scales it to the input size: tf.image.crop_and_resize, bilinear.

    Args:
        x_bcohw: images.
        top_b, left_b, height_b, width_b: the box, in shares of the image; inside of it.
    """

    def points(start_b: Array, length_b: Array, size: int) -> Array:
        return (start_b[:, None] + length_b[:, None] * jnp.linspace(0, 1, size)) * (size - 1)

    height, width = x_bcohw.shape[-2:]
    return _resample(x_bcohw, points(top_b, height_b, height), points(left_b, width_b, width))


def _augment_cameras(views: Mapping[str, Any], rng: Key[Array, ""], config: AugmentConfig) -> dict[str, Any]:
    cameras = sorted(name for name, leaf in views.items() if leaf.dtype == jnp.uint8)
    rngs = jax.random.split(rng, len(cameras))
    return {**views, **{name: augment_images(views[name], key, config) for name, key in zip(cameras, rngs)}}


def _random_resized_crop(x_bcohw: Array, u_kb: Array, config: AugmentConfig) -> Array:
    scale_b = between(u_kb[0], *config.crop_scale)
    ratio_b = jnp.exp(between(u_kb[1], *map(math.log, config.crop_ratio)))
    height_b = jnp.minimum(jnp.sqrt(scale_b / ratio_b), 1)
    width_b = jnp.minimum(jnp.sqrt(scale_b * ratio_b), 1)
    return crop_and_resize(x_bcohw, u_kb[2] * (1 - height_b), u_kb[3] * (1 - width_b), height_b, width_b)


def _brightness(x_bcohw: Array, u_kb: Array, config: AugmentConfig) -> Array:
    return x_bcohw + column(between(u_kb[0], -config.brightness, config.brightness))


def _contrast(x_bcohw: Array, u_kb: Array, config: AugmentConfig) -> Array:
    return adjust_contrast(x_bcohw, between(u_kb[0], *config.contrast))


def _saturation(x_bcohw: Array, u_kb: Array, config: AugmentConfig) -> Array:
    return adjust_saturation(x_bcohw, between(u_kb[0], *config.saturation))


def _hue(x_bcohw: Array, u_kb: Array, config: AugmentConfig) -> Array:
    return adjust_hue(x_bcohw, between(u_kb[0], -config.hue, config.hue))


def _random_flip_left_right(x_bcohw: Array, u_kb: Array, config: AugmentConfig) -> Array:
    return jnp.where(column(u_kb[0] < 0.5), x_bcohw[..., ::-1], x_bcohw)


def _random_shift(x_bcohw: Array, u_kb: Array, config: AugmentConfig) -> Array:
    def moved(u_b: Array, size: int) -> Array:
        pixels_b = jnp.round(between(u_b, -config.shift, config.shift) * size)
        return jnp.clip(jnp.arange(size) + pixels_b[:, None], 0, size - 1)

    y_bi, x_bj = (moved(u_kb[i], x_bcohw.shape[axis]) for i, axis in enumerate((-2, -1)))
    return _resample(x_bcohw, y_bi, x_bj)


# Each maps (images float32 [b, c, o, h, w] in [0, 1], draws uniform in [0, 1) [k, b], config) to images; the caller
# clips the result. An operation takes as many of the k draws as it has parameters.
_MAX_DRAWS = 4
OPERATIONS: dict[str, Callable[[Array, Array, AugmentConfig], Array]] = {
    "random_resized_crop": _random_resized_crop,
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
    "random_flip_left_right": _random_flip_left_right,
    "random_shift": _random_shift,
}


def _resample(x_bcohw: Array, y_bi: Array, x_bj: Array) -> Array:
    """Each example's image at these rows and columns, in pixels; bilinear."""
    y_bih, x_bjw = (
        jnp.maximum(1 - jnp.abs(points[:, :, None] - jnp.arange(size)), 0)
        for points, size in zip((y_bi, x_bj), x_bcohw.shape[-2:])
    )
    # Two matrix products instead of a gather: accelerators gather slowly. Their fastest products keep 8 to 11 bits, too
    # few for pixels of 8, hence the precision.
    product = {"precision": jax.lax.Precision.HIGHEST}
    x_bcoiw = jnp.einsum("bih,bcohw->bcoiw", y_bih, x_bcohw, **product)
    return jnp.einsum("bjw,bcoiw->bcoij", x_bjw, x_bcoiw, **product)
