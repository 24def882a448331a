"""From noised actions to tokens."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxvla.models.action_head.layers import Linear
from jaxvla.ops.sinusoid import sinusoid_angles

_NORMAL = nnx.initializers.normal(0.02)


class ActionEncoder(nnx.Module):
    """Tokens of noised actions: each action beside the time, through an MLP, plus the embedding of its slot.

    Args:
        action_dim: d.
        dim: width of the tokens.
        max_seq_len: rows of the table of slots.
    """

    def __init__(
        self, action_dim: int, dim: int, max_seq_len: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.dim = dim
        self.action = Linear(action_dim, dim, dtype=dtype, rngs=rngs)
        self.mix = Linear(2 * dim, dim, dtype=dtype, rngs=rngs)
        self.out = Linear(dim, dim, dtype=dtype, rngs=rngs)
        self.positions = nnx.Param(_NORMAL(rngs.params(), (max_seq_len, dim)))

    def __call__(self, actions_bad: Float[Array, "b a d"], bucket_bk: Int[Array, "b k"]) -> Float[Array, "b a f"]:
        """The tokens, one per slot; times are told by their buckets, one for all slots or one for each."""
        action_baf = self.action(actions_bad)
        angles_bkf = sinusoid_angles(bucket_bk, self.dim // 2, self.dim // 2)
        wave_bkf = jnp.concatenate([jnp.sin(angles_bkf), jnp.cos(angles_bkf)], -1).astype(action_baf.dtype)
        wave_baf = jnp.broadcast_to(wave_bkf, action_baf.shape)
        mixed_baf = jax.nn.swish(self.mix(jnp.concatenate([action_baf, wave_baf], -1)))
        positions_af = self.positions[: actions_bad.shape[1]]
        return self.out(mixed_baf) + positions_af.astype(action_baf.dtype)
