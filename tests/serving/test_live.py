"""A policy whose parameters change under it."""

import jax
import numpy as np
import pytest
from serving.policies import gray, save
from training.linear_agent import LinearAgent
from training.positional_batches import SPEC

from jaxvla import agents
from jaxvla.serving.live import LivePolicy, inference_at
from jaxvla.serving.policy import load_policy

OBSERVATION = {"images0": gray(80), "proprio": np.ones(4, np.float32)}
TASK = {"goals": {"images0": gray(200)}}


@pytest.fixture(autouse=True)
def known_agents(monkeypatch):
    monkeypatch.setitem(agents.agents, "linear", lambda kwargs, spec: LinearAgent(spec))


def test_it_acts_as_the_checkpoint_does_and_compiles_once(tmp_path):
    params, assets = save(tmp_path, "linear", {}, SPEC)
    live, actions = LivePolicy(assets, robots=1), []
    for step, scale in ((3, 1.0), (7, 2.0), (9, 1.0)):
        with live.at(step, jax.tree.map(lambda x, scale=scale: scale * x, params)) as policy:
            actions.append(policy.act(OBSERVATION, TASK))
    np.testing.assert_array_equal(actions[0], load_policy(tmp_path).act(OBSERVATION, TASK))
    np.testing.assert_array_equal(actions[0], actions[2])
    assert np.abs(actions[0] - actions[1]).max() > 1e-3
    assert live.policy is policy
    assert policy._act._cache_size() == 1
    assert inference_at(assets, 3) is None


def test_it_says_what_it_needs_and_holds_no_parameters(tmp_path):
    params, assets = save(tmp_path, "linear", {}, SPEC)
    live = LivePolicy(assets, robots=2)
    assert live.policy.needed == load_policy(tmp_path).needed
    with live.at(1, params) as policy:
        assert policy.params is params
    assert {type(x) for x in jax.tree.leaves(live.policy.params)} == {jax.ShapeDtypeStruct}
    with pytest.raises(KeyError), live.at(2, params):
        raise KeyError
    assert live.policy.params is not params
