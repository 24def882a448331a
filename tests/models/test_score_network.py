import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from models.random_params import random_params

from jaxvla.config import from_mapping
from jaxvla.errors import ConfigError
from jaxvla.models.diffusion import DiffusionConfig, noised, sample
from jaxvla.models.module import bind, graph_of, init_params
from jaxvla.models.score_network import FourierFeatures, ScoreNetwork, ScoreNetworkConfig

M, F, A, D = 3, 5, 2, 3
SMALL = ScoreNetworkConfig(time_dim=4, hidden_dim=6, num_blocks=2)


def maker(config=SMALL, in_dim=F, chunk=(A, D), dtype=jnp.float32):
    return lambda rngs: ScoreNetwork(in_dim, chunk, config, dtype=dtype, rngs=rngs)


def inputs():
    rng = np.random.default_rng(1)
    features, noisy = (rng.standard_normal(shape).astype(np.float32) for shape in ((M, F), (M, A, D)))
    return features, noisy, np.array([0, 3, 19], np.int32)


@functools.cache
def network(config=SMALL):
    return jax.jit(lambda params, *args: bind(graph_of(maker(config)), params)(*args))


def swish(x):
    return x / (1 + np.exp(-x))


def dense(params, x):
    return x @ params["kernel"] + params["bias"]


def in_numpy(config, params, features, noisy, level):
    """Written from the description of bridge_data_v2's network, dropout off."""
    params = jax.tree.map(lambda x: np.asarray(x, float), params)
    angles = 2 * np.pi * level[:, None] * params["fourier"]["frequencies"]
    time = np.concatenate([np.cos(angles), np.sin(angles)], 1)
    time = dense(params["time"]["dense"]["layer1"], swish(dense(params["time"]["dense"]["layer0"], time)))
    x = dense(params["input"], np.concatenate([time, features, noisy.reshape(M, -1)], 1))
    for i in range(config.num_blocks):
        block, y = params["blocks"][f"block{i}"], x
        if config.layer_norm:
            y = (y - y.mean(1, keepdims=True)) / np.sqrt(y.var(1, keepdims=True) + 1e-6)
            y = y * block["norm"]["scale"] + block["norm"]["bias"]
        x = x + dense(block["down"], swish(dense(block["up"], y)))
    return dense(params["noise"], swish(x)).reshape(noisy.shape)


@pytest.mark.parametrize("layer_norm", [True, False])
def test_against_numpy(layer_norm):
    config = dataclasses.replace(SMALL, layer_norm=layer_norm)
    params = random_params(maker(config))
    found = network(config)(params, *inputs())
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, in_numpy(config, params, *inputs()), rtol=1e-4, atol=1e-4)


def test_sizes_are_those_of_bridge_data():
    shapes = jax.eval_shape(lambda: init_params(maker(ScoreNetworkConfig(), 512, (1, 7)), jax.random.key(0)))
    assert jax.tree.map(lambda x: x.shape, shapes) == {
        "fourier": {"frequencies": (16,)},
        "time": {"dense": {f"layer{i}": linear(*dims) for i, dims in enumerate(((32, 64), (64, 32)))}},
        "input": linear(32 + 512 + 7, 256),
        "blocks": {
            f"block{i}": {
                "norm": {"scale": (256,), "bias": (256,)},
                "up": linear(256, 1024),
                "down": linear(1024, 256),
            }
            for i in range(3)
        },
        "noise": linear(256, 7),
    }


def linear(in_dim, out_dim):
    return {"kernel": (in_dim, out_dim), "bias": (out_dim,)}


def test_frequencies_start_near_zero():
    frequencies = FourierFeatures(1000, nnx.Rngs(0)).frequencies[...]
    assert abs(frequencies.std() - 0.2) < 0.02


def test_dropout_needs_a_key():
    params, predict = random_params(maker()), network()
    still, again = (predict(params, *inputs()) for _ in range(2))
    dropped = [predict(params, *inputs(), jax.random.key(seed)) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(still, again)
    np.testing.assert_array_equal(dropped[0], dropped[1])
    assert (dropped[0] != dropped[2]).any()
    assert (dropped[0] != still).any()


def test_it_learns_both_ways_where_the_data_go_two_ways():
    """Data at +1 and at -1 in the same situation: samples are of both kinds, and hardly any lies between."""
    config, chunk = ScoreNetworkConfig(hidden_dim=32, num_blocks=1), (1, 1)
    make, levels = maker(config, 1, chunk), DiffusionConfig()
    graph, optimizer = graph_of(make), optax.adam(3e-3)
    features, data = jnp.ones((64, 1)), jnp.where(jnp.arange(64) % 2, 1.0, -1.0)[:, None, None]

    def loss(params, rng):
        noisy, level, noise = noised(levels, rng, data)
        return ((bind(graph, params)(features, noisy, level) - noise) ** 2).mean()

    def step(carry, rng):
        updates, state = optimizer.update(jax.grad(loss)(carry[0], rng), carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    @jax.jit
    def trained_and_sampled(params):
        params = jax.lax.scan(step, (params, optimizer.init(params)), jax.random.split(jax.random.key(0), 600))[0][0]
        start_rng, steps_rng = jax.random.split(jax.random.key(1))
        start = jax.random.normal(start_rng, data.shape)
        return sample(levels, lambda x, level: bind(graph, params)(features, x, level), start, steps_rng)

    drawn = trained_and_sampled(random_params(make))
    assert (abs(abs(drawn) - 1) < 0.3).mean() > 0.9
    assert 0.25 < (drawn > 0).mean() < 0.75


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"time_dim": 31}, "time_dim must be even and positive, not 31"),
        ({"time_dim": 0}, "time_dim must be even"),
        ({"hidden_dim": 0}, "hidden_dim must be at least 1"),
        ({"num_blocks": 0}, "num_blocks must be at least 1"),
        ({"dropout_rate": 1.0}, "dropout_rate must lie in"),
        ({"use_layer_norm": True}, "did you mean layer_norm"),
    ],
)
def test_bad_configurations(values, named):
    with pytest.raises(ConfigError, match=named):
        from_mapping(ScoreNetworkConfig, values, "config.agent_kwargs.score_network")
