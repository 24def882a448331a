"""The layers of ACT's transformers: post-norm, as in DETR (Carion et al., 2020), positions added to queries and keys.

Axis letters: b batch, t queries, s keys, d width, n heads, h width of a head. Without `rng`, dropout is off.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jaxvla.models.act.config import TransformerConfig
from jaxvla.models.norms import LayerNorm
from jaxvla.ops.dropout import dropout
from jaxvla.ops.masked_attention import Keys, attend_where
from jaxvla.ops.matmul import project

# torch's defaults for a linear layer, whose bias has the same bounds, and for a packed projection.
UNIFORM = nnx.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
XAVIER = nnx.initializers.xavier_uniform()
# torch's, too; the norms of the project have another.
EPSILON = 1e-5

Rng = Key[Array, ""] | None


def linear(
    in_dim: int, out_dim: int, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs, init: Callable = UNIFORM
) -> nnx.Linear:
    """A linear layer with the bias that torch draws, uniform in +-1 / sqrt(in)."""
    bound = 1 / math.sqrt(in_dim)

    def draw(key: Array, shape: tuple[int, ...], kind: jax.typing.DTypeLike) -> Array:
        return jax.random.uniform(key, shape, kind, -bound, bound)

    return nnx.Linear(in_dim, out_dim, kernel_init=init, bias_init=draw, dtype=dtype, rngs=rngs)


class Attention(nnx.Module):
    """Multi-head attention whose three projections are packed into one kernel [d, 3 d]: queries, keys, values."""

    def __init__(
        self, config: TransformerConfig, out_init: Callable, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ) -> None:
        width = config.width
        self.dtype, self.num_heads, self.dropout_rate = dtype, config.num_heads, config.dropout_rate
        self.kernel = nnx.Param(XAVIER(rngs.params(), (width, 3 * width)))
        self.bias = nnx.Param(jnp.zeros(3 * width))
        self.out = nnx.Linear(width, width, kernel_init=out_init, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        query_btd: Float[Array, "b t d"],
        key_bsd: Float[Array, "b s d"],
        value_bsd: Float[Array, "b s d"],
        visible_bs: Bool[Array, "b s"] | None,
        rng: Rng,
    ) -> Float[Array, "b t d"]:
        """What the queries read from the visible keys."""
        inputs = query_btd, key_bsd, value_bsd
        kernels, biases = jnp.split(self.kernel[...], 3, axis=1), jnp.split(self.bias[...], 3)
        q, k, v = (
            (project(x.astype(self.dtype), kernel) + bias.astype(self.dtype)).reshape(*x.shape[:2], self.num_heads, -1)
            for x, kernel, bias in zip(inputs, kernels, biases)
        )
        read_btnh = attend_where(q, Keys(k, v), visible_bs, self.dropout_rate, rng)
        return self.out(read_btnh.reshape(query_btd.shape))


class MLP(nnx.Module):
    """Two linear layers with a ReLU between, and dropout behind each."""

    def __init__(self, config: TransformerConfig, init: Callable, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.dropout_rate = config.dropout_rate
        self.up = linear(config.width, config.mlp_dim, dtype, rngs, init)
        self.down = linear(config.mlp_dim, config.width, dtype, rngs, init)

    def __call__(self, x_btd: Float[Array, "b t d"], rng: Rng) -> Float[Array, "b t d"]:
        """Each token by itself."""
        inner_rng, outer_rng = _split(rng, 2)
        x_btf = dropout(jax.nn.relu(self.up(x_btd)), self.dropout_rate, inner_rng)
        return dropout(self.down(x_btf), self.dropout_rate, outer_rng)


class EncoderLayer(nnx.Module):
    """Attention of all tokens to the visible ones, and an MLP, each with a norm behind its residual.

    Args:
        config: sizes.
        init: of the kernels but the packed one.
        dtype: of the products of matrices; parameters, norms and softmax are float32.
    """

    def __init__(self, config: TransformerConfig, init: Callable, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.dropout_rate = config.dropout_rate
        self.attention = Attention(config, init, dtype, rngs)
        self.attention_norm = LayerNorm(config.width, EPSILON)
        self.mlp = MLP(config, init, dtype, rngs)
        self.mlp_norm = LayerNorm(config.width, EPSILON)

    def __call__(
        self,
        x_bsd: Float[Array, "b s d"],
        places_sd: Float[Array, "s d"],
        visible_bs: Bool[Array, "b s"] | None,
        rng: Rng,
    ) -> Float[Array, "b s d"]:
        """The tokens after this layer."""
        weights_rng, read_rng, mlp_rng = _split(rng, 3)
        placed = x_bsd + places_sd.astype(x_bsd.dtype)
        read = self.attention(placed, placed, x_bsd, visible_bs, weights_rng)
        x_bsd = self.attention_norm(x_bsd + dropout(read, self.dropout_rate, read_rng))
        return self.mlp_norm(x_bsd + self.mlp(x_bsd, mlp_rng))


class DecoderLayer(nnx.Module):
    """Attention of the slots to each other, then to what the encoder gives, and an MLP; norms behind the residuals."""

    def __init__(self, config: TransformerConfig, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.dropout_rate = config.dropout_rate
        self.attention = Attention(config, XAVIER, dtype, rngs)
        self.attention_norm = LayerNorm(config.width, EPSILON)
        self.cross_attention = Attention(config, XAVIER, dtype, rngs)
        self.cross_attention_norm = LayerNorm(config.width, EPSILON)
        self.mlp = MLP(config, XAVIER, dtype, rngs)
        self.mlp_norm = LayerNorm(config.width, EPSILON)

    def __call__(
        self,
        x_bad: Float[Array, "b a d"],
        slots_ad: Float[Array, "a d"],
        context_bsd: Float[Array, "b s d"],
        placed_bsd: Float[Array, "b s d"],
        visible_bs: Bool[Array, "b s"] | None,
        rng: Rng,
    ) -> Float[Array, "b a d"]:
        """The slots after this layer.

        Args:
            x_bad: before it.
            slots_ad: their learned positions.
            context_bsd: what the encoder gives.
            placed_bsd: the same with its positions added.
            visible_bs: which of it may be looked at; None for all.
            rng: of dropout.
        """
        weights_rng, read_rng, cross_rng, seen_rng, mlp_rng = _split(rng, 5)
        slots_ad = slots_ad.astype(x_bad.dtype)
        placed = x_bad + slots_ad
        read = self.attention(placed, placed, x_bad, None, weights_rng)
        x_bad = self.attention_norm(x_bad + dropout(read, self.dropout_rate, read_rng))
        seen = self.cross_attention(x_bad + slots_ad, placed_bsd, context_bsd, visible_bs, cross_rng)
        x_bad = self.cross_attention_norm(x_bad + dropout(seen, self.dropout_rate, seen_rng))
        return self.mlp_norm(x_bad + self.mlp(x_bad, mlp_rng))


def _split(rng: Rng, count: int) -> Array | tuple[None, ...]:
    return (None,) * count if rng is None else jax.random.split(rng, count)
