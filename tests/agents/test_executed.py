"""What holds for the action chunks of every method: which actions count, which slots, and which dimensions."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents import ecot_cases, smolvla_cases
from agents.rl_cases import SMALL, SPEC, make_batch, random_params

from jaxvla.agents import agents, make_agent
from jaxvla.agents.executed import action_mse, executed
from jaxvla.data.schema import InstructionSpec
from jaxvla.models.resnet import ARCHITECTURES
from jaxvla.parallel.sharding import path_string

BOUNDS, CONSTANT, FREE = (-1.0, 1.0), (0.0, 0.0), (-math.inf, math.inf)
SCORE = {"time_dim": 8, "hidden_dim": 16, "num_blocks": 1, "dropout_rate": 0.0}
IMITATION = {"encoder": {"name": "small"}, "hidden_dims": (8,), "dropout_rate": 0.0}
TRANSFORMER = {"width": 8, "num_heads": 2, "mlp_dim": 8, "num_encoder_layers": 1, "num_latent_layers": 1}
SETTINGS = {
    "act": {"encoder": {"name": "small"}, "transformer": TRANSFORMER | {"latent_dim": 2, "dropout_rate": 0.0}},
    "gc_bc": IMITATION | {"policy": {"std": "state_dependent"}},
    "lc_bc": IMITATION | {"encoder": {"name": "small-film"}, "policy": {"std": "state_dependent"}},
    "gc_ddpm_bc": {"encoder": {"name": "small"}, "score_network": SCORE, "diffusion": {"num_levels": 4}},
    "gc_iql": IMITATION,
    "contrastive_rl_td": IMITATION | {"repr_dim": 4},
    "smolvla": smolvla_cases.agent_kwargs(),
    # The head sees no words, as in the validation error of acting without them.
    "ecot": {**ecot_cases.agent_kwargs(), "hide_words": 1.0},
}
# The training metric that is an error of actions.
TRAINING_ERROR = {"gc_bc": "mse", "lc_bc": "mse", "gc_iql": "behavior_mse", "contrastive_rl_td": "mse"}
# Where the layer that gives actions, or their noise, has its kernel.
OUTPUTS = {
    "gc_bc": "policy/mean/kernel",
    "lc_bc": "policy/mean/kernel",
    "gc_ddpm_bc": "score/noise/kernel",
    "gc_iql": "actor/mean/kernel",
    "contrastive_rl_td": "actor/mean/kernel",
}
# Modules whose random parameters give actions that are too small to meet a limit.
LOUDER = {"act": "action", "smolvla": "action_out_proj"}
KEY = jax.random.key(4)


@pytest.fixture(autouse=True, scope="module")
def small_encoders():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ARCHITECTURES, "small", SMALL)
        patch.setitem(ARCHITECTURES, "small-film", dataclasses.replace(SMALL, film=True))
        yield


def spec_of(method):
    if method == "ecot":
        return ecot_cases.SPEC
    own = {"act": {"obs_horizon": 1}, "smolvla": {"obs_horizon": 1, "instruction": InstructionSpec(5, 24)}}
    return dataclasses.replace(SPEC, **{"instruction": InstructionSpec(5)} | own.get(method, {}))


@functools.cache
def case(method, several_action_dims=False):
    """Parameters, a batch, and everything that the agent makes of both; one dimension never moves."""
    spec = spec_of(method)
    limits = (CONSTANT, *[BOUNDS] * (spec.action_dim - 1))
    spec = dataclasses.replace(spec, action_limits=limits, several_action_dims=several_action_dims)
    agent = make_agent(method, SETTINGS[method], spec)
    params = dict(ecot_cases.params()) if method == "ecot" else random_params(agent)
    batch = ecot_cases.batch() if method == "ecot" else make_batch(agent)
    if method == "ecot":  # whose fresh head hardly moves
        decoder = jax.tree.map(lambda x: 20 * x, params["action_head"]["action_decoder"])
        params["action_head"] = params["action_head"] | {"action_decoder": decoder}
    if method in LOUDER:
        params = params | {LOUDER[method]: jax.tree.map(lambda x: 4 * x, params[LOUDER[method]])}
    told = [key for key in ("text", "instruction", "goals") if key in batch]

    @ecot_cases.quick_jit
    def everything(params, batch):
        task = {key: batch[key] for key in (*told, "action_dim_mask") if key in batch}
        acted = agent.act(params, batch["observations"], task)
        found = {"validation": agent.evaluate(params, batch, KEY), "acted": acted}
        if method == "ecot":  # whose loss compiles for long; test_ecot.py has it
            return found
        return found | {"training": jax.value_and_grad(agent.loss, has_aux=True)(params, batch, KEY)}

    return params, batch, everything


def test_every_method_is_here():
    # What openvla says is within its bins, and test_openvla.py holds what is padded.
    assert {*SETTINGS, "openvla"} == set(agents)


@pytest.mark.parametrize("method", SETTINGS)
def test_the_error_is_that_of_what_the_robot_gets(method):
    params, batch, everything = case(method)
    found = everything(params, batch)
    raw, inside = np.asarray(found["acted"]), batch["action_pad_mask"]
    got = np.concatenate([np.zeros_like(raw[..., :1]), np.clip(raw[..., 1:], -1, 1)], axis=-1)
    assert np.abs(raw[..., 1:]).max() > 1
    assert np.abs(raw[..., 0]).min() > 0
    error = ((got - batch["actions"]) ** 2).sum(-1)
    np.testing.assert_allclose(found["validation"]["mse"], (error * inside).sum(1) / inside.sum(1), rtol=1e-4)
    if method in TRAINING_ERROR:
        _, metrics = found["training"][0]
        np.testing.assert_allclose(metrics[TRAINING_ERROR[method]], error[inside].mean(), rtol=1e-4)


@pytest.mark.parametrize("method", SETTINGS)
def test_what_stands_behind_the_end_of_a_trajectory_changes_nothing(method):
    params, batch, everything = case(method)
    inside = batch["action_pad_mask"][..., None]
    assert not inside.all()
    other = batch | {"actions": np.where(inside, batch["actions"], 7 - batch["actions"])}
    first, second = (everything(params, x) for x in (batch, other))
    jax.tree.map(np.testing.assert_array_equal, first, second)
    changed = everything(params, batch | {"actions": batch["actions"] + 1})
    assert (changed["validation"]["mse"] != first["validation"]["mse"]).all()


def lacking(method, rows):
    """A case in which these rows of the batch lack the last dimension."""
    params, batch, everything = case(method, several_action_dims=True)
    mask = np.ones((len(batch["actions"]), batch["actions"].shape[-1]), bool)
    mask[rows, -1] = False
    return params, batch | {"action_dim_mask": mask}, everything


@pytest.mark.parametrize("method", SETTINGS)
def test_agents_ask_for_masks_of_dimensions_where_datasets_differ(method):
    spec = spec_of(method)
    for several in (False, True):
        agent = make_agent(method, SETTINGS[method], dataclasses.replace(spec, several_action_dims=several))
        assert ("action_dim_mask" in agent.batch_keys) is several


@pytest.mark.parametrize("method", SETTINGS)
def test_dimensions_that_a_dataset_lacks_change_nothing(method):
    params, batch, everything = lacking(method, slice(0, None, 2))
    mask = batch["action_dim_mask"][:, None]
    other = batch | {"actions": np.where(mask, batch["actions"], 7 - batch["actions"])}
    found, second = everything(params, batch), everything(params, other)
    jax.tree.map(np.testing.assert_array_equal, found, second)
    raw, inside = np.asarray(found["acted"]), batch["action_pad_mask"]
    got = np.concatenate([np.zeros_like(raw[..., :1]), np.clip(raw[..., 1:], -1, 1)], axis=-1)
    error = (mask * (got - batch["actions"]) ** 2).sum(-1)
    np.testing.assert_allclose(found["validation"]["mse"], (error * inside).sum(1) / inside.sum(1), rtol=1e-4)


@pytest.mark.parametrize(("method", "output"), OUTPUTS.items())
def test_dimensions_that_a_dataset_lacks_are_not_learned(method, output):
    """What the last layer has of a dimension that no row has gets no gradient; of the others it does."""
    params, batch, everything = lacking(method, slice(None))
    _, gradients = everything(params, batch)["training"]
    flat = {path_string(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(gradients)}
    kernel = flat[output].reshape(-1, SPEC.action_horizon, SPEC.action_dim)
    assert not kernel[..., -1].any()
    assert (np.abs(kernel[..., :-1]).max((0, 1)) > 0).all()


def test_no_limits_leave_actions_as_they_are():
    actions = 5 * np.random.default_rng(0).standard_normal((2, 2, 3), dtype=np.float32)
    np.testing.assert_array_equal(executed(jnp.asarray(actions), SPEC), actions)
    free = dataclasses.replace(SPEC, action_limits=(FREE, BOUNDS, CONSTANT))
    expected = np.stack([actions[..., 0], np.clip(actions[..., 1], -1, 1), 0 * actions[..., 2]], axis=-1)
    np.testing.assert_array_equal(executed(jnp.asarray(actions), free), expected)
    batch = {"actions": 0 * actions, "action_pad_mask": jnp.array([[True, False], [True, True]])}
    error = (expected**2).sum(-1)
    np.testing.assert_allclose(action_mse(jnp.asarray(actions), batch, free), error[[0, 1, 1], [0, 0, 1]].mean())
    np.testing.assert_allclose(action_mse(jnp.asarray(actions), batch, free, 1), [error[0, 0], error[1].mean()])
