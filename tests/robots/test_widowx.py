"""The messages of the robot's service, as it defines them, and answers that are no such thing."""

import json

import numpy as np
import pytest

from jaxvla.errors import ConfigError, RobotError
from jaxvla.robots.service import Service, Status, settings
from jaxvla.robots.simulated import SimulatedWidowX
from jaxvla.robots.widowx import WidowX, connect

PARAMS = settings(
    np.array([0.1, -0.15, -0.01, -1.57]), np.array([0.45, 0.25, 0.25, 1.57]), (0.3, 0.0, 0.15), ("/b",), 0.2
)
HASH = {"success": True, "payload": json.dumps({"action_keys": ["init", "move", "gripper", "reset", "step_action"]})}


class Recorded:
    """Answers what it is told to, and keeps the requests."""

    def __init__(self, *answers):
        self.answers, self.asked = [HASH, *answers], []

    def __call__(self, message, seconds):
        self.asked.append((message, seconds))
        return self.answers.pop(0)


def test_requests_are_those_of_the_service():
    success = {"status": 1}
    service = Recorded(*[success] * 5)
    robot = WidowX(service, 1)
    assert isinstance(robot, Service)
    robot.init(PARAMS, 32)
    robot.reset()
    robot.move(np.eye(4))
    robot.move_gripper(0.0)
    robot.step(np.float32([0, 0, 0.01, 0, 0, 0, 1]), blocking=False)
    asked = [message for message, _ in service.asked]
    assert asked[0] == {"type": "hash"}
    assert [message["key"] for message in asked[1:]] == ["init", "reset", "move", "gripper", "step_action"]
    assert all(message["type"] == "act" for message in asked[1:])
    payloads = [message["payload"] for message in asked[1:]]
    assert payloads[0] == {"env_params": PARAMS, "image_size": 32}
    assert PARAMS["override_workspace_boundaries"] == [[0.1, -0.15, -0.01, -1.57, 0], [0.45, 0.25, 0.25, 1.57, 0]]
    assert PARAMS["camera_topics"] == [{"name": "/b"}]
    assert payloads[1] == {}
    assert payloads[2]["blocking"] is True
    assert payloads[2]["pose"].shape == (4, 4)
    assert payloads[3] == {"open": 0.0}
    assert payloads[4]["action"].dtype == np.float64
    assert payloads[4]["blocking"] is False
    assert service.asked[1][1] > 10  # cameras and arm take ten seconds to start


def test_pictures_are_those_of_the_cameras():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    flat = np.stack([np.float32(each.transpose(2, 0, 1).flatten()) / 255 for each in pixels])
    robot = WidowX(Recorded({"status": 1}, {"image": flat, "state": np.arange(7), "full_image": b""}), 2)
    robot.init(PARAMS, 16)
    seen = robot.observe()
    np.testing.assert_array_equal(np.stack(seen.images), pixels)  # every value of 0 to 255 is kept
    assert seen.state.dtype == np.float64


@pytest.mark.parametrize("told", [None, {"image": np.zeros((4, 4, 3), np.uint8), "state": {}, "full_image": b""}])
def test_nothing_is_seen_before_the_robot_is_ready(told):
    robot = WidowX(Recorded({"status": 1}, told), 1)
    robot.init(PARAMS, 16)
    assert robot.observe() is None


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("what?", "shows str; expected image and state"),
        ({"image_0": 1, "state": 1}, "shows image_0, state; expected image and state"),
        ({"image": np.zeros(3 * 16 * 16), "state": np.zeros(5)}, r"state is float64\[5\]; expected \[7\]"),
        ({"image": np.zeros(12), "state": np.zeros(7)}, r"image float64\[12\]; expected float\[1, 768\]"),
        ({"image": np.zeros(768, np.uint8), "state": np.zeros(7)}, r"image uint8\[768\]; expected float"),
        ({"image": np.full(768, np.nan), "state": np.zeros(7)}, "not finite"),
    ],
)
def test_what_cannot_be_seen_is_refused(told, message):
    robot = WidowX(Recorded({"status": 1}, told), 1)
    robot.init(PARAMS, 16)
    with pytest.raises(RobotError, match=message):
        robot.observe()


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ({"status": 0}, "answers 'reset' with NO_CONNECTION"),
        ({"status": 2}, "answers 'reset' with EXECUTION_FAILURE: look at its own terminal"),
        ({"status": 3}, "answers 'reset' with NOT_INITIALIZED"),
        ({"status": 9}, "expected a status, 0 to 3"),
        (None, "expected a status, 0 to 3"),
    ],
)
def test_a_command_that_fails_is_an_error(told, message):
    with pytest.raises(RobotError, match=message):
        WidowX(Recorded(told), 1).reset()


def test_a_pose_that_is_not_reached_can_be_tried_again():
    assert WidowX(Recorded({"status": 2}), 1).move(np.eye(4)) is Status.EXECUTION_FAILURE


@pytest.mark.parametrize("told", [None, {"success": False}, {"payload": "{"}, {"payload": '{"action_keys": ["fly"]}'}])
def test_other_services_are_no_robots(told):
    with pytest.raises(RobotError, match="no WidowX's"):
        WidowX(lambda message, seconds: told, 1)


@pytest.mark.parametrize("address", ["robot", "robot:", "robot:x", ":5556", "robot:99999"])
def test_an_address_is_host_and_port(address):
    with pytest.raises(ConfigError, match="--robot must be HOST:PORT"):
        connect(address, 1)


def test_packages_that_are_missing_are_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RobotError, match="pip install pyzmq lz4"):
        connect("localhost:5556", 1)


def test_the_simulated_robot_answers_as_the_service_does():
    simulated = SimulatedWidowX()
    told = simulated.answer({"type": "act", "key": "step_action", "payload": {}})
    assert told == {"status": Status.NOT_INITIALIZED}
    assert simulated.answer({"type": "act", "key": "fly", "payload": {}}) == {"status": Status.EXECUTION_FAILURE}
    assert simulated.answer({"type": "dance"})["success"] is False
    robot = WidowX(simulated.answer, 1)
    assert robot.observe() is None
    robot.init(PARAMS, 16)
    pose = np.eye(4)
    pose[:3, :3], pose[:3, 3] = [[0, 0, 1], [0, 1, 0], [-1, 0, 0]], (0.25, 0.1, 0.2)
    assert robot.move(pose) is Status.SUCCESS
    np.testing.assert_allclose(robot.observe().state[:6], [0.25, 0.1, 0.2, 0, 0, 0], atol=1e-6)
    robot.step(np.array([0, 1, 0, 0, 0, 0.1, 1.0]), blocking=True)
    np.testing.assert_allclose(robot.observe().state[:6], [0.25, 0.15, 0.2, 0, 0, 0.1], atol=1e-6)
    robot.move_gripper(0.0)
    assert robot.observe().state[6] == 0
    robot.reset()
    np.testing.assert_allclose(robot.observe().state, [0.3, 0, 0.15, 0, 0, 0, 1], atol=1e-6)
    pose[:3, 3] = 5
    assert robot.move(pose) is Status.EXECUTION_FAILURE
