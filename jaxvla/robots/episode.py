"""An episode on a WidowX, as BridgeData's evaluation plays it: goal, start, and steps at the pace of the data.

Whatever goes wrong on the way, nothing more is sent: the arm holds the last pose that it was told, and the gripper
keeps what it holds.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from jaxvla.envs import geometry
from jaxvla.errors import ConfigError, JaxvlaError, RobotError
from jaxvla.robots.bounds import Bounds, Gripper, Guard, check_action
from jaxvla.robots.driving import Driver
from jaxvla.robots.person import Person
from jaxvla.robots.recording import Recording
from jaxvla.robots.service import ACTION_DIM, OPEN, Seen, Service, Status, settings

# Where BridgeData's evaluations put the gripper, m.
POSITION = (0.3, 0.0, 0.15)

# Of BridgeData's actions, Hz, and the size of its frames at which they are looked at where nobody says another.
FREQUENCY, SIDE = 5.0, 256

# Tries until a pose is reached, and seconds between them.
_TRIES, _AGAIN = 10, 0.5

# Seconds until cameras and arm are ready, and without a picture until they count as gone.
_READY, _BLIND = 30.0, 2.0


@dataclasses.dataclass(frozen=True)
class Setup:
    """How episodes are played.

    Attributes:
        cameras: topic of the robot by name of the policy's camera.
        image_size: pixels a side of what the cameras give.
        steps: after which an episode ends.
        period: of a step, s; 0 for as fast as it goes.
        blocking: whether each step waits until the arm has arrived.
        initial, goal: where the gripper is when an episode begins, and when its goal is shown, m.
        bounds: of its poses.
        sticky_steps: of `Gripper`.
        rest: how long the arm rests after it was reset, s.

    Raises:
        RobotError: the gripper would be put out of bounds.
    """

    cameras: Mapping[str, str]
    image_size: int = SIDE
    steps: int = 120
    period: float = 1 / FREQUENCY
    blocking: bool = False
    initial: tuple[float, float, float] = POSITION
    goal: tuple[float, float, float] = POSITION
    bounds: Bounds = dataclasses.field(default_factory=Bounds)
    sticky_steps: int = 1
    rest: float = 2.5

    def __post_init__(self) -> None:
        for flag, position in (("initial_eep", self.initial), ("goal_eep", self.goal)):
            low, high = self.bounds.low[:3], self.bounds.high[:3]
            if not all(least <= value <= most for least, value, most in zip(low, position, high)):
                raise RobotError(f"--{flag} {position} is out of bounds, which are {low} to {high} (x, y, z in m)")


@dataclasses.dataclass(frozen=True, eq=False)
class Ending:
    """How an episode ended.

    Attributes:
        steps: that were played.
        clipped: how many of them were changed to stay within limits and bounds.
        late: how many began later than their time.
        stopped: what stopped it, for people; None where it was played to its end.
        by_keyboard: whether that was Ctrl-C.
    """

    steps: int
    clipped: int
    late: int
    stopped: str | None
    by_keyboard: bool = False

    def __str__(self) -> str:
        """For people."""
        counts = f"{self.steps} steps, {self.clipped} clipped to the bounds, {self.late} late"
        still = "nothing more is sent: the arm holds its last pose, the gripper keeps what it holds"
        return f"played       {counts}" if self.stopped is None else f"stopped      {self.stopped}; {still} ({counts})"

    def to_json(self) -> dict[str, Any]:
        """Plain values; `steps` under a name that leaves room for what happened at them."""
        values = dataclasses.asdict(self)
        return {"steps_played": values.pop("steps"), **values}


class Robot:
    """A WidowX that is driven by a setup.

    Args:
        service: of the robot.
        setup: of its episodes.
    """

    def __init__(self, service: Service, setup: Setup) -> None:
        self._service, self._setup = service, setup

    @property
    def frequency(self) -> float:
        """Of the steps, Hz; that of the data where they are played as fast as it goes."""
        return 1 / self._setup.period if self._setup.period else FREQUENCY

    def start(self) -> None:
        """Starts arm and cameras, and waits for both. Moves the arm to its neutral pose.

        Raises:
            RobotError: they do not become ready, or the gripper is out of bounds.
        """
        setup, bounds = self._setup, self._setup.bounds
        topics = tuple(setup.cameras.values())
        low, high = np.array(bounds.low), np.array(bounds.high)
        env_params = settings(low, high, setup.initial, topics, 1 / self.frequency)
        self._service.init(env_params, setup.image_size)
        Guard(bounds).check(self._look(_READY).state)

    def capture_goal(self, person: Person) -> dict[str, np.ndarray]:
        """The picture of the scene as a person arranges it, {camera: uint8 [s, s, 3], ..., "proprio": float32 [7]}.

        Raises:
            RobotError: the robot cannot show it.
        """
        self._service.move_gripper(OPEN)
        self._go(self._setup.goal)
        person.show_goal()
        goal = self._observation(self._look(_BLIND))
        person.put_back()
        return goal

    def begin(self) -> None:
        """Brings the arm to where an episode begins, the gripper open.

        Raises:
            RobotError: it does not get there.
        """
        self._service.reset()
        time.sleep(self._setup.rest)
        self._service.move_gripper(OPEN)
        self._go(self._setup.initial)

    def play(self, driver: Driver, task: Mapping[str, Any], recording: Recording) -> Ending:
        """Plays an episode to its end, or until something stops it.

        Args:
            driver: decides.
            task: of `Driver.begin`.
            recording: gets every step.
        """
        guard, gripper = Guard(self._setup.bounds), Gripper(self._setup.sticky_steps)
        played, late, stopped, by_keyboard = 0, 0, None, False
        try:
            driver.begin(task)
            seen = self._look(_BLIND)
            guard.begin(seen.state)
            due = time.monotonic()
            for number in range(self._setup.steps):
                late += bool(self._setup.period) and _wait(due) > 0.1 * self._setup.period
                began = time.monotonic()
                due = began + self._setup.period
                if number:
                    seen = self._look(_BLIND)
                    guard.check(seen.state)
                self._step(driver, seen, guard, gripper, recording, began)
                played += 1
            seen = self._look(_BLIND)
            recording.see(self._observation(seen), driver.said)
        except KeyboardInterrupt:
            stopped, by_keyboard = f"by the keyboard at step {played}", True
        except JaxvlaError as error:
            stopped = f"at step {played}: {error}"
        return Ending(played, guard.clipped, late, stopped, by_keyboard)

    def _step(
        self, driver: Driver, seen: Seen, guard: Guard, gripper: Gripper, recording: Recording, began: float
    ) -> None:
        observation = self._observation(seen)
        wanted = driver.next(observation)
        recording.see(observation, driver.said)
        if wanted is None:  # nothing is sent, and the arm stands still
            return
        whole = check_action(wanted)
        admitted = guard.admit(np.append(whole[: ACTION_DIM - 1], gripper.decide(float(whole[-1]))))
        decided = time.monotonic()
        self._service.step(admitted, self._setup.blocking)
        times = {"at": round(began, 4), "decided": round(decided - began, 4)}
        recording.act(seen.state, wanted, admitted, **times, sent=round(time.monotonic() - decided, 4))

    def _observation(self, seen: Seen) -> dict[str, np.ndarray]:
        return dict(zip(self._setup.cameras, seen.images)) | {"proprio": seen.state.astype(np.float32)}

    def _look(self, seconds: float) -> Seen:
        """The first that is seen within so many seconds."""
        end = time.monotonic() + seconds
        while (seen := self._service.observe()) is None:
            if time.monotonic() > end:
                raise RobotError(
                    f"the robot's service shows nothing within {seconds:g} s: are its cameras "
                    f"{', '.join(self._setup.cameras.values())} connected, and is the arm powered?"
                )
            time.sleep(0.05)
        return seen

    def _go(self, position: tuple[float, float, float]) -> None:
        """Moves the gripper, which points straight down, to a position."""
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = geometry.DEFAULT_ROTATION, position
        for _ in range(_TRIES):
            if self._service.move(pose) == Status.SUCCESS:
                return
            time.sleep(_AGAIN)
        raise RobotError(
            f"the arm does not reach {position} (x, y, z in m) in {_TRIES} tries: is something in its way?"
        )


def _wait(due: float) -> float:
    """Sleeps until a time; returns by how much it was late already, s."""
    now = time.monotonic()
    if now < due:
        time.sleep(due - now)
    return max(now - due, 0.0)


def frequency_of(contract: Mapping[str, Any]) -> float:
    """At which a policy is to be played, Hz; that of BridgeData where its contract does not say."""
    return contract["control_frequency"] or FREQUENCY


def side_of(contract: Mapping[str, Any]) -> int:
    """Pixels a side of the pictures that a policy is to see: those of its training, where its contract says them."""
    sizes = [camera["stored_size"] for camera in contract["cameras"].values() if camera["stored_size"]]
    return max((side for size in sizes for side in size), default=SIDE)


def load_goal(path: str, cameras: Sequence[str]) -> dict[str, np.ndarray]:
    """{camera: uint8 [h, w, 3]} from a picture.

    Raises:
        ConfigError: it cannot be read, or the policy looks at more than one goal.
    """
    if len(cameras) != 1:
        raise ConfigError(
            f"the policy looks at goals of {', '.join(cameras)}, and --goal_image is one picture: leave it out, to "
            "capture the goal"
        )
    try:
        with Image.open(path) as image:
            return {cameras[0]: np.asarray(image.convert("RGB"))}
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise ConfigError(f"--goal_image: {path} is no picture ({error})") from error
