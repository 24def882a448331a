"""The layers of the action head."""

import functools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxvla.models import layers

# Drawn as torch draws it.
Linear = functools.partial(layers.Linear, bias=True, uniform=True)


class ReluMLP(nnx.Module):
    """Two linear layers with a ReLU between."""

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.hidden = Linear(in_dim, hidden_dim, dtype=dtype, rngs=rngs)
        self.out = Linear(hidden_dim, out_dim, dtype=dtype, rngs=rngs)

    def __call__(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t f"]:
        """Over the last axis."""
        return self.out(jnp.maximum(self.hidden(x_btd), 0))
