"""ResNet-v1 image encoders (He et al., 2016) with GroupNorm, coordinate channels and FiLM, as in bridge_data_v2."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jaxvla.errors import ConfigError
from jaxvla.models.film import FiLM
from jaxvla.models.stack import scan_blocks, stack_blocks
from jaxvla.ops.activations import activation
from jaxvla.ops.norms import group_norm
from jaxvla.ops.spatial import coordinate_grid, max_pool, spatial_softmax

NUM_GROUPS = 4
NUM_SPATIAL_EMBEDDINGS = 8
POOLINGS = ("avg", "max", "none", "spatial_softmax", "spatial_learned_embeddings")

_KAIMING = nnx.initializers.kaiming_normal()
_LECUN = nnx.initializers.lecun_normal()


@dataclasses.dataclass(frozen=True)
class Architecture:
    """Blocks per stage, channels of the first stage (each later one doubles them), kind of block, conditioning.

    `last_stride` is that of the last stage; where it is 1, small things are found on a finer map.
    """

    stage_sizes: tuple[int, ...]
    num_filters: int = 64
    bottleneck: bool = False
    film: bool = False
    last_stride: int = 2

    @property
    def strides(self) -> tuple[int, ...]:
        """Of the stages; the stem and the max pool halve the image before them."""
        return (1, *(2,) * (len(self.stage_sizes) - 2), self.last_stride)[: len(self.stage_sizes)]


ARCHITECTURES = {
    "resnetv1-tiny": Architecture((1, 1, 1), num_filters=16),
    "resnetv1-tiny-film": Architecture((1, 1, 1), num_filters=16, film=True),
    "resnetv1-tiny-fine-film": Architecture((1, 1, 1), num_filters=16, film=True, last_stride=1),
    "resnetv1-18": Architecture((2, 2, 2, 2)),
    "resnetv1-34": Architecture((3, 4, 6, 3)),
    "resnetv1-50": Architecture((3, 4, 6, 3), bottleneck=True),
    "resnetv1-18-deeper": Architecture((3, 3, 3, 3)),
    "resnetv1-18-deepest": Architecture((4, 4, 4, 4)),
    "resnetv1-18-bridge": Architecture((2, 2, 2, 2)),
    "resnetv1-34-bridge": Architecture((3, 4, 6, 3)),
    "resnetv1-34-bridge-film": Architecture((3, 4, 6, 3), film=True),
    "resnetv1-50-bridge": Architecture((3, 4, 6, 3), bottleneck=True),
    "resnetv1-50-bridge-film": Architecture((3, 4, 6, 3), bottleneck=True, film=True),
}


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Which image encoder.

    Attributes:
        name: a key of `ARCHITECTURES`.
        pooling: how the last feature map becomes a vector, one of `POOLINGS`.
        add_coordinates: two more input channels hold each pixel's row and column.
        activation: see `jaxvla.ops.activations`.

    Raises:
        ConfigError: an unknown name.
    """

    name: str = "resnetv1-34-bridge"
    pooling: str = "avg"
    add_coordinates: bool = True
    activation: str = "swish"

    def __post_init__(self) -> None:
        if self.name not in ARCHITECTURES:
            raise ConfigError(f"no encoder named {self.name!r}; there are: {', '.join(ARCHITECTURES)}")
        if self.pooling not in POOLINGS:
            raise ConfigError(f"no pooling named {self.pooling!r}; there are: {', '.join(POOLINGS)}")
        activation(self.activation)


