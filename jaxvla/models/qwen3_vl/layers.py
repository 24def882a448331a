"""What the vision tower and the text decoder share: linear layers and embedding tables."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxvla.models.adapter import project

_NORMAL = nnx.initializers.normal(0.02)


class Linear(nnx.Module):
    """x kernel + bias, computed in `dtype`; kernel [in, out], drawn as the original's; or an adapted one."""

    def __init__(self, in_dim: int, out_dim: int, *, bias: bool, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        self.kernel = nnx.Param(_NORMAL(rngs.params(), (in_dim, out_dim)))
        self.bias = nnx.Param(jnp.zeros(out_dim)) if bias else None

    def __call__(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t f"]:
        """Over the last axis."""
        y_btf = project(x_btd.astype(self.dtype), self.kernel.get_value())
        return y_btf if self.bias is None else y_btf + self.bias[...].astype(self.dtype)


class Embedding(nnx.Module):
    """A table of learned rows."""

    def __init__(self, num_rows: int, dim: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.dtype = dtype
        self.embedding = nnx.Param(_NORMAL(rngs.params(), (num_rows, dim)))

    def __call__(self, rows_bt: Int[Array, "b t"]) -> Float[Array, "b t d"]:
        """The rows in the compute dtype."""
        return self.embedding[rows_bt].astype(self.dtype)
