"""SigLIP's vision tower (Zhai et al., 2023): patches of an image in, a vector of each patch out."""

import dataclasses

import jax
from flax import nnx
from jaxtyping import Array, Float

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


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """Sizes of the tower, with Hugging Face's field names.

    Attributes:
        image_size: of the square images; the position table has a row for each of their patches.
        layer_norm_eps: of all norms.
        read_layers: features are the output of this many blocks, without the last norm; None for all and the norm.
        exact_gelu, joint_qkv: see `BlockSizes`; both True in timm.
        attention_pool: keeps the parameters of timm's pooling, which computes nothing here.

    Raises:
        ConfigError: sizes that contradict each other.
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    image_size: int
    patch_size: int
    num_channels: int = 3
    layer_norm_eps: float = 1e-6
    read_layers: int | None = None
    exact_gelu: bool = False
    joint_qkv: bool = False
    attention_pool: bool = False

    def __post_init__(self) -> None:
        check_tower(self)

    @property
    def num_patches(self) -> int:
        """Of an image."""
        return (self.image_size // self.patch_size) ** 2

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
        return BlockSizes(*sizes, exact_gelu=self.exact_gelu, joint_qkv=self.joint_qkv)


class SiglipTower(nnx.Module):
    """Patch embedding, learned positions, blocks, a last norm.

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
        config: SiglipConfig,
        *,
        dtype: jax.typing.DTypeLike,
        attention: str = "xla",
        remat: str = "none",
        unroll: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        self.config, self.remat, self.unroll = config, remat, unroll
        self.patch_embedding = Linear(config.patch_dim, config.hidden_size, bias=True, dtype=dtype, rngs=rngs)
        self.position_embedding = Embedding(config.num_patches, config.hidden_size, dtype=dtype, rngs=rngs)
        self.layers = stack_blocks(lambda rngs: VisionBlock(config.block, attention, dtype, rngs), config.num_run, rngs)
        whole = config.read_layers is None
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps) if whole else None
        if not whole or config.attention_pool:
            self.unread = Unread(
                config.block,
                config.num_hidden_layers - config.num_run,
                norm=not whole,
                pool=config.attention_pool,
                dtype=dtype,
                rngs=rngs,
            )

    def __call__(
        self, patches_bpf: Float[Array, "b p f"], modulation: Modulation | None = None
    ) -> Float[Array, "b p d"]:
        """Encodes images.

        Args:
            patches_bpf: of one image each, row by row, as `jaxvla.ops.patches.cut_patches` gives them.
            modulation: of each block that is run; None for none.

        Raises:
            ConfigError: patches of images of another size.
        """
        check_patches(patches_bpf, self.config)
        x_bpd = self.patch_embedding(patches_bpf)
        x_bpd = x_bpd + self.position_embedding.embedding[...].astype(x_bpd.dtype)
        x_bpd = run_blocks(self.layers, x_bpd, modulation, remat=self.remat, unroll=self.unroll)
        return x_bpd if self.post_layernorm is None else self.post_layernorm(x_bpd)
