import dataclasses
import math
import pathlib
import runpy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.random_params import random_params

from jaxvla.agents import make_agent
from jaxvla.agents.agent import Agent
from jaxvla.agents.lc_bc import LanguageConditionedPolicy
from jaxvla.data.schema import NO_TOKEN, BatchSpec, InstructionSpec
from jaxvla.errors import ConfigError
from jaxvla.models.module import bind
from jaxvla.models.resnet import ARCHITECTURES, Architecture

PRESETS = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "configs" / "train_config.py"))["get_config"]
IDS = InstructionSpec(5, vocab_size=9)
VECTORS = InstructionSpec(6)
SPEC = BatchSpec(("images0", "images1"), (8, 8), 5, 3, obs_horizon=2, action_horizon=2, instruction=IDS)
SETTINGS = {
    "encoder": {"name": "small-film"},
    "instruction_encoder": {"width": 8, "num_layers": 1, "num_heads": 2},
    "hidden_dims": (8,),
    "use_proprio": True,
    "dropout_rate": 0.0,
    "policy": {"std": "state_dependent"},
}


@pytest.fixture(scope="module", autouse=True)
def small_encoder():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small-film", Architecture((1,), num_filters=4, film=True))
        yield


def make(instruction=IDS, **changes):
    return make_agent("lc_bc", SETTINGS | changes, dataclasses.replace(SPEC, instruction=instruction))


def make_params(agent):
    return random_params(lambda rngs: LanguageConditionedPolicy(agent.config, agent.spec, rngs))


def make_batch(agent, batch_size=4, seed=0):
    batch = agent.spec.fake_batch(batch_size, agent.batch_keys, np.random.default_rng(seed))
    batch["action_pad_mask"][1, 1] = False
    if agent.spec.instruction.vocab_size:
        batch["instruction"][:, 3:] = NO_TOKEN
    return batch


class Compiled:
    """An agent with its functions compiled once."""

    def __init__(self, agent):
        self.agent, self.params, self.batch = agent, make_params(agent), make_batch(agent)
        self.grad = jax.jit(jax.value_and_grad(agent.loss, has_aux=True))
        self.act = jax.jit(agent.act)
        self.evaluate = jax.jit(agent.evaluate)

    def actions(self, **changes):
        batch = self.batch | changes
        return np.asarray(self.act(self.params, batch["observations"], {"instruction": batch["instruction"]}))


@pytest.fixture(scope="module")
def ids(small_encoder):
    return Compiled(make())


@pytest.fixture(scope="module")
def vectors(small_encoder):
    return Compiled(make(VECTORS, policy={"std": "fixed"}))


def test_needs_no_goals(ids):
    assert isinstance(ids.agent, Agent)
    assert ids.agent.batch_keys == ("observations", "instruction", "actions", "action_pad_mask")
    assert make() == make()
    assert hash(make()) == hash(make())


def test_the_loss_is_that_of_the_density_of_what_the_networks_give(ids):
    batch = ids.batch
    (loss, metrics), _ = ids.grad(ids.params, batch, jax.random.key(0))
    model = jax.jit(bind(ids.agent.graphdef, ids.params))
    mean, log_std = map(np.asarray, model(batch["observations"], batch["instruction"]))
    error, valid = batch["actions"] - mean, batch["action_pad_mask"]
    log_prob = (-0.5 * (error / np.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)).sum(-1)
    expected = {
        "actor_loss": -log_prob[valid].mean(),
        "log_probs": log_prob[valid].mean(),
        "mse": (error**2).sum(-1)[valid].mean(),
        "pi_actions": mean[valid].mean(),
        "mean_std": np.exp(log_std)[valid].mean(),
        "max_std": np.exp(log_std).mean(-1)[valid].max(),
    }
    assert set(metrics) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-6, err_msg=name)
    assert loss == metrics["actor_loss"]
    np.testing.assert_allclose(ids.actions(), mean, rtol=1e-5, atol=1e-6)


def test_every_parameter_gets_a_gradient(ids):
    _, gradients = ids.grad(ids.params, ids.batch, jax.random.key(0))
    assert set(gradients) == {"instruction_encoder", "encoder", "policy"}
    for path, gradient in jax.tree_util.tree_leaves_with_path(gradients):
        assert jnp.isfinite(gradient).all()
        assert jnp.abs(gradient).max() > 0, jax.tree_util.keystr(path)


