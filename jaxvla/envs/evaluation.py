"""How good a policy is in closed loop: which episodes it plays, how many it wins, and films of some."""

import collections
import dataclasses
import math
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxvla.envs.film import FREQUENCY, SUFFIX, Frame, save_film
from jaxvla.envs.rollout import Actor, Episode, Observation, Pace, Result, World, rollouts
from jaxvla.envs.worlds import Scenario

# The last parts of what the seeds of episodes are made from. Seeds of demonstrations have three parts, too, the last of
# them a small number; and what was played during a training is not played again by who judges the policy afterwards.
EVALUATION_STREAM, TRAINING_STREAM = 1 << 31, (1 << 31) + 1

# Standard deviations to either side that hold 95 % of a normal distribution.
Z = 1.96


def episode_seed(seed: int, number: int, stream: int = EVALUATION_STREAM) -> int:
    """The world's seed of one episode.

    Args:
        seed: which episodes of the stream.
        number: of the episode.
        stream: one of the constants of this module.
    """
    return int(np.random.SeedSequence([seed, number, stream]).generate_state(1)[0])


def episodes(
    scenario: Scenario, numbers: Iterable[int], with_goals: bool, seed: int = 0, stream: int = EVALUATION_STREAM
) -> Iterator[Episode]:
    """The episodes of a seed that have these numbers, each made when it is taken; see `episode_seed`."""
    for number in numbers:
        yield scenario.episode(number, episode_seed(seed, number, stream), with_goals)


def wilson(successes: int, episodes: int) -> tuple[float, float]:
    """The 95 % score interval of a success rate (Wilson, 1927)."""
    rate, n = successes / episodes, episodes
    centre = rate + Z**2 / (2 * n)
    spread = Z * math.sqrt(rate * (1 - rate) / n + Z**2 / (4 * n * n))
    return max((centre - spread) / (1 + Z**2 / n), 0.0), min((centre + spread) / (1 + Z**2 / n), 1.0)


@dataclasses.dataclass(frozen=True)
class Tally:
    """What episodes came to.

    Attributes:
        tasks: (successes, episodes) of each task that was played, in the order of their names.
        milliseconds: of a decision, the median over episodes.
    """

    tasks: Mapping[str, tuple[int, int]]
    milliseconds: float

    @classmethod
    def of(cls, results: Sequence[Result]) -> "Tally":
        """That of at least one episode."""
        won = collections.defaultdict(list)
        for result in results:
            won[result.task].append(result.success)
        tasks = {task: (sum(own), len(own)) for task, own in sorted(won.items())}
        return cls(tasks, float(np.median([result.milliseconds for result in results])))

    @property
    def successes(self) -> int:
        """In all tasks."""
        return sum(successes for successes, _ in self.tasks.values())

    @property
    def episodes(self) -> int:
        """Of all tasks."""
        return sum(count for _, count in self.tasks.values())

    def __str__(self) -> str:
        low, high = wilson(self.successes, self.episodes)
        return f"{self.successes} of {self.episodes} ({100 * low:.0f} to {100 * high:.0f} %)"

    def lines(self) -> list[str]:
        """Of all episodes, and of each task where there are several."""
        shares = [f"{task} {successes} of {count}" for task, (successes, count) in self.tasks.items()]
        return [str(self), *(shares if len(shares) > 1 else ())]

    def metrics(self) -> dict[str, float]:
        """Success with its 95 % interval, and of each task where there are several, as shares of their episodes."""
        low, high = wilson(self.successes, self.episodes)
        values = {"success": self.successes / self.episodes, "success_low": low, "success_high": high}
        if len(self.tasks) > 1:
            values |= {f"success_{task}": successes / count for task, (successes, count) in self.tasks.items()}
        return values | {"episodes": float(self.episodes), "ms_per_decision": self.milliseconds}

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "episodes": self.episodes,
            "successes": self.successes,
            "success_rate": self.successes / self.episodes,
            "interval_95": wilson(self.successes, self.episodes),
            "milliseconds": self.milliseconds,
            "tasks": {task: {"episodes": count, "successes": won} for task, (won, count) in self.tasks.items()},
        }


def table(tallies: Mapping[str, Tally]) -> str:
    """One row per mode: success with its interval, the time of a decision, and successes in each task."""
    tasks = sorted({task for tally in tallies.values() for task in tally.tasks})
    lines = [f"{'mode':<10}{'success':>9}{'95 % interval':>17}{'ms/decision':>13}" + "".join(f"{t:>18}" for t in tasks)]
    for mode, tally in tallies.items():
        low, high = wilson(tally.successes, tally.episodes)
        row = f"{mode:<10}{tally.successes:>5}/{tally.episodes:<3}{f'{low:.0%} to {high:.0%}':>17}"
        shares = ["/".join(map(str, tally.tasks[task])) for task in tasks]
        lines.append(row + f"{tally.milliseconds:>13.1f}" + "".join(f"{share:>18}" for share in shares))
    return "\n".join(lines)


