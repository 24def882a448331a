"""The layer that language models share: attention with grouped heads and SwiGLU, each behind a norm, beside a residual.

How the tokens of a layer attend (to themselves, to a cache, to another stream) is a function that the model hands in.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxvla.models.layers import Linear
from jaxvla.models.norms import RMSNorm
from jaxvla.ops.rope import Rotation, rotate


@dataclasses.dataclass(frozen=True)
class LayerSizes:
    """Widths of a decoder layer.

    Attributes:
        key_input: width of what keys and values are made of; None for that of the tokens.
        normed_heads: queries and keys pass a norm of their own before they are rotated.
        uniform_keys: keys and values are projected by kernels that are drawn as torch draws plain linear layers.
    """

    hidden_size: int
    intermediate_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    key_input: int | None = None
    normed_heads: bool = False
    uniform_keys: bool = False


class Attention(nnx.Module):
    """The projections of an attention with grouped heads, without biases."""

    def __init__(self, sizes: LayerSizes, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.head_dim = sizes.head_dim
        query_dim, key_dim = (sizes.head_dim * n for n in (sizes.num_attention_heads, sizes.num_key_value_heads))
        options = {"bias": False, "dtype": dtype, "rngs": rngs}
        key_input = sizes.hidden_size if sizes.key_input is None else sizes.key_input
        self.q_proj = Linear(sizes.hidden_size, query_dim, **options)
        self.k_proj = Linear(key_input, key_dim, uniform=sizes.uniform_keys, **options)
        self.v_proj = Linear(key_input, key_dim, uniform=sizes.uniform_keys, **options)
        self.o_proj = Linear(query_dim, sizes.hidden_size, **options)
        self.q_norm = RMSNorm(sizes.head_dim, sizes.rms_norm_eps) if sizes.normed_heads else None
        self.k_norm = RMSNorm(sizes.head_dim, sizes.rms_norm_eps) if sizes.normed_heads else None

    def queries(self, x_btd: Float[Array, "b t d"], rotation: Rotation) -> Float[Array, "b t n h"]:
        """The rotated queries of the tokens."""
        q_btnh = self._heads(self.q_proj(x_btd))
        return rotate(q_btnh if self.q_norm is None else self.q_norm(q_btnh), rotation)

    def keys(self, x_btd: Float[Array, "b t d"], rotation: Rotation) -> Float[Array, "b t k h"]:
        """The rotated keys of the tokens."""
        k_btkh = self._heads(self.k_proj(x_btd))
        return rotate(k_btkh if self.k_norm is None else self.k_norm(k_btkh), rotation)

    def values(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t k h"]:
        """The values of the tokens."""
        return self._heads(self.v_proj(x_btd))

    def keys_again(self, k_bskh: Float[Array, "b s k h"]) -> Float[Array, "b s m h"]:
        """Keys made of the keys of another stream, which are rotated already: they are not rotated a second time."""
        return self._heads(self.k_proj(k_bskh.reshape(*k_bskh.shape[:2], -1)))

    def values_again(self, v_bskh: Float[Array, "b s k h"]) -> Float[Array, "b s m h"]:
        """Values made of the values of another stream."""
        return self.values(v_bskh.reshape(*v_bskh.shape[:2], -1))

    def output(self, out_btnh: Float[Array, "b t n h"]) -> Float[Array, "b t d"]:
        """What the heads found, as a vector of each token."""
        return self.o_proj(out_btnh.reshape(*out_btnh.shape[:2], -1))

    def _heads(self, x_btf: Array) -> Array:
        return x_btf.reshape(*x_btf.shape[:2], -1, self.head_dim)


class SwiGLU(nnx.Module):
    """down(silu(gate(x)) * up(x))."""

    def __init__(self, sizes: LayerSizes, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        dims = (sizes.hidden_size, sizes.intermediate_size)
        options = {"bias": False, "dtype": dtype, "rngs": rngs}
        self.gate_proj = Linear(*dims, **options)
        self.up_proj = Linear(*dims, **options)
        self.down_proj = Linear(*dims[::-1], **options)

    def __call__(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t d"]:
        """Each token by itself."""
        return self.down_proj(jax.nn.silu(self.gate_proj(x_btd)) * self.up_proj(x_btd))


# From the attention of a layer and its normalized tokens to what the tokens found [b, t, n, h], and anything besides.
Look = Callable[[Attention, Array], tuple[Array, Any]]


class DecoderLayer(nnx.Module):
    """Attention and SwiGLU, each behind a norm and beside a residual."""

    def __init__(self, sizes: LayerSizes, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.input_layernorm = RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.self_attn = Attention(sizes, dtype, rngs)
        self.post_attention_layernorm = RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        self.mlp = SwiGLU(sizes, dtype, rngs)

    def __call__(self, x_btd: Float[Array, "b t d"], look: Look) -> tuple[Float[Array, "b t d"], Any]:
        """The layer's output, and what `look` gives besides."""
        out_btnh, besides = look(self.self_attn, self.input_layernorm(x_btd))
        x_btd = x_btd + self.self_attn.output(out_btnh)
        return x_btd + self.mlp(self.post_attention_layernorm(x_btd)), besides
