"""A simulated robot, an expert that drives it, and what can go wrong on the way."""

import numpy as np

from jaxvla.envs.expert import Expert
from jaxvla.robots.episode import Robot, Setup
from jaxvla.robots.recording import Recording
from jaxvla.robots.widowx import WidowX

CAMERAS = {"images0": "/blue/image_raw"}
SETUP = Setup(CAMERAS, image_size=16, steps=60, period=0.0, rest=0.0)
CONTRACT = {"action_dim": 7, "proprio_dim": 7, "control_frequency": 5.0, "cameras": {}}


class ExpertDriver:
    """Knows the truth about the scene; what it decides can be altered."""

    def __init__(self, robot, goals=(), alter=lambda number, action: action):
        self.needed = {"observation": ("images0", "proprio"), "goals": goals}
        self.contract, self.said, self.task = CONTRACT, "", None
        self._robot, self._alter, self._number = robot, alter, 0

    def begin(self, task):
        self.task, self._number = task, 0
        self._expert = Expert(self._robot.env, np.random.default_rng(0))

    def next(self, observation):
        assert observation["images0"].shape == (16, 16, 3)
        assert observation["proprio"].dtype == np.float32
        self._number += 1
        return self._alter(self._number, self._expert.decide().action)


def drive(simulated, driver=None, setup=SETUP, exchange=None, task=None):
    """An episode from the start of the robot on; the ending and what was recorded."""
    robot = Robot(WidowX(exchange or simulated.answer, len(setup.cameras)), setup)
    robot.start()
    robot.begin()
    recording = Recording(simulated.instruction)
    driver = driver or ExpertDriver(simulated)
    return robot.play(driver, task or {"language": simulated.instruction}, recording), recording
