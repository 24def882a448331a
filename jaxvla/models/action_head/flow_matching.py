"""Rectified flow from noise to actions, with the times of pi0 and GR00T N1.

Time runs from 0, noise, to 1, actions. All arrays are float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxvla.models.action_head.config import ActionHeadConfig
from jaxvla.models.flow_matching import Guide, between, euler


def flow_time(config: ActionHeadConfig, x_m: Float[Array, " m"]) -> Float[Array, " m"]:
    """The flow time of draws `x_m` from the Beta distribution: (s - x) / s, clamped; more often early than late."""
    time_m = (config.noise_s - x_m) / config.noise_s
    return time_m if config.t_clamp is None else jnp.clip(time_m, 0, config.t_clamp)


def last_bucket(config: ActionHeadConfig) -> int:
    """The bucket of the time 1, at which actions are as they are; no action on its way is told it."""
    return config.num_timestep_buckets


def first_bucket(config: ActionHeadConfig) -> int:
    """The bucket of the time at which sampling begins, which is pure noise."""
    return 0


def noised(
    config: ActionHeadConfig, rng: Key[Array, ""], actions_mad: Float[Array, "m a d"]
) -> tuple[Float[Array, "m a d"], Int[Array, " m"], Float[Array, "m a d"]]:
    """A training example for every row.

    Returns:
        The point (1 - t) noise + t actions on the way, the bucket of t, and the velocity actions - noise.
    """
    noise_rng, time_rng = jax.random.split(rng)
    noise_mad = jax.random.normal(noise_rng, actions_mad.shape)
    x_m = jax.random.beta(time_rng, config.beta_alpha, config.beta_beta, (len(actions_mad),))
    time_m = flow_time(config, x_m)
    point_mad = between(noise_mad, actions_mad, time_m)
    return point_mad, (time_m * config.num_timestep_buckets).astype(jnp.int32), actions_mad - noise_mad


def integrate(
    config: ActionHeadConfig,
    velocity: Callable[[Array, Array], Array],
    noise_bad: Float[Array, "b a d"],
    num_steps: int,
    guide: Guide | None = None,
) -> Float[Array, "b a d"]:
    """Euler's method from noise to actions.

    Args:
        config: for the number of buckets.
        velocity: (actions [b, a, d], bucket of the time [b]) -> [b, a, d].
        noise_bad: standard normal.
        num_steps: of equal length.
        guide: what the actions are drawn towards; None for nothing.
    """
    return euler(velocity, noise_bad, jnp.arange(num_steps) * config.num_timestep_buckets // num_steps, guide)
