"""What vision transformers share: blocks of attention and MLP, and what lies behind the features that are read."""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxvla.errors import ConfigError
from jaxvla.models.layers import Linear
from jaxvla.models.norms import LayerNorm
from jaxvla.models.stack import scan_blocks, stack_blocks
from jaxvla.ops.attention import KeyValues, attend
from jaxvla.ops.placement import pin


@dataclasses.dataclass(frozen=True)
class BlockSizes:
    """Widths of a block, and how it differs from others.

    Attributes:
        layer_norm_eps: of both norms.
        exact_gelu: GELU by the error function; else by its approximation with a tanh.
        joint_qkv: queries, keys and values are made by one kernel, in this order, as timm has it; else by three.
        layer_scale: what each residual is multiplied by before anything is learned; None for blocks that learn none.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    layer_norm_eps: float
    exact_gelu: bool = False
    joint_qkv: bool = False
    layer_scale: float | None = None


class Modulation(NamedTuple):
    """What FiLM does behind the attention of every block of a tower: x (1 + scale) + shift, the same for all tokens.

    Within a block both are its own, [b, d].
    """

    scale_lbd: Float[Array, "l b d"]
    shift_lbd: Float[Array, "l b d"]


class GeluMLP(nnx.Module):
    """Two layers with GELU between them, by default its approximation with a tanh."""

    def __init__(
        self, dim: int, hidden_dim: int, *, exact: bool = False, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ) -> None:
        options = {"bias": True, "dtype": dtype, "rngs": rngs}
        self.exact = exact
        self.linear_fc1 = Linear(dim, hidden_dim, **options)
        self.linear_fc2 = Linear(hidden_dim, dim, **options)

    def __call__(self, x_bpd: Float[Array, "b p d"]) -> Float[Array, "b p d"]:
        """Each patch by itself."""
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x_bpd), approximate=not self.exact))


class VisionAttention(nnx.Module):
    """Full attention among the tokens of an image."""

    def __init__(self, sizes: BlockSizes, attention: str, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        dim = sizes.hidden_size
        options = {"bias": True, "dtype": dtype, "rngs": rngs}
        self.num_heads = sizes.num_attention_heads
        self.joint = sizes.joint_qkv
        self.implementation = attention
        if self.joint:
            self.qkv = Linear(dim, 3 * dim, **options)
        else:
            self.q_proj = Linear(dim, dim, **options)
            self.k_proj = Linear(dim, dim, **options)
            self.v_proj = Linear(dim, dim, **options)
        self.out_proj = Linear(dim, dim, **options)

    def __call__(self, x_bpd: Float[Array, "b p d"]) -> Float[Array, "b p d"]:
        """What each token finds at the others."""
        b, p, d = x_bpd.shape
        if self.joint:
            parts = jnp.split(self.qkv(x_bpd), 3, axis=-1)
        else:
            parts = [project(x_bpd) for project in (self.q_proj, self.k_proj, self.v_proj)]
        q, k, v = (part.reshape(b, p, self.num_heads, d // self.num_heads) for part in parts)
        out_bpnh = attend(q, KeyValues(k, v), implementation=self.implementation)
        return self.out_proj(out_bpnh.reshape(b, p, d))


class VisionBlock(nnx.Module):
    """Attention and MLP, each behind a norm and beside a residual, which LayerScale weighs where there is one."""

    def __init__(self, sizes: BlockSizes, attention: str, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        dim = sizes.hidden_size
        self.layer_norm1 = LayerNorm(dim, sizes.layer_norm_eps)
        self.layer_norm2 = LayerNorm(dim, sizes.layer_norm_eps)
        self.self_attn = VisionAttention(sizes, attention, dtype, rngs)
        self.mlp = GeluMLP(dim, sizes.intermediate_size, exact=sizes.exact_gelu, dtype=dtype, rngs=rngs)
        scaled = sizes.layer_scale is not None
        self.layer_scale1 = nnx.Param(jnp.full(dim, sizes.layer_scale)) if scaled else None
        self.layer_scale2 = nnx.Param(jnp.full(dim, sizes.layer_scale)) if scaled else None

    def __call__(self, x_bpd: Float[Array, "b p d"], modulation: Modulation | None = None) -> Float[Array, "b p d"]:
        """The block's output."""
        x_bpd = x_bpd + _scaled(self.self_attn(self.layer_norm1(x_bpd)), self.layer_scale1)
        if modulation is not None:
            scale_bd, shift_bd = modulation
            x_bpd = x_bpd * (1 + scale_bd[:, None]) + shift_bd[:, None]
        return x_bpd + _scaled(self.mlp(self.layer_norm2(x_bpd)), self.layer_scale2)


