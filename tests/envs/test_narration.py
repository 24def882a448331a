import json
import math

import numpy as np
import pytest

from jaxvla.envs import tasks
from jaxvla.envs.expert import demonstrate
from jaxvla.envs.narration import move_primitives, narrate, observe
from jaxvla.envs.tabletop import TabletopEnv

SEEDS = range(24)


def demonstrated(seed: int, image_size: int = 256):
    """(env, moments, truth of each frame) of one seed; the truth is asked of the environment, not of `observe`."""
    env = TabletopEnv(image_size, render=False)
    moments, truth = [], []
    for _, decision in demonstrate(env, seed):
        moments.append(observe(env, decision))
        truth.append(
            {
                "state": env.state.copy(),
                "held": env.held is not None,
                "done": env.success(),
                "gripper": env.gripper_pixel("images0"),
                "boxes": {item.name: env.box(item.name, "images0") for item in env.items},
                "target": env.item(env.task.target).position.copy(),
                "decision": decision,
            }
        )
    return env, moments, truth


@pytest.fixture(scope="module")
def episodes():
    """(env, truth, narrated episode) of 24 seeds."""
    runs = (demonstrated(seed) for seed in SEEDS)
    return [(env, truth, narrate(env, moments, "here")) for env, moments, truth in runs]


def window(change, start=(0.3, 0.0, 0.1, 0.0, 0.0, 0.0, 0.5)) -> np.ndarray:
    """Four states that change by `change` [7] in all."""
    return np.array(start) + np.linspace(0, 1, 4)[:, None] * np.array(change)


@pytest.mark.parametrize(
    ("change", "move"),
    [
        ((0.029, 0, 0, 0, 0, 0, 0), "stop"),
        ((0.031, 0, 0, 0, 0, 0, 0), "move forward"),
        ((-0.031, 0, 0, 0, 0, 0, 0), "move backward"),
        ((0, 0.031, 0, 0, 0, 0, 0), "move left"),
        ((0, -0.04, -0.04, 0, 0, 0, 0), "move right down"),
        ((0, 0, 0.08, 0, 0, 0, 0), "move up"),
        ((0.1, 0.06, 0, 0, 0, 0, 0), "move forward left"),  # scaled by 0.09 / 0.16 to 0.056, 0.034
        ((0.1, 0.045, 0, 0, 0, 0, 0), "move forward"),  # scaled by 0.09 / 0.145 to 0.062, 0.028
        ((0, 0, 0, 0, 0, 0.29, 0), "stop"),
        ((0, 0, 0, 0, 0, 0.31, 0), "rotate counterclockwise"),
        ((0, 0, 0, 0.31, 0, 0, 0), "tilt up"),
        ((0, 0, 0, 0, -0.31, 0, 0), "tilt down"),
        ((0, 0, 0, -0.31, 0.31, 0, 0), "tilt down"),
        ((0, 0, 0, 0, 0, 0, -0.4), "close gripper"),
        ((0.04, 0, 0.04, 0, 0.4, -0.4, 0.4), "move forward up, tilt up, rotate clockwise, open gripper"),
    ],
)
def test_moves_have_the_words_of_ecot(change, move):
    assert move_primitives(window(change))[0] == move


def test_moves_look_three_states_ahead_and_the_last_is_repeated():
    x = np.array([0.0, 0.0, 0.0, 0.035, 0.035, 0.035])
    states = np.zeros((6, 7))
    states[:, 0] = x
    assert move_primitives(states) == ["move forward"] * 3 + ["stop"] * 3
    states[5, 1] = -0.035
    assert move_primitives(states)[3:] == ["move right"] * 3
    assert (states[:, 0] == x).all()


def test_pixels_are_those_of_the_environment(episodes):
    for _, truth, told in episodes:
        for frame, point, boxes in zip(truth, told["features"]["gripper_position"], told["features"]["bboxes"]):
            np.testing.assert_allclose(point, frame["gripper"], atol=0.5)
            assert {name for _, name, _ in boxes} == set(frame["boxes"])
            for score, name, box in boxes:
                assert score == 1.0
                np.testing.assert_allclose(box, frame["boxes"][name], atol=0.5)
                assert all(type(value) is int and 0 <= value <= 256 for value in box)


