"""SmolVLA's action expert: tokens of noised actions look at the prefix and at each other, or at the prefix alone.

Axis letters: t tokens of the prefix, a actions of a chunk, d their width, f width of the expert, l pairs of layers.
"""

from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxvla.models.decoder import Attention, DecoderLayer
from jaxvla.models.module import compute_dtype
from jaxvla.models.norms import RMSNorm
from jaxvla.models.smolvla.config import ROPE_THETA, SmolVLAConfig
from jaxvla.models.stack import scan_blocks, stack_blocks
from jaxvla.ops.attention import KeyValues, attend, flexible
from jaxvla.ops.placement import pin
from jaxvla.ops.rope import rotation_at


class Context(NamedTuple):
    """What the expert looks at, made once for all steps of sampling.

    Attributes:
        joint: keys and values of the prefix in the even layers of the language model [l, b, t, k, h].
        cross: what the odd layers of the expert make of those of its odd layers.
        length_b: how many tokens of the prefix are there: the position of the first action.
    """

    joint: KeyValues
    cross: KeyValues
    length_b: Int[Array, " b"]


class ExpertPair(nnx.Module):
    """A layer that attends to prefix and actions in one softmax, then one that attends to the prefix alone."""

    def __init__(self, config: SmolVLAConfig, rngs: nnx.Rngs) -> None:
        dtype = compute_dtype(config.dtype)
        self.joint = DecoderLayer(config.joint_layer, dtype, rngs)
        self.cross = DecoderLayer(config.cross_layer, dtype, rngs)


class Expert(nnx.Module):
    """All pairs of layers, and the last norm.

    Args:
        config: sizes and options.
        rngs: for the first parameters.
    """

    def __init__(self, config: SmolVLAConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.layers = stack_blocks(lambda rngs: ExpertPair(config, rngs), config.text.num_hidden_layers // 2, rngs)
        self.norm = RMSNorm(config.expert_size, config.text.rms_norm_eps)

    def context(self, keys: KeyValues) -> Context:
        """What the expert looks at, of the keys and values of all layers of the language model [2 l, b, t, k, h]."""
        even_k, odd_k = keys.k_bskh[0::2], keys.k_bskh[1::2]
        even_v, odd_v = keys.v_bskh[0::2], keys.v_bskh[1::2]

        def step(pair: ExpertPair, carry: None, stored: tuple[Array, Array]) -> tuple[None, tuple[Array, Array]]:
            attention = pair.cross.self_attn
            return carry, (attention.keys_again(stored[0]), attention.values_again(stored[1]))

        _, cross = scan_blocks(self.layers, step, None, (odd_k, odd_v), unroll=not self.config.scan_layers)
        shown_bt = keys.shown_bs
        joint = KeyValues(even_k, even_v, shown_bs=shown_bt)
        return Context(joint, KeyValues(*cross, shown_bs=shown_bt), shown_bt.sum(1))

    def __call__(
        self, x_baf: Float[Array, "b a f"], context: Context, keep_layers: bool = False
    ) -> tuple[Float[Array, "b a f"], Float[Array, "l 2 b a f"] | None]:
        """The tokens after the last norm, and with `keep_layers` the output of each layer.

        In joint layers action i sees the prefix and the actions up to i, in cross layers the prefix; positions go on
        from the prefix in the former and start at 0 in the latter.
        """
        steps_a, head_dim = jnp.arange(x_baf.shape[1]), self.config.text.head_dim
        behind = rotation_at(context.length_b[:, None] + steps_a, head_dim, ROPE_THETA)
        alone = rotation_at(steps_a[None], head_dim, ROPE_THETA)
        options = {"implementation": flexible(self.config.attention)}

        def step(pair: ExpertPair, x_baf: Array, stored: tuple) -> tuple[Array, Array | None]:
            (joint_k, joint_v), (cross_k, cross_v) = stored
            before = context.joint._replace(k_bskh=joint_k, v_bskh=joint_v)
            prefix = context.cross._replace(k_bskh=cross_k, v_bskh=cross_v)

            def look_at_both(attention: Attention, x_baf: Array) -> tuple[Array, None]:
                own = KeyValues(attention.keys(x_baf, behind), attention.values(x_baf))
                return attend(attention.queries(x_baf, behind), own, (before,), causal=True, **options), None

            def look_at_prefix(attention: Attention, x_baf: Array) -> tuple[Array, None]:
                return attend(attention.queries(x_baf, alone), prefix, **options), None

            joint_baf = pair.joint(pin(x_baf), look_at_both)[0]
            cross_baf = pin(pair.cross(joint_baf, look_at_prefix)[0])
            return cross_baf, jnp.stack([joint_baf, cross_baf]) if keep_layers else None

        x_baf, layers = scan_blocks(
            self.layers,
            step,
            x_baf,
            (context.joint[:2], context.cross[:2]),
            remat=self.config.remat,
            unroll=not self.config.scan_layers,
        )
        return self.norm(x_baf), layers
