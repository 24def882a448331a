"""The worlds that policies are played in, by name, and what of one is played."""

import dataclasses
from collections.abc import Callable

from jaxvla.envs.goals import last_frame
from jaxvla.envs.recording import Recorded, recorded
from jaxvla.envs.rollout import Episode, Observation, World
from jaxvla.envs.tabletop import CAMERA_SIZE, TabletopEnv
from jaxvla.errors import ConfigError

# Steps after which an episode has failed.
# 16 s: the expert takes half of it, or three quarters where its first grasp misses.
MAX_STEPS = 80


@dataclasses.dataclass(frozen=True)
class Kind:
    """A family of worlds.

    Attributes:
        make: (pixels a side of the images, steps after which an episode has failed, level) to a world.
        goals: (pixels a side, seed, task or None, level) to the views of the world of this seed as it is to become.
    """

    make: Callable[[int, int, str], World]
    goals: Callable[[int, int, str | None, str], Observation]


WORLDS = {
    "tabletop": Kind(
        lambda image_size, steps, level: Recorded(TabletopEnv(image_size, max_steps=steps, level=level)),
        lambda image_size, seed, task, level: recorded(last_frame(image_size, seed, task, level)),
    )
}


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What is played, and where; one that can be made can be played.

    Attributes:
        world: a key of `WORLDS`.
        level: how much there is to tell apart in a scene, a level of the world.
        tasks: of the world, in turn from episode to episode; empty for those that the seeds draw.
        image_size: pixels a side of what the cameras see.
        max_steps: after which an episode has failed.

    Raises:
        ConfigError: there is no such world, level or task.
    """

    world: str
    level: str = "full"
    tasks: tuple[str, ...] = ()
    image_size: int = CAMERA_SIZE
    max_steps: int = MAX_STEPS

    def __post_init__(self) -> None:
        if self.world not in WORLDS:
            raise ConfigError(f"no world named {self.world!r}; there are: {', '.join(WORLDS)}")
        world = self.make()
        for task in self.tasks:
            world.reset(seed=0, task=task)

    def make(self) -> World:
        """A world of its own, for one episode at a time."""
        return WORLDS[self.world].make(self.image_size, self.max_steps, self.level)

    def episode(self, number: int, seed: int, with_goals: bool) -> Episode:
        """One to play.

        Args:
            number: which of the tasks it has, and by which its result is known.
            seed: of its scene.
            with_goals: whether a policy is shown how the world is to become.
        """
        task = self.tasks[number % len(self.tasks)] if self.tasks else None
        goals = WORLDS[self.world].goals(self.image_size, seed, task, self.level) if with_goals else None
        return Episode(number, seed, task, goals)
