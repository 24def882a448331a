"""The decoder of language models: embeddings, causal layers in one scan, a norm, an output head."""

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxvla.models.adapter import matrix
from jaxvla.models.decoder import Attention, DecoderLayer, LayerSizes, Look
from jaxvla.models.layers import Embedding, Linear
from jaxvla.models.module import compute_dtype
from jaxvla.models.norms import RMSNorm
from jaxvla.models.stack import scan_blocks, stack_blocks
from jaxvla.ops.attention import KeyValues, attend, flexible
from jaxvla.ops.losses import chunked_cross_entropy
from jaxvla.ops.matmul import contract
from jaxvla.ops.placement import pin
from jaxvla.ops.rope import Rotation, multimodal_rotation, rotation_at


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """Sizes and options of a decoder.

    Attributes:
        layer: widths of each layer.
        num_layers: of them.
        vocab_size: rows of the embedding table.
        rope_theta: base of the rotary frequencies.
        mrope_section: how many of them follow time, row and column; None where tokens stand in one line.
        tied: the head is the transposed embedding table.
        last_apart: the last layer is a stack of its own, "last_layer", so that it can be trained without the others.
        dtype: compute dtype, "float32" or "bfloat16".
        remat, scan_layers: see `jaxvla.models.stack`; without `scan_layers` they are written out one by one.
        attention: see `jaxvla.ops.attention.IMPLEMENTATIONS`.
    """

    layer: LayerSizes
    num_layers: int
    vocab_size: int
    rope_theta: float
    mrope_section: tuple[int, int, int] | None = None
    tied: bool = False
    last_apart: bool = False
    dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool = True
    attention: str = "xla"

    def rotation(self, positions: Int[Array, "*axes b t"]) -> Rotation:
        """Of tokens at these positions, which have three axes where there is an `mrope_section`."""
        if self.mrope_section is None:
            return rotation_at(positions, self.layer.head_dim, self.rope_theta)
        return multimodal_rotation(positions, self.mrope_section, self.rope_theta)

    def line(self, positions_bt: Int[Array, "b t"]) -> Int[Array, "*axes b t"]:
        """The positions of text, whose tokens stand in one line, on all axes."""
        return positions_bt if self.mrope_section is None else jnp.broadcast_to(positions_bt, (3, *positions_bt.shape))


class DeepStack(NamedTuple):
    """Image features for the first layers: those of entry i are added to the output of layer i.

    Attributes:
        features_nbid: for n layers, i image tokens.
        image_index_bt: which image token each token is; i where it is none.
    """

    features_nbid: Float[Array, "n b i d"]
    image_index_bt: Int[Array, "b t"]


class DecoderOutput(NamedTuple):
    """What a pass through the decoder gives.

    Attributes:
        hidden_btd: the last layer's output, before the final norm.
        keys: keys and values of these tokens, of all layers [l, b, t, k, h], ready to be the past of a later pass.
        layers_lbtd: the output of each layer, DeepStack features included.
    """

    hidden_btd: Float[Array, "b t d"]
    keys: KeyValues | None
    layers_lbtd: Float[Array, "l b t d"] | None


class Surroundings(NamedTuple):
    """What all layers of a pass share: the rotation of the tokens, and which of them may be looked at."""

    rotation: Rotation
    start_b: Array | None
    stop_b: Array | None
    shown_bt: Array | None


def _looking(around: Surroundings, past: tuple[KeyValues, ...], implementation: str, causal: bool) -> Look:
    """Tokens look at themselves, at what came before, and at `past`; besides, they give their own keys and values.

    Where it is not causal, they look at what comes behind them, too.
    """
    implementation = flexible(implementation) if past else implementation

    def look(attention: Attention, x_btd: Array) -> tuple[Array, KeyValues]:
        q_btnh = attention.queries(x_btd, around.rotation)
        k_btkh = attention.keys(x_btd, around.rotation)
        own = KeyValues(k_btkh, attention.values(x_btd), *around[1:])
        return attend(q_btnh, own, past, causal=causal, implementation=implementation), own

    return look


