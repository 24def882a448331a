"""The task with two equally good ways: what stands in the way, what stops there, and how the expert goes around."""

import numpy as np
import pytest

from jaxvla.envs import geometry, tasks
from jaxvla.envs.expert import Expert, demonstrate
from jaxvla.envs.items import OBSTACLES, SHAPES, Item
from jaxvla.envs.narration import narrate, observe
from jaxvla.envs.rendering import CAMERAS
from jaxvla.envs.tabletop import GRIPPER_RADIUS, TabletopEnv

POST = OBSTACLES["post"]
TOUCHING = POST.radius + GRIPPER_RADIUS


@pytest.fixture(scope="module")
def demonstrations():
    """(side of the post that was passed, states, actions, success) of 100 seeds."""
    env, runs = TabletopEnv(render=False), []
    for seed in range(100):
        states, actions = [], []
        for _, decision in demonstrate(env, seed, "go_around"):
            states.append(env.state.copy())
            actions += [decision.action] if decision else []
        offsets = np.stack(states)[:, :2] - env.obstacles[0].position[:2]
        nearest = offsets[np.linalg.norm(offsets, axis=1).argmin()]
        runs.append((np.sign(nearest[0]), np.linalg.norm(nearest), np.stack(actions), env.success()))
    return runs


def beside_post(x: float, y: float, z: float = 0.1) -> TabletopEnv:
    """The gripper, empty and open, at an offset from a post on an otherwise empty table."""
    env = TabletopEnv(render=False)
    env.reset(seed=0)
    env.items = [Item("cube", "red", np.array([0.2, -0.1, 0.0225]), 0.0)]
    env.task = tasks.Task(tasks.STACK, "red cube", "red cube", "", ("none",))
    env.items.append(Item("post", "blue", np.array([0.3, 0.0, POST.half_height]), 0.0))
    env.state[:] = [0.3 + x, y, z, 0, 0, 0, 1]
    return env


def move(env: TabletopEnv, x: float = 0, y: float = 0, z: float = 0) -> np.ndarray:
    """The change of position [3]."""
    before = env.state[:3].copy()
    env.step(np.array([x, y, z, 0, 0, 0, 1]))
    return env.state[:3] - before


def test_the_share_of_a_way_before_a_circle():
    rng = np.random.default_rng(0)
    center, radius = np.array([0.1, -0.2]), 0.5
    shares = []
    for start, end in rng.uniform(-1, 1, (200, 2, 2)):
        if np.linalg.norm(start - center) < radius:
            continue
        points = start + np.linspace(0, 1, 20001)[:, None] * (end - start)
        inside = np.linalg.norm(points - center, axis=1) < radius
        expected = inside.argmax() / 20000 if inside.any() else 1
        shares.append(geometry.free_share(start, end, center, radius))
        assert shares[-1] == pytest.approx(expected, abs=1e-3)
    assert min(shares) < 0.5
    assert max(shares) == 1


def test_a_circle_can_be_left_but_not_crossed_from_inside():
    center = np.zeros(2)
    assert geometry.free_share(np.array([0.3, 0.0]), np.array([2.0, 0.0]), center, 0.5) == 1
    assert geometry.free_share(np.array([0.3, 0.0]), np.array([-2.0, 0.0]), center, 0.5) == 0
    assert geometry.free_share(center, center, center, 0.5) == 1


def test_the_scene_has_a_post_half_way():
    env = TabletopEnv(render=False)
    sides = set()
    for seed in range(30):
        env.reset(seed=seed, task="go_around")
        (post,), (target,), (place,) = env.obstacles, env.objects, env.containers
        assert (env.task.target, env.task.reference) == (target.name, place.name)
        np.testing.assert_allclose(post.position[:2], (target.position + place.position)[:2] / 2)
        assert np.linalg.norm((target.position - post.position)[:2]) > TOUCHING + 0.03
        assert np.linalg.norm((place.position - post.position)[:2]) > post.radius + place.radius
        assert len({item.color for item in env.items}) == 3
        assert not env.success()
        sides.add(np.sign(target.position[1]))
    assert sides == {-1, 1}


def test_an_episode_begins_with_the_object_in_hand():
    env = TabletopEnv(render=False)
    for seed in range(30):
        env.reset(seed=seed, task="go_around")
        (target,) = env.objects
        assert env.held is target
        np.testing.assert_allclose(target.position, env.state[:3])
        np.testing.assert_array_equal(env.desired_state, env.state)
        assert env.state[6] == pytest.approx(SHAPES[target.kind].grip_width / 0.074)
        before = target.position.copy()
        env.step(np.array([0.01, 0, 0.01, 0, 0, 0, 0]))
        np.testing.assert_allclose(target.position - before, [0.01, 0, 0.01], atol=1e-9)
    env.reset(seed=0, task="stack")
    assert env.held is None


def test_the_post_stops_the_gripper():
    env = beside_post(0.0, -0.08)
    np.testing.assert_allclose(move(env, y=0.05), [0, 0.08 - TOUCHING, 0], atol=1e-9)
    np.testing.assert_allclose(move(env, x=0.02, y=0.02, z=0.01), [0, 0, 0.01], atol=1e-9)
    np.testing.assert_allclose(move(env, x=0.02), [0.02, 0, 0], atol=1e-9)
    np.testing.assert_allclose(move(env, y=-0.02), [0, -0.02, 0], atol=1e-9)


