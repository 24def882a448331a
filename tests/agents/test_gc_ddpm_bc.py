import functools
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.random_params import random_params

from jaxvla.agents import make_agent
from jaxvla.agents.agent import Agent
from jaxvla.agents.gc_ddpm_bc import GoalConditionedDenoiser
from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.diffusion import signal_shares
from jaxvla.models.module import bind
from jaxvla.models.resnet import ARCHITECTURES, Architecture

# One pass through a ResNet of one stage: what is tested here is what stands behind it.
SMALL = Architecture((1,), num_filters=4)
SPEC = BatchSpec(("images0",), (8, 8), 5, 3, obs_horizon=2, action_horizon=2)
SCORE = {"time_dim": 8, "hidden_dim": 16, "num_blocks": 1, "dropout_rate": 0.0}
RNG = jax.random.key(0)
PRESETS = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "configs" / "train_config.py"))["get_config"]

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@pytest.fixture(scope="module", autouse=True)
def small_encoder():
    ARCHITECTURES["small"] = SMALL
    yield
    del ARCHITECTURES["small"]


def make(spec=SPEC, score=None, diffusion=None, **changes):
    kwargs = {"encoder": {"name": "small"}, "score_network": SCORE | (score or {}), "diffusion": diffusion or {}}
    return make_agent("gc_ddpm_bc", kwargs | changes, spec)


def make_params(agent):
    return random_params(lambda rngs: GoalConditionedDenoiser(agent.config, agent.spec, rngs))


def make_batch(agent, batch_size=4, seed=0):
    batch = agent.spec.fake_batch(batch_size, agent.batch_keys, np.random.default_rng(seed))
    batch["action_pad_mask"][1, 1] = False
    return batch


@functools.cache
def method(agent, name):
    return quick_jit(getattr(agent, name))


@functools.cache
def parts(agent):
    """(params, batch) -> features, and (params, features, noisy, level) -> noise: the network alone."""
    encode = quick_jit(lambda params, o, g: bind(agent.graphdef, params).encoder(o, g))
    predict = quick_jit(lambda params, *args: bind(agent.graphdef, params).score(*args))
    return encode, predict


def test_it_is_an_agent():
    agent = make()
    assert isinstance(agent, Agent)
    assert make() == agent
    assert hash(make()) == hash(agent)
    assert make(diffusion={"num_levels": 10}) != agent
    assert agent.batch_keys == ("observations", "goals", "actions", "action_pad_mask")
    params, shapes = method(agent, "init")(RNG), jax.eval_shape(agent.init, RNG)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}