class ConvNorm(nnx.Module):
    """Convolution without bias, then GroupNorm. Kernel [height, width, in, out]."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        padding: str | tuple[tuple[int, int], ...] = "SAME",
        scale_init: float = 1.0,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.stride = stride
        self.padding = padding
        self.dtype = dtype
        self.kernel = nnx.Param(_KAIMING(rngs.params(), (kernel_size, kernel_size, in_channels, out_channels)))
        self.scale = nnx.Param(jnp.full(out_channels, scale_init))
        self.bias = nnx.Param(jnp.zeros(out_channels))

    def __call__(self, x_bhwc: Float[Array, "b h w c"]) -> Float[Array, "b y x f"]:
        """SAME padding gives y = ceil(h / stride)."""
        y_bhwc = jax.lax.conv_general_dilated(
            x_bhwc.astype(self.dtype),
            self.kernel[...].astype(self.dtype),
            (self.stride, self.stride),
            self.padding,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return group_norm(y_bhwc, self.scale[...], self.bias[...], NUM_GROUPS)


@dataclasses.dataclass(frozen=True)
class BlockOptions:
    """What all residual blocks of a network share; `unit` makes their convolutions with a norm, as `ConvNorm` does."""

    act: Callable[[Array], Array]
    bottleneck: bool
    cond_dim: int | None
    dtype: jax.typing.DTypeLike
    unit: Callable[..., nnx.Module] = ConvNorm


class ResidualBlock(nnx.Module):
    """act(shortcut(x) + branch(x)), then FiLM where there is a conditioning vector.

    The branch is 3x3, 3x3, or as a bottleneck 1x1, 3x3, 1x1, with four times the channels at its end and a last norm
    that starts at 0. The first 3x3 has the stride.
    """

    def __init__(self, in_channels: int, filters: int, stride: int, options: BlockOptions, rngs: nnx.Rngs) -> None:
        unit, shared = options.unit, {"dtype": options.dtype, "rngs": rngs}
        self.act = options.act
        if options.bottleneck:
            out_channels = 4 * filters
            self.branch = nnx.Dict(
                conv0=unit(in_channels, filters, 1, **shared),
                conv1=unit(filters, filters, 3, stride, **shared),
                conv2=unit(filters, out_channels, 1, scale_init=0.0, **shared),
            )
        else:
            out_channels = filters
            self.branch = nnx.Dict(
                conv0=unit(in_channels, filters, 3, stride, **shared),
                conv1=unit(filters, filters, 3, **shared),
            )
        changes = stride > 1 or in_channels != out_channels
        self.shortcut = unit(in_channels, out_channels, 1, stride, **shared) if changes else None
        self.film = None if options.cond_dim is None else FiLM(options.cond_dim, out_channels, **shared)

    def __call__(self, x_bhwc: Float[Array, "b h w c"], cond_bk: Float[Array, "b k"] | None) -> Array:
        """[b, ceil(h / stride), ceil(w / stride), channels of the branch's end]."""
        y_bhwc = self.branch["conv0"](x_bhwc)
        for i in range(1, len(self.branch)):
            y_bhwc = self.branch[f"conv{i}"](self.act(y_bhwc))
        y_bhwc = self.act(y_bhwc + (x_bhwc if self.shortcut is None else self.shortcut(x_bhwc)))
        return y_bhwc if self.film is None else self.film(y_bhwc, cond_bk)


class Stage(nnx.Module):
    """A block that may change resolution and channels, then a stack of blocks that keep them."""

    def __init__(
        self, num_blocks: int, in_channels: int, filters: int, stride: int, options: BlockOptions, rngs: nnx.Rngs
    ) -> None:
        self.out_channels = filters * (4 if options.bottleneck else 1)
        self.first = ResidualBlock(in_channels, filters, stride, options, rngs)

        def make_block(rngs: nnx.Rngs) -> ResidualBlock:
            return ResidualBlock(self.out_channels, filters, 1, options, rngs)

        self.rest = stack_blocks(make_block, num_blocks - 1, rngs) if num_blocks > 1 else None

    def __call__(self, x_bhwc: Float[Array, "b h w c"], cond_bk: Float[Array, "b k"] | None) -> Array:
        """[b, ceil(h / stride), ceil(w / stride), out_channels]."""
        x_bhwc = self.first(x_bhwc, cond_bk)
        if self.rest is None:
            return x_bhwc

        def step(block: ResidualBlock, x_bhwc: Array, _: Any) -> tuple[Array, None]:
            return block(x_bhwc, cond_bk), None

        # In a loop, XLA's CPU backend gives up its fast convolutions: forward and backward of a ResNet-34 (128 px,
        # batch 8) take 16 times as long, and compile in half the time.
        return scan_blocks(self.rest, step, x_bhwc, unroll=True)[0]


class ResNet(nnx.Module):
    """uint8 images to one feature vector each, or to a feature map where the pooling is "none".

    Args:
        config: architecture and pooling.
        image_size: height and width.
        in_channels: 3 for an image, 6 for an image and its goal.
        cond_dim: width of the conditioning vector; needed by a FiLM architecture, refused by the others.
        dtype: of the convolutions; parameters, GroupNorm statistics and the result are float32.

    Raises:
        ConfigError: `cond_dim` and the architecture disagree.
    """

    def __init__(
        self,
        config: EncoderConfig,
        image_size: tuple[int, int],
        *,
        in_channels: int = 3,
        cond_dim: int | None = None,
        dtype: jax.typing.DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ) -> None:
        architecture = ARCHITECTURES[config.name]
        if architecture.film != (cond_dim is not None):
            needs = "needs a conditioning vector" if architecture.film else "takes no conditioning vector"
            raise ConfigError(f"encoder {config.name} {needs}; the encoders with FiLM are those named *-film")
        self.config = config
        self.act = activation(config.activation)
        options = BlockOptions(self.act, architecture.bottleneck, cond_dim, dtype)
        channels = architecture.num_filters
        stem_channels = in_channels + 2 * config.add_coordinates
        self.stem = ConvNorm(stem_channels, channels, 7, 2, padding=((3, 3), (3, 3)), dtype=dtype, rngs=rngs)
        self.num_stages = len(architecture.stage_sizes)
        self.stages = nnx.Dict()
        for i, num_blocks in enumerate(architecture.stage_sizes):
            filters, stride = architecture.num_filters * 2**i, architecture.strides[i]
            stage = Stage(num_blocks, channels, filters, stride, options, rngs)
            self.stages[f"stage{i}"] = stage
            channels = stage.out_channels
        self.out_dim = channels
        if config.pooling == "spatial_softmax":
            self.out_dim *= 2
        if config.pooling == "spatial_learned_embeddings":
            height, width = (math.ceil(size / (4 * math.prod(architecture.strides))) for size in image_size)
            self.out_dim *= NUM_SPATIAL_EMBEDDINGS
            self.embeddings = nnx.Param(_LECUN(rngs.params(), (height, width, channels, NUM_SPATIAL_EMBEDDINGS)))

    def __call__(
        self, images_bhwc: UInt8[Array, "b h w c"], cond_bk: Float[Array, "b k"] | None = None
    ) -> Float[Array, "b *yx f"]:
        """Features [b, out_dim]; without pooling [b, y, x, out_dim]."""
        return self._pool(self.feature_map(images_bhwc / jnp.float32(127.5) - 1, cond_bk))

    def feature_map(
        self, x_bhwc: Float[Array, "b h w c"], cond_bk: Float[Array, "b k"] | None = None
    ) -> Float[Array, "b y x f"]:
        """The last feature map, float32, for pixels in [-1, 1]."""
        if self.config.add_coordinates:
            b, h, w, _ = x_bhwc.shape
            x_bhwc = jnp.concatenate([x_bhwc, jnp.broadcast_to(coordinate_grid(h, w), (b, h, w, 2))], -1)
        x_bhwc = max_pool(self.act(self.stem(x_bhwc)))
        for i in range(self.num_stages):
            x_bhwc = self.stages[f"stage{i}"](x_bhwc, cond_bk)
        return x_bhwc.astype(jnp.float32)

    def _pool(self, x_bhwc: Array) -> Array:
        match self.config.pooling:
            case "avg":
                return x_bhwc.mean((1, 2))
            case "max":
                return x_bhwc.max((1, 2))
            case "spatial_softmax":
                return spatial_softmax(x_bhwc)
            case "spatial_learned_embeddings":
                return jnp.einsum("bhwc,hwce->bce", x_bhwc, self.embeddings[...]).reshape(len(x_bhwc), -1)
            case _:
                return x_bhwc
