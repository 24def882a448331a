"""Normalization layers as modules."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxvla.ops import norms


class RMSNorm(nnx.Module):
    """RMSNorm with a learned scale."""

    def __init__(self, dim: int, epsilon: float = 1e-6) -> None:
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(dim))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Over the last axis."""
        return norms.rms_norm(x, self.scale[...], self.epsilon)


class LayerNorm(nnx.Module):
    """LayerNorm with learned scale and bias."""

    def __init__(self, dim: int, epsilon: float = 1e-6) -> None:
        self.epsilon = epsilon
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        """Over the last axis."""
        return norms.layer_norm(x, self.scale[...], self.bias[...], self.epsilon)
