"""What is played of chunks: the first actions, or averages of those that overlap."""

import dataclasses

import numpy as np
import pytest
from serving.policies import Echo, gray, save
from training.positional_batches import SPEC, make_assets

from jaxvla import agents
from jaxvla.contract import Execution, RealTime
from jaxvla.errors import ConfigError, PolicyError
from jaxvla.serving.execution import Memory, Schedule
from jaxvla.serving.policy import load_policy
from jaxvla_client.chunks import Timing

CHUNKS = np.array([[[1, 10], [2, 20], [4, 40]], [[3, 0], [5, -1], [6, 8]], [[7, 9], [8, 5], [9, 1]]], np.float32)


def play(schedule, chunks, robot=0):
    return [schedule.play([robot], chunk[None])[0] for chunk in chunks]


def test_the_first_actions_of_a_chunk():
    chunks = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    for steps, count in ((0, 4), (1, 1), (3, 3), (4, 4)):
        np.testing.assert_array_equal(Schedule(Execution(steps), 4, 2).play([0, 1], chunks), chunks[:, :count])


def test_the_oldest_prediction_weighs_most():
    """exp(0), exp(-0.01) and exp(-0.02), and these over their sum."""
    found = play(Schedule(Execution(1, 0.01), 3, 1), CHUNKS)
    assert all((actions.shape, actions.dtype) == ((1, 2), np.float32) for actions in found)
    two, three = [0.502499979, 0.497500021], [0.336672223, 0.333322279, 0.330005498]
    np.testing.assert_array_equal(found[0], [[1, 10]])
    np.testing.assert_allclose(found[1], [[two[0] * 2 + two[1] * 3, two[0] * 20]], rtol=1e-6)
    last = [three[0] * 4 + three[1] * 5 + three[2] * 7, three[0] * 40 - three[1] + three[2] * 9]
    np.testing.assert_allclose(found[2], [last], rtol=1e-6)


def test_at_zero_it_is_the_mean_and_chunks_that_have_ended_do_not_count():
    found = play(Schedule(Execution(0, 0.0), 3, 1), [*CHUNKS, CHUNKS[0]])
    np.testing.assert_allclose(np.concatenate(found), [[1, 10], [2.5, 10], [16 / 3, 16], [5, 23 / 3]], rtol=1e-6)


def test_averages_are_those_of_acts_formula_bit_for_bit():
    chunks = np.random.default_rng(0).normal(size=(9, 5, 3)).astype(np.float32)
    found = np.concatenate(play(Schedule(Execution(1, 0.01), 5, 1), chunks))
    for now, action_d in enumerate(found):
        predicted = [chunks[decided, now - decided] for decided in range(max(now - 4, 0), now + 1)]
        weights = np.exp(-0.01 * np.arange(len(predicted)))
        np.testing.assert_array_equal(action_d, np.average(predicted, axis=0, weights=weights).astype(np.float32))


def test_a_step_without_a_decision_is_a_step():
    schedule = Schedule(Execution(1, 0.0), 3, 1)
    play(schedule, CHUNKS[:1])
    schedule.skip([0])
    np.testing.assert_array_equal(play(schedule, CHUNKS[1:2])[0], [[(4 + 3) / 2, 20]])
    schedule.skip([0])
    schedule.skip([0])
    np.testing.assert_array_equal(play(schedule, CHUNKS[2:])[0], CHUNKS[2, :1])


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setitem(agents.agents, "echo", lambda kwargs, spec: Echo(spec))
    save(tmp_path, "echo", {}, SPEC, values=(1, 1), execution=Execution(1, 0.5))
    return tmp_path


def views(count, seed):
    rng = np.random.default_rng(seed)
    return [{"images0": gray(rng.integers(256)), "proprio": rng.normal(size=4)} for _ in range(count)]


GOAL = {"goals": {"images0": gray(90)}}


def test_a_policy_averages_what_it_would_have_played(run):
    """In robot units; chunks of two, so an average is of this decision and of the one before it."""
    policy, plain = load_policy(run), load_policy(run, execution=Execution())
    assert (policy.contract.execute_steps, plain.contract.execute_steps) == (1, 1)
    shown = views(4, 1)
    chunks = [plain.act(view, GOAL) for view in shown]
    assert {chunk.shape for chunk in chunks} == {(2, 2)}
    found = [policy.act(view, GOAL) for view in shown]
    np.testing.assert_array_equal(found[0], chunks[0][:1])
    newer = np.exp(-0.5) / (1 + np.exp(-0.5))
    for before, now, actions in zip(chunks, chunks[1:], found[1:]):
        np.testing.assert_allclose(actions[0], (1 - newer) * before[1] + newer * now[0], rtol=1e-5)
        assert not np.allclose(actions[0], now[0])
    policy.observe(shown[0])
    np.testing.assert_array_equal(policy.act(shown[1], GOAL), chunks[1][:1])
    policy.reset()
    np.testing.assert_array_equal(policy.act(shown[2], GOAL), chunks[2][:1])