def test_only_what_is_in_view_has_a_box():
    env = TabletopEnv(render=False)
    env.reset(seed=0)
    hidden, cut = env.items[:2]
    hidden.position[:2] = (5.0, 0.0)
    cut.position[:2] = (0.31, 0.23)
    boxes = dict(observe(env, None).boxes)
    assert set(boxes) == {item.name for item in env.items} - {hidden.name}
    assert boxes[cut.name][0] == 0


def test_texts_tell_the_truth(episodes):
    for env, truth, told in episodes:
        target, reference = env.task.target, env.task.reference
        for t, frame in enumerate(truth):
            texts = told["reasoning"][str(t)]
            phase = truth[min(t, len(truth) - 2)]["decision"].phase
            assert target in texts["task"]
            assert reference in texts["task"]
            assert (" is held" in texts["subtask_reason"]) == frame["held"]
            assert (texts["subtask_reason"] == "The task is done.") == (phase == "retreat" and frame["done"])
            if "above the" in texts["subtask_reason"]:
                far = math.dist(frame["state"][:2], frame["target"][:2]) >= 0.03
                assert ("not yet" in texts["subtask_reason"]) == far
            assert texts["move"] == told["features"]["move_primitive"][t]
            words = texts["move_reason"].removesuffix(".").replace(",", "").split()
            if "leads" in words and phase != "start":
                way = frame["decision"].waypoint - frame["state"][:3]
                axes = [{"backward": -1, "forward": 1}, {"right": -1, "left": 1}, {"down": -1, "up": 1}]
                signs = [next((signs[word] for word in words if word in signs), 0) for signs in axes]
                assert signs == np.where(np.abs(way) > 0.015, np.sign(way), 0).tolist()


def test_subtasks_are_the_steps_of_the_plan_in_order(episodes):
    for env, _, told in episodes:
        subtasks = list(dict.fromkeys(texts["subtask"] for texts in told["reasoning"].values()))
        plan = {texts["plan"] for texts in told["reasoning"].values()}
        target = f"the {env.task.target}"
        first, *rest = subtasks
        assert plan == {" ".join([first, *(subtask.replace(target, "it") for subtask in rest)])}
        assert len(subtasks) == 7


@pytest.mark.parametrize("task", tasks.TASKS)
def test_the_task_says_where_to(task):
    env = TabletopEnv(render=False)
    moments = [observe(env, decision) for _, decision in demonstrate(env, 3, task)]
    texts = narrate(env, moments, "here")["reasoning"]["0"]
    target, reference, side = env.task.target, env.task.reference, env.task.side
    preposition = "on" if reference.endswith("plate") else "in"
    expected = {
        tasks.PUT_IN_CONTAINER: f"Put the {target} {preposition} the {reference}.",
        tasks.MOVE_TO_SIDE: f"Move the {target} {side} the {reference}.",
        tasks.STACK: f"Stack the {target} on the {reference}.",
    }
    assert texts["task"] == expected[task]
    assert f"Move it {side or 'above'} the {reference}." in texts["plan"]


def test_sentences_are_short(episodes):
    limits = {"task": 15, "plan": 25, "subtask": 15, "subtask_reason": 15, "move": 8, "move_reason": 15}
    for _, _, told in episodes:
        for texts in told["reasoning"].values():
            assert set(texts) == set(limits)
            for name, limit in limits.items():
                assert 1 <= len(texts[name].split()) <= limit


def test_an_episode_has_the_layout_of_ecot(episodes):
    for env, truth, told in episodes:
        assert json.loads(json.dumps(told)) == told
        assert set(told) == {"reasoning", "features", "metadata"}
        assert list(told["reasoning"]) == [str(t) for t in range(len(truth))]
        assert {len(column) for column in told["features"].values()} == {len(truth)}
        np.testing.assert_allclose(told["features"]["state_3d"], [f["state"][:3] for f in truth], atol=1e-6)
        assert told["metadata"] | {"caption": ""} == {
            "episode_id": "0",
            "file_path": "here",
            "n_steps": len(truth),
            "language_instruction": env.task.instructions[0],
            "caption": "",
        }


def test_the_same_scene_reads_the_same_at_any_image_size(episodes):
    env, moments, _ = demonstrated(5, image_size=32)
    assert narrate(env, moments, "here") == episodes[5][2]
