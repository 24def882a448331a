"""Episodes in closed loop: several worlds side by side, and one policy that decides for all of them at once.

Every world plays one episode at a time. Worlds whose episode goes on get their decisions from one call of the policy,
then all play until their next ones are due, a step at a time and at the same time: each in a thread, in which it may
wait for a process of its own. A world whose episode has ended begins the next one that waits. So what happens in an
episode does not depend on how many worlds there are, or in which of them it is played.

A `Pace` says how long a decision takes, in steps of a world, which goes on meanwhile.

Axis letters: n worlds that wait for a decision, a actions of a decision, d action dimension.
"""

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxvla.errors import ConfigError
from jaxvla_client.chunks import Plan, Player, Timing

Observation = Mapping[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class WorldSpec:
    """What a world shows and takes, known before it is played.

    Attributes:
        cameras: names of the images of an observation, and of a goal.
        proprio_dim: numbers of its "proprio".
        action_dim: numbers of an action.
        control_frequency: of the actions, Hz; 0 where a step takes no certain time.
        binary_gripper: whether the last number of an action opens the gripper (1) or closes it (0) all the way, as on
            BridgeData's robots; what a policy gives is then taken as the nearer one.
    """

    cameras: tuple[str, ...]
    proprio_dim: int
    action_dim: int
    control_frequency: float = 0.0
    binary_gripper: bool = True


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
        self,
        observations: Sequence[Observation],
        tasks: Sequence[Mapping[str, Any]],
        robots: Sequence[int],
        timings: Sequence[Timing],
    ) -> tuple[np.ndarray, Sequence[str]]:
        """Actions [n, a, d] of worlds `robots` from now on, and what is said before each.

        The timings say which action of the decision before would be played now, and when this one is there.
        """

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


@dataclasses.dataclass(frozen=True, eq=False)
class Pace:
    """How worlds play what is decided for them.

    A world stands still until its first decision is there. From then on it plays the actions of earlier ones while the
    next is made.

    Attributes:
        plan: which actions are played; all of a decision where nothing else is said.
        latency: steps of the world that a decision takes.
        unit_d: what jumps are measured in, in the units of actions; None for these.
    """

    plan: Plan = dataclasses.field(default_factory=Plan)
    latency: int = 0
    unit_d: np.ndarray | None = None


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
        jumps: how far the first action that is played after a decision has come lies from the one played before, of all
            decisions but the first: the largest difference in any number but the gripper's, in `Pace.unit_d`.
        change: the same between actions with no decision in between, the mean; 0 where there are none.
        discontinuities: how far the first action that is played after a decision has come lies from the one that would
            have been played without it, as jumps are measured; of all decisions before which something was left.
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
    jumps: tuple[float, ...] = ()
    change: float = 0.0
    discontinuities: tuple[float, ...] = ()

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "Result":
        """The inverse of `dataclasses.asdict`, of values that have been JSON.

        Raises:
            TypeError: some are missing, or are not of a result.
        """
        lists = [name for name in ("words", "jumps", "discontinuities") if name in values]
        return cls(**{**values, **{name: tuple(values[name]) for name in lists}})


# Called with an episode, its task in words, a frame (first and last included), and what was said before it.
Watch = Callable[[Episode, str, Observation, str], None]


