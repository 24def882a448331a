"""The two ways from noise to actions, without a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.config import from_mapping
from jaxvla.errors import ConfigError
from jaxvla.models.action_head import diffusion, flow_matching
from jaxvla.models.action_head.config import ActionHeadConfig

FLOW = ActionHeadConfig()
DDPM = ActionHeadConfig(kind="ddpm")
LARA = ActionHeadConfig(t_clamp=None)
RNG = jax.random.key(0)
ROWS = 4000

flow_noised = jax.jit(flow_matching.noised, static_argnums=0)
ddpm_noised = jax.jit(diffusion.noised, static_argnums=0)
denoise = jax.jit(diffusion.denoise, static_argnums=(0, 1, 3))


def test_flow_time_is_held_inside_the_buckets():
    draws = jnp.array([0.0, 0.4995, 0.999, 1.0])
    np.testing.assert_allclose(flow_matching.flow_time(FLOW, draws), [0.999, 0.5, 0, 0], atol=1e-6)
    as_drawn = flow_matching.flow_time(LARA, draws)
    np.testing.assert_allclose(as_drawn, [1, 0.5, 0, -0.001 / 0.999], atol=1e-6)


def test_flow_examples():
    actions = jnp.full((ROWS, 2, 3), 0.5)
    point, bucket, velocity = flow_noised(FLOW, RNG, actions)
    assert (bucket.min(), bucket.dtype) == (0, jnp.int32)
    assert bucket.max() <= 999
    noise = actions - velocity
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    # Every row has one time, that of its bucket, and lies that far on the way.
    times = np.asarray((point - noise) / velocity).reshape(ROWS, -1)
    np.testing.assert_allclose(np.median(times, axis=1), (np.asarray(bucket) + 0.5) / 1000, atol=6e-4)
    np.testing.assert_allclose(point, noise + np.median(times, axis=1)[:, None, None] * velocity, atol=1e-3)
    # The mean of Beta(1.5, 1) is 0.6.
    assert abs(np.median(times, axis=1).mean() - (0.999 - 0.6) / 0.999) < 0.01


def test_euler_integrates():
    noise = jax.random.normal(RNG, (2, 3, 4))
    seen = []

    def velocity(actions, bucket):
        jax.debug.callback(lambda bucket: seen.append(bucket.tolist()), bucket)
        return 2.0 - actions

    found = flow_matching.integrate(FLOW, velocity, noise, 4)
    jax.effects_barrier()
    np.testing.assert_allclose(found, 2 + (noise - 2) * 0.75**4, rtol=1e-5, atol=1e-6)
    assert seen == [[0, 0], [250, 250], [500, 500], [750, 750]]


def test_ddpm_examples():
    actions = jnp.full((ROWS, 2, 3), 0.5)
    noisy, bucket, noise = ddpm_noised(DDPM, RNG, actions)
    assert set(np.unique(bucket)) == set(range(0, 1000, 50))
    shares = diffusion.signal_shares(20)[np.asarray(bucket) // 50][:, None, None]
    np.testing.assert_allclose(noisy, np.sqrt(shares) * 0.5 + np.sqrt(1 - shares) * noise, atol=1e-5)


def test_cosine_schedule():
    shares = diffusion.signal_shares(20)
    assert (np.diff(shares) < 0).all()
    # cos^2 of the schedule itself, over its value at 0, wherever no beta is clipped: all but the last.
    times = np.arange(1, 20) / 20
    expected = np.cos((times + 0.008) / 1.008 * np.pi / 2) ** 2 / np.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(shares[:-1], expected)
    np.testing.assert_allclose(shares[-1], shares[-2] * 0.001)


@pytest.mark.parametrize("num_steps", [1, 4, 20])
def test_denoising_with_the_true_noise_finds_the_actions(num_steps):
    """Whatever the number of steps: the noise that leads from known actions to x leads back to them."""
    actions = jax.random.uniform(RNG, (2, 3, 4), minval=-1)
    shares = jnp.asarray(diffusion.signal_shares(20), jnp.float32)

    def true_noise(x, bucket):
        share = shares[bucket // 50][:, None, None]
        return (x - jnp.sqrt(share) * actions) / jnp.sqrt(1 - share)

    start = jax.random.normal(jax.random.key(1), actions.shape)
    np.testing.assert_allclose(denoise(DDPM, true_noise, start, num_steps), actions, atol=1e-4)
    noisy = denoise(DDPM, true_noise, start, num_steps, jax.random.key(2))
    np.testing.assert_allclose(noisy, actions, atol=1e-4)


def test_added_noise_has_the_deviation_of_the_step():
    """Two steps over constant predictions: only the first adds noise, beta of the step in variance."""
    config = ActionHeadConfig(kind="ddpm", ddpm=from_mapping(type(DDPM.ddpm), {"clip": 1e6}), num_inference_steps=2)
    zeros = jnp.zeros((ROWS, 2, 2))
    found = denoise(config, lambda x, _: jnp.zeros_like(x), zeros, 2, RNG)
    last, first = diffusion.signal_shares(20)[[19, 0]]
    np.testing.assert_allclose(found.std(), np.sqrt((1 - last / first) / first), rtol=0.02)


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"kind": "score"}, "kind must be one of flow_matching, ddpm, not 'score'"),
        ({"size": "dit_xl"}, "size must be one of dit_b, dit_l, dit_tiny"),
        ({"num_layers": 5}, "num_layers must be even"),
        ({"num_layers": 0}, "num_layers must be even"),
        ({"dropout": 1.0}, "dropout must lie in"),
        ({"num_future_tokens": -1}, "num_future_tokens"),
        ({"repeated_diffusion_steps": 0}, "repeated_diffusion_steps must be positive, not 0"),
        ({"noise_s": 0.0}, "noise_s must be positive"),
        ({"t_clamp": 1.5}, "t_clamp must lie in"),
        ({"kind": "ddpm", "num_inference_steps": 21}, "21 sampling steps are more than the ddpm.train_steps 20"),
        ({"ddpm": {"train_steps": 0}}, "ddpm.train_steps must be positive"),
        ({"dtype": "float16"}, "no compute dtype named 'float16'"),
        ({"remat": "all"}, "no remat policy named 'all'"),
        ({"num_layer": 2}, "did you mean num_layers"),
    ],
)
def test_bad_configurations(values, named):
    with pytest.raises(ConfigError, match=named):
        from_mapping(ActionHeadConfig, values, "config.agent_kwargs.action_head")


def test_configurations_from_plain_values():
    config = from_mapping(ActionHeadConfig, {"size": "dit_tiny", "t_clamp": None, "ddpm": {"train_steps": 50}})
    assert (config.depth, config.t_clamp, config.ddpm.train_steps) == (4, None, 50)
    assert from_mapping(ActionHeadConfig, {}).depth == 16
