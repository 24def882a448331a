"""Multilayer perceptron."""

import itertools

import jax
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxvla.ops.dropout import dropout


class MLP(nnx.Module):
    """Dense layers, each followed by dropout, optionally LayerNorm, and swish, as in bridge_data_v2.

    Args:
        in_dim: width of the input.
        hidden_dims: widths of the layers; none for the identity.
        activate_final: the last layer too is followed by these.
        dropout_rate: share of the entries that training drops.
        layer_norm: normalize before each swish.
    """

    def __init__(
        self,
        in_dim: int,
        hidden_dims: tuple[int, ...],
        *,
        activate_final: bool = False,
        dropout_rate: float = 0.0,
        layer_norm: bool = False,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.num_layers = len(hidden_dims)
        self.num_activated = self.num_layers if activate_final else self.num_layers - 1
        self.dropout_rate = dropout_rate
        self.out_dim = hidden_dims[-1] if hidden_dims else in_dim
        xavier = nnx.initializers.xavier_uniform()
        self.dense = nnx.Dict(
            {
                f"layer{i}": nnx.Linear(*dims, kernel_init=xavier, dtype=dtype, rngs=rngs)
                for i, dims in enumerate(itertools.pairwise((in_dim, *hidden_dims)))
            }
        )
        self.norm = nnx.Dict(
            {
                f"layer{i}": nnx.LayerNorm(hidden_dims[i], dtype=dtype, rngs=rngs)
                for i in range(self.num_activated if layer_norm else 0)
            }
        )

    def __call__(self, x_bf: Float[Array, "b f"], rng: Key[Array, ""] | None = None) -> Float[Array, "b k"]:
        """Without `rng`, dropout is off."""
        keys = [None] * self.num_layers if rng is None else jax.random.split(rng, self.num_layers)
        for i in range(self.num_layers):
            x_bf = self.dense[f"layer{i}"](x_bf)
            if i < self.num_activated:
                x_bf = dropout(x_bf, self.dropout_rate, keys[i])
                if self.norm:
                    x_bf = self.norm[f"layer{i}"](x_bf)
                x_bf = jax.nn.swish(x_bf)
        return x_bf
