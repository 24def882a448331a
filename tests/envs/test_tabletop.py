import math

import numpy as np
import pytest

from jaxvla.envs import geometry, tasks
from jaxvla.envs.items import SHAPES, Item
from jaxvla.envs.tabletop import MAX_OPENING, TabletopEnv
from jaxvla.errors import ConfigError

OPEN, CLOSED = 1.0, 0.0


def still(gripper: float) -> np.ndarray:
    return np.array([0, 0, 0, 0, 0, 0, gripper])


def empty_table(*items: Item) -> TabletopEnv:
    """An environment with these items only, the gripper open, straight and 15 cm up."""
    env = TabletopEnv(render=False)
    env.reset(seed=0)
    env.items = list(items)
    env.state[:] = [0.3, 0.0, 0.15, 0, 0, 0, 1]
    first = items[0].name
    env.task = tasks.Task(tasks.STACK, first, items[-1].name, "", ("none",))
    return env


def cube(color: str = "red", x: float = 0.3, y: float = 0.0, yaw: float = 0.0) -> Item:
    return Item("cube", color, np.array([x, y, 0.0225]), yaw)


def act(env: TabletopEnv, gripper: float, steps: int = 4) -> None:
    for _ in range(steps):
        env.step(still(gripper))


def grasp(env: TabletopEnv, item: Item) -> None:
    env.state[:3] = item.position
    act(env, CLOSED)
    assert env.held is item


def test_a_seed_determines_every_byte():
    runs = []
    for seed in (5, 5, 6):
        env = TabletopEnv(image_size=32)
        observation, info = env.reset(seed=seed)
        frames = [observation, *(env.step(np.array([0.02, 0.01, -0.02, 0, 0, 0.1, 0.0]))[0] for _ in range(3))]
        runs.append((frames, info))
    (first, info), (second, same_info), (third, _) = runs
    assert info == same_info
    for a, b in zip(first, second):
        assert all((a[key] == b[key]).all() for key in ("images0", "images1", "proprio"))
    assert any((a["images0"] != b["images0"]).any() for a, b in zip(first, third))


def test_observation_has_two_images_and_the_state():
    observation, info = TabletopEnv(image_size=48).reset(seed=1)
    assert sorted(observation) == ["images0", "images1", "proprio"]
    assert observation["images0"].shape == observation["images1"].shape == (48, 48, 3)
    assert observation["images0"].dtype == np.uint8
    assert observation["proprio"].shape == (7,)
    assert observation["proprio"].dtype == np.float32
    assert info["task"] in tasks.TASKS


def test_without_rendering_there_is_the_state_alone():
    observation, _ = TabletopEnv(render=False).reset(seed=1)
    assert list(observation) == ["proprio"]


def test_the_task_can_be_chosen_and_is_otherwise_drawn():
    env = TabletopEnv(render=False)
    for task in tasks.TASKS:
        assert env.reset(seed=3, task=task)[1]["task"] == task
    assert {env.reset(seed=seed)[1]["task"] for seed in range(20)} == set(tasks.TASKS)
    with pytest.raises(ConfigError, match=r"no tabletop task named 'pour'.*stack"):
        env.reset(seed=0, task="pour")


def test_instructions_name_the_things_on_the_table():
    env = TabletopEnv(render=False)
    for seed in range(30):
        _, info = env.reset(seed=seed)
        names = [item.name for item in env.items]
        assert len(set(names)) == len(names)
        assert len(set(env.task.instructions)) >= 4
        assert info["instruction"] == env.task.instructions[0]
        for text in env.task.instructions:
            assert env.task.target in text
            assert env.task.reference in text
        assert not env.success()


def test_motion_is_clipped_as_the_collector_does():
    env = empty_table(cube())
    before = env.state.copy()
    env.step(np.array([1.0, -0.03, 0.2, 0.0, 0.0, -2.0, 1.0]))
    np.testing.assert_allclose(env.state[:6] - before[:6], [0.05, -0.03, 0.05, 0, 0, -0.25], atol=1e-12)


