"""A WidowX behind the robot service of BridgeData, as whoever drives it sees it.

Poses are those of the point between the fingertips in the robot's base: x forward, y left, z up, m.
"""

import dataclasses
import enum
from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

# x, y, z (m), roll, pitch, yaw (rad, zero where the gripper points straight down), gripper (1 open, 0 closed).
STATE_DIM = ACTION_DIM = 7

OPEN, CLOSED = 1.0, 0.0


class Status(enum.IntEnum):
    """How a command went, as the service numbers it."""

    NO_CONNECTION = 0
    SUCCESS = 1
    EXECUTION_FAILURE = 2
    NOT_INITIALIZED = 3


@dataclasses.dataclass(frozen=True, eq=False)
class Seen:
    """What the robot shows.

    Attributes:
        images: uint8 [image_size, image_size, 3], RGB, one for each camera, in the order of its topics.
        state: float64 [7].
    """

    images: tuple[np.ndarray, ...]
    state: np.ndarray


@runtime_checkable
class Service(Protocol):
    """What can be asked of a robot; every method raises RobotError where the service is gone or refuses."""

    def init(self, env_params: Mapping[str, Any], image_size: int) -> None:
        """Starts cameras and arm, which moves to its neutral pose. Takes ten seconds the first time.

        Args:
            env_params: settings of the service, see `settings`.
            image_size: pixels a side of the images.
        """

    def observe(self) -> Seen | None:
        """What is seen now; None while the cameras and the arm are not ready."""

    def reset(self) -> None:
        """Opens the gripper, and moves the arm to where episodes begin."""

    def move(self, pose: np.ndarray) -> Status:
        """Moves to a pose [4, 4], and waits until it is there; EXECUTION_FAILURE where no way is found this time."""

    def move_gripper(self, opening: float) -> None:
        """Opens (1) or closes (0) the gripper."""

    def step(self, action: np.ndarray, blocking: bool) -> None:
        """Moves by one action [7] from where the last one led: changes of x, y, z, roll, pitch, yaw, and the gripper.

        Args:
            action: the gripper's number is absolute.
            blocking: whether to wait until the arm has arrived.
        """


def settings(
    low: np.ndarray, high: np.ndarray, start: tuple[float, float, float], topics: tuple[str, ...], period: float
) -> dict[str, Any]:
    """The settings of an episode, by the service's names.

    Args:
        low, high: bounds of x, y, z (m) and yaw (rad) [4], beyond which the service moves nothing either.
        start: where `Service.reset` leaves the gripper, m.
        topics: of the cameras.
        period: of a step, s.
    """
    return {
        "fix_zangle": 0.1,
        "move_duration": period,
        "adaptive_wait": True,
        "move_to_rand_start_freq": 1,
        "override_workspace_boundaries": [[*map(float, low), 0.0], [*map(float, high), 0.0]],
        "action_clipping": "xyz",
        "catch_environment_except": False,
        "start_state": [*map(float, start), 0.0, 0.0, 0.0, OPEN],
        "skip_move_to_neutral": False,
        "return_full_image": False,
        "camera_topics": [{"name": topic} for topic in topics],
    }
