import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.config import from_mapping
from jaxvla.errors import ConfigError
from jaxvla.models import diffusion
from jaxvla.models.diffusion import DiffusionConfig

RNG = jax.random.key(0)
SHAPE = (2, 3, 4)
KERNEL = np.random.default_rng(0).standard_normal((4, 4)) / 2

noised = jax.jit(diffusion.noised, static_argnums=0)
sample = jax.jit(diffusion.sample, static_argnums=(0, 1))


def betas(schedule, n):
    """The formulas, one level at a time."""
    if schedule == "linear":
        return [1e-4 + (2e-2 - 1e-4) * i / (n - 1) for i in range(n)]
    if schedule == "vp":
        return [1 - np.exp(-0.1 / n - 0.5 * (10 - 0.1) * (2 * t - 1) / n**2) for t in range(1, n + 1)]
    bar = [np.cos((t / n + 0.008) / 1.008 * np.pi / 2) ** 2 for t in range(n + 1)]
    return [min(1 - bar[t] / bar[t - 1], 0.999) for t in range(1, n + 1)]


def predict_noise(x, level):
    """A network of a kind, which depends on both and keeps x within the clipping, mostly."""
    return 0.8 * x + 0.3 * jnp.tanh(x @ KERNEL.astype(np.float32) + 0.1 * level[:, None, None])


def predict_noise_numpy(x, level):
    return 0.8 * x + 0.3 * np.tanh(x @ KERNEL + 0.1 * level)


@pytest.mark.parametrize("schedule", diffusion.SCHEDULES)
@pytest.mark.parametrize("num_levels", [5, 20, 100])
def test_schedules(schedule, num_levels):
    shares = diffusion.signal_shares(DiffusionConfig(num_levels=num_levels, schedule=schedule))
    expected = [np.prod([1 - beta for beta in betas(schedule, num_levels)[: t + 1]]) for t in range(num_levels)]
    np.testing.assert_allclose(shares, expected, rtol=1e-12)


def test_what_the_schedules_leave_of_the_signal():
    left = {s: diffusion.signal_shares(DiffusionConfig(schedule=s))[-1] for s in diffusion.SCHEDULES}
    assert left["cosine"] < 1e-4
    np.testing.assert_allclose(left["vp"], np.exp(-0.1 - 0.5 * 9.9))
    assert round(left["linear"], 2) == 0.82


def test_training_examples_lie_on_the_schedule():
    config = DiffusionConfig(schedule="vp")
    x = jax.random.normal(jax.random.key(5), (4000, 2, 3))
    noisy, level, noise = noised(config, RNG, x)
    noise_rng, level_rng = jax.random.split(RNG)
    np.testing.assert_allclose(noise, jax.random.normal(noise_rng, x.shape), atol=1e-6)
    np.testing.assert_array_equal(level, jax.random.randint(level_rng, (4000,), 0, 20))
    assert set(np.unique(level)) == set(range(20))
    share = np.cumprod(1 - np.array(betas("vp", 20)))[np.asarray(level)][:, None, None]
    np.testing.assert_allclose(noisy, np.sqrt(share) * x + np.sqrt(1 - share) * noise, atol=1e-5)


def ddpm_numpy(schedule, x, draws, clip=2.0, repeat=0):
    """Ho et al.'s algorithm 2, with bridge_data_v2's clipping."""
    alphas = 1 - np.array(betas(schedule, 20))
    bars = np.cumprod(alphas)
    for draw, t in zip(draws, range(19, -1, -1), strict=True):
        eps = predict_noise_numpy(x, t)
        x = (x - (1 - alphas[t]) / np.sqrt(1 - bars[t]) * eps) / np.sqrt(alphas[t])
        x = np.clip(x + (np.sqrt(1 - alphas[t]) * draw if t > 0 else 0), -clip, clip)
    for _ in range(repeat):
        eps = predict_noise_numpy(x, 0)
        x = np.clip((x - np.sqrt(1 - alphas[0]) * eps) / np.sqrt(alphas[0]), -clip, clip)
    return x