class Films:
    """Collects the frames of the first `count` episodes: what the policy sees, and what it is told and says.

    Args:
        needed: names of what the policy looks at, by "observation" and "goals".
        count: of films.
        frequency: time steps per second, Hz; 0 where they take no certain time.
        suffix: one of `film.SUFFIXES`.
    """

    def __init__(
        self, needed: Mapping[str, Sequence[str]], count: int, frequency: float = 0.0, suffix: str = SUFFIX
    ) -> None:
        self._needed, self._count, self._suffix = needed, count, suffix
        self._frequency = frequency or FREQUENCY
        self._frames: dict[int, list[Frame]] = collections.defaultdict(list)

    def watch(self, episode: Episode, instruction: str, observation: Observation, said: str) -> None:
        """Keeps one frame; see `rollout.Watch`."""
        if episode.number < self._count:
            views = {name: observation[name] for name in self._needed["observation"]}
            views |= {f"goal {name}": episode.goals[name] for name in self._needed["goals"]}
            images = {title: view for title, view in views.items() if view.ndim == 3}
            number = len(self._frames[episode.number])
            self._frames[episode.number].append(Frame(images, (f"{number}: {instruction}", said)))

    def save(self, result: Result, folder: pathlib.Path, name: str) -> pathlib.Path:
        """Writes the film of a filmed episode that has ended; gives its path, FOLDER/NAME_NUMBER_ENDING."""
        ending = "success" if result.success else "failure"
        path = folder / f"{name}_{result.number:03d}_{ending}{self._suffix}"
        save_film(path, self._frames.pop(result.number), result.success, self._frequency)
        return path


@dataclasses.dataclass(frozen=True)
class Filming:
    """Which episodes are filmed: the first `count`, as FOLDER/NAME_NUMBER_ENDING in the format of `suffix`."""

    folder: pathlib.Path
    count: int
    suffix: str = SUFFIX


@runtime_checkable
class Player(Actor, Protocol):
    """A policy that says what it looks at; `jaxvla.serving.policy.Policy` is one."""

    robots: int
    needed: Mapping[str, Sequence[str]]


def evaluate(
    policy: Player,
    scenario: Scenario,
    numbers: Iterable[int],
    seed: int,
    pace: Pace | None = None,
    filming: Filming | None = None,
    name: str = "",
) -> Iterator[Result]:
    """Plays episodes of a seed, `policy.robots` of them side by side; their results as they come.

    Args:
        policy: fits the world.
        scenario: what is played.
        numbers: of the episodes.
        seed: see `episodes`.
        pace: how decisions are played.
        filming: what is filmed of them.
        name: of the films.
    """
    worlds = [scenario.make() for _ in range(policy.robots)]
    count, suffix = (filming.count, filming.suffix) if filming else (0, SUFFIX)
    films = Films(policy.needed, count, worlds[0].spec.control_frequency, suffix)
    chosen = episodes(scenario, numbers, bool(policy.needed["goals"]), seed)
    for result in rollouts(policy, worlds, chosen, films.watch if count else None, pace):
        if filming and result.number < count:
            films.save(result, filming.folder, name.replace(" ", "_"))
        yield result


class Course:
    """Episodes that are played again and again by a policy that changes: always the same ones, to be compared.

    They depend on the scenario alone, and are not those of `eval.py`: a checkpoint that was chosen by its successes
    here is judged by others there.

    Args:
        scenario: what is played.
        films: of how many episodes frames are kept.
    """

    def __init__(self, scenario: Scenario, films: int = 0) -> None:
        self._scenario, self._count = scenario, films
        self._episodes: list[Episode] = []
        self._worlds: list[World] = []
        self._films, self._results = Films({}, 0), list[Result]()

    def play(self, policy: Player, count: int, report: Callable[[int, int, int], bool]) -> Tally | None:
        """Plays the first `count` episodes, `policy.robots` of them side by side.

        Args:
            policy: fits the world.
            count: at least one.
            report: called with successes, episodes played and `count` after every episode; False ends it.

        Returns:
            None where it was ended before the last episode.
        """
        results, successes = list[Result](), 0
        side_by_side = min(policy.robots, count)
        self._worlds += [self._scenario.make() for _ in range(side_by_side - len(self._worlds))]
        worlds = self._worlds[:side_by_side]
        films = Films(policy.needed, self._count, worlds[0].spec.control_frequency)
        chosen = self._first(count, bool(policy.needed["goals"]))
        for result in rollouts(policy, worlds, chosen, films.watch):
            results.append(result)
            successes += result.success
            if not report(successes, len(results), count) and len(results) < count:
                return None
        self._films, self._results = films, results
        return Tally.of(results)

    def save_films(self, folder: pathlib.Path, name: str) -> list[pathlib.Path]:
        """Writes the films of the last whole play, once; gives their paths."""
        results, self._results = sorted(self._results, key=lambda result: result.number), []
        return [self._films.save(result, folder, name) for result in results[: self._count]]

    def _first(self, count: int, with_goals: bool) -> Iterator[Episode]:
        """The first episodes; those that were made before are not made again."""
        for number in range(count):
            if number == len(self._episodes):
                seed = episode_seed(0, number, TRAINING_STREAM)
                self._episodes.append(self._scenario.episode(number, seed, with_goals))
            yield self._episodes[number]