def test_the_post_is_not_jumped_over_in_one_step():
    env = beside_post(-0.07, 0.048)
    assert move(env, x=0.05)[0] < 0.05
    assert np.hypot(*(env.state[:2] - [0.3, 0.0])) == pytest.approx(TOUCHING)


def test_above_the_post_the_gripper_comes_down_on_it():
    env = beside_post(0.0, 0.01, 0.20)
    move(env, y=-0.02)
    for _ in range(4):
        move(env, z=-0.05)
    assert env.state[2] == pytest.approx(2 * POST.half_height + 0.012)


def test_nothing_comes_to_rest_on_the_post():
    env = TabletopEnv(render=False)
    env.reset(seed=0, task="go_around")
    env.state[:3] = [*(env.obstacles[0].position[:2] + 0.01), 0.22]
    for _ in range(4):
        env.step(np.array([0, 0, 0, 0, 0, 0, 1]))
    (target,) = env.objects
    assert target.support == "table"
    assert np.linalg.norm((target.position - env.obstacles[0].position)[:2]) > POST.radius


def test_the_expert_succeeds_both_ways(demonstrations):
    assert sum(success for *_, success in demonstrations) > 95
    assert 30 < sum(side > 0 for side, *_ in demonstrations) < 70
    assert min(distance for _, distance, *_ in demonstrations) > TOUCHING + 0.01


def test_the_expert_begins_at_once_and_stays_within_the_limits(demonstrations):
    for _, _, actions, _ in demonstrations:
        assert 15 <= len(actions) <= 45
        assert np.linalg.norm(actions[0, :3]) > 0.01
        assert np.abs(actions[:, :3]).max() <= 0.05
        assert np.abs(actions[:, 5]).max() <= 0.25


def of_either_side(env):
    """Two experts that go different ways in the same scene."""
    experts = {}
    for seed in range(20):
        expert = Expert(env, np.random.default_rng(seed))
        ahead = expert.decide().waypoint[0] - env.obstacles[0].position[0]
        experts.setdefault(ahead > 0, expert)
    return experts[False], experts[True]


def test_the_side_is_the_experts_own_choice():
    env = TabletopEnv(render=False)
    for seed in range(5):
        env.reset(seed=seed, task="go_around")
        near, far = (expert.decide().action for expert in of_either_side(env))
        assert near[0] < -0.005 < 0.005 < far[0]
        np.testing.assert_allclose(near[1:3], far[1:3], atol=0.008)


def test_the_mean_of_both_ways_does_not_get_past_the_post():
    env = TabletopEnv(render=False)
    for seed in range(5):
        env.reset(seed=seed, task="go_around")
        experts = of_either_side(env)
        for _ in range(env.max_steps):
            env.step(np.mean([expert.decide().action for expert in experts], axis=0))
        assert env.held is not None
        post, place = env.obstacles[0].position[:2], env.item(env.task.reference).position[:2]
        assert (env.state[:2] - post) @ (place - post) < 0


@pytest.mark.parametrize("camera", CAMERAS)
def test_the_post_is_drawn_where_its_box_is(camera):
    env = TabletopEnv(image_size=96)
    for seed in range(3):
        env.reset(seed=seed, task="go_around")
        (post,) = env.obstacles
        env.state[2] = 0.25
        images = []
        for color in ("blue", "yellow"):
            post.color = color
            images.append(env.observation()[camera].astype(int))
        v, u = np.nonzero(np.abs(images[0] - images[1]).max(-1) > 40)
        left, top, right, bottom = env.box(post.name, camera)
        assert left - 1.5 <= u.min()
        assert u.max() <= right + 0.5
        assert top - 1.5 <= v.min()
        assert v.max() <= bottom + 0.5
        assert len(u) > 0.5 * (right - left) * (bottom - top)


def test_it_can_be_told():
    env = TabletopEnv(render=False)
    moments = [observe(env, decision) for _, decision in demonstrate(env, 3, "go_around")]
    told = narrate(env, moments, "here")
    (post,), target, reference = env.obstacles, env.task.target, env.task.reference
    first = told["reasoning"]["0"]
    assert first["plan"].startswith(f"Move the {target} above the {reference}. Lower it.")
    assert first["subtask"] == f"Move the {target} above the {reference}."
    assert target in first["task"]
    assert reference in first["task"]
    assert f"the {post.name}" in told["metadata"]["caption"]
    assert {name for _, name, _ in told["features"]["bboxes"][0]} == {item.name for item in env.items}


def test_what_other_tasks_draw_from_a_seed_has_not_changed():
    """What annotations and demonstrations of the sample data were made from."""
    env, found = TabletopEnv(render=False), []
    for seed in (0, 7, 21):
        steps = list(demonstrate(env, seed))
        found.append((env.task.instructions[0], len(steps), *env.state[:3].round(4).tolist()))
    assert found == [
        ("put the yellow cylinder on top of the purple cylinder", 30, 0.2218, 0.1055, 0.1085),
        ("put the purple cylinder on top of the white brick", 33, 0.3859, 0.1111, 0.1096),
        ("put the blue ball on the orange plate", 35, 0.2252, 0.1311, 0.1133),
    ]
