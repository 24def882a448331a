"""SigLIP's vision tower (Zhai et al., 2023): patches of an image in, a vector of each patch out."""

import dataclasses

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxvla.errors import ConfigError
from jaxvla.models.layers import Embedding, Linear
from jaxvla.models.norms import LayerNorm
from jaxvla.models.stack import scan_blocks, stack_blocks
from jaxvla.models.vision.blocks import GeluMLP
from jaxvla.ops.attention import KeyValues, attend
from jaxvla.ops.placement import pin


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """Sizes of the tower, with Hugging Face's field names.

    Attributes:
        image_size: of the square images; the position table has a row for each of their patches.
        layer_norm_eps: of all norms.

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

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError(f"vision.{field.name} must be positive, not {getattr(self, field.name)}")
        if self.image_size % self.patch_size:
            raise ConfigError(f"vision.image_size {self.image_size} is not a multiple of patch_size {self.patch_size}")
        if self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                f"vision.hidden_size {self.hidden_size} is not a multiple of num_attention_heads "
                f"{self.num_attention_heads}"
            )

    @property
    def num_patches(self) -> int:
        """Of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def patch_dim(self) -> int:
        """Values of a patch: channels, then rows and columns."""
        return self.num_channels * self.patch_size**2


class SiglipAttention(nnx.Module):
    """Full attention among the patches of an image."""

    def __init__(self, config: SiglipConfig, attention: str, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        dim = config.hidden_size
        options = {"bias": True, "dtype": dtype, "rngs": rngs}
        self.num_heads = config.num_attention_heads
        self.implementation = attention
        self.q_proj = Linear(dim, dim, **options)
        self.k_proj = Linear(dim, dim, **options)
        self.v_proj = Linear(dim, dim, **options)
        self.out_proj = Linear(dim, dim, **options)

    def __call__(self, x_bpd: Float[Array, "b p d"]) -> Float[Array, "b p d"]:
        """What each patch finds at the others."""
        b, p, d = x_bpd.shape
        shape = (b, p, self.num_heads, d // self.num_heads)
        q, k, v = (project(x_bpd).reshape(shape) for project in (self.q_proj, self.k_proj, self.v_proj))
        out_bpnh = attend(q, KeyValues(k, v), implementation=self.implementation)
        return self.out_proj(out_bpnh.reshape(b, p, d))


class SiglipBlock(nnx.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: SiglipConfig, attention: str, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.layer_norm1 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.layer_norm2 = LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = SiglipAttention(config, attention, dtype, rngs)
        self.mlp = GeluMLP(config.hidden_size, config.intermediate_size, dtype=dtype, rngs=rngs)

    def __call__(self, x_bpd: Float[Array, "b p d"]) -> Float[Array, "b p d"]:
        """The block's output."""
        x_bpd = x_bpd + self.self_attn(self.layer_norm1(x_bpd))
        return x_bpd + self.mlp(self.layer_norm2(x_bpd))


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
        self.layers = stack_blocks(
            lambda rngs: SiglipBlock(config, attention, dtype, rngs), config.num_hidden_layers, rngs
        )
        self.post_layernorm = LayerNorm(config.hidden_size, config.layer_norm_eps)

    def __call__(self, patches_bpf: Float[Array, "b p f"]) -> Float[Array, "b p d"]:
        """Encodes images.

        Args:
            patches_bpf: of one image each, row by row, as `jaxvla.ops.patches.cut_patches` gives them.

        Raises:
            ConfigError: patches of images of another size.
        """
        if patches_bpf.shape[1:] != (self.config.num_patches, self.config.patch_dim):
            raise ConfigError(
                f"patches {patches_bpf.shape} are not those of images of {self.config.image_size} pixels, which have "
                f"{self.config.num_patches} of {self.config.patch_dim} values"
            )
        x_bpd = self.patch_embedding(patches_bpf)
        x_bpd = x_bpd + self.position_embedding.embedding[...].astype(x_bpd.dtype)

        def step(block: SiglipBlock, x_bpd: Array, _: None) -> tuple[Array, None]:
            return pin(block(pin(x_bpd))), None

        x_bpd, _ = scan_blocks(self.layers, step, x_bpd, remat=self.remat, unroll=self.unroll)
        return self.post_layernorm(x_bpd)
