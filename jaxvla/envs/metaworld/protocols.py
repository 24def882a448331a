"""How Meta-World is evaluated elsewhere, as data: what the camera sees, how long an episode is, how many there are."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from jaxvla.envs.metaworld.tasks import DIFFICULTIES, MT10, TASKS
from jaxvla.envs.names import check_name
from jaxvla.errors import ConfigError

# The model's own camera that all of these protocols move.
CAMERA = "corner2"


@dataclasses.dataclass(frozen=True)
class Protocol:
    """One way to evaluate. All turn the picture by 180 degrees, since the camera hangs upside down.

    Attributes:
        name: a key of `PROTOCOLS`.
        view: the name of the camera in observations and datasets; another view has another name, so that a policy is
            never shown pictures unlike those that it was trained on.
        position: of the camera, m.
        crop: the share of the picture's side that is kept about its middle.
        image_size: pixels a side.
        max_steps: after which an episode has failed.
        episodes: of each task.
        seed: what the episodes are drawn from.
        source: where it stands.
    """

    name: str
    view: str
    position: tuple[float, float, float]
    crop: float
    image_size: int
    max_steps: int
    episodes: int
    seed: int
    source: str

    def __str__(self) -> str:
        """One line for people."""
        cropped = "" if self.crop == 1 else f", middle {self.crop:.0%} of the side"
        x, y, z = self.position
        return (
            f"{self.name}: {CAMERA} at ({x:g}, {y:g}, {z:g}) turned by 180 degrees{cropped}, {self.episodes} episodes "
            f"of a task, at most {self.max_steps} steps, seed {self.seed}"
        )

    def lines(self, settings: Mapping[str, Any], tasks: int) -> list[str]:
        """Which protocol is played, and what is done otherwise, a line each.

        Args:
            settings: at least "episodes" (of all tasks), "seed", "max_steps" and "image_size", as they are played.
            tasks: how many are.
        """
        usual = {"episodes": self.episodes * tasks}
        usual |= {name: getattr(self, name) for name in ("seed", "max_steps", "image_size")}
        others = [name for name, value in usual.items() if settings[name] != value]
        lines = [f"deviation    {name} {settings[name]}, the protocol says {usual[name]}" for name in others]
        return [f"protocol     {self}", *lines]


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "lerobot", "corner2", (0.75, 0.075, 0.7), 1.0, 480, 500, 10, 42, "huggingface/lerobot, envs/metaworld.py"
        ),
        Protocol(
            "starvla", "corner2_crop", (0.75, 0.075, 0.7), 2 / 3, 224, 400, 10, 4042, "starVLA, MetaWorld's README"
        ),
    )
}

# Which tasks are evaluated together. The difficulties are those of Seo et al. (2022), as LeRobot has them.
SUITES = {
    "mt10": MT10,
    "mt50": tuple(TASKS),
    **{level: tuple(name for name, task in TASKS.items() if task.difficulty == level) for level in DIFFICULTIES},
}


def check_tasks(names: Sequence[str]) -> None:
    """Raises ConfigError where one of the names is no task, or is there twice."""
    for name in names:
        check_name("Meta-World task", name, TASKS)
    if len(set(names)) < len(names):
        raise ConfigError(f"Meta-World tasks must be different ones, not {','.join(names)}")
