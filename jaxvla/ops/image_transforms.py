"""LeRobot's image transforms on device: a few of six changes, drawn by weight for every example.

The pixel arithmetic is that of torchvision.transforms.v2 on pictures in [0, 1]: ColorJitter, adjust_sharpness and
RandomAffine with its nearest pixel on black. Which are drawn is RandomSubsetApply of lerobot/datasets/transforms.py.

Axis letters: b batch, c colour, o frames of a history, h height, w width, k draws, n transforms, p passes.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Key

from jaxvla.errors import ConfigError
from jaxvla.ops.colours import adjust_hue, blend, column, grey

_LIMITS = {
    "brightness": (0, 1e6),
    "contrast": (0, 1e6),
    "saturation": (0, 1e6),
    "hue": (-0.5, 0.5),
    "sharpness": (0, 1e6),
}


@dataclasses.dataclass(frozen=True)
class Jitter:
    """A change by one number that is drawn uniformly from `range`, lowest and highest; never drawn with weight 0."""

    weight: float
    range: tuple[float, float]


@dataclasses.dataclass(frozen=True)
class Affine:
    """A turn and a move.

    Attributes:
        weight: never drawn with 0.
        degrees: range of the turn, clockwise.
        translate: largest move either way to the right and downwards, as shares of width and height; in whole pixels.
    """

    weight: float = 1.0
    degrees: tuple[float, float] = (-5.0, 5.0)
    translate: tuple[float, float] = (0.05, 0.05)


@dataclasses.dataclass(frozen=True)
class ImageTransformsConfig:
    """What is drawn, with LeRobot's names and values.

    Attributes:
        enable: whether anything is.
        max_num_transforms: so many different ones of those that have a weight, or all of them where they are fewer.
        random_order: in the order drawn, not in that of these attributes. Costs as many times the work as there are
            transforms.
        brightness: range of the factor on all colours.
        contrast: range of the factor on the distance from the mean grey of a frame.
        saturation: range of the factor on the distance from the grey of a pixel.
        hue: range of the shift, in turns of the colour circle.
        sharpness: range of the factor on the distance from the blurred picture.
        affine: see `Affine`.

    Raises:
        ConfigError: no transform to draw, a weight below 0, or a range that is empty or leaves the possible values.
    """

    enable: bool = False
    max_num_transforms: int = 3
    random_order: bool = False
    brightness: Jitter = Jitter(1.0, (0.8, 1.2))
    contrast: Jitter = Jitter(1.0, (0.8, 1.2))
    saturation: Jitter = Jitter(1.0, (0.5, 1.5))
    hue: Jitter = Jitter(1.0, (-0.05, 0.05))
    sharpness: Jitter = Jitter(1.0, (0.5, 1.5))
    affine: Affine = Affine()

    def __post_init__(self) -> None:
        where = "augment.transforms"
        for name in TRANSFORMS:
            weight = getattr(self, name).weight
            if not 0 <= weight < math.inf:
                raise ConfigError(f"{where}.{name}.weight must be 0 or more, not {weight}")
        ranges = {f"{name}.range": (getattr(self, name).range, limits) for name, limits in _LIMITS.items()}
        ranges["affine.degrees"] = (self.affine.degrees, (-180, 180))
        for name, ((low, high), (lowest, highest)) in ranges.items():
            if not lowest <= low <= high <= highest:
                raise ConfigError(f"{where}.{name} must rise within [{lowest:g}, {highest:g}], not {low, high}")
        if not all(0 <= share <= 1 for share in self.affine.translate):
            raise ConfigError(f"{where}.affine.translate must lie in [0, 1], not {self.affine.translate}")
        if self.max_num_transforms < 1:
            raise ConfigError(f"{where}.max_num_transforms must be at least 1, not {self.max_num_transforms}")
        if self.enable and not self.drawn:
            raise ConfigError(f"{where} is enabled, and every weight is 0: give one of {', '.join(TRANSFORMS)} some")

    @property
    def drawn(self) -> tuple[str, ...]:
        """Names of the transforms that have a weight."""
        return tuple(name for name in TRANSFORMS if getattr(self, name).weight > 0)


def transform_images(
    x_bcohw: Float[Array, "b c o h w"], rng: Key[Array, ""], config: ImageTransformsConfig
) -> Float[Array, "b c o h w"]:
    """Applies to every example what is drawn for it, whatever `config.enable` says; its frames share the draws.

    Args:
        x_bcohw: pictures in [0, 1].
        rng: a key; the same key gives the same pictures.
        config: what to draw.
    """
    names = config.drawn
    u_knb = jax.random.uniform(rng, (1 + _MAX_DRAWS, len(names), len(x_bcohw)))
    chosen_pnb = _choose(u_knb[0], config)

    def change(name: str) -> Callable[[Array, Array], Array]:
        return lambda x, u_kb: jnp.clip(TRANSFORMS[name](x, u_kb, getattr(config, name)), 0, 1)

    # One by one in a loop: what is merged with the next computes each neighbour that the next looks at anew.
    def step(x_bcohw: Array, turn: tuple[Array, Array]) -> tuple[Array, None]:
        number, chosen_b = turn
        changed = jax.lax.switch(number, [change(name) for name in names], x_bcohw, u_knb[1:, number])
        return jnp.where(column(chosen_b), changed, x_bcohw), None

    numbers = jnp.tile(jnp.arange(len(names)), len(chosen_pnb))
    return jax.lax.scan(step, x_bcohw, (numbers, chosen_pnb.reshape(len(numbers), -1)))[0]


def adjust_sharpness(x_bcohw: Float[Array, "b c o h w"], factor_b: Float[Array, " b"]) -> Float[Array, "b c o h w"]:
    """Scales the distance of each pixel inside the frame from the mean of its 3 x 3, in which it counts five times."""
    height, width = x_bcohw.shape[-2:]
    if height <= 2 or width <= 2:
        return x_bcohw
    inside = x_bcohw[..., 1:-1, 1:-1]
    rows = x_bcohw[..., :-2, :] + x_bcohw[..., 1:-1, :] + x_bcohw[..., 2:, :]
    blurred = (rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:] + 4 * inside) / 13
    return x_bcohw.at[..., 1:-1, 1:-1].set(blend(inside, blurred, factor_b))


def turn_and_move(
    x_bcohw: Float[Array, "b c o h w"], degrees_b: Float[Array, " b"], right_b: Float[Array, " b"], down_b: Array
) -> Float[Array, "b c o h w"]:
    """Turns pictures clockwise about their middle, then moves them by pixels; the nearest pixel, black from outside."""
    height, width = x_bcohw.shape[-2:]
    angle_b11 = jnp.deg2rad(degrees_b)[:, None, None]
    cos, sin = jnp.cos(angle_b11), jnp.sin(angle_b11)
    # Where every pixel comes from: the move and the turn undone, from the middle.
    x_b1w = jnp.arange(width) - (width - 1) / 2 - right_b[:, None, None]
    y_bh1 = jnp.arange(height)[:, None] - (height - 1) / 2 - down_b[:, None, None]
    column_bhw = jnp.round(cos * x_b1w + sin * y_bh1 + (width - 1) / 2).astype(jnp.int32)
    row_bhw = jnp.round(cos * y_bh1 - sin * x_b1w + (height - 1) / 2).astype(jnp.int32)
    inside = (column_bhw >= 0) & (column_bhw < width) & (row_bhw >= 0) & (row_bhw < height)
    at = jnp.where(inside, row_bhw * width + column_bhw, 0).reshape(len(x_bcohw), 1, 1, -1)
    taken = jnp.take_along_axis(x_bcohw.reshape(*x_bcohw.shape[:3], -1), at, axis=-1)
    return jnp.where(inside[:, None, None], taken.reshape(x_bcohw.shape), 0)


def between(u_b: Array, low: float, high: float) -> Array:
    """Uniform draws in [0, 1) as ones in [low, high)."""
    return low + (high - low) * u_b


def _choose(u_nb: Float[Array, "n b"], config: ImageTransformsConfig) -> Bool[Array, "p n b"]:
    """Which transforms are applied to each example in each pass: in one pass all that were drawn, or one in each."""
    weights_n = jnp.asarray([getattr(config, name).weight for name in config.drawn])
    # Of clocks that ring at these rates the first to ring are those of a draw by weight without putting back.
    times_nb = -jnp.log1p(-u_nb) / weights_n[:, None]
    rank_nb = jnp.argsort(jnp.argsort(times_nb, axis=0), axis=0)
    count = min(config.max_num_transforms, len(config.drawn))
    if config.random_order:
        return rank_nb == jnp.arange(count)[:, None, None]
    return (rank_nb < count)[None]


def _brightness(x_bcohw: Array, u_kb: Array, config: Jitter) -> Array:
    return x_bcohw * column(between(u_kb[0], *config.range))


def _contrast(x_bcohw: Array, u_kb: Array, config: Jitter) -> Array:
    mean = grey(x_bcohw).mean((-2, -1), keepdims=True)
    return blend(x_bcohw, mean, between(u_kb[0], *config.range))


def _saturation(x_bcohw: Array, u_kb: Array, config: Jitter) -> Array:
    return blend(x_bcohw, grey(x_bcohw), between(u_kb[0], *config.range))


def _hue(x_bcohw: Array, u_kb: Array, config: Jitter) -> Array:
    return adjust_hue(x_bcohw, between(u_kb[0], *config.range))


def _sharpness(x_bcohw: Array, u_kb: Array, config: Jitter) -> Array:
    return adjust_sharpness(x_bcohw, between(u_kb[0], *config.range))


def _affine(x_bcohw: Array, u_kb: Array, config: Affine) -> Array:
    right_b, down_b = (
        jnp.round(between(u_b, -share * size, share * size))
        for u_b, share, size in zip(u_kb[1:], config.translate, x_bcohw.shape[:-3:-1])
    )
    return turn_and_move(x_bcohw, between(u_kb[0], *config.degrees), right_b, down_b)


# Each maps (images float32 [b, c, o, h, w] in [0, 1], draws uniform in [0, 1) [k, b], its config) to images, which the
# caller clips; in LeRobot's order.
_MAX_DRAWS = 3
TRANSFORMS: dict[str, Callable[[Array, Array, Any], Array]] = {
    "brightness": _brightness,
    "contrast": _contrast,
    "saturation": _saturation,
    "hue": _hue,
    "sharpness": _sharpness,
    "affine": _affine,
}