def test_turns_are_about_world_axes():
    env = empty_table(cube())
    env.step(np.array([0, 0, 0, 0, 0.2, 0, 1.0]))
    env.step(np.array([0, 0, 0, 0, 0, 0.25, 1.0]))
    c, s = math.cos(0.25), math.sin(0.25)
    cp, sp = math.cos(0.2), math.sin(0.2)
    expected = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.array([[cp, 0, sp], [0, 1, 0], [-sp, 0, cp]])
    np.testing.assert_allclose(geometry.rotation(*env.state[3:6]), expected, atol=1e-12)


def test_the_gripper_stays_in_its_workspace():
    env = empty_table(cube(x=0.22, y=0.1))
    for _ in range(20):
        env.step(np.array([0.05, 0.05, -0.05, 0, 0, 0, 1]))
    np.testing.assert_allclose(env.state[:3], [0.42, 0.17, 0.012])
    np.testing.assert_allclose(env.desired_state[:3], [0.47, 0.22, -0.038])


def test_the_gripper_closes_at_finite_speed_to_an_absolute_target():
    env = empty_table(cube(x=0.2))
    openings = [env.step(still(0.2))[0]["proprio"][6] for _ in range(4)]
    np.testing.assert_allclose(openings, [0.65, 0.3, 0.2, 0.2], atol=1e-6)
    assert env.step(still(7.0))[0]["proprio"][6] == pytest.approx(0.55)


@pytest.mark.parametrize("action", [np.zeros(6), np.full(7, np.nan), np.zeros((1, 7))])
def test_a_malformed_action_is_refused(action):
    with pytest.raises(ValueError, match="7 finite numbers"):
        empty_table(cube()).step(action)


def test_closing_around_an_object_lifts_it_and_opening_drops_it():
    item = cube(y=0.01, yaw=0.2)
    env = empty_table(item)
    env.state[:3] = [0.3, 0.0, 0.025]
    act(env, CLOSED)
    assert env.held is item
    assert env.state[6] == pytest.approx(0.045 / MAX_OPENING)
    assert item.position[1] == pytest.approx(0.0)  # centred between the fingers
    assert item.yaw == pytest.approx(0.0)  # and parallel to them
    for _ in range(3):
        env.step(np.array([0.02, 0.01, 0.03, 0, 0, 0.1, 0]))
    np.testing.assert_allclose(item.position, [0.36, 0.03, 0.0225 + 0.09], atol=1e-9)
    assert item.yaw == pytest.approx(0.3)
    act(env, OPEN)
    assert env.held is None
    assert item.support == "table"
    assert item.position[2] == pytest.approx(0.0225)


@pytest.mark.parametrize(
    ("offset", "yaw"), [((0.025, 0, 0), 0.0), ((0, 0.025, 0), 0.0), ((0, 0, 0.03), 0.0), ((0, 0, 0), 0.5)]
)
def test_fingers_that_miss_or_are_turned_catch_nothing(offset, yaw):
    item = cube(yaw=yaw)
    env = empty_table(item)
    env.state[:3] = item.position + offset
    act(env, CLOSED)
    assert env.held is None
    assert env.state[6] == 0
    np.testing.assert_allclose(item.position, [0.3, 0, 0.0225])


def test_closed_fingers_catch_nothing():
    item = cube()
    env = empty_table(item)
    act(env, CLOSED)
    env.state[:3] = item.position
    act(env, CLOSED)
    assert env.held is None


def test_a_quarter_turn_of_a_cube_is_no_turn():
    item = cube(yaw=math.pi / 2 + 0.1)
    env = empty_table(item)
    grasp(env, item)


def test_a_held_object_is_not_pushed_through_the_table():
    item = cube()
    env = empty_table(item)
    env.state[:3] = [0.3, 0.0, 0.035]
    act(env, CLOSED)
    for _ in range(3):
        env.step(np.array([0, 0, -0.05, 0, 0, 0, 0]))
    assert item.position[2] == pytest.approx(0.0225)


def test_what_is_released_over_a_container_ends_up_inside():
    item, bowl = cube(), Item("bowl", "blue", np.array([0.3, 0.1, 0.0]), 0.0)
    env = empty_table(item, bowl)
    grasp(env, item)
    env.state[:3] = [0.32, 0.13, 0.1]
    act(env, CLOSED, 1)
    assert not env.success()
    act(env, OPEN)
    assert item.support == "blue bowl"
    assert env.success()
    assert np.linalg.norm(item.position[:2] - [0.3, 0.1]) < 0.03


