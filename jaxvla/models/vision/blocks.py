"""What the blocks of vision transformers share."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from jaxvla.models.layers import Linear


class GeluMLP(nnx.Module):
    """Two layers with the tanh approximation of GELU between them."""

    def __init__(self, dim: int, hidden_dim: int, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        options = {"bias": True, "dtype": dtype, "rngs": rngs}
        self.linear_fc1 = Linear(dim, hidden_dim, **options)
        self.linear_fc2 = Linear(hidden_dim, dim, **options)

    def __call__(self, x_bpd: Float[Array, "b p d"]) -> Float[Array, "b p d"]:
        """Each patch by itself."""
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x_bpd), approximate=True))