@pytest.mark.parametrize("draws", [1, 3])
def test_the_loss_against_numpy(draws):
    """Noise and levels from the keys that the docstrings name: the first of `rng`, split once more."""
    agent = make(repeated_diffusion_steps=draws)
    params, batch = make_params(agent), make_batch(agent)
    loss, metrics = method(agent, "loss")(params, batch, RNG)
    noise_rng, level_rng = jax.random.split(jax.random.split(RNG)[0])
    noise = np.asarray(jax.random.normal(noise_rng, (4 * draws, 2, 3)), float)
    level = np.asarray(jax.random.randint(level_rng, (4 * draws,), 0, 20))
    encode, predict = parts(agent)
    features = np.repeat(encode(params, batch["observations"], batch["goals"]), draws, axis=0)
    share = signal_shares(agent.config.diffusion)[level][:, None, None]
    noisy = np.sqrt(share) * np.repeat(batch["actions"], draws, axis=0) + np.sqrt(1 - share) * noise
    noisy[draws : 2 * draws, 1] = 0  # behind the end of the second example's trajectory
    error = (np.asarray(predict(params, features, noisy.astype(np.float32), level)) - noise) ** 2
    counted = [error[m, a].sum() for m in range(4 * draws) for a in range(2) if (m // draws, a) != (1, 1)]
    np.testing.assert_allclose(loss, np.mean(counted), rtol=1e-4)
    assert (loss.shape, loss.dtype) == ((), jnp.float32)
    assert metrics == {"ddpm_loss": loss}


def chain(agent, params, batch, x, draws):
    """DDPM in numpy over all levels, from `x`, with `draws` [20, b, a, d] of added noise."""
    encode, predict = parts(agent)
    features = encode(params, batch["observations"], batch["goals"])
    shares = signal_shares(agent.config.diffusion)
    for level in range(19, -1, -1):
        alpha = shares[level] / (shares[level - 1] if level else 1)
        noise = np.asarray(predict(params, features, x.astype(np.float32), np.full(len(x), level)), float)
        x = (x - (1 - alpha) / np.sqrt(1 - shares[level]) * noise) / np.sqrt(alpha)
        x = np.clip(x + np.sqrt(1 - alpha) * draws[19 - level] * (level > 0), -2, 2)
    return x


def test_the_likeliest_action_is_the_chain_of_means_from_zero():
    agent = make()
    params, batch = make_params(agent), make_batch(agent)
    inputs = params, batch["observations"], {"goals": batch["goals"]}
    found = method(agent, "act")(*inputs)
    zeros = np.zeros((4, 2, 3))
    np.testing.assert_allclose(found, chain(agent, params, batch, zeros, np.zeros((20, 4, 2, 3))), atol=1e-3)
    np.testing.assert_allclose(method(agent, "act")(*inputs, RNG, 0.0), found, atol=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_a_draw_starts_from_noise_and_adds_noise(temperature):
    agent = make()
    params, batch = make_params(agent), make_batch(agent)
    found = method(agent, "act")(params, batch["observations"], {"goals": batch["goals"]}, RNG, temperature)
    start_rng, steps_rng = jax.random.split(RNG)
    start = temperature * np.asarray(jax.random.normal(start_rng, (4, 2, 3)), float)
    draws = temperature * np.array([jax.random.normal(key, (4, 2, 3)) for key in jax.random.split(steps_rng, 20)])
    np.testing.assert_allclose(found, chain(agent, params, batch, start, draws), atol=1e-3)


def test_evaluate_gives_each_example_its_own():
    agent = make(score={"dropout_rate": 0.5}, use_proprio=True)
    params, batch = make_params(agent), make_batch(agent)
    metrics = method(agent, "evaluate")(params, batch, RNG)
    assert set(metrics) == {"mse", "ddpm_loss"}
    acted = np.asarray(method(agent, "act")(params, batch["observations"], {"goals": batch["goals"]}))
    error = ((batch["actions"] - acted) ** 2).sum(-1)
    np.testing.assert_allclose(metrics["mse"], [*error[:1].mean(1), error[1, 0], *error[2:].mean(1)], rtol=1e-4)
    again, other = (method(agent, "evaluate")(params, batch, jax.random.key(seed)) for seed in (0, 1))
    np.testing.assert_array_equal(metrics["ddpm_loss"], again["ddpm_loss"])
    np.testing.assert_array_equal(metrics["mse"], other["mse"])
    assert (metrics["ddpm_loss"] != other["ddpm_loss"]).all()
    filled = jax.tree.map(lambda x: np.concatenate([x[:3], np.zeros_like(x[3:])]), batch)
    padded = method(agent, "evaluate")(params, filled, RNG)
    for name in metrics:
        assert padded[name][3] == 0
        np.testing.assert_allclose(padded[name][:3], metrics[name][:3], rtol=1e-4)


def test_dropout_is_on_in_training():
    agent, still = make(score={"dropout_rate": 0.5}), make()
    params, batch = make_params(agent), make_batch(agent)
    dropping, without = (method(a, "loss")(params, batch, RNG)[0] for a in (agent, still))
    assert dropping != without
    assert dropping == method(agent, "loss")(params, batch, RNG)[0]


@pytest.mark.parametrize("changes", [{"early_goal_concat": True}, {"early_goal_concat": False, "use_proprio": True}])
def test_every_parameter_gets_a_gradient(changes):
    """Histories of two frames and chunks of two actions, with both fusions."""
    agent = make(**changes)
    params, batch = make_params(agent), make_batch(agent)
    gradients, _ = quick_jit(jax.grad(agent.loss, has_aux=True))(params, batch, RNG)
    assert jax.tree.structure(gradients) == jax.tree.structure(params)
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert jnp.isfinite(gradient).all()
        assert jnp.abs(gradient).max() > 0, jax.tree_util.keystr(path)


def test_bfloat16_gives_float32():
    agent, exact = make(dtype="bfloat16"), make()
    params, batch = make_params(agent), make_batch(agent)
    rounded, loss = (method(a, "loss")(params, batch, RNG)[0] for a in (agent, exact))
    assert rounded.dtype == jnp.float32
    assert 0 < abs(rounded - loss) < 0.05 * loss


@pytest.mark.parametrize("preset", ["gc_ddpm_bc", "gc_ddpm_bc_tiny"])
def test_presets_name_every_setting(preset):
    config = PRESETS(preset).to_dict()
    agent = make_agent(config["agent"], config["agent_kwargs"], BatchSpec(("images0",), (32, 32), 7, 7))
    named = {"": config["agent_kwargs"], **{k: v for k, v in config["agent_kwargs"].items() if isinstance(v, dict)}}
    for name, values in named.items():
        assert set(vars(getattr(agent.config, name) if name else agent.config)) == set(values)
    assert config["ema_decay"] > 0


def test_bad_settings():
    with pytest.raises(ConfigError, match="shared_goal_encoder=False has no effect"):
        make(shared_goal_encoder=False)
    with pytest.raises(ConfigError, match="repeated_diffusion_steps must be at least 1, not 0"):
        make(repeated_diffusion_steps=0)
    with pytest.raises(ConfigError, match="did you mean hidden_dim"):
        make(score={"hidden_dims": (256,)})
