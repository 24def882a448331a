"""The worlds that policies are played in, by name, and what of one is played."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jaxvla.envs import scene
from jaxvla.envs.goals import last_frame
from jaxvla.envs.metaworld.protocols import PROTOCOLS, SUITES, Protocol
from jaxvla.envs.metaworld.tasks import TASKS
from jaxvla.envs.metaworld.world import MetaWorld, check_installed, spec_of
from jaxvla.envs.names import check_name
from jaxvla.envs.recording import Recorded, recorded
from jaxvla.envs.remote import RemoteWorld
from jaxvla.envs.rollout import Episode, Observation, World
from jaxvla.envs.tabletop import CAMERA_SIZE, TabletopEnv
from jaxvla.errors import ConfigError

# Steps after which an episode of the tabletop has failed.
# 16 s: the expert takes half of it, or three quarters where its first grasp misses.
MAX_STEPS = 80


@dataclasses.dataclass(frozen=True)
class Kind:
    """A family of worlds.

    Attributes:
        make: (pixels a side of the images, steps after which an episode has failed, level) to a world.
        goals: (pixels a side, seed, task or None, level) to the views of the world of this seed as it is to become.
        levels: what there is of it; empty for any.
        level: the one that is played where none is named.
        tasks: those of a level, by its name; None for whatever the world takes.
        max_steps: those of a level, where none are named.
        usual: (level, how many tasks) to how many episodes an evaluation has, and the seed that they are drawn from.
        suites: tasks that are evaluated together, by name.
        protocols: by level, of a world that is evaluated by published ones.
    """

    make: Callable[[int, int, str], World]
    goals: Callable[[int, int, str | None, str], Observation]
    levels: tuple[str, ...] = ()
    level: str = ""
    tasks: Callable[[str], Sequence[str]] | None = None
    max_steps: Callable[[str], int] = lambda level: MAX_STEPS
    usual: Callable[[str, int], tuple[int, int]] = lambda level, tasks: (100, 0)
    suites: Mapping[str, Sequence[str]] = dataclasses.field(default_factory=dict)
    protocols: Mapping[str, Protocol] = dataclasses.field(default_factory=dict)


def _metaworld(image_size: int, steps: int, level: str) -> World:
    check_installed()
    protocol = PROTOCOLS[level]
    return RemoteWorld(functools.partial(MetaWorld, protocol, image_size, steps), spec_of(protocol))


def _no_goals(*_: object) -> Observation:
    raise ConfigError("metaworld has no pictures of goals: play a policy there that is told what to do, such as lc_bc")


WORLDS = {
    "tabletop": Kind(
        lambda image_size, steps, level: Recorded(TabletopEnv(image_size, max_steps=steps, level=level)),
        lambda image_size, seed, task, level: recorded(last_frame(image_size, seed, task, level)),
        tuple(scene.LEVELS),
        "full",
        lambda level: scene.LEVELS[level].all_tasks,
    ),
    "metaworld": Kind(
        _metaworld,
        _no_goals,
        tuple(PROTOCOLS),
        "lerobot",
        lambda level: tuple(TASKS),
        lambda level: PROTOCOLS[level].max_steps,
        lambda level, tasks: (PROTOCOLS[level].episodes * (tasks or len(TASKS)), PROTOCOLS[level].seed),
        SUITES,
        PROTOCOLS,
    ),
}


def suite_named(world: str, name: str) -> tuple[str, ...]:
    """The tasks of a suite.

    Raises:
        ConfigError: there is no such world, or it has no such suite.
    """
    check_name("world", world, [*WORLDS])
    if not (suites := WORLDS[world].suites):
        having = ", ".join(name for name, kind in WORLDS.items() if kind.suites)
        raise ConfigError(f"{world} has no suites, and so no {name!r}; worlds with suites are {having}")
    check_name(f"{world} suite", name, suites)
    return tuple(suites[name])


@dataclasses.dataclass(frozen=True)
class Scenario:
    """What is played, and where; one that can be made can be played.

    Attributes:
        world: a key of `WORLDS`.
        level: a level of the world: of the tabletop how much there is to tell apart in a scene, of metaworld the
            protocol. Empty for the world's own.
        tasks: of the world, in turn from episode to episode; empty for those that the seeds draw.
        image_size: pixels a side of what the cameras see.
        max_steps: after which an episode has failed; 0 for the level's.

    Raises:
        ConfigError: there is no such world, level or task.
    """

    world: str
    level: str = ""
    tasks: tuple[str, ...] = ()
    image_size: int = CAMERA_SIZE
    max_steps: int = 0

    def __post_init__(self) -> None:
        check_name("world", self.world, [*WORLDS])
        kind = WORLDS[self.world]
        if kind.levels:
            object.__setattr__(self, "level", self.level or kind.level)
            check_name(f"{self.world} level", self.level, kind.levels)
        if kind.tasks:
            for task in self.tasks:
                check_name(f"{self.world} task", task, kind.tasks(self.level), f" on level {self.level}")
        object.__setattr__(self, "max_steps", self.max_steps or kind.max_steps(self.level))
        self.make()

    @property
    def usual(self) -> tuple[int, int]:
        """How many episodes an evaluation has where nobody says it, and the seed that they are drawn from."""
        return WORLDS[self.world].usual(self.level, len(self.tasks))

    @property
    def protocol(self) -> Protocol | None:
        """The published one that it is played by; None where the world has none."""
        return WORLDS[self.world].protocols.get(self.level)

    def terms(self, settings: Mapping[str, Any]) -> list[str]:
        """See `Protocol.lines`; none where there is no protocol."""
        return [] if self.protocol is None else self.protocol.lines(settings, len(self.tasks) or len(TASKS))

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
