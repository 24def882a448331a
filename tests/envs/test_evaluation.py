"""Which episodes are played, and what they come to."""

import numpy as np
import pytest
from envs.test_rollout import Adder, Line

from jaxvla.envs import worlds
from jaxvla.envs.evaluation import (
    EVALUATION_STREAM,
    TRAINING_STREAM,
    Course,
    Player,
    Tally,
    episode_seed,
    episodes,
    table,
    wilson,
)
from jaxvla.envs.rollout import Result
from jaxvla.envs.worlds import Kind, Scenario
from jaxvla.errors import ConfigError


class Robots(Adder):
    robots, needed = 3, {"observation": (), "goals": ()}


@pytest.fixture
def line(monkeypatch):
    """Worlds that begin at the last digit of their seed; from 2 on an episode is won."""

    class Digit(Line):
        def reset(self, *, seed, task=None):
            return super().reset(seed=seed % 10, task=task)

    monkeypatch.setitem(worlds.WORLDS, "line", Kind(lambda *_: Digit(), lambda *_: {}))
    return Scenario("line", tasks=("run", "hop"))


def result(number, task, success):
    return Result(number, 7, task, "go", success, 3, 2, 10.0 + number, ())


def test_seeds_of_evaluations_stay_and_no_other_episodes_have_them():
    assert [episode_seed(0, number) for number in (0, 1)] == [1641965915, 515127821]
    numbers = np.arange(300)
    streams = [
        {int(np.random.SeedSequence([0, n, attempt]).generate_state(1)[0]) for n in numbers for attempt in range(3)},
        *({episode_seed(0, n, stream) for n in numbers.tolist()} for stream in (EVALUATION_STREAM, TRAINING_STREAM)),
    ]
    assert len(set.union(*streams)) == sum(map(len, streams)) == 1500


def test_tasks_are_played_in_turn(line):
    found = list(episodes(line, range(3), with_goals=False, seed=5))
    assert [episode.task for episode in found] == ["run", "hop", "run"]
    assert [episode.seed for episode in found] == [episode_seed(5, number) for number in range(3)]
    assert next(episodes(Scenario("tabletop"), [0], with_goals=False)).task is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world": "kitchen"}, "no world named 'kitchen'; there are: tabletop, metaworld"),
        ({"level": "ten"}, "no tabletop level named 'ten'; there are: one, few, full"),
        ({"tasks": ("stack", "juggle")}, "no tabletop task named 'juggle' on level full; there are: put_in_container"),
        ({"level": "one", "tasks": ("stack",)}, "no tabletop task named 'stack' on level one; there are: put_in_c"),
    ],
)
def test_what_cannot_be_played_is_not_made(changes, message):
    with pytest.raises(ConfigError, match=message):
        Scenario(**{"world": "tabletop"} | changes)


def test_intervals_stay_within_shares():
    # Wilson's interval of no success ends at z^2 / (n + z^2).
    np.testing.assert_allclose(wilson(0, 20), [0, 1.96**2 / (20 + 1.96**2)], atol=1e-12)
    for n in range(1, 60):
        assert 0 <= wilson(0, n)[0] < 1e-12
        assert 1 - 1e-12 < wilson(n, n)[1] <= 1
    np.testing.assert_allclose(wilson(34, 50), [0.542, 0.792], atol=1e-3)


def test_a_tally_counts_all_and_each_task():
    results = [result(i, "hop" if i % 3 else "run", success=i < 4) for i in range(6)]
    tally = Tally.of(results)
    assert (tally.successes, tally.episodes, tally.milliseconds) == (4, 6, 12.5)
    assert tally.lines() == ["4 of 6 (30 to 90 %)", "hop 2 of 4", "run 2 of 2"]
    metrics = tally.metrics()
    assert metrics["success"] == pytest.approx(4 / 6)
    assert (metrics["success_low"], metrics["success_high"]) == wilson(4, 6)
    assert (metrics["success_hop"], metrics["success_run"], metrics["episodes"]) == (0.5, 1.0, 6)
    alone = Tally.of(results[:1])
    assert "success_run" not in alone.metrics()
    assert alone.lines() == [str(alone)]
    assert table({"policy": tally}).splitlines()[1].split() == [
        "policy",
        "4/6",
        "30%",
        "to",
        "90%",
        "12.5",
        "2/4",
        "2/2",
    ]


def test_a_course_is_the_same_every_time_and_as_long_as_asked(line):
    course, heard = Course(line), []
    assert isinstance(Robots(), Player)
    first, again, longer = (
        course.play(Robots(), count, lambda *counts: heard.append(counts) or True) for count in (6, 6, 12)
    )
    assert first.tasks == again.tasks
    assert [played for _, played, _ in heard] == [*range(1, 7), *range(1, 7), *range(1, 13)]
    assert {of for *_, of in heard} == {6, 12}
    assert heard[-1] == (longer.successes, 12, 12)
    starts = [episode_seed(0, number, TRAINING_STREAM) % 10 for number in range(12)]
    assert longer.successes == sum(start >= 8 for start in starts) > first.successes


def test_a_course_ends_when_it_is_told_to(line):
    course, heard = Course(line), []
    assert course.play(Robots(), 6, lambda *counts: heard.append(counts) or len(heard) < 2) is None
    assert len(heard) == 2
    assert course.play(Robots(), 6, lambda successes, played, of: played < of) is not None


def test_films_are_of_the_first_episodes_of_the_last_whole_play(tmp_path):
    scenario = Scenario("tabletop", "one", image_size=16, max_steps=3)

    class Still(Robots):
        def __init__(self):
            super().__init__()
            self.needed = {"observation": ("images0", "proprio"), "goals": ("images0",)}

        def act_batch(self, observations, tasks, robots, timings):
            return np.zeros((len(robots), 2, 7)), ["still"] * len(robots)

        def observe_batch(self, observations, robots):
            pass

    course = Course(scenario, films=2)
    assert course.play(Still(), 5, lambda *_: True).successes == 0
    course.play(Still(), 5, lambda *_: False)
    films = course.save_films(tmp_path / "videos", "step3")
    assert [path.name.split(".")[0] for path in films] == ["step3_000_failure", "step3_001_failure"]
    assert all(path.stat().st_size > 100 for path in films)
    assert course.save_films(tmp_path / "videos", "step3") == []