def test_robots_side_by_side_play_as_each_alone(run):
    """They come in any order, and one of them begins again when the others go on."""
    together, shown = load_policy(run, robots=3), [views(5, robot) for robot in range(3)]
    rounds = [[0, 1, 2], [2, 0], [1], [0, 2, 1], [2, 1]]
    found = {robot: [] for robot in range(3)}
    for number, robots in enumerate(rounds):
        if number == 3:
            together.reset([2])
        seen = [shown[robot][len(found[robot])] for robot in robots]
        for robot, actions in zip(robots, together.act_batch(seen, [GOAL] * len(robots), robots).actions_nad):
            found[robot].append(actions)
    for robot, actions in found.items():
        alone = load_policy(run)
        for number, expected in enumerate(actions):
            if robot == 2 and number == 2:
                alone.reset()
            np.testing.assert_array_equal(alone.act(shown[robot][number], GOAL), expected)


def test_a_receding_horizon_is_the_beginning_of_the_chunk(run):
    first, whole = (load_policy(run, execution=Execution(steps)) for steps in (1, 2))
    (view,) = views(1, 3)
    np.testing.assert_array_equal(first.act(view, GOAL), whole.act(view, GOAL)[:1])


def test_more_actions_than_a_chunk_has(run):
    with pytest.raises(ConfigError, match=r"execute_steps must be 0 \(all\) to 2, the action_horizon, not 3$"):
        load_policy(run, execution=Execution(3))
    with pytest.raises(ConfigError, match=r"the action_horizon, not 3$"):
        dataclasses.replace(make_assets(), execution=Execution(3)).contract()


def test_a_decision_counts_what_was_given_out_or_seen_since_the_last_one():
    schedule = Schedule(Execution(2), 3, 2)
    assert schedule.timings([1, 0]) == [Timing(None, 0)] * 2
    schedule.play([0, 1], CHUNKS[:2])
    assert schedule.timings([0, 1]) == [Timing(2, 0)] * 2
    schedule.skip([1])
    schedule.skip([1])
    assert schedule.timings([0, 1]) == [Timing(2, 0), Timing(3, 0)]
    schedule.forget([0])
    assert schedule.timings([0, 1]) == [Timing(None, 0), Timing(3, 0)]


def test_an_ensemble_believes_who_says_how_many_actions_were_played():
    schedule = Schedule(Execution(1, 0.0), 3, 1)
    schedule.play([0], CHUNKS[:1], [Timing(None, 0)])
    np.testing.assert_array_equal(schedule.play([0], CHUNKS[1:2], [Timing(2, 0)])[0], [[(4 + 3) / 2, 20]])
    # The one before never came, so nothing of it is known.
    np.testing.assert_array_equal(schedule.play([0], CHUNKS[2:], [Timing(None, 0)])[0], CHUNKS[2, :1])


def test_what_is_left_of_each_robots_chunk():
    memory = Memory(3, (3, 2))
    memory.keep([2, 0], CHUNKS[:2])
    before = memory.before([0, 1, 2], [Timing(1, 2), Timing(1, 1), Timing(None, 0)])
    assert (before.left_n.tolist(), before.delay_n.tolist()) == ([2, 0, 0], [2, 1, 0])
    np.testing.assert_array_equal(before.actions_ncd[0], [[5, -1], [6, 8], [0, 0]])
    memory.forget([0])
    assert memory.before([2, 0], [Timing(2, 0)] * 2).left_n.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("timings", "message"),
    [
        ([], "1 observations came with 0 timings; give one for each robot"),
        ([Timing(-1, 0)], "timing 0: played must be a whole number, 0 or more, not -1"),
        ([Timing(1, 0.5)], "timing 0: delay must be a whole number, 0 or more, not 0.5"),
        ([Timing(1, None)], "timing 0: delay must be a whole number, 0 or more, not None"),
        ([Timing(2**31, 0)], "timing 0: played must be a whole number, 0 or more, not 2147483648"),
    ],
)
def test_timings_that_make_no_sense(run, timings, message):
    (view,) = views(1, 3)
    with pytest.raises(PolicyError, match=message):
        load_policy(run).act_batch([view], [GOAL], timings=timings)


def test_real_time_is_for_flow_matching(run):
    with pytest.raises(ConfigError, match=r"those of this echo are not: set execution.realtime.enabled to False$"):
        load_policy(run, execution=Execution(realtime=RealTime(enabled=True)))
