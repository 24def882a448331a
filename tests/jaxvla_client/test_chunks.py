"""When decisions begin and what is played of them, worked out by hand."""

import math
import re

import numpy as np
import pytest

from jaxvla_client.chunks import Plan, Player, Timing, leftover


def chunk(begun, length=8):
    """Actions that say for which moment they are, and when their decision began."""
    return np.stack([np.arange(begun, begun + length), np.full(length, begun)], axis=1).astype(np.float32)


def run(player, latency, steps, length=8):
    """Decisions that take `latency` steps: ((moment, begun) or None of each step, the timings that were asked)."""
    played, timings, moment, coming = [], [], 0, None
    for _ in range(steps):
        if player.waited == latency and coming is not None:
            player.answer(coming)
        if player.due:
            timings.append(player.ask())
            coming = chunk(moment, length)
            if not latency:
                player.answer(coming)
        action = player.step()
        played.append(None if action is None else tuple(map(int, action)))
        moment += action is not None
    return played, timings


def test_without_a_delay_it_is_a_receding_horizon():
    played, timings = run(Player(Plan(3)), 0, 7)
    assert played == [(0, 0), (1, 0), (2, 0), (3, 3), (4, 3), (5, 3), (6, 6)]
    assert timings == [Timing(None, 0), Timing(3, 0), Timing(3, 0)]


def test_the_earlier_chunk_is_played_until_the_next_one_is_there():
    """The robot stands still before the first one, whose actions are all played; then the first 2 are past."""
    played, timings = run(Player(Plan(4), 2), 2, 14)
    firsts = [None, None, (0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 0)]
    assert played == [*firsts, (6, 4), (7, 4), (8, 4), (9, 4), (10, 8), (11, 8)]
    assert timings == [Timing(None, 2), Timing(4, 2), Timing(4, 2)]


def test_a_decision_begins_in_time_where_chunks_would_not_last():
    """Of 8 actions all are to be played, but 3 of them pass before the next chunk is there."""
    played, timings = run(Player(Plan(), 3), 3, 16)
    assert None not in played[3:]
    assert [begun for _, begun in played[3:]] == [0] * 8 + [5] * 5
    assert timings[1:] == [Timing(5, 3), Timing(5, 3)]


def test_a_robot_whose_actions_ran_out_stands_still_and_goes_on_where_it_stopped():
    player = Player(Plan(2))
    player.ask()
    player.answer(chunk(0, 3))
    assert [player.step()[0], player.step()[0]] == [0, 1]
    assert player.due
    assert player.ask() == Timing(2, 0)
    assert (player.step()[0], player.step(), player.step()) == (2, None, None)
    player.answer(chunk(2, 3))
    assert (player.step()[0], player.delay) == (3, 3)


def test_delays_are_the_longest_of_the_last_hundred():
    player = Player(Plan(1), 5)
    for number in range(101):
        assert player.delay == (5 if number < 100 else 4)
        player.reset()
        player.ask()
        for _ in range(4 if number == 99 else 1):
            player.step()
        player.answer(chunk(0))


def test_the_oldest_prediction_weighs_most_with_a_delay_too():
    """Each decision takes a step. The first two are of moment 0, since the robot stands still before the first."""
    player = Player(Plan(1, 0.5), 1)
    player.ask()
    assert player.step() is None
    played = []
    for number, begun in enumerate((0, 0, 1, 2)):
        own = chunk(begun, 3)
        own[:, 1] = 10**number
        player.answer(own)
        player.ask()
        played.append(player.step())
    weights = np.exp(-0.5 * np.arange(3))
    moment_1, moment_2 = weights[:2] @ [1, 10] / weights[:2].sum(), weights @ [1, 10, 100] / weights.sum()
    # Of moment 3 the first two chunks say nothing.
    moment_3 = weights[:2] @ [100, 1000] / weights[:2].sum()
    np.testing.assert_allclose(played, [[0, 1], [1, moment_1], [2, moment_2], [3, moment_3]], rtol=1e-6)


