"""Episodes on a simulated robot: with goal and with language, and every way in which one ends before its time."""

import dataclasses
import signal
import threading
import time

import numpy as np
import pytest
from PIL import Image
from robots.simulation import SETUP, ExpertDriver, drive

from jaxvla.errors import ConfigError, RobotError
from jaxvla.robots import episode
from jaxvla.robots.episode import Robot, frequency_of, load_goal, side_of
from jaxvla.robots.person import Simulated
from jaxvla.robots.recording import Recording
from jaxvla.robots.service import Status
from jaxvla.robots.simulated import SimulatedWidowX
from jaxvla.robots.widowx import WidowX
from jaxvla.robots.wire import Answering, Line

SEED = 3


def commands(simulated, key):
    return [payload for name, payload in simulated.commanded if name == key]


def test_an_episode_by_language_over_the_wire():
    simulated = SimulatedWidowX(SEED)
    with Answering(simulated.answer) as service:
        line = Line("127.0.0.1", service.port)
        driver = ExpertDriver(simulated)
        ending, recording = drive(simulated, driver, exchange=line)
        line.close()
    assert (ending.steps, ending.stopped) == (SETUP.steps, None)
    assert simulated.success
    assert driver.task == {"language": simulated.instruction}
    assert [name for name, _ in simulated.commanded[:4]] == ["init", "reset", "gripper", "move"]
    np.testing.assert_allclose(commands(simulated, "move")[0]["pose"][:3, 3], SETUP.initial)
    grippers = [payload["action"][6] for payload in commands(simulated, "step_action")]
    assert {*grippers} == {0.0, 1.0}
    assert len(recording.frames) == SETUP.steps + 1
    assert len(recording.steps) == SETUP.steps
    assert recording.steps[5]["played"] == np.round(commands(simulated, "step_action")[5]["action"], 6).tolist()


def test_an_episode_with_the_goal_that_a_person_shows():
    simulated = SimulatedWidowX(SEED)
    robot = Robot(WidowX(simulated.answer, 1), SETUP)
    robot.start()
    target = simulated.env.task.target
    before = simulated.env.item(target).position.copy()
    scenes = []

    class Watched(Simulated):
        def show_goal(self):
            super().show_goal()
            scenes.append((simulated.success, simulated.env.state[6]))

    goal = robot.capture_goal(Watched(simulated))
    assert scenes == [(True, 1.0)]
    np.testing.assert_array_equal(simulated.env.item(target).position, before)
    robot.begin()
    first = robot._observation(robot._look(1.0))
    assert abs(goal["images0"].astype(int) - first["images0"]).max() > 50  # the object is elsewhere
    driver = ExpertDriver(simulated, goals=("images0",))
    recording = Recording("as the goal shows", goal)
    assert robot.play(driver, {"goals": goal}, recording).stopped is None
    assert simulated.success
    assert {*recording.frames[0].views} == {"images0", "goal images0"}


def stopped(simulated, ending, recording, expected_steps):
    """That nothing was sent after the end, and what the gripper held it holds."""
    assert ending.steps == expected_steps
    assert len(commands(simulated, "step_action")) == expected_steps == len(recording.steps)
    assert simulated.commanded[-1][0] == "step_action"
    assert simulated.env.held is not None
    assert simulated.env.state[6] < 0.9
    assert str(ending).startswith("stopped      ")
    assert "the gripper keeps what it holds" in str(ending)


# The object is in the gripper at these steps of the expert's.
HOLDING = 22


@pytest.mark.parametrize("bad", [np.full(7, np.nan), np.array([0, 0, np.inf, 0, 0, 0, 0]), np.zeros(5)])
def test_what_is_no_action_stops_the_robot(bad):
    simulated = SimulatedWidowX(SEED)
    driver = ExpertDriver(simulated, alter=lambda number, action: bad if number > HOLDING else action)
    ending, recording = drive(simulated, driver)
    stopped(simulated, ending, recording, HOLDING)
    assert f"at step {HOLDING}: the policy gave the action" in ending.stopped
    assert not ending.by_keyboard


def test_a_service_that_is_gone_stops_the_robot(monkeypatch):
    monkeypatch.setattr(
        "jaxvla.robots.widowx._SECONDS",
        dict.fromkeys(("obs", "step_action"), 0.2) | {key: 5.0 for key in ("hash", "init", "move", "reset", "gripper")},
    )
    simulated = SimulatedWidowX(SEED)
    service = Answering(simulated.answer)

    def leave(number, action):
        if number == HOLDING:
            service.__exit__()
        return action

    with service:
        line = Line("127.0.0.1", service.port)
        ending, recording = drive(simulated, ExpertDriver(simulated, alter=leave), exchange=line)
        line.close()
        service._ending.clear()  # it has ended already
    stopped(simulated, ending, recording, HOLDING - 1)
    assert "does not answer within 0.2 s: is it running" in ending.stopped


def test_a_gripper_out_of_bounds_stops_the_robot():
    simulated = SimulatedWidowX(SEED)

    def pushed(message, seconds):
        told = simulated.answer(message)
        if message["type"] == "obs" and len(commands(simulated, "step_action")) == HOLDING:
            told["state"][1] = -0.3
        return told

    ending, recording = drive(simulated, exchange=pushed)
    stopped(simulated, ending, recording, HOLDING)
    assert "the gripper is out of bounds: y is -0.3" in ending.stopped


def test_a_policy_that_wants_out_is_held_within_the_bounds():
    simulated = SimulatedWidowX(SEED)
    away = np.array([0.0, -0.05, 0.05, 0, 0, 0, 1], np.float32)
    ending, _ = drive(simulated, ExpertDriver(simulated, alter=lambda number, action: away))
    assert ending.stopped is None
    assert ending.clipped > 40
    sent = np.stack([payload["action"] for payload in commands(simulated, "step_action")])
    np.testing.assert_allclose(
        sent.sum(0)[:3], np.array([0, *SETUP.bounds.low[1:2], SETUP.bounds.high[2]]) - [0, 0, 0.15]
    )