def test_stacks_hold_until_their_foot_is_taken_away():
    upper, lower = cube("red"), cube("blue", x=0.36)
    env = empty_table(upper, lower)
    grasp(env, upper)
    env.state[:3] = [0.36, 0.01, 0.1]
    act(env, CLOSED, 1)
    act(env, OPEN)
    assert upper.support == "blue cube"
    assert upper.position[2] == pytest.approx(0.0675)
    assert env.success()
    grasp(env, lower)
    assert upper.support == "table"
    assert upper.position[2] == pytest.approx(0.0225)
    assert not env.success()


def test_a_tower_comes_down_with_its_foot():
    foot, middle, top = cube("blue"), cube("green"), cube("red")
    middle.position[2], top.position[2] = 0.0675, 0.1125
    middle.support, top.support = foot.name, middle.name
    env = empty_table(top, middle, foot)
    grasp(env, foot)
    assert (middle.support, top.support) == ("table", "green cube")
    np.testing.assert_allclose([middle.position[2], top.position[2]], [0.0225, 0.0675])


def test_what_rolls_off_a_ball_lies_beside_it():
    item, ball = cube(), Item("ball", "blue", np.array([0.36, 0.0, 0.0245]), 0.0)
    env = empty_table(item, ball)
    grasp(env, item)
    env.state[:3] = [0.37, 0.0, 0.1]
    act(env, CLOSED, 1)
    act(env, OPEN)
    assert item.support == "table"
    assert np.linalg.norm((item.position - ball.position)[:2]) > 0.04


@pytest.mark.parametrize(
    ("side", "direction"),
    [("to the left of", (0, 1)), ("to the right of", (0, -1)), ("in front of", (-1, 0)), ("behind", (1, 0))],
)
def test_sides_are_those_of_the_robot(side, direction):
    target, reference = cube(), cube("blue", x=0.3, y=0.0)
    task = tasks.Task(tasks.MOVE_TO_SIDE, target.name, reference.name, side, ())
    for sign, distance, done in ((1, 0.08, True), (1, 0.2, False), (-1, 0.08, False)):
        target.position[:2] = reference.position[:2] + sign * distance * np.array(direction)
        assert tasks.is_done(task, target, reference) is done
    target.position = tasks.place_position(task, target, reference)
    assert tasks.is_done(task, target, reference)
    target.support = "gripper"
    assert not tasks.is_done(task, target, reference)


def test_success_ends_an_episode_and_pays():
    item, bowl = cube(), Item("bowl", "blue", np.array([0.3, 0.1, 0.0]), 0.0)
    env = empty_table(item, bowl)
    grasp(env, item)
    env.state[:3] = [0.3, 0.1, 0.1]
    outcomes = [env.step(still(gripper))[1:4] for gripper in (CLOSED, OPEN, OPEN)]
    assert outcomes[0] == (0.0, False, False)
    assert outcomes[-1] == (1.0, True, False)


def test_an_episode_is_truncated_after_max_steps():
    env = TabletopEnv(render=False, max_steps=3)
    env.reset(seed=0)
    assert [env.step(still(OPEN))[3] for _ in range(3)] == [False, False, True]


def test_environments_share_nothing():
    one, other = TabletopEnv(image_size=32), TabletopEnv(image_size=32)
    before = one.reset(seed=1)[0]
    other.reset(seed=2)
    other.step(np.array([0.05, 0, -0.05, 0, 0, 0.2, 0]))
    after = one.observation()
    assert all((before[key] == after[key]).all() for key in before)


def test_every_shape_fits_between_the_fingers_and_rests_on_its_foot():
    for shape in SHAPES.values():
        assert shape.grip_width < MAX_OPENING
        assert shape.mesh.vertices[:, 2].min() == pytest.approx(-shape.half_height, rel=0.1)
        assert np.hypot(*shape.mesh.vertices[:, :2].T).max() <= shape.radius * 1.03