class AttentionPool(nnx.Module):
    """The parameters of SigLIP's pooling, a learned query that looks at all patches. No policy reads what it finds."""

    def __init__(self, sizes: BlockSizes, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        dim = sizes.hidden_size
        options = {"bias": True, "dtype": dtype, "rngs": rngs}
        self.latent = nnx.Param(jnp.zeros(dim))
        self.q = Linear(dim, dim, **options)
        self.kv = Linear(dim, 2 * dim, **options)
        self.proj = Linear(dim, dim, **options)
        self.norm = LayerNorm(dim, sizes.layer_norm_eps)
        self.mlp = GeluMLP(dim, sizes.intermediate_size, dtype=dtype, rngs=rngs)


class Unread(nnx.Module):
    """Parameters behind the features that are read. They compute nothing; a folder of weights is not whole without.

    Args:
        sizes: of the tower's blocks.
        num_blocks: behind the last one that is run.
        norm: the last one is not run.
        pool: an `AttentionPool` ends the tower.
    """

    def __init__(
        self,
        sizes: BlockSizes,
        num_blocks: int,
        *,
        norm: bool,
        pool: bool,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        if num_blocks:
            self.layers = stack_blocks(lambda rngs: VisionBlock(sizes, "xla", dtype, rngs), num_blocks, rngs)
        self.norm = LayerNorm(sizes.hidden_size, sizes.layer_norm_eps) if norm else None
        self.pool = AttentionPool(sizes, dtype, rngs) if pool else None


def run_blocks(
    layers: nnx.Module, x_bpd: Float[Array, "b p d"], modulation: Modulation | None = None, *, remat: str, unroll: bool
) -> Float[Array, "b p d"]:
    """The output of the last of stacked `VisionBlock`s; remat and unroll as `scan_blocks` takes them."""

    def step(block: VisionBlock, x_bpd: Array, own: Modulation | None) -> tuple[Array, None]:
        return pin(block(pin(x_bpd), own)), None

    return scan_blocks(layers, step, x_bpd, modulation, remat=remat, unroll=unroll)[0]


def check_tower(config: Any) -> None:
    """Raises ConfigError unless the sizes of a tower's configuration fit each other."""
    for name in ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size"):
        _check_positive(config, name)
    for name in ("patch_size", "num_channels", "layer_norm_eps"):
        _check_positive(config, name)
    if config.image_size % config.patch_size:
        raise ConfigError(f"vision.image_size {config.image_size} is not a multiple of patch_size {config.patch_size}")
    if config.hidden_size % config.num_attention_heads:
        raise ConfigError(
            f"vision.hidden_size {config.hidden_size} is not a multiple of num_attention_heads "
            f"{config.num_attention_heads}"
        )
    if config.read_layers is not None and not 1 <= config.read_layers <= config.num_hidden_layers:
        raise ConfigError(
            f"vision.read_layers must be within 1 and num_hidden_layers {config.num_hidden_layers}, or None for all "
            f"and the last norm, not {config.read_layers}"
        )


def check_patches(patches_bpf: Array, config: Any) -> None:
    """Raises ConfigError unless the patches are of images of the configuration's size."""
    if patches_bpf.shape[1:] != (config.num_patches, config.patch_dim):
        raise ConfigError(
            f"patches {patches_bpf.shape} are not those of images of {config.image_size} pixels, which have "
            f"{config.num_patches} of {config.patch_dim} values"
        )


def _check_positive(config: Any, name: str) -> None:
    if not getattr(config, name) > 0:
        raise ConfigError(f"vision.{name} must be positive, not {getattr(config, name)}")


def _scaled(x_bpd: Array, scale: nnx.Param | None) -> Array:
    return x_bpd if scale is None else x_bpd * scale[...].astype(x_bpd.dtype)
