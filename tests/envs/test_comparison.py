"""What rows of a comparison come to, from results that are written down here."""

import json
import math

import numpy as np
import pytest

from jaxvla.envs.comparison import Row, markdown
from jaxvla.envs.evaluation import wilson
from jaxvla.envs.rollout import Result


def results(successes, tasks=("stack",)):
    return [
        Result(i, 100 + i, tasks[i % len(tasks)], "do it", bool(success), 4, 2, 3.0, ())
        for i, success in enumerate(successes)
    ]


NONE = Row({0: results([1, 0, 0, 0]), 1: results([0, 0, 1, 0])}, 5.0)
# The order in which episodes end is not that of their numbers.
LATENT = Row({0: results([1, 1, 1, 0])[::-1], 1: results([1, 0, 1, 0])}, 6.4, slots=4)


def test_seeds_are_pooled_and_kept_apart():
    assert (LATENT.tally.successes, LATENT.tally.episodes) == (5, 8)
    assert LATENT.rates == {0: 0.75, 1: 0.5}
    values = json.loads(json.dumps(LATENT.to_json(NONE)))
    assert values["interval_95"] == pytest.approx(wilson(5, 8))
    assert values["seeds"] == {
        "0": {"success_rate": 0.75, "episodes": 4},
        "1": {"success_rate": 0.5, "episodes": 4},
    }


def test_the_same_episodes_are_held_against_each_other():
    mean, low, high = LATENT.minus(NONE)
    # Seed 0 wins episodes 1 and 2 more, seed 1 episode 0, none is lost.
    gains = np.array([0, 1, 1, 0, 1, 0, 0, 0])
    assert mean == gains.mean()
    assert (low, high) == pytest.approx(
        (mean - 1.96 * gains.std() / math.sqrt(8), mean + 1.96 * gains.std() / math.sqrt(8))
    )
    assert NONE.minus(LATENT)[0] == -mean
    assert LATENT.minus(Row({1: NONE.results[1]}))[0] == 0.25
    assert all(map(math.isnan, LATENT.minus(Row({7: results([1])}))))
    with pytest.raises(ValueError, match="shorter"):
        LATENT.minus(Row({0: results([1, 0])}))


def test_the_table():
    shown = markdown(
        {"none": NONE, "explicit": Row({0: results([0, 0, 0, 0])}, tokens=31.25), "latent": LATENT}, "none"
    )
    low, high = (f"{100 * bound:.0f}" for bound in wilson(5, 8))
    lines = shown.splitlines()
    assert lines[0].split(" | ")[4:] == ["minus none", "ms a decision", "tokens", "slots |"]
    assert lines[2].startswith("| none | 25 % (2 of 8) |")
    assert lines[2].endswith("| 25 to 25 % of 2 |  | 5 | 0.0 | 0 |")
    assert (
        lines[4] == f"| latent | 62 % (5 of 8) | {low} to {high} % | 50 to 75 % of 2 | +38 (+4 to +71) | 6 | 0.0 | 4 |"
    )
    assert len(lines) == 5, "one task needs no table of its own"


def test_tasks_have_a_table_where_there_are_several():
    both = Row({0: results([1, 0, 1, 1], ("stack", "lift"))})
    lines = markdown({"latent": both, "none": Row({0: results([1])})}, "base").splitlines()
    assert lines[-4:] == [
        "|  | lift | stack |",
        "| --- | --- | --- |",
        "| latent | 1 of 2 | 2 of 2 |",
        "| none |  | 1 of 1 |",
    ]
