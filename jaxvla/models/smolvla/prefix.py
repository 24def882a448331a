"""What SmolVLA reads: camera images, an instruction and the robot's state, by a language model cut in half.

Axis letters: n cameras, t tokens of the prefix, of which the state is the last, l layers.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxvla.models.decoder import Attention, DecoderLayer
from jaxvla.models.layers import Embedding
from jaxvla.models.module import bind, compute_dtype, params_of
from jaxvla.models.smolvla.config import ROPE_THETA, SmolVLAConfig
from jaxvla.models.stack import scan_blocks, stack_blocks
from jaxvla.ops.attention import KeyValues, attend, flexible
from jaxvla.ops.placement import pin
from jaxvla.ops.rope import rotation_at


class Prefix(NamedTuple):
    """Embeddings of images, then of the instruction, then of the state, and which of them are there."""

    x_btd: Float[Array, "b t d"]
    valid_bt: Bool[Array, "b t"]


class Read(NamedTuple):
    """What a pass through the language model leaves.

    Attributes:
        keys: rotated keys, and values, of all layers [l, b, t, k, h].
        layers_lbtd: the output of each layer; None unless they were kept.
    """

    keys: KeyValues
    layers_lbtd: Float[Array, "l b t d"] | None


class TextReader(nnx.Module):
    """Embeddings and layers of the language model. What its last layer puts out is read by nobody, so no norm follows.

    Args:
        config: sizes and options.
        rngs: for the first parameters.
    """

    def __init__(self, config: SmolVLAConfig, rngs: nnx.Rngs) -> None:
        text, dtype = config.text, compute_dtype(config.dtype)
        self.config = config
        self.embed_tokens = Embedding(text.vocab_size, text.hidden_size, dtype=dtype, rngs=rngs)
        self.layers = stack_blocks(
            lambda rngs: DecoderLayer(config.text_layer, dtype, rngs), text.num_hidden_layers, rngs
        )

    def __call__(self, prefix: Prefix, keep_layers: bool = False) -> Read:
        """Images and instruction see each other in both directions; the state sees them and itself.

        Entries that are not there are seen by nobody, and do not count as positions.

        Args:
            prefix: embeddings, and which are there.
            keep_layers: return every layer's output.
        """
        config, valid_bt = self.config, prefix.valid_bt
        rotation = rotation_at(jnp.cumsum(valid_bt, 1) - 1, config.text.head_dim, ROPE_THETA)
        options = {"implementation": flexible(config.attention)}

        def look(attention: Attention, x_btd: Array) -> tuple[Array, tuple[Array, Array]]:
            q, k, v = attention.queries(x_btd, rotation), attention.keys(x_btd, rotation), attention.values(x_btd)
            seen = KeyValues(k[:, :-1], v[:, :-1], shown_bs=valid_bt[:, :-1])
            state = KeyValues(k[:, -1:], v[:, -1:])
            out = [attend(q[:, :-1], seen, **options), attend(q[:, -1:], state, (seen,), **options)]
            return jnp.concatenate(out, axis=1), (k, v)

        last = config.text.num_hidden_layers - 1

        def step(layer: DecoderLayer, x_btd: Array, index: Array) -> tuple[Array, tuple]:
            layer = layer if config.train_expert_only else _frozen_where(layer, index == last)
            x_btd, keys = layer(pin(x_btd), look)
            x_btd = pin(x_btd)
            return x_btd, (keys, x_btd if keep_layers else None)

        _, ((k, v), layers_lbtd) = scan_blocks(
            self.layers, step, prefix.x_btd, jnp.arange(last + 1), remat=config.remat, unroll=not config.scan_layers
        )
        return Read(KeyValues(k, v, shown_bs=valid_bt), layers_lbtd)


def _frozen_where(layer: DecoderLayer, frozen: Bool[Array, ""]) -> DecoderLayer:
    """The layer, without a gradient of its parameters where it is frozen; what it was fed has one all the same."""

    def held(leaf: Array) -> Array:
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return leaf
        return jnp.where(frozen, jax.lax.stop_gradient(leaf), leaf)

    return bind(nnx.graphdef(layer), jax.tree.map(held, params_of(layer)))
