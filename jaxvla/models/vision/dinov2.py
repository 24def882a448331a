"""DINOv2's vision tower (Oquab et al., 2023), with and without registers (Darcet et al., 2023): patches of an image in,
a vector of each patch out."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxvla.errors import ConfigError
from jaxvla.models.layers import Embedding, Linear
from jaxvla.models.norms import LayerNorm
from jaxvla.models.stack import stack_blocks
from jaxvla.models.vision.blocks import (
    BlockSizes,
    Modulation,
    Unread,
    VisionBlock,
    check_patches,
    check_tower,
    run_blocks,
)

_NORMAL = nnx.initializers.normal(0.02)


@dataclasses.dataclass(frozen=True)
class Dinov2Config:
    """Sizes of the tower, with Hugging Face's field names.

    Attributes:
        image_size: of the square images; the position table has a row for each of their patches.
        num_register_tokens: tokens of no patch, behind the class token; 4, or 0 in the first DINOv2.
        class_position: the position table begins with a row of the class token. False in timm's towers with registers,
            whose class token already holds it.
        layer_norm_eps: of all norms.
        layer_scale: where LayerScale begins, before any weights are read.
        read_layers: features are the output of this many blocks, without the last norm; None for all and the norm.

    Raises:
        ConfigError: sizes that contradict each other.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    num_register_tokens: int = 0
    class_position: bool = True
    layer_norm_eps: float = 1e-6
    layer_scale: float = 1e-5
    read_layers: int | None = None

    def __post_init__(self) -> None:
        check_tower(self)
        if self.num_register_tokens < 0:
            raise ConfigError(f"vision.num_register_tokens must not be negative, not {self.num_register_tokens}")

    @property
    def num_patches(self) -> int:
        """Of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_positions(self) -> int:
        """Rows of the position table."""
        return self.num_patches + self.class_position

    @property
    def num_prefix(self) -> int:
        """Tokens before the patches: the class token and the registers."""
        return 1 + self.num_register_tokens

    @property
    def patch_dim(self) -> int:
        """Values of a patch: channels, then rows and columns."""
        return self.num_channels * self.patch_size**2

    @property
    def num_run(self) -> int:
        """Blocks that compute the features."""
        return self.num_hidden_layers if self.read_layers is None else self.read_layers

    @property
    def block(self) -> BlockSizes:
        """Of each block."""
        sizes = (self.hidden_size, self.intermediate_size, self.num_attention_heads, self.layer_norm_eps)
        return BlockSizes(*sizes, exact_gelu=True, joint_qkv=True, layer_scale=self.layer_scale)


# The published sizes: width, layers, heads.
_SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}


def preset(size: str, **options: int | bool | None) -> Dinov2Config:
    """A published size, for images of 224 pixels unless `options`, fields of `Dinov2Config`, say otherwise.

    Raises:
        ConfigError: an unknown size.
    """
    if size not in _SIZES:
        raise ConfigError(f"no DINOv2 of size {size!r}; there are: {', '.join(_SIZES)}")
    width, layers, heads = _SIZES[size]
    return Dinov2Config(width, 4 * width, layers, heads, **options)


class Dinov2Features(NamedTuple):
    """What the tower makes of images.

    Attributes:
        prefix_bkd: the class token, then the registers.
        patches_bpd: row by row.
    """

    prefix_bkd: Float[Array, "b k d"]
    patches_bpd: Float[Array, "b p d"]


class Dinov2Tower(nnx.Module):
    """Patch embedding, learned positions, class token and registers, blocks, a last norm.

    Args:
        config: sizes.
        dtype: compute dtype.
        attention: see `jaxvla.ops.attention.IMPLEMENTATIONS`.
        remat: what the forward pass keeps, see `jaxvla.models.stack.REMAT_POLICIES`.
        unroll: write the blocks out one by one.
        rngs: for the first parameters.
    """

    def __init__(
        self,
        config: Dinov2Config,
        *,
        dtype: jax.typing.DTypeLike,
        attention: str = "xla",
        remat: str = "none",
        unroll: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        dim = config.hidden_size
        self.config, self.dtype, self.remat, self.unroll = config, dtype, remat, unroll
        self.patch_embedding = Linear(config.patch_dim, dim, bias=True, dtype=dtype, rngs=rngs)
        self.position_embedding = Embedding(config.num_positions, dim, dtype=dtype, rngs=rngs)
        self.class_token = nnx.Param(_NORMAL(rngs.params(), (dim,)))
        registers = config.num_register_tokens
        self.register_tokens = nnx.Param(_NORMAL(rngs.params(), (registers, dim))) if registers else None
        self.layers = stack_blocks(lambda rngs: VisionBlock(config.block, attention, dtype, rngs), config.num_run, rngs)
        whole = config.read_layers is None
        self.post_layernorm = LayerNorm(dim, config.layer_norm_eps) if whole else None
        if not whole:
            count = config.num_hidden_layers - config.num_run
            self.unread = Unread(config.block, count, norm=True, pool=False, dtype=dtype, rngs=rngs)

    def __call__(self, patches_bpf: Float[Array, "b p f"], modulation: Modulation | None = None) -> Dinov2Features:
        """Encodes images.

        Args:
            patches_bpf: of one image each, row by row, as `jaxvla.ops.patches.cut_patches` gives them.
            modulation: of each block that is run; None for none.

        Raises:
            ConfigError: patches of images of another size.
        """
        config = self.config
        check_patches(patches_bpf, config)
        x_bpd = self.patch_embedding(patches_bpf)
        positions_pd = self.position_embedding.embedding[...]
        prefix_kd = self.class_token[...][None]
        if config.class_position:
            prefix_kd, positions_pd = prefix_kd + positions_pd[:1], positions_pd[1:]
        if self.register_tokens is not None:
            prefix_kd = jnp.concatenate([prefix_kd, self.register_tokens[...]])
        x_bpd = x_bpd + positions_pd.astype(self.dtype)
        prefix_bkd = jnp.broadcast_to(prefix_kd.astype(self.dtype), (len(x_bpd), *prefix_kd.shape))
        x_bpd = jnp.concatenate([prefix_bkd, x_bpd], axis=1)
        x_bpd = run_blocks(self.layers, x_bpd, modulation, remat=self.remat, unroll=self.unroll)
        x_bpd = x_bpd if self.post_layernorm is None else self.post_layernorm(x_bpd)
        return Dinov2Features(x_bpd[:, : config.num_prefix], x_bpd[:, config.num_prefix :])
