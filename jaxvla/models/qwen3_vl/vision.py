"""The vision tower: patches of images in, image tokens and DeepStack features out."""

import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from jaxvla.errors import ConfigError
from jaxvla.models.layers import Embedding, Linear
from jaxvla.models.module import compute_dtype
from jaxvla.models.norms import LayerNorm
from jaxvla.models.qwen3_vl.config import Qwen3VLConfig
from jaxvla.models.qwen3_vl.positions import Grids, check_grids, interpolation, num_patches, patch_positions
from jaxvla.models.stack import scan_blocks, stack_blocks
from jaxvla.models.vision.blocks import GeluMLP
from jaxvla.ops.attention import KeyValues, attend
from jaxvla.ops.placement import pin
from jaxvla.ops.rope import Rotation, inverse_frequencies, rotate

ROPE_THETA = 10000.0


class ImageFeatures(NamedTuple):
    """What the tower makes of the images of each sample, in the order of their tokens.

    Attributes:
        features_bid: what stands in the place of the i image tokens' embeddings.
        deepstack_nbid: what the first n layers of the text decoder add there; None for a tower without.
    """

    features_bid: Float[Array, "b i d"]
    deepstack_nbid: Float[Array, "n b i d"] | None


class VisionAttention(nnx.Module):
    """Full attention among the patches of each image."""

    def __init__(self, config: Qwen3VLConfig, rngs: nnx.Rngs) -> None:
        dim = config.vision.hidden_size
        options = {"bias": True, "dtype": compute_dtype(config.dtype), "rngs": rngs}
        self.num_heads = config.vision.num_heads
        self.implementation = config.attention
        self.qkv = Linear(dim, 3 * dim, **options)
        self.proj = Linear(dim, dim, **options)

    def __call__(self, x_bpd: Float[Array, "b p d"], rotation: Rotation, grids: Grids) -> Float[Array, "b p d"]:
        """Images are slices of p; neighbours of one size are attended to in one call."""
        b, _, d = x_bpd.shape
        qkv = self.qkv(x_bpd).reshape(b, -1, 3, self.num_heads, d // self.num_heads)
        q, k, v = rotate(qkv[:, :, 0], rotation), rotate(qkv[:, :, 1], rotation), qkv[:, :, 2]
        outputs, first = [], 0
        for (rows, columns), run in itertools.groupby(grids):
            count, size = len(list(run)), rows * columns
            parts = [x[:, first : first + count * size].reshape(b * count, size, *x.shape[2:]) for x in (q, k, v)]
            out = attend(parts[0], KeyValues(*parts[1:]), implementation=self.implementation)
            outputs.append(out.reshape(b, count * size, d))
            first += count * size
        return self.proj(jnp.concatenate(outputs, axis=1))


class VisionBlock(nnx.Module):
    """Attention and MLP, each behind a norm and beside a residual."""

    def __init__(self, config: Qwen3VLConfig, rngs: nnx.Rngs) -> None:
        self.norm1 = LayerNorm(config.vision.hidden_size)
        self.norm2 = LayerNorm(config.vision.hidden_size)
        self.attn = VisionAttention(config, rngs)
        dtype = compute_dtype(config.dtype)
        self.mlp = GeluMLP(config.vision.hidden_size, config.vision.intermediate_size, dtype=dtype, rngs=rngs)

    def __call__(self, x_bpd: Float[Array, "b p d"], rotation: Rotation, grids: Grids) -> Float[Array, "b p d"]:
        """The block's output."""
        x_bpd = x_bpd + self.attn(self.norm1(x_bpd), rotation, grids)
        return x_bpd + self.mlp(self.norm2(x_bpd))


class PatchMerger(nnx.Module):
    """Makes one image token of the patches of a merge block.

    Args:
        norm_merged: normalize the joined block (DeepStack) and not each patch (main merger).
    """

    def __init__(self, config: Qwen3VLConfig, rngs: nnx.Rngs, *, norm_merged: bool) -> None:
        merged_dim = config.vision.hidden_size * config.vision.spatial_merge_size**2
        options = {"bias": True, "dtype": compute_dtype(config.dtype), "rngs": rngs}
        self.merged_dim = merged_dim
        self.norm_merged = norm_merged
        self.norm = LayerNorm(merged_dim if norm_merged else config.vision.hidden_size)
        self.linear_fc1 = Linear(merged_dim, merged_dim, **options)
        self.linear_fc2 = Linear(merged_dim, config.vision.out_hidden_size, **options)

    def __call__(self, x_bpd: Float[Array, "b p d"]) -> Float[Array, "b i e"]:
        """p patches in merge-block order become i tokens. The GELU is the exact one, unlike that of the blocks."""
        b = len(x_bpd)
        if self.norm_merged:
            x_bim = self.norm(x_bpd.reshape(b, -1, self.merged_dim))
        else:
            x_bim = self.norm(x_bpd).reshape(b, -1, self.merged_dim)
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x_bim), approximate=False))


