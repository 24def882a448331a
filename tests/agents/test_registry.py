import pathlib
import runpy

import jax
import numpy as np
import pytest

from jaxvla.agents import agents, make_agent
from jaxvla.data.schema import BatchSpec, InstructionSpec
from jaxvla.errors import ConfigError

PRESETS = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "configs" / "train_config.py"))["get_config"]
SPEC = BatchSpec(("images0",), (32, 32), 7, 7)


def kwargs(**changes):
    return PRESETS("gc_bc_tiny").to_dict()["agent_kwargs"] | changes


def test_names_are_those_of_bridge_data():
    assert "gc_bc" in agents


@pytest.mark.parametrize(
    "preset", ["gc_bc", "gc_bc_tiny", "gc_iql", "gc_iql_tiny", "contrastive_rl_td", "contrastive_rl_td_tiny"]
)
def test_presets_name_every_setting(preset):
    config = PRESETS(preset).to_dict()
    agent = make_agent(config["agent"], config["agent_kwargs"], SPEC)
    assert set(vars(agent.config)) == set(config["agent_kwargs"])
    assert set(vars(agent.config.encoder)) == set(config["agent_kwargs"]["encoder"])
    assert set(vars(agent.config.policy)) == set(config["agent_kwargs"]["policy"])


@pytest.mark.parametrize(
    ("preset", "history"),
    [
        ("gc_bc_tiny", 2),
        ("lc_bc_tiny", 2),
        ("gc_ddpm_bc_tiny", 2),
        ("gc_iql_tiny", 2),
        ("contrastive_rl_td_tiny", 2),
        ("smolvla_tiny", 1),
    ],
)
def test_every_method_takes_cameras_that_some_rows_lack_and_of_several_sizes(preset, history):
    config, own = PRESETS(preset).to_dict(), {"several_camera_sets": True, "camera_sizes": (("wrist", (16, 24)),)}
    spec = BatchSpec(("images0", "wrist"), (32, 32), 7, 7, history, 2, instruction=InstructionSpec(5, 9), **own)
    agent = make_agent(config["agent"], config["agent_kwargs"], spec)
    batch, key = spec.fake_batch(2, agent.batch_keys, np.random.default_rng(0)), jax.random.key(0)
    assert batch["observations"]["camera_mask"].shape == (2, history, 2)
    params = jax.eval_shape(agent.init, key)
    for method in (agent.loss, agent.evaluate):
        jax.eval_shape(method, params, batch, key)
    assert jax.eval_shape(agent.act, params, batch["observations"], batch).shape == (2, 2, 7)
    # Every mask is looked at: of next observations and goals as well.
    jaxpr = jax.make_jaxpr(agent.loss)(params, batch, key).jaxpr
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path((params, batch))]
    masks = [(path, v) for path, v in zip(paths, jaxpr.invars) if path[-1].key == "camera_mask"]
    views = [key for key in ("observations", "next_observations", "goals") if key in agent.batch_keys]
    assert len(masks) == len(views)
    assert all(id(variable) in read for _, variable in masks)


def test_unknown_agent():
    with pytest.raises(ConfigError, match="no agent named 'gc_bx'; there are: gc_bc"):
        make_agent("gc_bx", {}, SPEC)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_dim": (256,)}, "hidden_dims"),
        ({"hidden_dims": (256, 0)}, "positive"),
        ({"dropout_rate": 1.0}, "dropout_rate"),
        ({"dtype": "float16"}, "float16"),
        ({"shared_goal_encoder": False}, "shared_goal_encoder"),
        ({"policy": {"std": "fixd"}}, "fixd"),
        ({"encoder": {"name": "resnetv1-34-bridge-film"}}, "needs a conditioning vector"),
        ({"encoder": {"name": "resnetv1-tiny", "pooling": "none"}}, "pooling 'none'"),
        ({"early_goal_concat": "yes"}, "config.agent_kwargs.early_goal_concat must be bool"),
    ],
)
def test_bad_settings(changes, named):
    with pytest.raises(ConfigError, match=named) as error:
        make_agent("gc_bc", kwargs(**changes), SPEC)
    assert "\n" not in str(error.value)
