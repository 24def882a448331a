"""The diffusion transformer of GR00T N1: tokens look at a context and at each other in turn, under a time embedding.

Axis letters: b samples, m rows = b * r draws of noise for each (those of a sample stand together), s tokens of a row,
t tokens of the context, c width of the context, k times of a row (one, or one for each token), d inner width, n heads,
h width of a head, l pairs of layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxvla.models.action_head.config import ActionHeadConfig
from jaxvla.models.action_head.layers import Linear
from jaxvla.models.module import compute_dtype
from jaxvla.models.stack import scan_blocks, stack_blocks
from jaxvla.ops.dropout import dropout
from jaxvla.ops.masked_attention import Keys, attend_where, weights_where
from jaxvla.ops.modulation import modulated_norm
from jaxvla.ops.placement import pin
from jaxvla.ops.sinusoid import sinusoid_angles

TIME_CHANNELS = 256


class Context(NamedTuple):
    """What the cross-attention of every pair of layers looks at: its own keys of the context, and which are valid."""

    keys: Keys
    valid_bt: Bool[Array, "b t"]


class TimeEmbedding(nnx.Module):
    """An MLP on sinusoids of the time."""

    def __init__(self, dim: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.hidden = Linear(TIME_CHANNELS, dim, dtype=dtype, rngs=rngs)
        self.out = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, bucket_mk: Int[Array, "m k"]) -> Float[Array, "m k d"]:
        """The embedding of the buckets."""
        half = TIME_CHANNELS // 2
        angles_mkf = sinusoid_angles(bucket_mk, half, half - 1)
        waves_mkf = jnp.concatenate([jnp.cos(angles_mkf), jnp.sin(angles_mkf)], -1)
        return self.out(jax.nn.silu(self.hidden(waves_mkf)))


class Attention(nnx.Module):
    """Multi-head attention to keys of any width.

    Args:
        config: sizes.
        key_dim: width of the tokens that are looked at.
    """

    def __init__(self, config: ActionHeadConfig, key_dim: int, rngs: nnx.Rngs) -> None:
        self.heads = (config.dit.num_heads, config.dit.head_dim)
        dim, dtype = config.dit.inner_dim, compute_dtype(config.dtype)
        self.q_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.k_proj = Linear(key_dim, dim, dtype=dtype, rngs=rngs)
        self.v_proj = Linear(key_dim, dim, dtype=dtype, rngs=rngs)
        self.o_proj = Linear(dim, dim, dtype=dtype, rngs=rngs)

    def keys(self, x_btc: Float[Array, "b t c"]) -> Keys:
        """Keys and values of these tokens."""
        shape = (*x_btc.shape[:2], *self.heads)
        return Keys(self.k_proj(x_btc).reshape(shape), self.v_proj(x_btc).reshape(shape))

    def __call__(
        self, x_msd: Float[Array, "m s d"], keys: Keys, visible_bt: Bool[Array, "b t"] | None
    ) -> Float[Array, "m s d"]:
        """The rows of a sample share its keys: they stand one after the other along the axis of the queries."""
        return self.o_proj(attend_where(self._queries(x_msd, keys), keys, visible_bt).reshape(x_msd.shape))

    def looks_at(
        self, x_msd: Float[Array, "m s d"], keys: Keys, visible_bt: Bool[Array, "b t"] | None
    ) -> Float[Array, "b t"]:
        """How much of its attention a sample has at each key, the mean over its rows, tokens and heads."""
        return weights_where(self._queries(x_msd, keys), keys.k_bsnh, visible_bt).mean((1, 2))

    def _queries(self, x_msd: Array, keys: Keys) -> Array:
        return self.q_proj(x_msd).reshape(len(keys.k_bsnh), -1, *self.heads)


class Block(nnx.Module):
    """Attention behind a norm that the time modulates, an MLP behind a plain norm, each beside a residual.

    Args:
        config: sizes and dropout.
        key_dim: width of the tokens that the attention looks at.
    """

    def __init__(self, config: ActionHeadConfig, key_dim: int, rngs: nnx.Rngs) -> None:
        dim, dtype = config.dit.inner_dim, compute_dtype(config.dtype)
        self.dropout = config.dropout
        self.modulation = Linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.attention = Attention(config, key_dim, rngs)
        self.up = Linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.down = Linear(4 * dim, dim, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x_msd: Float[Array, "m s d"],
        condition_mkd: Float[Array, "m k d"],
        keys: Keys | None,
        visible: Bool[Array, "_ _"] | None,
        rng: Key[Array, ""] | None,
    ) -> Float[Array, "m s d"]:
        """The tokens after this block.

        Args:
            x_msd: tokens.
            condition_mkd: the activated time embedding.
            keys: what the attention looks at; None for the tokens themselves.
            visible: which of these keys it sees; None for all.
            rng: of dropout; None for none.
        """
        rngs = (None,) * 3 if rng is None else jax.random.split(rng, 3)
        normed_msd = self.normed(x_msd, condition_mkd)
        keys = self.attention.keys(normed_msd) if keys is None else keys
        attended_msd = self.attention(normed_msd, keys, visible)
        # The original drops twice in a row here; the product of two masks is one mask of this rate.
        x_msd = x_msd + dropout(attended_msd, 1 - (1 - self.dropout) ** 2, rngs[0])
        hidden_msf = jax.nn.gelu(self.up(modulated_norm(x_msd)), approximate=True)
        return x_msd + dropout(self.down(dropout(hidden_msf, self.dropout, rngs[1])), self.dropout, rngs[2])

    def normed(self, x_msd: Float[Array, "m s d"], condition_mkd: Float[Array, "m k d"]) -> Float[Array, "m s d"]:
        """The tokens as the attention gets them."""
        scale_mkd, shift_mkd = jnp.split(self.modulation(condition_mkd), 2, -1)
        return modulated_norm(x_msd, scale_mkd, shift_mkd)


class BlockPair(nnx.Module):
    """A block that looks at the context, then one that looks at the tokens themselves."""

    def __init__(self, config: ActionHeadConfig, context_dim: int, rngs: nnx.Rngs) -> None:
        self.cross_block = Block(config, context_dim, rngs)
        self.self_block = Block(config, config.dit.inner_dim, rngs)


class DiT(nnx.Module):
    """All pairs of blocks, the time embedding, and the modulated projection of the output.

    Args:
        config: sizes and options.
        context_dim: width of the context.
    """

    def __init__(
        self,
        config: ActionHeadConfig,
        context_dim: int,
        rngs: nnx.Rngs,
    ) -> None:
        dim, dtype = config.dit.inner_dim, compute_dtype(config.dtype)
        self.config = config
        self.time = TimeEmbedding(dim, dtype=dtype, rngs=rngs)
        self.layers = stack_blocks(lambda rngs: BlockPair(config, context_dim, rngs), config.depth // 2, rngs)
        self.out_modulation = Linear(dim, 2 * dim, dtype=dtype, rngs=rngs)
        self.out = Linear(dim, config.output_dim, dtype=dtype, rngs=rngs)

    def context(self, context_btc: Float[Array, "b t c"], valid_bt: Bool[Array, "b t"]) -> Context:
        """The keys of the context, projected once per pair for all rows and all steps of sampling.

        Args:
            context_btc: hidden states; whatever stands where they are not valid, even NaN, has no effect.
            valid_bt: any mask.
        """
        dtype = compute_dtype(self.config.dtype)
        context_btc = pin(jnp.where(valid_bt[..., None], context_btc, 0).astype(dtype))

        def step(pair: BlockPair, carry: None, _: None) -> tuple[None, Keys]:
            keys = pair.cross_block.attention.keys(context_btc)
            return carry, Keys(*(pin(x_btnh, free=2) for x_btnh in keys))

        return Context(scan_blocks(self.layers, step, None, unroll=not self.config.scan_layers)[1], valid_bt)

    def __call__(
        self,
        x_msd: Float[Array, "m s d"],
        bucket_mk: Int[Array, "m k"],
        context: Context,
        *,
        visible_ms: Bool[Array, "m s"] | None = None,
        num_outputs: int,
        rng: Key[Array, ""] | None = None,
    ) -> Float[Array, "m a o"]:
        """What the last `num_outputs` tokens become.

        Args:
            x_msd: tokens.
            bucket_mk: of the time of each row, or of each of its tokens.
            context: of b samples; m is a multiple of b.
            visible_ms: which tokens the others of their row see; None for all.
            num_outputs: a.
            rng: of dropout; None for none.
        """
        condition_mkd = pin(jax.nn.silu(self.time(bucket_mk)))
        rngs = None if rng is None else jax.random.split(rng, (self.config.depth // 2, 2))

        def step(pair: BlockPair, x_msd: Array, xs: tuple) -> tuple[Array, None]:
            keys, pair_rngs = xs
            cross_rng, self_rng = (None, None) if pair_rngs is None else pair_rngs
            x_msd = pin(x_msd)
            x_msd = pin(pair.cross_block(x_msd, condition_mkd, keys, context.valid_bt, cross_rng))
            x_msd = pair.self_block(x_msd, condition_mkd, None, visible_ms, self_rng)
            return pin(x_msd), None

        unroll = not self.config.scan_layers
        x_msd, _ = scan_blocks(self.layers, step, x_msd, (context.keys, rngs), remat=self.config.remat, unroll=unroll)
        # Shift before scale, which in the blocks is the other way round: the order of the published weights.
        shift_mkd, scale_mkd = jnp.split(self.out_modulation(condition_mkd[:, -num_outputs:]), 2, -1)
        return self.out(modulated_norm(x_msd[:, -num_outputs:], scale_mkd, shift_mkd, 1e-6))

    def looks_at(
        self, x_msd: Float[Array, "m s d"], bucket_mk: Int[Array, "m k"], context: Context
    ) -> Float[Array, "l b t"]:
        """How much of its attention each cross-attention has at each column of the context; see `Attention.looks_at`.

        Args:
            x_msd, bucket_mk, context: as of a call; all tokens see each other.
        """
        condition_mkd = jax.nn.silu(self.time(bucket_mk))

        def step(pair: BlockPair, x_msd: Array, keys: Keys) -> tuple[Array, Array]:
            block = pair.cross_block
            mass_bt = block.attention.looks_at(block.normed(x_msd, condition_mkd), keys, context.valid_bt)
            x_msd = block(x_msd, condition_mkd, keys, context.valid_bt, None)
            return pair.self_block(x_msd, condition_mkd, None, None, None), mass_bt

        return scan_blocks(self.layers, step, x_msd, context.keys, unroll=not self.config.scan_layers)[1]
