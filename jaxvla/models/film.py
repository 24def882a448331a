"""Feature-wise linear modulation (Perez et al., 2018)."""

import jax
from flax import nnx
from jaxtyping import Array, Float


class FiLM(nnx.Module):
    """Scales and shifts every channel by linear functions of a conditioning vector; the identity at the start."""

    def __init__(self, cond_dim: int, channels: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        zeros = nnx.initializers.zeros_init()
        self.scale = nnx.Linear(cond_dim, channels, kernel_init=zeros, dtype=dtype, rngs=rngs)
        self.shift = nnx.Linear(cond_dim, channels, kernel_init=zeros, dtype=dtype, rngs=rngs)

    def __call__(self, x_bhwc: Float[Array, "b h w c"], cond_bk: Float[Array, "b k"]) -> Float[Array, "b h w c"]:
        """x (1 + scale(cond)) + shift(cond)."""
        return x_bhwc * (1 + self.scale(cond_bk))[:, None, None] + self.shift(cond_bk)[:, None, None]