class TextDecoder(nnx.Module):
    """Embeddings in, hidden states out; and the tables that turn tokens to embeddings and hidden states to logits."""

    def __init__(self, config: DecoderConfig, rngs: nnx.Rngs) -> None:
        sizes, dtype = config.layer, compute_dtype(config.dtype)
        self.config = config

        def stack(num_layers: int) -> nnx.Module:
            return stack_blocks(lambda rngs: DecoderLayer(sizes, dtype, rngs), num_layers, rngs)

        self.embed_tokens = Embedding(config.vocab_size, sizes.hidden_size, dtype=dtype, rngs=rngs)
        self.layers = stack(config.num_layers - config.last_apart)
        self.last_layer = stack(1) if config.last_apart else None
        self.norm = RMSNorm(sizes.hidden_size, sizes.rms_norm_eps)
        if not config.tied:
            self.lm_head = Linear(sizes.hidden_size, config.vocab_size, bias=False, dtype=dtype, rngs=rngs)

    def __call__(
        self,
        x_btd: Float[Array, "b t d"],
        positions: Int[Array, "*axes b t"],
        *,
        start_b: Int[Array, " b"] | None = None,
        stop_b: Int[Array, " b"] | None = None,
        past: tuple[KeyValues, ...] = (),
        deepstack: DeepStack | None = None,
        shown_bt: Bool[Array, "b t"] | None = None,
        causal: bool = True,
        keep_keys: bool = False,
        keep_layers: bool = False,
    ) -> DecoderOutput:
        """Runs all layers over embeddings.

        Args:
            x_btd: embeddings, or any vectors in their place.
            positions: of each, [b, t]; with an `mrope_section` time, row and column of each, [3, b, t].
            start_b: number of padding entries on the left of each sample; None for none.
            stop_b: where the padding on the right of each sample begins; None for none.
            past: runs of keys and values of all layers [l, b, s, k, h] that every token sees besides those up to
                itself: a cache, a prefix, a buffer that is filled up to its `stop_b`. They are only read.
            deepstack: image features for the first layers.
            shown_bt: False at tokens that none may look at, besides the padding; None for no others.
            causal: tokens do not look at those behind them.
            keep_keys: return the tokens' own keys and values.
            keep_layers: return every layer's output.
        """
        around = Surroundings(self.config.rotation(positions), start_b, stop_b, shown_bt)
        if deepstack is not None:
            # All other layers add a last entry of zeros: a second scan for them would copy their parameters.
            stack_nbid = jnp.pad(deepstack.features_nbid, ((0, 1), (0, 0), (0, 0), (0, 0))).astype(x_btd.dtype)

        def step(layer: DecoderLayer, x_btd: Array, xs: tuple) -> tuple[Array, tuple]:
            index, stored = xs
            seen = tuple(run._replace(k_bskh=k, v_bskh=v) for run, (k, v) in zip(past, stored))
            x_btd, own = layer(pin(x_btd), _looking(around, seen, self.config.attention, causal))
            if deepstack is not None:
                features_bid = stack_nbid[jnp.minimum(index, len(stack_nbid) - 1)]
                x_btd = x_btd + place(features_bid, deepstack.image_index_bt)
            x_btd = pin(x_btd)
            return x_btd, (own[:2] if keep_keys else None, x_btd if keep_layers else None)

        xs = (jnp.arange(self.config.num_layers), tuple((run.k_bskh, run.v_bskh) for run in past))
        hidden_btd, (own, layers_lbtd) = self._scan(step, x_btd, xs)
        return DecoderOutput(hidden_btd, KeyValues(*own, *around[1:]) if keep_keys else None, layers_lbtd)

    def _scan(self, step: Callable[..., Any], x_btd: Array, xs: Any) -> tuple[Array, Any]:
        """`scan_blocks` over all layers, also where the last one is a stack of its own."""
        options = {"remat": self.config.remat, "unroll": not self.config.scan_layers}
        if self.last_layer is None:
            return scan_blocks(self.layers, step, x_btd, xs, **options)
        first, last = (jax.tree.map(operator.itemgetter(part), xs) for part in (slice(-1), slice(-1, None)))
        x_btd, ys = scan_blocks(self.layers, step, x_btd, first, **options)
        x_btd, y = scan_blocks(self.last_layer, step, x_btd, last, **options)
        return x_btd, jax.tree.map(lambda *parts: jnp.concatenate(parts), ys, y)

    def logits(self, hidden_btd: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """float32 logits of hidden states that have passed the final norm."""
        kernel, vocab_axis = self._head()
        return contract("btd,dv->btv" if vocab_axis else "btd,vd->btv", hidden_btd, kernel)

    def token_losses(
        self, hidden_btd: Float[Array, "b t d"], labels_bt: Int[Array, "b t"], chunk: int = 128
    ) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
        """Cross entropy and hit of each position without the logits of all, see `ops.losses.chunked_cross_entropy`.

        Args:
            hidden_btd: after the final norm.
            labels_bt: what each position predicts; `IGNORE` for nothing.
            chunk: positions per chunk.
        """
        kernel, vocab_axis = self._head()
        return chunked_cross_entropy(hidden_btd, kernel, labels_bt, vocab_axis=vocab_axis, chunk=chunk)

    def _head(self) -> tuple[Array, int]:
        if self.config.tied:
            return self.embed_tokens.embedding[...], 0
        return matrix(self.lm_head.kernel.get_value()), 1


def place(features_bid: Float[Array, "b i d"], index_bt: Int[Array, "b t"]) -> Float[Array, "b t d"]:
    """The feature that each token asks for, zeros where its index is i or more."""
    return jnp.take_along_axis(features_bid, index_bt[..., None], axis=1, mode="fill", fill_value=0)
