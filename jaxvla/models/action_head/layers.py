"""The linear layer of the action head."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxvla.ops.matmul import project


class Linear(nnx.Module):
    """x kernel + bias, computed in `dtype`; kernel [in, out] and bias are uniform in +-1 / sqrt(in), as torch's."""

    def __init__(self, in_dim: int, out_dim: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        bound = 1 / math.sqrt(in_dim)
        self.kernel = nnx.Param(jax.random.uniform(rngs.params(), (in_dim, out_dim), minval=-bound, maxval=bound))
        self.bias = nnx.Param(jax.random.uniform(rngs.params(), (out_dim,), minval=-bound, maxval=bound))

    def __call__(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t f"]:
        """Over the last axis."""
        return project(x_btd.astype(self.dtype), self.kernel[...]) + self.bias[...].astype(self.dtype)


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
