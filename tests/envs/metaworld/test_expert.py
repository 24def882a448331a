"""Experts, what they are about, and how their demonstrations are told."""

import numpy as np
import pytest

from jaxvla.envs.metaworld.expert import demonstrate, ways_of
from jaxvla.envs.metaworld.narration import bridge_state, narrate, observe, tell
from jaxvla.envs.metaworld.protocols import PROTOCOLS
from jaxvla.envs.metaworld.tasks import PHASES, TASKS
from jaxvla.envs.metaworld.world import MetaWorld

SIDE = 32


@pytest.fixture(scope="module")
def world(simulator):
    one = MetaWorld(PROTOCOLS["starvla"], SIDE, max_steps=200, render=False)
    yield one
    one.close()


def shown(world, task, seed=0, **rates):
    found = list(demonstrate(world, seed, task, **rates))
    return [decision for _, decision in found[:-1]], world.done


def test_every_phase_of_every_expert_has_words(simulator):
    for name, task in TASKS.items():
        assert ways_of(name) == len(task.phases), name
        for phase in task.phases:
            for text in tell(task, phase):
                assert text[0].isupper(), text
                assert text.endswith("."), text
                assert "{" not in text, text
    assert {*PHASES} == {phase for task in TASKS.values() for phase in task.phases}


@pytest.mark.parametrize("task", ["pick-place-v3", "reach-v3", "drawer-open-v3"])
def test_experts_succeed_phase_by_phase(world, task):
    decisions, done = shown(world, task)
    assert done
    # In their order, but for coming back to one.
    assert list(dict.fromkeys(decision.phase for decision in decisions)) == list(TASKS[task].phases)
    assert all(decision.taught and np.abs(decision.action).max() <= 1 for decision in decisions)


def test_the_hand_moves_towards_the_waypoint(world):
    """The instrumented code is the expert's own: its way is along its action."""
    for decision, (observation, _) in zip(shown(world, "door-open-v3")[0], demonstrate(world, 0, "door-open-v3")):
        way = decision.waypoint - observation["proprio"][:3]
        far = np.abs(way) > 0.03
        np.testing.assert_array_equal(np.sign(decision.action[:3])[far], np.sign(way)[far])


def test_pushes_and_errors_are_not_taught_and_follow_from_the_seed(world):
    first, _ = shown(world, "button-press-topdown-v3", push_rate=0.1, error_rate=0.05)
    again, _ = shown(world, "button-press-topdown-v3", push_rate=0.1, error_rate=0.05)
    other, _ = shown(world, "button-press-topdown-v3", seed=1, push_rate=0.1, error_rate=0.05)
    np.testing.assert_array_equal([d.action for d in first], [d.action for d in again])
    assert [d.taught for d in first] != [d.taught for d in other]
    assert 0 < np.mean([d.taught for d in first]) < 1


def test_what_is_taught_is_without_the_noise_that_is_played(world):
    steady, _ = shown(world, "button-press-topdown-v3")
    assert all(np.array_equal(decision.played, decision.action) for decision in steady)
    noisy, _ = shown(world, "button-press-topdown-v3", push_rate=1e-9)
    apart = np.stack([decision.played - decision.action for decision in noisy])
    assert 0.02 < apart[:, :3].std() < 0.2
    assert not apart[:, 3].any()
    # Both begin where the scene does, so that the expert wants the same.
    np.testing.assert_array_equal(noisy[0].action, steady[0].action)


def test_a_demonstration_is_told_in_ecots_layout(world):
    moments = [observe(world, decision) for _, decision in demonstrate(world, 0, "pick-place-v3")]
    told = narrate("pick-place-v3", moments, "3")
    steps = told["reasoning"]
    assert len(steps) == len(moments) == told["metadata"]["n_steps"] == len(told["features"]["bboxes"])
    first = steps["0"]
    assert first["task"] == "Pick and place a puck to a goal."
    assert first["plan"] == "Move above the puck. Lower the gripper to it. Grasp it. Move it to the goal."
    assert first["subtask"] == "Move above the puck."
    assert first["move_reason"].startswith("The way leads")
    assert steps[str(len(moments) - 1)]["subtask"] == "Move the puck to the goal."
    assert "close gripper" in {part for step in steps.values() for part in step["move"].split(", ")}
    named = {name for _, name, _ in told["features"]["bboxes"][0]}
    assert named == {"puck", "goal"}


def test_directions_are_the_robots():
    """Meta-World's y leads away from the robot, its x to the right."""
    np.testing.assert_array_equal(np.sign(bridge_state(np.array([1.0, 1.0, 1.0, 0.0]))[:3]), [1, -1, 1])
