"""The action head's way of `jaxvla.models.diffusion`: noise levels are told to the transformer as buckets of time."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Key

from jaxvla.models import diffusion
from jaxvla.models.action_head.config import ActionHeadConfig


def bucket_of(config: ActionHeadConfig, level: Int[Array, "*m"]) -> Int[Array, "*m"]:
    """The noise level as the transformer is told it, spread over the buckets."""
    return level * config.num_timestep_buckets // config.diffusion.num_levels


def first_bucket(config: ActionHeadConfig) -> Int[Array, ""]:
    """The bucket of the level at which sampling begins: the noisiest."""
    return bucket_of(config, jnp.asarray(config.diffusion.num_levels - 1))


def noised(
    config: ActionHeadConfig, rng: Key[Array, ""], actions_mad: Float[Array, "m a d"]
) -> tuple[Float[Array, "m a d"], Int[Array, " m"], Float[Array, "m a d"]]:
    """A training example for every row.

    Returns:
        Actions under noise of a level drawn uniformly, the bucket of this level, and the noise.
    """
    noisy_mad, level_m, noise_mad = diffusion.noised(config.diffusion, rng, actions_mad)
    return noisy_mad, bucket_of(config, level_m), noise_mad


def denoise(
    config: ActionHeadConfig,
    predict_noise: Callable[[Array, Array], Array],
    noise_bad: Float[Array, "b a d"],
    rng: Key[Array, ""] | None = None,
) -> Float[Array, "b a d"]:
    """From noise to actions.

    Args:
        config: levels, sampler, clipping and buckets.
        predict_noise: (actions [b, a, d], bucket of the level [b]) -> [b, a, d].
        noise_bad: standard normal.
        rng: of the noise that steps of "ddpm" add; None for none.
    """

    def predict(actions_bad: Array, level_b: Array) -> Array:
        return predict_noise(actions_bad, bucket_of(config, level_b))

    return diffusion.sample(config.diffusion, predict, noise_bad, rng)
