import numpy as np
import pytest

from jaxvla.envs import expert, tasks
from jaxvla.envs.expert import PHASES, PICK_PHASES, demonstrate
from jaxvla.envs.tabletop import TabletopEnv

SEEDS = range(60)


@pytest.fixture(scope="module")
def demonstrations():
    """(task id, proprio [T + 1, 7], decisions, success) of 60 seeds."""
    env = TabletopEnv(render=False)
    runs = []
    for seed in SEEDS:
        steps = list(demonstrate(env, seed))
        proprio = np.stack([observation["proprio"] for observation, _ in steps])
        runs.append((env.task, proprio, [decision for _, decision in steps[:-1]], env.success()))
        assert steps[-1][1] is None
    return runs


def test_the_expert_succeeds(demonstrations):
    assert sum(success for *_, success in demonstrations) >= 57
    assert {task.id for task, *_ in demonstrations} == set(tasks.TASKS)


def test_episodes_have_the_length_of_real_ones(demonstrations):
    lengths = [len(decisions) for _, _, decisions, _ in demonstrations]
    assert min(lengths) >= 20
    assert max(lengths) <= 45


def test_actions_are_within_the_collector_limits_and_keep_the_gripper_upright(demonstrations):
    actions = np.concatenate([[d.action for d in decisions] for _, _, decisions, _ in demonstrations])
    assert actions.dtype == np.float32
    assert np.abs(actions[:, :3]).max() <= 0.05
    assert np.abs(actions[:, 5]).max() <= 0.25
    assert (actions[:, 3:5] == 0).all()
    assert set(actions[:, 6]) == {0.0, 1.0}
    proprio = np.concatenate([proprio for _, proprio, *_ in demonstrations])
    assert (proprio[:, 3:5] == 0).all()


def test_what_is_asked_for_is_what_happens(demonstrations):
    for _, proprio, decisions, _ in demonstrations:
        asked = np.stack([d.action[:6] for d in decisions])
        np.testing.assert_allclose(np.diff(proprio[:, :6], axis=0), asked, atol=2e-6)


def test_the_first_action_is_neutral(demonstrations):
    for _, _, decisions, _ in demonstrations:
        np.testing.assert_array_equal(decisions[0].action, [0, 0, 0, 0, 0, 0, 1])


def test_phases_come_in_order_and_name_their_target(demonstrations):
    for task, _, decisions, _ in demonstrations:
        order = [PHASES.index(d.phase) for d in decisions]
        assert order == sorted(order)
        assert set(order) | {PHASES.index("approach")} == set(range(len(PHASES)))
        for d in decisions:
            assert d.target == (task.target if d.phase in PICK_PHASES else task.reference)


def test_the_gripper_goes_to_its_waypoint(demonstrations):
    for _, proprio, decisions, _ in demonstrations:
        for t, decision in enumerate(decisions):
            if decision.phase == "transport":
                way = (decision.waypoint - proprio[t, :3])[:2]
                assert way @ decision.action[:2] > 0


def test_the_frames_are_those_of_the_environment_between_two_yields():
    env = TabletopEnv(image_size=32)
    for observation, _ in demonstrate(env, 4):
        np.testing.assert_array_equal(observation["images0"], env.observation()["images0"])


def test_a_demonstration_can_be_replayed():
    first, second = ([d.action for _, d in demonstrate(TabletopEnv(render=False), 9, "stack") if d] for _ in range(2))
    np.testing.assert_array_equal(first, second)


def test_an_expert_that_cannot_finish_stops_at_the_step_limit():
    env = TabletopEnv(render=False, max_steps=8)
    steps = list(expert.demonstrate(env, 0))
    assert len(steps) == 9
    assert not env.success()
