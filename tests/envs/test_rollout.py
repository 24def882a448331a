"""Closed loops in a world of one number."""

import dataclasses

import numpy as np
import pytest

from jaxvla.envs.rollout import Actor, Episode, Pace, World, WorldSpec, check_fit, rollouts
from jaxvla.envs.tabletop import TabletopEnv
from jaxvla.errors import ConfigError
from jaxvla_client.chunks import Plan, Timing

LIMIT = 7


class Line:
    """Succeeds at 10 or more, which seeds below 10 start from; 7 steps. The gripper must be open or closed."""

    spec = WorldSpec((), 0, 2)

    def reset(self, *, seed, task=None):
        self.x, self.t, self.task = float(seed), 0, task or "go"
        return self._observation(), self._info()

    def step(self, action):
        assert action[1] in (0.0, 1.0)
        self.x += action[0]
        self.t += 1
        done = bool(self.x >= 10)
        return self._observation(), float(done), done, not done and self.t >= LIMIT, self._info()

    def _observation(self):
        return {"x": np.array([self.x])}

    def _info(self):
        return {"task": self.task, "instruction": f"{self.task} on"}


@dataclasses.dataclass
class Adder:
    """Decides for `steps` actions, each the number of observations of its world so far; says what it saw."""

    steps: int = 3
    seen: dict = dataclasses.field(default_factory=dict)
    calls: list = dataclasses.field(default_factory=list)
    seeds: list = dataclasses.field(default_factory=list)

    def act_batch(self, observations, tasks, robots, timings):
        self.calls.append((list(robots), [task.get("goals") for task in tasks]))
        self.observe_batch(observations, robots)
        chunks = [np.full((self.steps, 2), len(self.seen[robot]) / 10) for robot in robots]
        said = [f"{task['language']} {self.seen[robot][-1]:.1f}" for task, robot in zip(tasks, robots)]
        return np.stack(chunks), said

    def observe_batch(self, observations, robots):
        for observation, robot in zip(observations, robots, strict=True):
            self.seen[robot].append(float(observation["x"][0]))

    def reset(self, robots, seeds):
        self.seen |= {robot: [] for robot in robots}
        self.seeds += seeds


def play(parallel, episodes, steps=3, watch=None):
    policy = Adder(steps)
    results = list(rollouts(policy, [Line() for _ in range(parallel)], episodes, watch))
    return {result.number: dataclasses.replace(result, milliseconds=0.0) for result in results}, policy


EPISODES = [Episode(i, seed) for i, seed in enumerate((9, 0, 8, 3, 9, 7, 1))]


def test_the_tabletop_and_its_like_are_worlds():
    assert isinstance(TabletopEnv(render=False), World)
    assert isinstance(Line(), World)
    assert isinstance(Adder(), Actor)


def test_a_world_says_what_it_shows_and_takes():
    world = TabletopEnv(16)
    observation, _ = world.reset(seed=0)
    assert {*observation} == {*world.spec.cameras, "proprio"}
    assert observation["proprio"].shape == (world.spec.proprio_dim,)
    world.step(np.zeros(world.spec.action_dim))
    assert TabletopEnv(render=False).spec.cameras == ()


SPEC = WorldSpec(("images0", "images1"), 7, 7)


@pytest.mark.parametrize(
    ("observed", "goals", "proprio", "action"),
    [
        (("images0", "images2"), (), 7, 7),
        (("images0",), ("images2",), 7, 7),
        (("images0", "proprio"), (), 8, 7),
        (("images0",), (), 7, 14),
    ],
)
def test_a_policy_that_does_not_fit_is_told_both_sides(observed, goals, proprio, action):
    with pytest.raises(ConfigError) as error:
        check_fit("table", SPEC, {"observation": observed, "goals": goals}, proprio, action)
    line = str(error.value)
    assert "table shows images0, images1, proprio [7] and takes 7" in line
    assert line.startswith("the policy does not fit table: it reads images0")
    assert all(name in line for name in {*observed, *goals})
    assert f"acts in {action} numbers" in line
    assert "\n" not in line


def test_a_policy_may_read_less_than_there_is():
    check_fit("table", SPEC, {"observation": ("images1", "proprio"), "goals": ("images0",)}, 7, 7)
    check_fit("table", SPEC, {"observation": ("images1",), "goals": ()}, 8, 7)


def expected(seed, decided):
    """(success, steps, decisions) of an episode, played by hand."""
    x, steps, decisions = float(seed), 0, 0
    while True:
        decisions += 1
        # Each decision has seen all frames so far: one per step, and the first.
        move = (steps + 1) / 10
        for _ in range(decided):
            x, steps = x + move, steps + 1
            if x >= 10 or steps >= LIMIT:
                return x >= 10, steps, decisions


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_an_episode_does_not_depend_on_what_is_played_beside_it(steps):
    alone, _ = play(1, EPISODES, steps)
    assert sorted(alone) == list(range(7))
    for number, result in alone.items():
        found = (result.success, result.steps, result.decisions)
        assert found == expected(EPISODES[number].seed, steps)
    for parallel in (2, 8):
        beside, policy = play(parallel, EPISODES, steps)
        assert beside == alone
        assert sorted(policy.seeds) == sorted(episode.seed for episode in EPISODES)
        assert max(len(robots) for robots, _ in policy.calls) == min(parallel, 7)