@pytest.mark.parametrize(
    ("schedule", "temperature", "repeat"), [("cosine", 1.0, 0), ("linear", 0.5, 2), ("vp", 2.0, 0)]
)
def test_ddpm_against_numpy(schedule, temperature, repeat):
    """With the same draws: key i of the split belongs to step i."""
    config = DiffusionConfig(schedule=schedule, repeat_last_step=repeat)
    start = jax.random.normal(jax.random.key(1), SHAPE)
    draws = [jax.random.normal(key, SHAPE) for key in jax.random.split(RNG, 20 + repeat)][:20]
    expected = ddpm_numpy(schedule, np.asarray(start, float), temperature * np.array(draws, float), repeat=repeat)
    np.testing.assert_allclose(sample(config, predict_noise, start, RNG, temperature), expected, atol=2e-4)


def test_without_a_key_each_step_takes_its_mean():
    start = jax.random.normal(jax.random.key(1), SHAPE)
    mean = sample(DiffusionConfig(), predict_noise, start)
    expected = ddpm_numpy("cosine", np.asarray(start, float), np.zeros((20, *SHAPE)))
    np.testing.assert_allclose(mean, expected, atol=2e-4)
    assert (abs(expected) < 2).mean() > 0.5
    np.testing.assert_allclose(sample(DiffusionConfig(), predict_noise, start, RNG, 0.0), mean, atol=1e-5)
    assert (sample(DiffusionConfig(), predict_noise, start, RNG) != mean).any()


@pytest.mark.parametrize(("num_steps", "levels"), [(None, range(19, -1, -1)), (4, (19, 13, 6, 0)), (1, (19,))])
def test_ddim_against_numpy(num_steps, levels):
    """Song et al.'s equation 12 with sigma 0: the predicted data, and the predicted noise at the next level."""
    config = DiffusionConfig(sampler="ddim", num_inference_steps=num_steps, clip=3.0)
    start = jax.random.normal(jax.random.key(1), SHAPE)
    bars = np.cumprod(1 - np.array(betas("cosine", 20)))
    x, levels = np.asarray(start, float), list(levels)
    for level, reached in zip(levels, [*bars[levels[1:]], 1.0], strict=True):
        eps = predict_noise_numpy(x, level)
        data = (x - np.sqrt(1 - bars[level]) * eps) / np.sqrt(bars[level])
        x = np.clip(np.sqrt(reached) * data + np.sqrt(1 - reached) * eps, -3, 3)
    found = sample(config, predict_noise, start)
    np.testing.assert_allclose(found, x, atol=1e-3)
    np.testing.assert_allclose(sample(config, predict_noise, start, RNG, 5.0), found, atol=1e-5)


@pytest.mark.parametrize("sampler", diffusion.SAMPLERS)
@pytest.mark.parametrize("num_steps", [1, 4, None])
def test_the_true_noise_leads_to_the_data(sampler, num_steps):
    config = DiffusionConfig(sampler=sampler, num_inference_steps=num_steps)
    data = jax.random.uniform(RNG, SHAPE, minval=-1)
    shares = jnp.asarray(diffusion.signal_shares(config), jnp.float32)

    def true_noise(x, level):
        share = shares[level][:, None, None]
        return (x - jnp.sqrt(share) * data) / jnp.sqrt(1 - share)

    start = jax.random.normal(jax.random.key(1), SHAPE)
    for rng in (None, jax.random.key(2)):
        np.testing.assert_allclose(sample(config, true_noise, start, rng), data, atol=1e-4)


def test_every_step_is_clipped():
    seen = []

    def watch(x, level):
        jax.debug.callback(lambda x: seen.append(np.abs(x).max()), x)
        return -3 * jnp.ones_like(x)

    found = diffusion.sample(DiffusionConfig(clip=0.5), watch, jnp.zeros(SHAPE))
    jax.effects_barrier()
    assert len(seen) == 20
    assert max(seen) == 0.5
    np.testing.assert_array_equal(found, np.full(SHAPE, 0.5, np.float32))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num_levels": 0}, "num_levels must be at least 1, not 0"),
        ({"schedule": "cos"}, "schedule must be one of cosine, linear, vp, not 'cos'"),
        ({"sampler": "euler"}, "sampler must be one of ddpm, ddim, not 'euler'"),
        ({"num_inference_steps": 21}, "between 1 and num_levels 20, not 21"),
        ({"num_inference_steps": 0}, "between 1 and num_levels 20, not 0"),
        ({"clip": 0.0}, "clip must be positive"),
        ({"repeat_last_step": -1}, "repeat_last_step must be at least 0"),
        ({"num_level": 10}, "did you mean num_levels"),
    ],
)
def test_bad_configurations(values, named):
    with pytest.raises(ConfigError, match=named):
        from_mapping(DiffusionConfig, values, "config.agent_kwargs.diffusion")
