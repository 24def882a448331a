"""Diagonal Gaussians over actions, plain or squashed by tanh, as functions of (mean, log_std).

A squashed distribution is that of tanh(u) with u Gaussian; `mean` and `log_std` are always those of u. Its actions lie
in (-1, 1), so it suits actions that are normalized to bounds.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

# The largest squashed action that float32 can tell from 1 with room to spare; actions beyond it count as this one.
_LARGEST_SQUASHED = 1 - 1e-6


def mode(mean: Float[Array, "*b d"], tanh: bool = False) -> Float[Array, "*b d"]:
    """The action that a greedy policy takes; of a squashed distribution tanh(mean), its median."""
    return jnp.tanh(mean) if tanh else mean


def deviation(log_std: Float[Array, "*b d"], tanh: bool = False) -> Float[Array, "*b d"]:
    """The standard deviation; of a squashed distribution tanh of that of u, as bridge_data_v2 reports it."""
    return mode(jnp.exp(log_std), tanh)


def sample(
    rng: Key[Array, ""],
    mean: Float[Array, "*b d"],
    log_std: Float[Array, "*b d"],
    tanh: bool = False,
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, "*b d"]:
    """One action per row, reparameterised. The standard deviation is multiplied by `temperature`; 0 gives the mode."""
    noise = jax.random.normal(rng, mean.shape, mean.dtype)
    return mode(mean + temperature * jnp.exp(log_std) * noise, tanh)


def log_prob(
    actions: Float[Array, "*b d"], mean: Float[Array, "*b d"], log_std: Float[Array, "*b d"], tanh: bool = False
) -> Float[Array, "*b"]:
    """The log density of `actions`, summed over d, see `log_densities`."""
    return log_densities(actions, mean, log_std, tanh).sum(-1)


def log_densities(
    actions: Float[Array, "*b d"], mean: Float[Array, "*b d"], log_std: Float[Array, "*b d"], tanh: bool = False
) -> Float[Array, "*b d"]:
    """The log density of `actions` in each dimension. Squashed, actions outside (-1, 1) are moved to its edge."""
    if tanh:
        actions = jnp.arctanh(jnp.clip(actions, -_LARGEST_SQUASHED, _LARGEST_SQUASHED))
    error = (actions - mean) * jnp.exp(-log_std)
    density = -0.5 * error**2 - log_std - 0.5 * math.log(2 * math.pi)
    if tanh:
        # log(1 - tanh(u)^2) in a form that does not cancel for large u.
        density -= 2 * (math.log(2) - actions - jax.nn.softplus(-2 * actions))
    return density
