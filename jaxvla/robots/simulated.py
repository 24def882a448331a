"""A robot service that is none: it answers the messages of the WidowX's, and moves the gripper of a tabletop.

What the service's controller does is done here: an action moves on from where the last one led, each dimension and the
reached position are clipped, the gripper is set at once and closes as fast as it can.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxvla.envs import geometry
from jaxvla.envs.expert import demonstrate
from jaxvla.envs.items import Item
from jaxvla.envs.rendering import CAMERAS
from jaxvla.envs.tabletop import TabletopEnv
from jaxvla.robots.bounds import MAX_ROTATION, MAX_TRANSLATION
from jaxvla.robots.service import CLOSED, OPEN, STATE_DIM, Status
from jaxvla.robots.widowx import COMMANDS, OBSERVATIONS

# Steps within which the arm reaches any pose, and the gripper any opening.
_STEPS, _GRIPPER_STEPS = 30, 4

# Steps of the world, which ends nothing by itself.
_FOREVER = 1 << 30


class SimulatedWidowX:
    """Answers one message after the other.

    Args:
        seed: of the scene.
        level, task: of the tabletop, see `TabletopEnv`.
        image_size: pixels a side of its pictures, until a client says another one.

    Attributes:
        env: the world; made anew when a client says how large its images are to be.
        commanded: (command, payload) of every request that moves something, in order.
    """

    def __init__(self, seed: int = 0, level: str = "one", task: str | None = None, image_size: int = 16) -> None:
        self._seed, self._level, self._task = seed, level, task
        self.env = self._scene(image_size)
        self._env_params: Mapping[str, Any] | None = None
        self.commanded: list[tuple[str, Any]] = []

    @property
    def instruction(self) -> str:
        """What is to be done in this scene."""
        return self.env.task.instructions[0]

    @property
    def success(self) -> bool:
        """Whether it is done."""
        return self.env.success()

    def answer(self, message: Mapping[str, Any], seconds: float = 0.0) -> Any:
        """The answer to a message, see `jaxvla.robots.widowx`; never late."""
        kind = message.get("type")
        if kind == "hash":
            port = {"port_number": 5556, "broadcast_port": 5557, "version": "0.0.1"}
            keys = {"action_keys": list(COMMANDS), "observation_keys": list(OBSERVATIONS)}
            return {"success": True, "payload": json.dumps(port | keys)}
        if kind == "obs":
            return self._observation()
        if kind != "act":
            return {"success": False, "message": "Invalid payload"}
        key, payload = message["key"], message["payload"]
        commands: dict[str, Callable[[Any], Status]] = {
            "init": self._init,
            "reset": self._reset,
            "move": self._move,
            "gripper": self._gripper,
            "step_action": self._step,
        }
        if key not in commands:
            return {"status": int(Status.EXECUTION_FAILURE)}
        if key != "init" and self._env_params is None:
            return {"status": int(Status.NOT_INITIALIZED)}
        self.commanded.append((key, payload))
        return {"status": int(commands[key](payload))}

    def arrange(self, done: bool) -> None:
        """Puts the things on the table where they are in the end, or back to where they are at first; not the arm."""
        world = TabletopEnv(render=False, level=self._level)
        world.reset(seed=self._seed, task=self._task)
        if done:
            for _ in demonstrate(world, self._seed, self._task):
                pass
        self._place(world.items)

    def _place(self, items: list[Item]) -> None:
        for item in items:
            own = self.env.item(item.name)
            own.position, own.yaw, own.support = item.position.copy(), item.yaw, item.support

    def _scene(self, image_size: int) -> TabletopEnv:
        env = TabletopEnv(image_size, max_steps=_FOREVER, level=self._level)
        env.reset(seed=self._seed, task=self._task)
        return env

    def _observation(self) -> dict[str, Any]:
        if self._env_params is None:
            noise = np.random.default_rng(0).integers(0, 255, (480, 640, 3), np.uint8)
            return {"image": noise, "state": {}, "full_image": noise}
        seen = self.env.observation()
        topics = self._env_params["camera_topics"]
        images = [np.float32(seen[name].transpose(2, 0, 1).flatten()) / 255 for name in list(CAMERAS)[: len(topics)]]
        return {"image": np.stack(images), "state": self.env.state.copy(), "full_image": b""}

    def _init(self, payload: Mapping[str, Any]) -> Status:
        again = payload["env_params"] == self._env_params and payload["image_size"] == self.env.image_size
        self._env_params = payload["env_params"]
        if again:
            return self._reset({})
        self.env = self._scene(payload["image_size"])
        return Status.SUCCESS

    def _reset(self, payload: Mapping[str, Any]) -> Status:
        self._gripper({"open": OPEN})
        start = self._env_params["start_state"]
        return self._reach(np.array(start[:6]))

    def _move(self, payload: Mapping[str, Any]) -> Status:
        pose = np.asarray(payload["pose"])
        angles = geometry.euler(pose[:3, :3] @ geometry.DEFAULT_ROTATION.T)
        return self._reach(np.append(pose[:3, 3], angles))

    def _reach(self, wanted: np.ndarray) -> Status:
        for _ in range(_STEPS):
            delta = wanted - self.env.state[:6]
            if np.abs(delta).max() < 1e-6:
                return Status.SUCCESS
            self.env.step(np.append(delta, self.env.desired_state[6]))
        return Status.EXECUTION_FAILURE

    def _gripper(self, payload: Mapping[str, Any]) -> Status:
        for _ in range(_GRIPPER_STEPS):
            self.env.step(np.append(np.zeros(6), OPEN if payload["open"] > 0.5 else CLOSED))
        return Status.SUCCESS

    def _step(self, payload: Mapping[str, Any]) -> Status:
        action = np.asarray(payload["action"], np.float64).copy()
        if action.shape != (STATE_DIM,):
            return Status.EXECUTION_FAILURE
        most = np.repeat([MAX_TRANSLATION, MAX_ROTATION], 3)
        action[:6] = np.clip(action[:6], -most, most)
        low, high = (np.array(bound[:3]) for bound in self._env_params["override_workspace_boundaries"])
        action[:3] = np.clip(self.env.state[:3] + action[:3], low, high) - self.env.state[:3]
        self.env.step(action)
        return Status.SUCCESS