def test_the_keyboard_stops_the_robot():
    simulated = SimulatedWidowX(SEED)

    def press(number, action):
        if number == HOLDING + 1:
            signal.raise_signal(signal.SIGINT)
        return action

    ending, recording = drive(simulated, ExpertDriver(simulated, alter=press))
    stopped(simulated, ending, recording, HOLDING)
    assert ending.by_keyboard
    assert f"stopped      by the keyboard at step {HOLDING}; nothing more is sent" in str(ending)


def test_the_keyboard_stops_a_robot_whose_service_does_not_answer(monkeypatch):
    simulated = SimulatedWidowX(SEED)
    waiting = threading.Event()

    def answer(message):
        if message["type"] == "act" and message["key"] == "step_action":
            waiting.set()
            time.sleep(0.5)
        return simulated.answer(message)

    def press():
        waiting.wait(10)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    with Answering(answer) as service:
        line = Line("127.0.0.1", service.port)
        thread = threading.Thread(target=press)
        thread.start()
        start = time.monotonic()
        ending, _ = drive(simulated, exchange=line)
        took = time.monotonic() - start
        thread.join()
        line.close()
    assert ending.by_keyboard
    assert ending.steps == 0
    assert took < 5


def test_who_decides_nothing_sends_nothing():
    simulated = SimulatedWidowX(SEED)
    driver = ExpertDriver(simulated, alter=lambda number, action: None if number % 2 else action)
    ending, recording = drive(simulated, driver)
    assert len(commands(simulated, "step_action")) == len(recording.steps) == SETUP.steps // 2
    assert len(recording.frames) == SETUP.steps + 1
    assert ending.stopped is None


def test_steps_keep_the_pace_and_late_ones_are_counted():
    simulated = SimulatedWidowX(SEED)
    setup = dataclasses.replace(SETUP, period=0.05, steps=6)

    def slow(number, action):
        time.sleep(0.09 * (number == 3))
        return action

    ending, recording = drive(simulated, ExpertDriver(simulated, alter=slow), setup)
    times = np.diff([step["at"] for step in recording.steps])
    assert (times > 0.049).all()
    assert times[2] > 0.08
    assert ending.late >= 1


def test_a_robot_that_does_not_become_ready_or_does_not_get_there_is_an_error(monkeypatch):
    monkeypatch.setattr(episode, "_READY", 0.1)
    monkeypatch.setattr(episode, "_AGAIN", 0.0)
    simulated = SimulatedWidowX(SEED)
    blind = {"image": 0, "state": {}, "full_image": b""}

    def deaf(message, seconds):
        return blind if message["type"] == "obs" else simulated.answer(message)

    with pytest.raises(RobotError, match=r"shows nothing within 0.1 s: are its cameras /blue/image_raw connected"):
        Robot(WidowX(deaf, 1), SETUP).start()
    tries = []

    def stuck(message, seconds):
        if message.get("key") == "move":
            tries.append(message)
            return {"status": Status.EXECUTION_FAILURE if len(tries) < 3 else Status.SUCCESS}
        return simulated.answer(message)

    robot = Robot(WidowX(stuck, 1), SETUP)
    robot.start()
    robot.begin()
    assert len(tries) == 3
    with pytest.raises(RobotError, match=r"does not reach \(0.3, 0.0, 0.15\) .* in 10 tries"):
        Robot(WidowX(lambda m, s: {"status": 2} if m.get("key") == "move" else simulated.answer(m), 1), SETUP).begin()


def test_a_robot_out_of_bounds_is_not_begun_with():
    simulated = SimulatedWidowX(SEED)

    def elsewhere(message, seconds):
        told = simulated.answer(message)
        if message["type"] == "obs":
            told["state"][0] = 0.6
        return told

    with pytest.raises(RobotError, match=r"out of bounds: x is 0\.600"):
        Robot(WidowX(elsewhere, 1), SETUP).start()
    assert [name for name, _ in simulated.commanded] == ["init"]


@pytest.mark.parametrize("name", ["initial", "goal"])
@pytest.mark.parametrize("position", [(0.9, 0.0, 0.15), (0.3, 0.0, -0.2), (0.3, float("nan"), 0.15)])
def test_the_gripper_is_put_nowhere_out_of_bounds(name, position):
    with pytest.raises(RobotError, match=rf"--{name}_eep \(0\..*\) is out of bounds, which are \(0.1, -0.15, -0.01\)"):
        dataclasses.replace(SETUP, **{name: position})


def test_what_a_contract_says_is_used():
    cameras = {"a": {"stored_size": (64, 64)}, "b": {"stored_size": None}}
    assert side_of({"cameras": cameras}) == 64
    assert side_of({"cameras": {}}) == 256
    assert (frequency_of({"control_frequency": 0.0}), frequency_of({"control_frequency": 10.0})) == (5.0, 10.0)


def test_goals_from_pictures(tmp_path):
    path = tmp_path / "goal.png"
    Image.fromarray(np.full((4, 6), 7, np.uint8)).save(path)
    (goal,) = load_goal(str(path), ("images0",)).values()
    assert (goal.shape, goal.dtype) == ((4, 6, 3), np.uint8)
    path.write_bytes(b"nothing")
    with pytest.raises(ConfigError, match=r"goal.png is no picture"):
        load_goal(str(path), ("images0",))
    with pytest.raises(ConfigError, match="goals of images0, images1, and --goal_image is one picture"):
        load_goal(str(path), ("images0", "images1"))
