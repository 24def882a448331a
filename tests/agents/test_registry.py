import pathlib
import runpy

import pytest

from jaxvla.agents import agents, make_agent
from jaxvla.data.schema import BatchSpec
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
