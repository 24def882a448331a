"""Levels of the tabletop, and demonstrations that show what a learner meets."""

import numpy as np
import pytest

from jaxvla.envs.expert import PUSHED_PHASES, demonstrate
from jaxvla.envs.items import SHAPES
from jaxvla.envs.scene import LEVELS
from jaxvla.envs.tabletop import ANYWHERE_HIGH, ANYWHERE_LOW, NEUTRAL_STATE, START_SPREAD, TabletopEnv
from jaxvla.errors import ConfigError


def scenes(level: str, count: int = 40) -> list[TabletopEnv]:
    envs = [TabletopEnv(render=False, level=level) for _ in range(count)]
    for seed, env in enumerate(envs):
        env.reset(seed=seed)
    return envs


def test_level_one_is_always_a_red_cube_and_a_blue_bowl():
    found = scenes("one")
    assert {tuple(item.name for item in env.items) for env in found} == {("blue bowl", "red cube")}
    assert {env.task.id for env in found} == {"put_in_container"}
    assert len({env.task.instructions[0] for env in found}) > 3
    places = np.array([env.item("red cube").position[:2] for env in found])
    assert (np.ptp(places, axis=0) > [0.15, 0.2]).all()


def test_higher_levels_have_more_to_tell_apart():
    kinds = {level: {item.name for env in scenes(level) for item in env.items} for level in LEVELS}
    assert len(kinds["one"]) < len(kinds["few"]) < len(kinds["full"])
    assert all(len(env.objects) == 2 for env in scenes("few"))
    assert {len(env.objects) for env in scenes("full")} == {2, 3}
    assert {env.task.id for env in scenes("full")} == {"put_in_container", "move_to_side", "stack"}
    assert {item.kind for env in scenes("full") for item in env.objects} == set(SHAPES)


def test_an_unknown_level_or_a_task_of_another_level_is_refused():
    with pytest.raises(ConfigError, match=r"no tabletop level named 'two'; there are: one, few, full"):
        TabletopEnv(render=False, level="two")
    with pytest.raises(ConfigError, match=r"'stack' on level one; there are: put_in_container"):
        TabletopEnv(render=False, level="one").reset(seed=0, task="stack")


def test_episodes_that_begin_anywhere_begin_all_over_the_table():
    env = TabletopEnv(render=False, level="one")
    usual, anywhere = [], []
    for seed in range(60):
        env.reset(seed=seed)
        items = [item.position.tolist() for item in env.items]
        usual.append(env.state[:3].copy())
        env.reset(seed=seed, anywhere=True)
        anywhere.append(env.state[:3].copy())
        assert [item.position.tolist() for item in env.items] == items, "the scene is that of the seed"
    assert np.abs(np.array(usual) - NEUTRAL_STATE[:3]).max() <= START_SPREAD
    assert (np.array(anywhere) >= ANYWHERE_LOW).all()
    assert (np.array(anywhere) <= ANYWHERE_HIGH).all()
    assert (np.ptp(anywhere, axis=0) > 0.85 * (ANYWHERE_HIGH - ANYWHERE_LOW)).all()


def test_pushes_are_not_taught_and_are_recovered_from():
    env = TabletopEnv(render=False, level="one", max_steps=90)
    pushes, taught, successes = [], 0, 0
    for seed in range(30):
        before = None
        for _, decision in demonstrate(env, seed, anywhere=True, push_rate=0.1):
            if before is not None and not before.taught:
                pushes.append(before)
            taught += decision is not None and decision.taught
            before = decision
        successes += env.success()
    assert successes == 30
    assert 0.05 < len(pushes) / (len(pushes) + taught) < 0.25
    assert {push.phase for push in pushes} <= set(PUSHED_PHASES)
    lengths = np.array([np.linalg.norm(push.action[:3]) for push in pushes])
    assert lengths.min() > 0.01
    directions = np.array([push.action[:3] for push in pushes]) / lengths[:, None]
    assert np.abs(directions.mean(0)).max() < 0.3, "pushes go everywhere"


def test_grasps_that_miss_are_not_taught_and_are_mended():
    env = TabletopEnv(render=False, level="one", max_steps=100)
    opened_anew, heights = 0, []
    for seed in range(30):
        moments = [
            (d, env.held, env.state.copy()) for _, d in demonstrate(env, seed, anywhere=True, miss_rate=1.0) if d
        ]
        assert env.success()
        missed = [i for i, (decision, _, _) in enumerate(moments) if not decision.taught]
        assert missed == [*range(missed[-1] + 1)], "what is taught begins where the miss is seen"
        assert moments[missed[-1]][1] is None
        first, _, state = moments[missed[-1] + 1]
        assert first.phase == "approach"
        assert first.action[6] == 1
        opened_anew += state[6] < 0.05
        heights.append(state[2])
    assert opened_anew == 30, "empty fingers are closed when it is seen"
    assert max(heights) - min(heights) > 0.08, "it is seen at the table, in the air and above the bowl"


def test_without_pushes_all_is_taught_and_as_before():
    env = TabletopEnv(render=False)
    plain = [decision.action for _, decision in demonstrate(env, 3) if decision]
    same = [decision for _, decision in demonstrate(env, 3, push_rate=0.0) if decision]
    np.testing.assert_array_equal(plain, [decision.action for decision in same])
    assert all(decision.taught for decision in same)
