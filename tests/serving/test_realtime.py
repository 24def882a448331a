"""Policies whose chunks go on where the ones before were."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from agents import ecot_cases
from interchange.smolvla_policies import KWARGS, LANGUAGE
from serving.policies import make

from jaxvla import agents
from jaxvla.contract import Execution, RealTime
from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.serving.execution import Before
from jaxvla.serving.policy import Policy, _guide
from jaxvla_client.chunks import Timing

SPEC = BatchSpec(("images0",), (16, 16), 5, 3, action_horizon=6, instruction=LANGUAGE.spec)
TASK = {"language": "go"}


@functools.cache
def made():
    params, assets = make("smolvla", KWARGS, SPEC, values=(-0.3, 0.3), language=LANGUAGE.to_json())
    return agents.make_agent("smolvla", KWARGS, SPEC), params, assets


@functools.cache
def policy(limit=None, robots=2, temperature=0.0):
    realtime = RealTime() if limit is None else RealTime(True, "linear", limit)
    return Policy(*made(), robots=robots, temperature=temperature, execution=Execution(0, realtime=realtime))


def views(count, seed=4):
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    return [{"images0": image, "proprio": rng.normal(size=5).astype(np.float32)} for image in images]


def decide(own, shown, timings):
    """Normalized actions of two robots; the policy's own statistics undone."""
    actions = own.act_batch(shown, [TASK] * len(shown), range(len(shown)), timings).actions_nad
    return np.stack([made()[2].action_normalizer().forward(each) for each in actions])


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_without_strength_chunks_are_those_of_plain_sampling(temperature):
    """And the first chunk is, whatever the strength."""
    found = {}
    for limit in (None, 0.0, 5.0):
        own = policy(limit, temperature=temperature)
        own.reset(seeds=[3, 4])
        first = decide(own, views(2), [Timing(None, 0)] * 2)
        found[limit] = first, decide(own, views(2, 5), [Timing(2, 0)] * 2)
    for limit in (0.0, 5.0):
        np.testing.assert_allclose(found[limit][0], found[None][0], atol=2e-6)
    np.testing.assert_allclose(found[0.0][1], found[None][1], atol=2e-6)
    assert np.abs(found[5.0][1] - found[None][1]).max() > 1e-2


def test_a_chunk_is_near_what_was_left_of_the_one_before():
    """Two of its actions are past, two more are played before it is there."""
    plain, own = policy(), policy(5.0)
    own.reset()
    plain.reset()
    before = decide(own, views(2), [Timing(None, 0)] * 2)[:, 2:]
    drawn, loose = (decide(one, views(2, 5), [Timing(2, 2)] * 2) for one in (own, plain))
    assert np.abs(drawn - loose).max() > 1e-2
    error, usual = (np.abs(chunk[:, :2] - before[:, :2]).mean() for chunk in (drawn, loose))
    assert error < 0.5 * usual


def test_robots_have_their_own_chunks_and_times():
    """Robot 1 alone, and beside one that begins an episode."""
    own = policy(5.0)
    own.reset()
    decide(own, views(2), [Timing(None, 0)] * 2)
    own.reset([0])
    together = decide(own, views(2, 5), [Timing(None, 1), Timing(3, 1)])
    np.testing.assert_allclose(together[0], decide(policy(), views(2, 5), None)[0], atol=2e-6)
    alone = policy(5.0, robots=1)
    alone.reset()
    decide(alone, views(2)[1:], [Timing(None, 0)])
    np.testing.assert_allclose(decide(alone, views(2, 5)[1:], [Timing(3, 1)])[0], together[1], atol=1e-5)


def test_delays_and_chunks_of_before_are_inputs_of_one_program():
    own = policy(5.0)
    own.reset()
    own.warm_up()
    size = own._act._cache_size()
    for timing in (None, Timing(1, 0), Timing(4, 3), Timing(None, 1)):
        own.act_batch(views(2), [TASK] * 2, timings=timing and [timing] * 2)
        own.act_batch(views(1), [TASK], [1], timings=timing and [timing])
    assert own._act._cache_size() == size == 1


def test_without_timings_what_was_given_out_was_played():
    """A chunk of six of which two are played each time: four are left of it."""
    own = Policy(*made(), execution=Execution(2, realtime=RealTime(True)))
    seen = []
    own._act, act = (
        lambda params, inputs, draw, before: seen.append(before) or act(params, inputs, draw, before),
        own._act,
    )
    for view in views(2):
        assert own.act(view, TASK).shape == (2, 3)
    own.observe(views(1)[0])
    own.observe(views(1)[0])
    own.act(views(1)[0], TASK)
    assert all(isinstance(before, Before) for before in seen)
    assert [before.left_n.tolist() for before in seen] == [[0], [4], [3]]


def test_a_prefix_is_what_is_played_until_the_chunk_is_there():
    """Never more than is left, and no less than is asked for; nothing is drawn."""
    chunks = np.random.default_rng(0).standard_normal((4, 6, 3)).astype(np.float32)
    before = Before(chunks, jnp.array([0, 2, 5, 3]), jnp.array([4, 4, 4, 0]))
    for least, counts in ((0, [0, 2, 4, 0]), (1, [1, 2, 4, 0]), (3, [3, 3, 4, 0])):
        made = _guide(RealTime(True, by="prefix", least_delay=least), np.array([True, True, False]), before)
        np.testing.assert_array_equal(made.known_ba, np.arange(6) < np.array(counts)[:, None])
        np.testing.assert_array_equal(made.actions_bad, chunks * [1, 1, 0])
        assert made.limit_b is None
    both = _guide(RealTime(True, "zeros", 3.0, "both"), np.ones(3, bool), before)
    np.testing.assert_array_equal(both.known_ba.sum(1), [0, 2, 4, 0])
    np.testing.assert_array_equal(both.weight_bad[:, :, 0], both.known_ba)
    np.testing.assert_array_equal(both.limit_b, 3)
    drawn = _guide(RealTime(True, "zeros", least_delay=3), np.ones(3, bool), before)
    np.testing.assert_array_equal(drawn.weight_bad[0, :, 0], [1, 1, 1, 0, 0, 0])
    assert drawn.known_ba is None


def test_only_who_learned_it_goes_on_from_a_prefix():
    with pytest.raises(
        ConfigError, match=r"by=prefix is for policies that have learned to go on .* this smolvla has not"
    ):
        Policy(*made(), execution=Execution(realtime=RealTime(True, by="prefix")))
    taught = ecot_cases.agent_kwargs()
    taught["action_head"] = taught["action_head"] | {"max_delay": 2}
    agents.check_takes_guide("ecot", agents.make_agent("ecot", taught, ecot_cases.SPEC), "prefix")