@dataclasses.dataclass
class _Play:
    """An episode that goes on."""

    episode: Episode
    world: World
    watch: Watch | None
    pace: Pace
    player: Player = dataclasses.field(init=False)
    observation: Observation = dataclasses.field(init=False)
    info: dict[str, Any] = dataclasses.field(init=False)
    success: bool = False
    over: bool = False
    steps: int = 0
    milliseconds: list[float] = dataclasses.field(default_factory=list)
    words: list[str] = dataclasses.field(default_factory=list)
    # Whether a decision has come since the last action, and what would have been next without it.
    decided: bool = False
    replaced_d: np.ndarray | None = None
    last_d: np.ndarray | None = None
    # Between actions, by whether a decision has come in between.
    changes: dict[bool, list[float]] = dataclasses.field(default_factory=lambda: {True: [], False: []})
    discontinuities: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        self.player = Player(self.pace.plan, self.pace.latency)

    def begin(self) -> None:
        """Resets the world."""
        self.observation, self.info = self.world.reset(seed=self.episode.seed, task=self.episode.task)

    @property
    def task(self) -> dict[str, Any]:
        goals = {} if self.episode.goals is None else {"goals": self.episode.goals}
        return {"language": self.info["instruction"]} | goals

    def next(self, actions_ad: np.ndarray) -> np.ndarray | None:
        """What is played next; None where the episode is over, or the next decision is due.

        Args:
            actions_ad: of the last decision, which comes after as many steps as the pace says.
        """
        while not self.over and not self.player.due:
            if self.player.waited == self.pace.latency:
                self.replaced_d = self.replaced_d if self.decided else self.player.upcoming
                self.player.answer(actions_ad)
                self.decided = True
                continue  # the next decision may be due at once
            action_d = self.player.step()
            if action_d is not None:
                return action_d
        return None

    def step(self, action_d: np.ndarray) -> None:
        """Plays one action."""
        if self.last_d is not None:
            self.changes[self.decided].append(self._apart(action_d, self.last_d))
        if self.replaced_d is not None:
            self.discontinuities.append(self._apart(action_d, self.replaced_d))
        self.last_d, self.decided, self.replaced_d = action_d, False, None
        if self.world.spec.binary_gripper:
            action_d = np.append(action_d[:-1], action_d[-1] > 0.5)
        self.observation, _, self.success, truncated, self.info = self.world.step(action_d)
        self.over = self.success or truncated
        self.steps += 1

    def _apart(self, one_d: np.ndarray, other_d: np.ndarray) -> float:
        """The largest difference in any number but the gripper's."""
        apart_d = np.abs(one_d - other_d) / (1.0 if self.pace.unit_d is None else self.pace.unit_d)
        return float(apart_d[:-1].max())

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
            jumps=tuple(self.changes[True]),
            change=float(np.mean(self.changes[False])) if self.changes[False] else 0.0,
            discontinuities=tuple(self.discontinuities),
        )

    def show(self) -> None:
        """Shows the frame to who watches."""
        if self.watch is not None:
            self.watch(self.episode, self.info["instruction"], self.observation, self.words[-1] if self.words else "")


def rollouts(
    policy: Actor,
    worlds: Sequence[World],
    episodes: Iterable[Episode],
    watch: Watch | None = None,
    pace: Pace | None = None,
) -> Iterator[Result]:
    """Plays every episode to its end, and gives the results in the order in which they come.

    Args:
        policy: decides for world i as its robot i.
        worlds: as many as are to be played side by side.
        episodes: taken one by one, when a world is free.
        watch: sees every frame of every episode.
        pace: how decisions are played; None where each is there at once, and all its actions before the next one.
    """
    waiting, pace = iter(episodes), pace or Pace()
    plays: dict[int, _Play] = {}
    with ThreadPoolExecutor(max(len(worlds), 1)) as threads:
        while True:
            fresh = []
            for i in [i for i in range(len(worlds)) if i not in plays]:
                episode = next(waiting, None)
                if episode is not None:
                    plays[i] = _Play(episode, worlds[i], watch, pace)
                    fresh.append(plays[i])
                    policy.reset([i], [episode.seed])
            if not plays:
                return
            list(threads.map(_Play.begin, fresh))
            for play in fresh:
                play.show()
            _decide_and_play(policy, plays, threads)
            for i in [i for i, play in plays.items() if play.over]:
                yield plays.pop(i).result()


def _decide_and_play(policy: Actor, plays: Mapping[int, _Play], threads: ThreadPoolExecutor) -> None:
    robots, together = list(plays), list(plays.values())
    timings = [play.player.ask() for play in together]
    start = time.perf_counter()
    observations, tasks = [play.observation for play in together], [play.task for play in together]
    actions_nad, words = policy.act_batch(observations, tasks, robots, timings)
    milliseconds = 1000 * (time.perf_counter() - start) / len(together)
    for play, said in zip(together, words):
        play.milliseconds.append(milliseconds)
        play.words.append(said)
    chunks, seen = dict(zip(robots, actions_nad)), True
    while moves := {i: move for i, play in plays.items() if (move := play.next(chunks[i])) is not None}:
        if not seen:
            policy.observe_batch([plays[i].observation for i in moves], list(moves))
        list(threads.map(_Play.step, [plays[i] for i in moves], moves.values()))
        for i in moves:
            plays[i].show()
        seen = False
