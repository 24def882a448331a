"""A policy behind a server, played in a world as one that was loaded is."""

import contextlib

import numpy as np
import pytest
from serving_clients.served import SIZE, checkpoint, serve

from jaxvla.envs.rollout import Episode, rollouts
from jaxvla.envs.tabletop import TabletopEnv
from jaxvla.errors import ConfigError, PolicyError
from jaxvla.robots.driving import Server
from jaxvla.serving.policy import load_policy
from jaxvla.serving.served import ServedPolicy

TASK, OTHER = {"goals": {"images0": np.full((SIZE, SIZE, 3), 9, np.uint8)}}, "is not what the client takes it for"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def address(run):
    with serve(f"--checkpoint={run}", "--port=0", "--temperature=0.3") as address:
        yield address


def connecting(address, robots=2):
    return contextlib.closing(ServedPolicy(Server(address).connect, robots))


def states_of(policy):
    """The gripper's states along each of five episodes, two side by side."""
    goals, states = TabletopEnv(SIZE).reset(seed=99)[0], {}

    def watch(episode, instruction, observation, said):
        states.setdefault(episode.number, []).append(observation["proprio"])

    worlds = [TabletopEnv(SIZE, max_steps=5) for _ in range(2)]
    results = list(rollouts(policy, worlds, [Episode(n, 100 + n, goals=goals) for n in range(5)], watch))
    assert {result.decisions for result in results} == {3}
    return {number: np.stack(own) for number, own in states.items()}


def test_it_plays_the_same_episodes(run, address):
    """Of a history of two steps, with draws of its own for each episode."""
    loaded = states_of(load_policy(run, robots=2, temperature=0.3))
    with connecting(address) as policy:
        assert (policy.needed["goals"], policy.contract.obs_horizon) == (("images0",), 2)
        served = states_of(policy)
    for number, own in loaded.items():
        np.testing.assert_allclose(served[number], own, atol=1e-4)
    assert np.ptp([own[-1, :3] for own in loaded.values()], axis=0).max() > 1e-3


def test_a_server_of_another_policy_is_refused(address):
    observation = {"images0": np.zeros((SIZE, SIZE, 3), np.uint8), "proprio": np.zeros(7, np.float32)}
    with connecting(address, 1) as policy:
        assert policy.act_batch([observation], [TASK], [0]).actions_nad.shape == (1, 2, 7)
        policy._told = {**policy._told, "action_horizon": 3}
        with pytest.raises(PolicyError, match=f"{OTHER}: action_horizon is 2, the client has 3"):
            policy.act_batch([observation], [TASK], [0])


def test_more_robots_than_it_drives(address):
    with pytest.raises(ConfigError, match=r"drives 2 robots, not 3: start it with more, or give --parallel=2"):
        ServedPolicy(Server(address).connect, 3)