class VisionTower(nnx.Module):
    """Patch embedding, positions, blocks, mergers."""

    def __init__(self, config: Qwen3VLConfig, rngs: nnx.Rngs) -> None:
        vision, dtype = config.vision, compute_dtype(config.dtype)
        num_features = len(vision.deepstack_visual_indexes)
        self.config = config
        self.patch_embed = Linear(vision.patch_dim, vision.hidden_size, bias=True, dtype=dtype, rngs=rngs)
        self.pos_embed = Embedding(vision.num_position_embeddings, vision.hidden_size, dtype=dtype, rngs=rngs)
        self.blocks = stack_blocks(lambda rngs: VisionBlock(config, rngs), vision.depth, rngs)
        self.merger = PatchMerger(config, rngs, norm_merged=False)
        if num_features:
            self.deepstack_mergers = stack_blocks(
                lambda rngs: PatchMerger(config, rngs, norm_merged=True), num_features, rngs
            )

    def __call__(self, patches_bpf: Float[Array, "b p f"], grids: Grids) -> ImageFeatures:
        """Encodes the images of each sample, one after the other along p.

        Args:
            patches_bpf: as `jaxvla.ops.patches.patchify` makes them.
            grids: static; the grid of each image.

        Raises:
            ConfigError: patches and grids disagree.
        """
        vision = self.config.vision
        check_grids(grids, vision)
        if patches_bpf.shape[1:] != (num_patches(grids), vision.patch_dim):
            raise ConfigError(
                f"patches {patches_bpf.shape} do not fit grids {grids}, which make "
                f"{num_patches(grids)} patches of {vision.patch_dim} values per sample"
            )
        x_bpd = self.patch_embed(patches_bpf)
        x_bpd = x_bpd + self._table_at(grids).astype(x_bpd.dtype)
        rotation = self._rotation(grids)
        indexes = vision.deepstack_visual_indexes
        # Which entry of the buffer each block writes; blocks without a DeepStack feature share a last one.
        slots = np.full(vision.depth, len(indexes))
        slots[list(indexes)] = np.arange(len(indexes))
        buffer = jnp.zeros((len(indexes) + 1, *x_bpd.shape), x_bpd.dtype)

        def step(block: VisionBlock, carry: tuple[Array, Array], slot: Array) -> tuple[tuple[Array, Array], None]:
            x_bpd, buffer = carry
            x_bpd = pin(block(pin(x_bpd), rotation, grids))
            return (x_bpd, buffer.at[slot].set(x_bpd)), None

        (x_bpd, buffer), _ = scan_blocks(
            self.blocks,
            step,
            (x_bpd, buffer),
            jnp.asarray(slots),
            remat=self.config.remat,
            unroll=not self.config.scan_layers,
        )
        return ImageFeatures(self.merger(x_bpd), self._deepstack(buffer[:-1]))

    def _deepstack(self, taken_nbpd: Array) -> Array | None:
        if not len(taken_nbpd):
            return None

        def step(merger: PatchMerger, carry: None, x_bpd: Array) -> tuple[None, Array]:
            return carry, merger(x_bpd)

        return scan_blocks(self.deepstack_mergers, step, None, taken_nbpd)[1]

    def _table_at(self, grids: Grids) -> Array:
        """The learned position table spread over each grid, float32 [p, d], in merge-block order.

        As products of small matrices: the gradient of a gather would be a sum in no fixed order.
        """
        side, merge = self.config.vision.table_side, self.config.vision.spatial_merge_size
        table = self.pos_embed.embedding[...].reshape(side, side, -1)
        spread = []
        for rows, columns in grids:
            rows_ra, columns_cb = interpolation(rows, side), interpolation(columns, side)
            x_rcd = jnp.einsum("ra,abd,cb->rcd", rows_ra, table, columns_cb, precision="highest")
            x = x_rcd.reshape(rows // merge, merge, columns // merge, merge, -1)
            spread.append(x.swapaxes(1, 2).reshape(rows * columns, -1))
        return jnp.concatenate(spread)

    def _rotation(self, grids: Grids) -> Rotation:
        """Half of the frequencies of a head turn with the row, half with the column."""
        frequencies = inverse_frequencies(self.config.vision.head_dim // 2, ROPE_THETA)
        angles_2pf = patch_positions(grids, self.config.vision)[..., None].astype(np.float32) * frequencies
        angles_pf = np.concatenate(list(angles_2pf), axis=-1)
        return Rotation(jnp.asarray(np.cos(angles_pf))[None], jnp.asarray(np.sin(angles_pf))[None])