def test_free_worlds_take_the_next_episode_and_episodes_are_made_when_they_are_needed():
    made = []

    def make():
        for episode in EPISODES:
            made.append(episode.number)
            yield episode

    policy = Adder()
    results = rollouts(policy, [Line(), Line()], make())
    first = next(results)
    assert first.number == 0
    assert made == [0, 1]
    list(results)
    # While there are episodes left, nobody waits; at the end one world is idle.
    assert [len(robots) for robots, _ in policy.calls[:-1]] == [2] * (len(policy.calls) - 1)


def test_goals_tasks_and_words_reach_their_episode():
    goal = {"x": np.array([4.0])}
    results, policy = play(2, [Episode(0, 9, "run", goal), Episode(1, 0, "hop")])
    assert policy.calls[0] == ([0, 1], [goal, None])
    assert (results[0].task, results[0].instruction) == ("run", "run on")
    assert results[1].words == ("hop on 0.0", "hop on 0.3", "hop on 1.5")


def test_watching_sees_every_frame_and_what_was_said_before_it():
    frames = []
    results, _ = play(
        2, EPISODES[:2], watch=lambda episode, told, seen, said: frames.append((episode.number, told, seen["x"], said))
    )
    for number, result in results.items():
        own = [frame for frame in frames if frame[0] == number]
        assert len(own) == result.steps + 1
        assert [said for *_, said in own[:2]] == ["", result.words[0]]
        assert own[-1][2] >= 10 or result.steps == LIMIT


class Planner(Adder):
    """Chunks of six whose actions name their decision and their place in it; keeps the timings."""

    def act_batch(self, observations, tasks, robots, timings):
        self.calls.append(timings)
        self.observe_batch(observations, robots)
        chunk = [[len(self.calls) + k / 100, 0.0] for k in range(6)]
        return np.array([chunk] * len(robots)), [""] * len(robots)


def paced(plan, latency, unit=None):
    """What is played in an episode of seven steps that does not end before, and what the policy is told."""
    world, policy, moves = Line(), Planner(), []
    step = world.step
    world.step = lambda action: moves.append(float(action[0])) or step(action * [0, 1])
    (result,) = rollouts(policy, [world], [Episode(0, 1)], pace=Pace(plan, latency, unit))
    assert (result.steps, len(policy.seen[0])) == (LIMIT, LIMIT)
    return moves, [timing for (timing,) in policy.calls], result


def test_a_world_goes_on_while_a_decision_is_made():
    """It stands still before the first one; a later one comes after two steps, and its first two actions are past."""
    moves, timings, result = paced(Plan(3), 2)
    np.testing.assert_allclose(moves, [1.00, 1.01, 1.02, 1.03, 1.04, 2.02, 2.03])
    assert timings == [Timing(None, 2), Timing(3, 2), Timing(3, 2)]
    np.testing.assert_allclose(result.jumps, [2.02 - 1.04])
    np.testing.assert_allclose(result.discontinuities, [2.02 - 1.05])
    np.testing.assert_allclose(result.change, 0.01)


def test_jumps_are_in_the_unit_that_is_given():
    _, _, result = paced(Plan(3), 2, np.array([0.5, 1.0]))
    np.testing.assert_allclose(result.jumps, [(2.02 - 1.04) / 0.5])
    np.testing.assert_allclose(result.discontinuities, [(2.02 - 1.05) / 0.5])


def test_an_undelayed_world_plays_a_receding_horizon():
    moves, timings, result = paced(Plan(3), 0)
    np.testing.assert_allclose(moves, [1.00, 1.01, 1.02, 2.00, 2.01, 2.02, 3.00])
    assert timings == [Timing(None, 0), Timing(3, 0), Timing(3, 0)]
    np.testing.assert_allclose(result.jumps, [0.98, 0.98])
    np.testing.assert_allclose(result.discontinuities, [0.97, 0.97])


def test_a_decision_that_is_due_when_the_one_before_comes_begins_then():
    """As many steps as a plan has, and chunks that last just so long."""
    moves, timings, result = paced(Plan(3), 3)
    np.testing.assert_allclose(moves, [1.00, 1.01, 1.02, 1.03, 1.04, 1.05, 2.03])
    assert timings == [Timing(None, 3), Timing(3, 3), Timing(3, 3)]
    assert (len(result.jumps), result.discontinuities) == (1, ()), "nothing was left of the first chunk"


def test_an_ensemble_averages_all_that_is_there():
    """Decisions begin at moments 0, 1 and 2, and each comes after one."""
    moves, timings, result = paced(Plan(1, 0.0), 1)
    assert timings[:4] == [Timing(None, 1)] + [Timing(1, 1)] * 3
    np.testing.assert_allclose(moves[:3], [1.00, 1.01, (1.02 + 2.01) / 2], atol=1e-6)
    np.testing.assert_allclose(result.discontinuities[0], (1.02 + 2.01) / 2 - 1.02, atol=1e-6)
