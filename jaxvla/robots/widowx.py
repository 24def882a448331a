"""A WidowX by the messages of BridgeData's robot service (widowx_env_service of bridge_data_robot).

A request is {"type": "hash"}, for what the service can do; {"type": "obs", "keys": {...}}; or {"type": "act", "key":
one of `COMMANDS`, "payload": {...}}, which is answered by {"status": a `Status`}.
"""

import importlib.util
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxvla.errors import RobotError
from jaxvla.robots.addresses import host_and_port
from jaxvla.robots.service import STATE_DIM, Seen, Status

# From a message and the seconds to wait, to its answer; raises RobotError where there is none. `wire.Line` is one.
Exchange = Callable[[Mapping[str, Any], float], Any]

COMMANDS = ("init", "move", "gripper", "reset", "step_action")
OBSERVATIONS = ("image", "state", "full_image")

# Seconds: what a command may take. The first start of cameras and arm takes ten.
_SECONDS = {"hash": 3.0, "obs": 2.0, "init": 60.0, "move": 15.0, "reset": 30.0, "gripper": 5.0, "step_action": 3.0}
_MOVE_SECONDS = 1.5


class WidowX:
    """A `Service` by messages.

    Args:
        exchange: with the service.
        cameras: how many it shows.

    Raises:
        RobotError: nobody answers, or it is another service.
    """

    def __init__(self, exchange: Exchange, cameras: int) -> None:
        self._exchange, self._cameras, self._image_size = exchange, cameras, 0
        told = self._ask({"type": "hash"}, "hash")
        commands = _commands(told)
        missing = [key for key in COMMANDS if key not in commands]
        if missing:
            held = ", ".join(commands) or "none"
            raise RobotError(f"the robot's service has no command {missing[0]!r}; it has: {held}. It is no WidowX's")

    def init(self, env_params: Mapping[str, Any], image_size: int) -> None:
        """See `Service.init`."""
        self._image_size = image_size
        self._act("init", {"env_params": dict(env_params), "image_size": image_size})

    def observe(self) -> Seen | None:
        """See `Service.observe`."""
        told = self._ask({"type": "obs", "keys": set(OBSERVATIONS)}, "obs")
        if told is None:
            return None
        if not isinstance(told, dict) or not {"image", "state"} <= told.keys():
            held = ", ".join(map(str, told)) if isinstance(told, dict) else type(told).__name__
            raise RobotError(f"the robot's service shows {held}; expected image and state")
        state = told["state"]
        if isinstance(state, dict) and not state:  # what is shown before the robot is ready
            return None
        return Seen(self._images(told["image"]), _state(state))

    def reset(self) -> None:
        """See `Service.reset`."""
        self._act("reset", {})

    def move(self, pose: np.ndarray) -> Status:
        """See `Service.move`."""
        payload = {"pose": np.asarray(pose, np.float64), "duration": _MOVE_SECONDS, "blocking": True}
        return self._act("move", payload, (Status.SUCCESS, Status.EXECUTION_FAILURE))

    def move_gripper(self, opening: float) -> None:
        """See `Service.move_gripper`."""
        self._act("gripper", {"open": float(opening)})

    def step(self, action: np.ndarray, blocking: bool) -> None:
        """See `Service.step`."""
        self._act("step_action", {"action": np.asarray(action, np.float64), "blocking": blocking})

    def _act(self, key: str, payload: dict[str, Any], admitted: tuple[Status, ...] = (Status.SUCCESS,)) -> Status:
        told = self._ask({"type": "act", "key": key, "payload": payload}, key)
        number = told.get("status") if isinstance(told, dict) else None
        if number not in [int(status) for status in Status]:
            raise RobotError(f"the robot's service answers {key!r} with {str(told)[:80]}; expected a status, 0 to 3")
        status = Status(number)
        if status not in admitted:
            raise RobotError(
                f"the robot's service answers {key!r} with {status.name}: look at its own terminal, and restart it"
            )
        return status

    def _ask(self, message: Mapping[str, Any], key: str) -> Any:
        return self._exchange(message, _SECONDS[key])

    def _images(self, flat: Any) -> tuple[np.ndarray, ...]:
        """uint8 [s, s, 3] of each camera, of float [cameras, 3 * s * s] or [3 * s * s] in [0, 1], channels first."""
        side = self._image_size
        image = np.asarray(flat)
        if image.size != self._cameras * 3 * side * side or image.dtype.kind != "f":
            raise RobotError(
                f"the robot's service shows an image {image.dtype}{list(image.shape)}; expected "
                f"float[{self._cameras}, {3 * side * side}]: {self._cameras} camera(s), 3 x {side} x {side} each. "
                "Give --cameras as many topics as it has"
            )
        if not np.isfinite(image).all():
            raise RobotError("the robot's service shows an image with values that are not finite")
        pixels = np.rint(np.clip(image, 0, 1) * 255).astype(np.uint8).reshape(self._cameras, 3, side, side)
        return tuple(np.ascontiguousarray(each.transpose(1, 2, 0)) for each in pixels)


def connect(address: str, cameras: int) -> WidowX:
    """The WidowX whose service listens at an address, HOST:PORT.

    Raises:
        ConfigError: the address is none.
        RobotError: nobody answers there, it is another service, or packages of its wire are not installed.
    """
    host, port = host_and_port(address, "--robot")
    for module, package in (("zmq", "pyzmq"), ("lz4", "lz4")):
        if importlib.util.find_spec(module) is None:
            raise RobotError(f"the WidowX service speaks by {package}, which is not installed: pip install pyzmq lz4")
    from jaxvla.robots.wire import Line

    return WidowX(Line(host, port), cameras)


def _commands(told: Any) -> list[str]:
    """What the service says that it can do."""
    try:
        commands = json.loads(told["payload"])["action_keys"]
    except (TypeError, KeyError, ValueError):
        raise RobotError(f"the robot's service answers {str(told)[:80]!r} to {{'type': 'hash'}}: no WidowX's") from None
    return [str(key) for key in commands]


def _state(state: Any) -> np.ndarray:
    array = np.asarray(state)
    if array.shape != (STATE_DIM,) or array.dtype.kind not in "fiu":
        raise RobotError(
            f"the robot's service says that the state is {array.dtype}{list(array.shape)}; expected [{STATE_DIM}]: x, "
            "y, z, roll, pitch, yaw, gripper"
        )
    return array.astype(np.float64)
