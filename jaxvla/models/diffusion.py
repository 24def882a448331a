"""Denoising diffusion: noise schedules, noising for training, and two samplers.

The formulas of bridge_data_v2's gc_ddpm_bc: ancestral sampling (DDPM, Ho et al., 2020) with clipping after every step,
its three schedules, and DDIM (Song et al., 2020) beside it. A level is how much noise there is: level 0 has the least,
the last one the most. All arrays are float32. Axis letters: m rows, b batch, a action horizon, d action dimension.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from jaxvla.errors import ConfigError

SCHEDULES = ("cosine", "linear", "vp")
SAMPLERS = ("ddpm", "ddim")

_COSINE_OFFSET, _MAX_BETA = 0.008, 0.999
_LINEAR_BETAS = (1e-4, 2e-2)
_VP_RATES = (0.1, 10.0)


@dataclasses.dataclass(frozen=True)
class DiffusionConfig:
    """Noise levels, and how a sample comes down them.

    Attributes:
        num_levels: of noise.
        schedule: how the noise grows with the level. "cosine" (Nichol and Dhariwal, 2021) and "vp" (the variance
            preserving process of Song et al., 2021, in steps) leave nearly no signal at the last level, whatever the
            number of levels; "linear" (Ho et al., 2020) is made for a thousand, and of 20 its last one is still 82 %
            signal.
        sampler: "ddpm", which adds noise in every step but the last, or "ddim", which adds none.
        num_inference_steps: levels that a sample passes, evenly spread; None for all.
        clip: samples are held within +-clip after each step, in normalized units, so actions beyond are never given.
        repeat_last_step: more passes at level 0.

    Raises:
        ConfigError: an unknown name, or a value out of range.
    """

    num_levels: int = 20
    schedule: str = "cosine"
    sampler: str = "ddpm"
    num_inference_steps: int | None = None
    clip: float = 2.0
    repeat_last_step: int = 0

    def __post_init__(self) -> None:
        if self.num_levels < 1:
            raise ConfigError(f"diffusion.num_levels must be at least 1, not {self.num_levels}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(f"diffusion.schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}")
        if self.sampler not in SAMPLERS:
            raise ConfigError(f"diffusion.sampler must be one of {', '.join(SAMPLERS)}, not {self.sampler!r}")
        if self.num_inference_steps is not None and not 1 <= self.num_inference_steps <= self.num_levels:
            raise ConfigError(
                f"diffusion.num_inference_steps must lie between 1 and num_levels {self.num_levels}, "
                f"not {self.num_inference_steps}; None passes all levels"
            )
        if not self.clip > 0:
            raise ConfigError(f"diffusion.clip must be positive, not {self.clip}")
        if self.repeat_last_step < 0:
            raise ConfigError(f"diffusion.repeat_last_step must be at least 0, not {self.repeat_last_step}")


def signal_shares(config: DiffusionConfig) -> np.ndarray:
    """float64 [num_levels], the share of variance at each level that is signal (alpha bar)."""
    return np.cumprod(1 - _betas(config.schedule, config.num_levels))


def _betas(schedule: str, num_levels: int) -> np.ndarray:
    """float64 [num_levels], the variance that each level adds to the one below."""
    match schedule:
        case "cosine":
            times = np.linspace(0, 1, num_levels + 1)
            shares = np.cos((times + _COSINE_OFFSET) / (1 + _COSINE_OFFSET) * np.pi / 2) ** 2
            return np.clip(1 - shares[1:] / shares[:-1], 0, _MAX_BETA)
        case "linear":
            return np.linspace(*_LINEAR_BETAS, num_levels)
        case _:
            # The integral of a rate that grows from the first to the second, over each of `num_levels` equal times.
            low, high = _VP_RATES
            edges = np.arange(num_levels + 1) / num_levels
            return 1 - np.exp(-np.diff(low * edges + 0.5 * (high - low) * edges**2))


def noised(
    config: DiffusionConfig, rng: Key[Array, ""], x_mad: Float[Array, "m a d"]
) -> tuple[Float[Array, "m a d"], Int[Array, " m"], Float[Array, "m a d"]]:
    """A training example for every row.

    Args:
        config: for the levels.
        rng: split in two, of which the first draws the noise and the second the levels.
        x_mad: without noise.

    Returns:
        The row under noise of a level drawn uniformly, this level, and the noise.
    """
    noise_rng, level_rng = jax.random.split(rng)
    noise_mad = jax.random.normal(noise_rng, x_mad.shape)
    level_m = jax.random.randint(level_rng, (len(x_mad),), 0, config.num_levels)
    share_m11 = jnp.asarray(signal_shares(config), jnp.float32)[level_m, None, None]
    return jnp.sqrt(share_m11) * x_mad + jnp.sqrt(1 - share_m11) * noise_mad, level_m, noise_mad


def sample(
    config: DiffusionConfig,
    predict_noise: Callable[[Array, Array], Array],
    noise_bad: Float[Array, "b a d"],
    rng: Key[Array, ""] | None = None,
    temperature: float | Float[Array, ""] = 1.0,
) -> Float[Array, "b a d"]:
    """Noise comes down the levels to a sample.

    Args:
        config: levels, sampler and clipping.
        predict_noise: (x [b, a, d], level int32 [b]) -> [b, a, d].
        noise_bad: where to start, standard normal for a fair sample.
        rng: split into one key per step for the noise that "ddpm" adds; None adds none and takes the mean of each step.
        temperature: multiplies the added noise.
    """
    levels, coefficients = _steps(config)
    draws = rng is not None and config.sampler == "ddpm"
    rngs = jax.random.split(rng, len(levels)) if draws else None

    def step(x_bad: Array, xs: tuple) -> tuple[Array, None]:
        level, at, step_rng = xs
        x_bad = at["x"] * x_bad + at["noise"] * predict_noise(x_bad, jnp.full(len(x_bad), level))
        if step_rng is not None:
            x_bad += temperature * at["std"] * jax.random.normal(step_rng, x_bad.shape)
        return jnp.clip(x_bad, -config.clip, config.clip), None

    return jax.lax.scan(step, noise_bad, (levels, coefficients, rngs))[0]


def _steps(config: DiffusionConfig) -> tuple[Int[Array, " s"], dict[str, Float[Array, " s"]]]:
    """The level of each step, and what multiplies x, the predicted noise and the added noise in it."""
    count = config.num_levels if config.num_inference_steps is None else config.num_inference_steps
    down = np.linspace(config.num_levels - 1, 0, count).round().astype(np.int32)
    levels = np.append(down, np.zeros(config.repeat_last_step, np.int32))
    shares = signal_shares(config)[levels]
    # The share that a step leads to: that of the next level, or all signal.
    reached = np.append(shares[1:count], np.ones(1 + config.repeat_last_step))
    alphas = shares / reached
    if config.sampler == "ddim":
        noise, std = np.sqrt(1 - reached) - np.sqrt((1 - shares) / alphas), np.zeros(len(levels))
    else:
        noise = (alphas - 1) / np.sqrt((1 - shares) * alphas)
        std = np.where(reached < 1, np.sqrt(1 - alphas), 0)
    coefficients = {"x": 1 / np.sqrt(alphas), "noise": noise, "std": std}
    return jnp.asarray(levels), {name: jnp.asarray(values, jnp.float32) for name, values in coefficients.items()}
