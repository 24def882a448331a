"""Meta-World as worlds: deterministic, alone and side by side, and the camera sees what the truth says."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
import train_metaworld

from jaxvla.envs.metaworld import graphics, world
from jaxvla.envs.metaworld.protocols import PROTOCOLS, SUITES, check_tasks
from jaxvla.envs.metaworld.tasks import DIFFICULTIES, TASKS
from jaxvla.envs.metaworld.world import MetaWorld
from jaxvla.envs.rollout import World, check_fit, rollouts
from jaxvla.envs.worlds import Scenario, suite_named
from jaxvla.errors import ConfigError

SIDE = 32
PLAY = """
import hashlib, sys
import numpy as np
from jaxvla.envs.metaworld.protocols import PROTOCOLS
from jaxvla.envs.metaworld.world import MetaWorld
world = MetaWorld(PROTOCOLS["lerobot"], 32)
digest = hashlib.sha256()
for seed, task in ((7, "reach-v3"), (3, "hammer-v3"), (7, "reach-v3")):
    seen = [world.reset(seed=seed, task=task)[0]]
    seen += [world.step(np.full(4, 0.5))[0] for _ in range(5)]
    for observation in seen:
        digest.update(observation["corner2"].tobytes() + observation["proprio"].tobytes())
print(digest.hexdigest())
"""


class Wave:
    """Moves by what it sees, so that a difference in pixels or states grows."""

    def act_batch(self, observations, tasks, robots, timings):
        moves = [np.append(np.sin(o["proprio"][:3] * 50 + o["corner2"].mean()), 1.0) for o in observations]
        return np.stack([np.stack([move, -move]) for move in moves]), [""] * len(robots)

    def observe_batch(self, observations, robots):
        pass

    def reset(self, robots, seeds):
        pass


def test_two_processes_see_the_same(simulator):
    found = [subprocess.run([sys.executable, "-c", PLAY], check=True, capture_output=True, text=True) for _ in range(2)]
    assert found[0].stdout == found[1].stdout
    assert len(found[0].stdout) == 65
    assert not found[0].stderr


def test_episodes_are_the_same_alone_and_side_by_side(simulator):
    tasks = ("push-v3", "door-open-v3", "reach-v3")
    scenario = Scenario("metaworld", "lerobot", tasks, SIDE, max_steps=5)
    episodes = [scenario.episode(number, number, with_goals=False) for number in range(6)]
    ends = {}

    def watch(episode, instruction, observation, said):
        ends[episode.number] = observation

    played = []
    for parallel in (1, 3):
        worlds = [scenario.make() for _ in range(parallel)]
        results = sorted(rollouts(Wave(), worlds, episodes, watch), key=lambda result: result.number)
        played.append(([dataclasses.replace(result, milliseconds=0.0) for result in results], dict(ends)))
        for remote in worlds:
            remote.close()
    assert played[0][0] == played[1][0]
    assert [result.task for result in played[0][0]] == [*tasks, *tasks]
    for number in range(6):
        one, three = played[0][1][number], played[1][1][number]
        np.testing.assert_array_equal(one["corner2"], three["corner2"])
        np.testing.assert_array_equal(one["proprio"], three["proprio"])


def test_it_says_what_it_shows_and_takes(simulator):
    one = MetaWorld(PROTOCOLS["starvla"], SIDE, max_steps=2)
    assert isinstance(one, World)
    assert not one.spec.binary_gripper
    observation, facts = one.reset(seed=0, task="push-v3")
    check_fit("it", one.spec, {"observation": [*observation], "goals": []}, len(observation["proprio"]), 4)
    assert observation["corner2_crop"].shape == (SIDE, SIDE, 3)
    assert facts == {"task": "push-v3", "instruction": "Push the puck to a goal", "success": False}
    assert [one.step(np.zeros(4))[2:4] for _ in range(2)] == [(False, False), (False, True)]
    with pytest.raises(ValueError, match="4 finite numbers"):
        one.step(np.array([0, 0, np.nan, 0]))
    one.close()


def test_a_gripper_that_is_not_binary_gets_what_the_policy_gives(simulator):
    """The fingers stay where a weak effort leaves them, which neither 0 nor 1 would."""
    ends = []
    for effort in (0.3, 1.0):
        one = MetaWorld(PROTOCOLS["lerobot"], SIDE, render=False)
        one.reset(seed=0, task="reach-v3")
        for _ in range(8):
            observation, *_ = one.step(np.array([0, 0, 0, effort]))
        ends.append(observation["proprio"][3])
        one.close()
    assert ends[0] > ends[1] + 0.05


@pytest.mark.parametrize("name", list(PROTOCOLS))
def test_things_are_where_the_picture_shows_them(simulator, name):
    """The red goal of push-v3: the mean of its pixels is where its middle is projected to."""
    one = MetaWorld(PROTOCOLS[name], 224)
    with_goal, _ = one.reset(seed=4, task="push-v3")
    model = one._model.simulator.model
    model.site_rgba[model.site("goal").id] = 0
    without = one._model.picture()
    changed = np.argwhere((with_goal[PROTOCOLS[name].view] != without).any(-1))
    assert len(changed) > 20
    u, v = one.project(one.points("goal").mean(0, keepdims=True), 224)[0]
    np.testing.assert_allclose(changed.mean(0)[::-1] + 0.5, (u, v), atol=1.5)
    one.close()


def test_suites_are_the_published_ones():
    assert {level: len(SUITES[level]) for level in DIFFICULTIES} == {
        "easy": 28,
        "medium": 11,
        "hard": 6,
        "very_hard": 5,
    }
    assert len(SUITES["mt50"]) == len(TASKS) == 50
    assert {*SUITES["mt10"]} < {*TASKS}
    assert SUITES["mt10"] == train_metaworld.MT10


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: suite_named("metaworld", "mt11"), "no metaworld suite named 'mt11', did you mean 'mt10'"),
        (
            lambda: check_tasks(["pick-plaze-v3"]),
            "no Meta-World task named 'pick-plaze-v3', did you mean 'pick-place-v3'",
        ),
        (lambda: check_tasks(["reach-v3", "reach-v3"]), "must be different ones, not reach-v3,reach-v3"),
        (lambda: Scenario("metaworld", "lerobot", ("reech-v3",)), "no metaworld task named 'reech-v3'.*'reach-v3'"),
        (lambda: Scenario("metaworld", "starvl"), "no metaworld level named 'starvl', did you mean 'starvla'"),
    ],
)
def test_names_that_there_are_not(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


def test_without_the_simulator_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(world.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install -e '\.\[metaworld\]'"):
        Scenario("metaworld")


def test_without_opengl_it_says_what_to_install(monkeypatch):
    monkeypatch.delenv(graphics.VARIABLE, raising=False)
    monkeypatch.setattr(graphics, "_library", lambda names: None)
    with pytest.raises(ConfigError, match=r"no libOSMesa, and no libEGL.*libosmesa6"):
        graphics.choose_graphics()
    # One without devices, as in a container that has the library and no driver.
    monkeypatch.setattr(graphics, "_library", lambda names: object() if "EGL" in names[0] else None)
    monkeypatch.setattr(graphics, "_egl_devices", lambda egl: 0)
    with pytest.raises(ConfigError, match="EGL has no device"):
        graphics.choose_graphics()
    monkeypatch.setattr(graphics, "_library", lambda names: object())
    assert graphics.choose_graphics() == "osmesa"


def test_goals_are_refused(simulator):
    with pytest.raises(ConfigError, match="no pictures of goals"):
        Scenario("metaworld").episode(0, 0, with_goals=True)


def test_a_killed_process_is_one_error(simulator):
    remote = Scenario("metaworld", image_size=SIDE).make()
    remote.reset(seed=0, task="reach-v3")
    remote._process.kill()
    with pytest.raises(ConfigError, match="process of a world was killed"):
        remote.step(np.zeros(4))
