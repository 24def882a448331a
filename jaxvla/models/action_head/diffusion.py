"""Denoising diffusion (Ho et al., 2020), with the cosine schedule and the sampler of bridge_data_v2's gc_ddpm_bc.

Level 0 has the least noise, the last one nearly nothing else. All arrays are float32.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxvla.models.action_head.config import ActionHeadConfig


def signal_shares(num_levels: int) -> np.ndarray:
    """float64 [num_levels], the share of variance at each noise level that is signal (alpha bar).

    The cosine schedule of Nichol and Dhariwal (2021) with s = 0.008, each beta at most 0.999.
    """
    times = np.linspace(0, 1, num_levels + 1)
    shares = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2
    return np.cumprod(1 - np.clip(1 - shares[1:] / shares[:-1], 0, 0.999))


def bucket_of(config: ActionHeadConfig, level: Int[Array, "*m"]) -> Int[Array, "*m"]:
    """The noise level as the transformer is told it, spread over the buckets."""
    return level * config.num_timestep_buckets // config.ddpm.train_steps


def noised(
    config: ActionHeadConfig, rng: Key[Array, ""], actions_mad: Float[Array, "m a d"]
) -> tuple[Float[Array, "m a d"], Int[Array, " m"], Float[Array, "m a d"]]:
    """A training example for every row.

    Returns:
        Actions under noise of a level drawn uniformly, the bucket of this level, and the noise.
    """
    noise_rng, level_rng = jax.random.split(rng)
    noise_mad = jax.random.normal(noise_rng, actions_mad.shape)
    level_m = jax.random.randint(level_rng, (len(actions_mad),), 0, config.ddpm.train_steps)
    share_m11 = jnp.asarray(signal_shares(config.ddpm.train_steps), jnp.float32)[level_m, None, None]
    noisy_mad = jnp.sqrt(share_m11) * actions_mad + jnp.sqrt(1 - share_m11) * noise_mad
    return noisy_mad, bucket_of(config, level_m), noise_mad


def denoise(
    config: ActionHeadConfig,
    predict_noise: Callable[[Array, Array], Array],
    noise_bad: Float[Array, "b a d"],
    num_steps: int,
    rng: Key[Array, ""] | None = None,
) -> Float[Array, "b a d"]:
    """Ancestral sampling over all levels, or over evenly spread ones with the betas between them.

    Args:
        config: levels, buckets and clipping.
        predict_noise: (actions [b, a, d], bucket of the level [b]) -> [b, a, d].
        noise_bad: standard normal.
        num_steps: at most the number of levels.
        rng: of the noise that each step but the last adds; None for none.
    """
    levels = np.linspace(config.ddpm.train_steps - 1, 0, num_steps).round().astype(np.int32)
    shares = signal_shares(config.ddpm.train_steps)[levels]
    alphas = shares / np.append(shares[1:], 1)
    coefficients = {
        "noise": (1 - alphas) / np.sqrt(1 - shares),
        "scale": 1 / np.sqrt(alphas),
        "std": np.append(np.sqrt(1 - alphas[:-1]), 0),
    }
    coefficients = {name: jnp.asarray(values, jnp.float32) for name, values in coefficients.items()}
    rngs = None if rng is None else jax.random.split(rng, num_steps)

    def step(actions_bad: Array, xs: tuple) -> tuple[Array, None]:
        level, at, step_rng = xs
        predicted_bad = predict_noise(actions_bad, jnp.full(len(actions_bad), bucket_of(config, level)))
        actions_bad = (actions_bad - at["noise"] * predicted_bad) * at["scale"]
        if step_rng is not None:
            actions_bad += at["std"] * jax.random.normal(step_rng, actions_bad.shape)
        return jnp.clip(actions_bad, -config.ddpm.clip, config.ddpm.clip), None

    return jax.lax.scan(step, noise_bad, (jnp.asarray(levels), coefficients, rngs))[0]
