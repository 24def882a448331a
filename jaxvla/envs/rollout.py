"""Episodes in closed loop: several worlds side by side, and one policy that decides for all of them at once.

Every world plays one episode at a time. Worlds whose episode goes on get their decisions from one call of the policy,
then each plays the actions that it got; a world whose episode has ended begins the next one that waits. So what happens
in an episode does not depend on how many worlds there are, or in which of them it is played.

Axis letters: n worlds that wait for a decision, a actions to play before the next one, d action dimension.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxvla.errors import ConfigError

Observation = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class WorldSpec:
    """What a world shows and takes, known before it is played.

    Attributes:
        cameras: names of the images of an observation, and of a goal.
        proprio_dim: numbers of its "proprio".
        action_dim: numbers of an action.
        control_frequency: of the actions, Hz; 0 where a step takes no certain time.
    """

    cameras: tuple[str, ...]
    proprio_dim: int
    action_dim: int
    control_frequency: float = 0.0


@runtime_checkable
class World(Protocol):
    """What episodes are played in; `tabletop.TabletopEnv` is one."""

    @property
    def spec(self) -> WorldSpec:
        """What it shows and takes."""

    def reset(self, *, seed: int, task: str | None = None) -> tuple[Observation, dict[str, Any]]:
        """The first observation, and at least the "task" and its "instruction"."""

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Observation, reward, success, truncated, and the same facts as `reset` gives."""


@runtime_checkable
class Actor(Protocol):
    """A policy for worlds that are numbered from 0; `jaxvla.serving.policy.Policy` is one."""

    def act_batch(
        self, observations: Sequence[Observation], tasks: Sequence[Mapping[str, Any]], robots: Sequence[int]
    ) -> tuple[np.ndarray, Sequence[str]]:
        """Actions [n, a, d] of worlds `robots` until their next decision, and what is said before each."""

    def observe_batch(self, observations: Sequence[Observation], robots: Sequence[int]) -> None:
        """Shows time steps at which nothing is to be decided."""

    def reset(self, robots: Sequence[int], seeds: Sequence[int]) -> None:
        """Tells that these worlds begin an episode, and from which seeds what is drawn in it is drawn."""


def check_fit(
    name: str, spec: WorldSpec, needed: Mapping[str, Sequence[str]], proprio_dim: int, action_dim: int
) -> None:
    """Whether a policy can be played in a world.

    Args:
        name: of the world, for the error.
        spec: of the world.
        needed: names that the policy reads, by "observation" and "goals".
        proprio_dim, action_dim: of the policy.

    Raises:
        ConfigError: it reads a camera that the world has not, or a proprio or actions of another length.
    """
    own = _parts(needed["observation"], proprio_dim)
    goals = _parts(needed["goals"], proprio_dim)
    given = _parts((*spec.cameras, "proprio"), spec.proprio_dim)
    if not {*own, *goals} <= {*given} or action_dim != spec.action_dim:
        looks = ", ".join(own) or "nothing"
        at_goals = f", goals of {', '.join(goals)}" if goals else ""
        raise ConfigError(
            f"the policy does not fit {name}: it reads {looks}{at_goals} and acts in {action_dim} numbers, but {name} "
            f"shows {', '.join(given)} and takes {spec.action_dim}; give a policy that was trained on such data"
        )


def _parts(names: Sequence[str], proprio_dim: int) -> list[str]:
    return [f"proprio [{proprio_dim}]" if name == "proprio" else name for name in names]


@dataclasses.dataclass(frozen=True, eq=False)
class Episode:
    """What is to be played.

    Attributes:
        number: by which its result is known.
        seed: of the world, and of what the policy draws.
        task: name of a task of the world; None for the one that the seed draws.
        goals: views of the world as it is to become; None for policies that do not look at any.
    """

    number: int
    seed: int
    task: str | None = None
    goals: Observation | None = None


@dataclasses.dataclass(frozen=True)
class Result:
    """How an episode went.

    Attributes:
        number, seed: of the `Episode`.
        task, instruction: what was to be done.
        success: whether it was.
        steps: that the world took.
        decisions: that the policy took.
        milliseconds: of one decision, the median: the time of the call over the number of worlds that it decided for.
        words: what the policy said before each decision; empty where it said nothing.
    """

    number: int
    seed: int
    task: str
    instruction: str
    success: bool
    steps: int
    decisions: int
    milliseconds: float
    words: tuple[str, ...]


# Called with an episode, its task in words, a frame (first and last included), and what was said before it.
Watch = Callable[[Episode, str, Observation, str], None]


@dataclasses.dataclass
class _Play:
    """An episode that goes on."""

    episode: Episode
    world: World
    watch: Watch | None
    observation: Observation = dataclasses.field(init=False)
    info: dict[str, Any] = dataclasses.field(init=False)
    success: bool = False
    over: bool = False
    steps: int = 0
    milliseconds: list[float] = dataclasses.field(default_factory=list)
    words: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.observation, self.info = self.world.reset(seed=self.episode.seed, task=self.episode.task)
        self._show()

    @property
    def task(self) -> dict[str, Any]:
        goals = {} if self.episode.goals is None else {"goals": self.episode.goals}
        return {"language": self.info["instruction"]} | goals

    def step(self, action_d: np.ndarray) -> None:
        # BridgeData's robots open and close the gripper all the way.
        whole = np.append(action_d[:-1], action_d[-1] > 0.5)
        self.observation, _, self.success, truncated, self.info = self.world.step(whole)
        self.over = self.success or truncated
        self.steps += 1
        self._show()

    def result(self) -> Result:
        return Result(
            number=self.episode.number,
            seed=self.episode.seed,
            task=self.info["task"],
            instruction=self.info["instruction"],
            success=self.success,
            steps=self.steps,
            decisions=len(self.milliseconds),
            milliseconds=float(np.median(self.milliseconds)),
            words=tuple(self.words) if any(self.words) else (),
        )

    def _show(self) -> None:
        if self.watch is not None:
            self.watch(self.episode, self.info["instruction"], self.observation, self.words[-1] if self.words else "")


def rollouts(
    policy: Actor,
    worlds: Sequence[World],
    episodes: Iterable[Episode],
    watch: Watch | None = None,
) -> Iterator[Result]:
    """Plays every episode to its end, and gives the results in the order in which they come.

    Args:
        policy: decides for world i as its robot i, which plays all actions of a decision before the next one.
        worlds: as many as are to be played side by side.
        episodes: taken one by one, when a world is free.
        watch: sees every frame of every episode.
    """
    waiting = iter(episodes)
    plays: dict[int, _Play] = {}
    while True:
        for i in [i for i in range(len(worlds)) if i not in plays]:
            episode = next(waiting, None)
            if episode is not None:
                plays[i] = _Play(episode, worlds[i], watch)
                policy.reset([i], [episode.seed])
        if not plays:
            return
        _decide_and_play(policy, plays)
        for i in [i for i, play in plays.items() if play.over]:
            yield plays.pop(i).result()


def _decide_and_play(policy: Actor, plays: Mapping[int, _Play]) -> None:
    robots, together = list(plays), list(plays.values())
    start = time.perf_counter()
    actions_nad, words = policy.act_batch([play.observation for play in together], [p.task for p in together], robots)
    milliseconds = 1000 * (time.perf_counter() - start) / len(together)
    for i, play, actions_ad, said in zip(robots, together, actions_nad, words):
        play.milliseconds.append(milliseconds)
        play.words.append(said)
        for k, action_d in enumerate(actions_ad):
            if k:
                policy.observe_batch([play.observation], [i])
            play.step(action_d)
            if play.over:
                break
