"""Linear layers and embedding tables, as language models and vision towers are made of."""

import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxvla.models.adapter import project
from jaxvla.models.module import Params
from jaxvla.ops.placement import look_up

# The standard deviation of what is drawn for a large model, as transformers has it.
INITIALIZER_RANGE = 0.02
_NORMAL = nnx.initializers.normal(INITIALIZER_RANGE)


class Linear(nnx.Module):
    """x kernel + bias, computed in `dtype`; kernel [in, out], or an adapted one.

    Args:
        in_dim, out_dim: widths.
        bias: has one.
        uniform: kernel and bias are drawn from +-1 / sqrt(in), as torch draws a plain linear layer. Else the kernel is
            normal with deviation `INITIALIZER_RANGE` and the bias 0, as in the models of transformers.
    """

    def __init__(
        self,
        in_dim: int,
        out_dim: int,
        *,
        bias: bool,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
        uniform: bool = False,
    ) -> None:
        self.dtype = dtype
        bound = 1 / math.sqrt(in_dim)

        def draw(*shape: int) -> Array:
            return jax.random.uniform(rngs.params(), shape, minval=-bound, maxval=bound)

        self.kernel = nnx.Param(draw(in_dim, out_dim) if uniform else _NORMAL(rngs.params(), (in_dim, out_dim)))
        self.bias = nnx.Param(draw(out_dim) if uniform else jnp.zeros(out_dim)) if bias else None

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
        return look_up(self.embedding[...], rows_bt, self.dtype)


def rescaled(params: Params, initializer_range: float) -> Params:
    """Kernels and embeddings that were drawn with `INITIALIZER_RANGE`, as if with another standard deviation."""

    def scale(path: tuple, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return leaf * (initializer_range / INITIALIZER_RANGE) if name in ("kernel", "embedding") else leaf

    return jax.tree_util.tree_map_with_path(scale, params)


def cast_matrices(params: Params, dtype: jnp.dtype) -> Params:
    """Kernels and embeddings in the compute dtype; without it, each step of a loop would read them in float32."""

    def cast(path: tuple, leaf: Array) -> Array:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        return leaf.astype(dtype) if name in ("kernel", "embedding") else leaf

    return jax.tree_util.tree_map_with_path(cast, params)