def test_predictions_that_agree_with_the_newest_weigh_more():
    """Cosines 0, 0.6 and 1 to the newest one; of two, the first does not count."""
    predictions = [np.array(pair, np.float32) for pair in ((0, 2), (3, -4), (5, 0))]
    weights = np.exp(2.0 * np.array([0, 0.6, 1]))
    expected = weights @ np.stack(predictions) / weights.sum()
    np.testing.assert_allclose(Plan(1, 2.0, "agreement").average(predictions), expected, rtol=1e-6)
    expected = weights[1:] @ np.stack(predictions[1:]) / weights[1:].sum()
    np.testing.assert_allclose(Plan(1, 2.0, "agreement", 2).average(predictions), expected, rtol=1e-6)
    still = [np.zeros(2, np.float32), predictions[2]]
    expected = math.exp(2) / (1 + math.exp(2)) * predictions[2]
    np.testing.assert_allclose(Plan(1, 2.0, "agreement").average(still), expected, rtol=1e-6)


@pytest.mark.parametrize("plan", [Plan(), Plan(3), Plan(9), Plan(2, 0.5), Plan(2, 1.0, "agreement", 2)])
def test_all_actions_at_once_are_those_of_the_steps(plan):
    at_once, by_steps = Player(plan), Player(plan)
    for i in range(6):
        for player in (at_once, by_steps):
            player.ask()
            player.answer(chunk(10 * i, 5))
        played = []
        while not by_steps.due:
            played.append(by_steps.step())
        np.testing.assert_array_equal(at_once.actions(), played)
        assert at_once.due
        with pytest.raises(ValueError, match="nothing to play before the next decision"):
            at_once.actions()


def test_a_decision_that_does_not_come_leaves_no_chunk_of_before():
    player = Player(Plan(4))
    player.ask()
    player.answer(chunk(0))
    assert len(player.actions()) == 4
    player.ask()
    player.give_up()
    assert player.due
    assert player.ask() == Timing(None, 0)
    assert player.step()[0] == 4


def test_who_knows_better_says_how_many_actions_were_played():
    player = Player(Plan(0, 0.0))
    player.ask()
    player.answer(chunk(0, 3))
    player.step()
    assert player.ask(2) == Timing(2, 0)
    player.answer(chunk(5, 3))
    np.testing.assert_array_equal(player.step(), [(2 + 5) / 2, (0 + 5) / 2])


def test_reset_forgets_chunks_and_remembers_delays():
    player = Player(Plan(4), 1)
    player.ask()
    player.step()
    player.step()
    player.answer(chunk(0))
    player.reset()
    assert (player.left, player.delay, player.due, player.step()) == (0, 2, True, None)


def test_what_is_left_of_a_chunk():
    shifted, left = leftover(chunk(0, 4), 3)
    np.testing.assert_array_equal(shifted, [[3, 0], [0, 0], [0, 0], [0, 0]])
    assert left == 1
    for played, expected in ((0, 4), (4, 0), (9, 0)):
        shifted, left = leftover(chunk(1, 4), played)
        assert (left, shifted.shape, shifted.dtype) == (expected, (4, 2), np.float32)
        np.testing.assert_array_equal(shifted, chunk(1, 4) if left else 0)


def test_what_a_server_says_of_its_policy():
    said = {"execute_steps": 4, "ensemble": None, "action_horizon": 8}
    assert Plan.of_contract(said) == Plan(4)
    said = {"execute_steps": 1, "ensemble": 0.1, "ensemble_by": "agreement", "ensemble_last": 7}
    assert Plan.of_contract(said) == Plan(1, 0.1, "agreement", 7)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": -1}, "steps must be 0 or a whole number above it, not -1"),
        ({"steps": 1.5}, "steps must be 0 or a whole number above it, not 1.5"),
        ({"ensemble_last": "all"}, "ensemble_last must be 0 or a whole number above it, not 'all'"),
        ({"ensemble_by": "mood"}, "ensemble_by must be one of age, agreement, not 'mood'"),
        ({"ensemble": math.nan}, "ensemble must be 0 or a positive number, or None, not nan"),
        ({"ensemble": True}, "ensemble must be 0 or a positive number, or None, not True"),
    ],
)
def test_plans_that_make_no_sense(values, message):
    with pytest.raises(ValueError, match=message):
        Plan(**values)


def test_calls_out_of_order():
    player = Player(Plan(4))
    with pytest.raises(ValueError, match="no decision is being made: ask first"):
        player.answer(chunk(0))
    player.ask()
    with pytest.raises(ValueError, match="answer, or give it up, before the next one begins"):
        player.ask()
    for wrong in (np.zeros(7), np.zeros((0, 7)), np.zeros((1, 4, 7))):
        with pytest.raises(ValueError, match=re.escape(f"not one of shape {wrong.shape}")):
            player.answer(wrong)
    player.answer(chunk(0))
    with pytest.raises(ValueError, match="played must be 0 or more actions, not -1"):
        player.ask(-1)