def test_each_example_follows_its_own_instruction(ids):
    other = ids.batch["instruction"].copy()
    other[2, 0] = (other[2, 0] + 1) % IDS.vocab_size
    difference = np.abs(ids.actions(instruction=other) - ids.actions()).max((1, 2))
    assert (difference > 1e-3).tolist() == [False, False, True, False]
    metrics = [ids.evaluate(ids.params, ids.batch | {"instruction": x}, jax.random.key(0)) for x in (other, other)]
    assert (metrics[0]["mse"] == metrics[1]["mse"]).all(), "no dropout"


def test_film_starts_as_the_identity():
    agent = make()
    params = jax.jit(agent.init)(jax.random.key(0))
    batch = make_batch(agent)
    act = jax.jit(agent.act)
    other = (batch["instruction"] + 1) % IDS.vocab_size
    actions = [act(params, batch["observations"], {"instruction": x}) for x in (batch["instruction"], other)]
    np.testing.assert_array_equal(*actions)
    shapes = jax.eval_shape(agent.init, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), params) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)


def test_examples_without_an_instruction_are_finite(ids):
    batch = ids.batch | {"instruction": np.tile(IDS.unlabelled(), (4, 1))}
    (loss, _), gradients = ids.grad(ids.params, batch, jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((loss, gradients)))


def test_evaluate_gives_each_example_its_own(ids):
    metrics = ids.evaluate(ids.params, ids.batch, jax.random.key(0))
    error = ((ids.batch["actions"] - ids.actions()) ** 2).sum(-1)
    expected = [error[i, :1].mean() if i == 1 else error[i].mean() for i in range(4)]
    np.testing.assert_allclose(metrics["mse"], expected, rtol=1e-5)


def test_vectors_reach_film_as_they_are(vectors):
    assert set(vectors.params) == {"encoder", "policy"}
    film = vectors.params["encoder"]["encoder"]["resnets"]["images0"]["stages"]["stage0"]["first"]["film"]
    assert film["scale"]["kernel"].shape == (VECTORS.length, 4)
    other = vectors.batch["instruction"].copy()
    other[1] += 1
    difference = np.abs(vectors.actions(instruction=other) - vectors.actions()).max((1, 2))
    assert (difference > 1e-3).tolist() == [False, True, False, False]


def test_draws_scale_with_the_temperature(vectors):
    batch, rng = vectors.batch, jax.random.key(1)
    act = jax.jit(vectors.agent.act)
    draws = [
        act(vectors.params, batch["observations"], {"instruction": batch["instruction"]}, rng, t) for t in (1.0, 2.0)
    ]
    noise = [np.asarray(draw) - vectors.actions() for draw in draws]
    np.testing.assert_allclose(noise[1], 2 * noise[0], rtol=1e-4, atol=1e-5)
    assert 0.6 < noise[0].std() < 1.4


def test_dropout_follows_the_key():
    agent = make(VECTORS, dropout_rate=0.5)
    loss = jax.jit(agent.loss)
    params, batch = make_params(agent), make_batch(agent)
    first, again, other = (loss(params, batch, jax.random.key(seed))[0] for seed in (0, 0, 1))
    assert first == again
    assert first != other


@pytest.mark.parametrize("preset", ["lc_bc", "lc_bc_tiny"])
def test_presets_name_every_setting(preset):
    config = PRESETS(preset).to_dict()
    agent = make_agent("lc_bc", config["agent_kwargs"], dataclasses.replace(SPEC, image_size=(32, 32)))
    assert set(vars(agent.config)) == set(config["agent_kwargs"])
    for part in ("encoder", "instruction_encoder", "policy"):
        assert set(vars(getattr(agent.config, part))) == set(config["agent_kwargs"][part])
    assert config["data"]["skip_unlabeled"]


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"encoder": {"name": "resnetv1-tiny"}}, "takes no conditioning vector"),
        ({"early_goal_concat": True}, "early_goal_concat"),
        ({"hidden_dims": (0,)}, "positive"),
        ({"dropout_rate": 1.0}, "dropout_rate"),
        ({"dtype": "float16"}, "float16"),
        ({"instruction_encoder": {"width": 7}}, "num_heads must divide width"),
    ],
)
def test_bad_settings(changes, named):
    with pytest.raises(ConfigError, match=named) as error:
        make(**changes)
    assert "\n" not in str(error.value)


def test_batches_without_instructions_are_refused():
    with pytest.raises(ConfigError, match=r"give config\.language"):
        make(instruction=None)
