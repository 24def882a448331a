"""The two ways from noise to actions, without a network."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.config import from_mapping
from jaxvla.errors import ConfigError
from jaxvla.models.action_head import diffusion, flow_matching
from jaxvla.models.action_head.config import ActionHeadConfig
from jaxvla.models.diffusion import signal_shares

FLOW = ActionHeadConfig()
DDPM = ActionHeadConfig(kind="ddpm")
LARA = ActionHeadConfig(t_clamp=None)
RNG = jax.random.key(0)
ROWS = 4000

flow_noised = jax.jit(flow_matching.noised, static_argnums=0)
ddpm_noised = jax.jit(diffusion.noised, static_argnums=0)
denoise = jax.jit(diffusion.denoise, static_argnums=(0, 1))


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
    shares = signal_shares(DDPM.diffusion)[np.asarray(bucket) // 50][:, None, None]
    np.testing.assert_allclose(noisy, np.sqrt(shares) * 0.5 + np.sqrt(1 - shares) * noise, atol=1e-5)


def test_denoising_tells_the_network_buckets():
    """The noise that leads from known actions to x, looked up by bucket, leads back to them."""
    actions = jax.random.uniform(RNG, (2, 3, 4), minval=-1)
    shares = jnp.asarray(signal_shares(DDPM.diffusion), jnp.float32)

    def true_noise(x, bucket):
        share = shares[bucket // 50][:, None, None]
        return (x - jnp.sqrt(share) * actions) / jnp.sqrt(1 - share)

    start = jax.random.normal(jax.random.key(1), actions.shape)
    np.testing.assert_allclose(denoise(DDPM, true_noise, start), actions, atol=1e-4)


def test_the_number_of_steps_is_that_of_the_kind():
    assert FLOW.with_steps(7).num_inference_steps == 7
    assert DDPM.with_steps(7).diffusion.num_inference_steps == 7
    assert DDPM.with_steps(7).num_inference_steps == DDPM.num_inference_steps


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
        ({"diffusion": {"num_levels": 0}}, "diffusion.num_levels must be at least 1"),
        ({"dtype": "float16"}, "no compute dtype named 'float16'"),
        ({"remat": "all"}, "no remat policy named 'all'"),
        ({"num_layer": 2}, "did you mean num_layers"),
    ],
)
def test_bad_configurations(values, named):
    with pytest.raises(ConfigError, match=named):
        from_mapping(ActionHeadConfig, values, "config.agent_kwargs.action_head")


def test_configurations_from_plain_values():
    config = from_mapping(ActionHeadConfig, {"size": "dit_tiny", "t_clamp": None, "diffusion": {"num_levels": 50}})
    assert (config.depth, config.t_clamp, config.diffusion.num_levels) == (4, None, 50)
    assert from_mapping(ActionHeadConfig, {}).depth == 16


def test_sampling_begins_at_the_noisiest_bucket():
    assert flow_matching.first_bucket(FLOW) == 0
    assert int(diffusion.first_bucket(DDPM)) == 19 * 1000 // 20
