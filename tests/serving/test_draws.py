"""What policies draw."""

import jax
import numpy as np
import pytest
from serving.policies import GC_BC, gray, save

from jaxvla import agents
from jaxvla.data.schema import BatchSpec
from jaxvla.errors import PolicyError
from jaxvla.serving.draws import Draws, key_of
from jaxvla.serving.policy import load_policy

SPEC = BatchSpec(("images0",), (16, 16), proprio_dim=4, action_dim=2, action_horizon=2)
VIEW = {"images0": gray(40, (16, 16))}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gc_bc")
    return folder, *save(folder, "gc_bc", GC_BC, SPEC, values=(-1, 1))


def pairs(draw):
    return list(zip(draw.seed_n.tolist(), draw.decision_n.tolist()))


def test_streams_go_on_and_restart():
    draws = Draws(3)
    assert pairs(draws.next([2, 0])) == [(0, 0), (0, 0)]
    draws.restart([0, 1], [9, 2**32 - 1])
    first = draws.next([0, 1, 2])
    assert pairs(first) == [(9, 0), (2**32 - 1, 0), (0, 1)]
    assert pairs(draws.next([1])) == [(2**32 - 1, 1)]
    assert pairs(first) == [(9, 0), (2**32 - 1, 0), (0, 1)]


@pytest.mark.parametrize("seeds", [[1], [1, 2, 3], [1, -1], [1, 2**32]])
def test_seeds_that_do_not_fit(seeds):
    with pytest.raises(PolicyError, match=r"robots \[0, 1\] need one seed each, 0 to 4294967295, not \["):
        Draws(2).restart([0, 1], seeds)


def test_actions_are_what_the_agent_draws(saved):
    folder, params, assets = saved
    agent, policy = agents.make_agent("gc_bc", GC_BC, SPEC), load_policy(folder, temperature=0.5)
    policy.reset(seeds=[7])
    drawn = [policy.act(VIEW, VIEW) for _ in range(3)]
    draws = Draws(1)
    draws.restart([0], [7])
    for actions in drawn:
        key = key_of(jax.tree.map(lambda x: x[0], draws.next([0])))
        observations, goals = {"images0": VIEW["images0"][None, None]}, {"images0": VIEW["images0"][None]}
        expected = agent.act(params, observations, {"goals": goals}, key, 0.5)[0]
        np.testing.assert_allclose(actions, assets.action_normalizer().inverse(np.asarray(expected)), rtol=1e-4)
    assert min(np.abs(drawn[i] - drawn[i - 1]).max() for i in range(3)) > 1e-3
    policy.reset(seeds=[7])
    np.testing.assert_array_equal(policy.act(VIEW, VIEW), drawn[0])
    policy.reset()
    np.testing.assert_array_equal(policy.act(VIEW, VIEW), drawn[1])


def test_the_likeliest_actions_are_not_drawn(saved):
    policy = load_policy(saved[0])
    first = policy.act(VIEW, VIEW)
    policy.reset(seeds=[3])
    np.testing.assert_array_equal(policy.act(VIEW, VIEW), first)


@pytest.mark.parametrize("temperature", [-0.1, float("inf"), float("nan")])
def test_temperatures_that_do_not_exist(saved, temperature):
    with pytest.raises(PolicyError, match="the temperature of actions is 0 or positive, not"):
        load_policy(saved[0], temperature=temperature)
