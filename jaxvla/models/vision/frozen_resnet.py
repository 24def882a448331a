"""ResNets of torchvision, whose BatchNorm keeps the statistics of ImageNet: weights that others trained fit in.

He et al., "Deep Residual Learning" (2016), as torchvision lays it out: convolutions padded alike at all edges, ReLU,
and a downsampling convolution where a stage begins. BatchNorm is frozen, as in DETR and ACT: four numbers per channel
that training leaves as they are.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jaxvla.models.resnet import Architecture, BlockOptions, Stage
from jaxvla.models.weights import Weight
from jaxvla.ops.spatial import max_pool

ARCHITECTURES = {"resnet18": Architecture((2, 2, 2, 2)), "resnet34": Architecture((3, 4, 6, 3))}
# Of the channels of ImageNet's pictures in [0, 1], as torchvision normalizes them.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EPSILON = 1e-5

_HE = nnx.initializers.variance_scaling(2.0, "fan_out", "normal")


class FrozenBatchNorm(nnx.Module):
    """(x - mean) / sqrt(var + epsilon) * scale + bias, for each channel; as drawn, nearly the identity."""

    def __init__(self, channels: int) -> None:
        self.scale, self.bias = nnx.Param(jnp.ones(channels)), nnx.Param(jnp.zeros(channels))
        self.mean, self.var = nnx.Param(jnp.zeros(channels)), nnx.Param(jnp.ones(channels))

    def __call__(self, x_bhwc: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        """The result has x's dtype; the factor and the shift are computed in float32."""
        scale_c = self.scale[...] * jax.lax.rsqrt(self.var[...] + EPSILON)
        bias_c = self.bias[...] - self.mean[...] * scale_c
        return x_bhwc * scale_c.astype(x_bhwc.dtype) + bias_c.astype(x_bhwc.dtype)


class FrozenConvNorm(nnx.Module):
    """Convolution without bias, then frozen BatchNorm. Kernel [in * height * width, out], as weight tables have it."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int = 1,
        *,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.shape = (in_channels, kernel_size, kernel_size, out_channels)
        self.stride = stride
        self.dtype = dtype
        kernel = _HE(rngs.params(), (kernel_size, kernel_size, in_channels, out_channels))
        self.kernel = nnx.Param(kernel.transpose(2, 0, 1, 3).reshape(-1, out_channels))
        self.norm = FrozenBatchNorm(out_channels)

    def __call__(self, x_bhwc: Float[Array, "b h w c"]) -> Float[Array, "b y x f"]:
        """y = ceil(h / stride)."""
        kernel = self.kernel[...].reshape(self.shape).transpose(1, 2, 0, 3)
        edge = (self.shape[1] // 2,) * 2
        y_bhwc = jax.lax.conv_general_dilated(
            x_bhwc.astype(self.dtype),
            kernel.astype(self.dtype),
            (self.stride, self.stride),
            (edge, edge),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        return self.norm(y_bhwc)


class FrozenResNet(nnx.Module):
    """Images to the feature map behind the last stage, a 32nd of their height and width.

    Args:
        name: a key of `ARCHITECTURES`.
        dtype: of the convolutions; parameters are float32.
    """

    def __init__(self, name: str, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        architecture = ARCHITECTURES[name]
        options = BlockOptions(jax.nn.relu, architecture.bottleneck, None, dtype, FrozenConvNorm)
        channels = architecture.num_filters
        self.stem = FrozenConvNorm(3, channels, 7, 2, dtype=dtype, rngs=rngs)
        self.stages = nnx.Dict()
        for i, num_blocks in enumerate(architecture.stage_sizes):
            filters = architecture.num_filters * 2**i
            self.stages[f"stage{i}"] = Stage(num_blocks, channels, filters, 2 if i else 1, options, rngs)
            channels = filters
        self.out_dim = out_channels(name)

    def __call__(self, images_bhwc: UInt8[Array, "b h w c"]) -> Float[Array, "b y x f"]:
        """float32 [b, ceil(h / 32), ceil(w / 32), out_dim], of RGB that is normalized as ImageNet's."""
        x_bhwc = (images_bhwc / jnp.float32(255) - jnp.array(MEAN)) / jnp.array(STD)
        x_bhwc = max_pool(jax.nn.relu(self.stem(x_bhwc)), padding=1)
        for i in range(len(self.stages)):
            x_bhwc = self.stages[f"stage{i}"](x_bhwc, None)
        return x_bhwc.astype(jnp.float32)


def out_channels(name: str) -> int:
    """Of the feature map of the ResNet with this name."""
    architecture = ARCHITECTURES[name]
    return architecture.num_filters * 2 ** (len(architecture.stage_sizes) - 1)


def weight_table(name: str) -> tuple[Weight, ...]:
    """Which tensor of torchvision's ResNet, of timm's, too, is which parameter; its classifier is none.

    Args:
        name: a key of `ARCHITECTURES`.
    """
    architecture = ARCHITECTURES[name]
    channels = architecture.num_filters
    table = _unit_weights("stem", ("conv1",), ("bn1",), (channels, 3, 7, 7), stacked=False)
    for i, num_blocks in enumerate(architecture.stage_sizes):
        filters, stage = architecture.num_filters * 2**i, f"stages/stage{i}"
        first = _block_weights(f"{stage}/first", i + 1, range(1), (filters, channels), stacked=False)
        rest = _block_weights(f"{stage}/rest", i + 1, range(1, num_blocks), (filters, filters), stacked=True)
        table += first + (rest if num_blocks > 1 else ())
        channels = filters
    return table


def why_unused(name: str) -> str:
    """Why a tensor of torchvision's ResNet is no parameter; empty where it is one."""
    if name.startswith("fc."):
        return "the classifier of ImageNet's classes"
    return "a counter that frozen BatchNorm does not read" if name.endswith(".num_batches_tracked") else ""


def _block_weights(
    path: str, layer: int, blocks: range, channels: tuple[int, int], *, stacked: bool
) -> tuple[Weight, ...]:
    """Of the blocks with these numbers in `layer`; channels out and in."""
    filters, in_channels = channels
    table, names = (), [f"layer{layer}.{i}" for i in blocks]
    for j, taken in enumerate((in_channels, filters)):
        convs, norms = (tuple(f"{name}.{kind}{j + 1}" for name in names) for kind in ("conv", "bn"))
        table += _unit_weights(f"{path}/branch/conv{j}", convs, norms, (filters, taken, 3, 3), stacked=stacked)
    if in_channels != filters:
        convs, norms = (tuple(f"{name}.downsample.{kind}" for name in names) for kind in (0, 1))
        table += _unit_weights(f"{path}/shortcut", convs, norms, (filters, in_channels, 1, 1), stacked=stacked)
    return table


def _unit_weights(
    path: str, convs: tuple[str, ...], norms: tuple[str, ...], shape: tuple[int, ...], *, stacked: bool
) -> tuple[Weight, ...]:
    kernel = Weight(f"{path}/kernel", tuple(f"{conv}.weight" for conv in convs), shape, True, stacked)
    parts = {"scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    frozen = (
        Weight(f"{path}/norm/{ours}", tuple(f"{norm}.{theirs}" for norm in norms), shape[:1], False, stacked)
        for ours, theirs in parts.items()
    )
    return (kernel, *frozen)
