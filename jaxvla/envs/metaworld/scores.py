"""How an evaluation came out, as papers tell it: by difficulty, and the mean of the difficulties."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxvla.envs.evaluation import Tally, Z, wilson
from jaxvla.envs.metaworld.protocols import Protocol
from jaxvla.envs.metaworld.tasks import DIFFICULTIES, TASKS

Counts = tuple[int, int]  # successes, episodes


def by_difficulty(tally: Tally) -> dict[str, Counts]:
    """Successes and episodes of each difficulty that was played."""
    found: dict[str, Counts] = {}
    for level in DIFFICULTIES:
        own = [counts for task, counts in tally.tasks.items() if TASKS[task].difficulty == level]
        if own:
            found[level] = sum(won for won, _ in own), sum(count for _, count in own)
    return found


def mean_of(levels: Mapping[str, Counts]) -> tuple[float, float, float]:
    """The mean of the shares of successes, each difficulty the same, with its 95 % interval (Agresti and Coull, 1998).

    That of MT50 is what SmolVLA's paper gives: it is not the share of all episodes, for most tasks are easy.
    """
    mean = sum(won / count for won, count in levels.values()) / len(levels)
    # Two successes and two failures more, so that a share of 0 or 1 has a spread, too.
    shares = [((won + 2) / (count + 4), count + 4) for won, count in levels.values()]
    center = sum(share for share, _ in shares) / len(levels)
    spread = Z * math.sqrt(sum(share * (1 - share) / count for share, count in shares)) / len(levels)
    return mean, min(max(center - spread, 0.0), mean), max(min(center + spread, 1.0), mean)


def to_json(tally: Tally, protocol: Protocol) -> dict[str, Any]:
    """As JSON values: the protocol, and shares with intervals."""
    levels = by_difficulty(tally)
    mean, low, high = mean_of(levels)
    return {
        "protocol": protocol.name,
        "difficulties": {level: _shares(counts) for level, counts in levels.items()},
        "mean_of_difficulties": {"success_rate": mean, "interval_95": (low, high)},
        "tasks": {task: _shares(counts) for task, counts in tally.tasks.items()},
    }


def markdown(tallies: Mapping[str, Tally], protocol: Protocol, played: str) -> str:
    """A page: what was played, and a table of difficulties and tasks, a column for each mode.

    Args:
        tallies: by mode, of the same tasks.
        protocol: that was played.
        played: lines about the policy, the protocol, and what was done otherwise.
    """
    levels = {mode: by_difficulty(tally) for mode, tally in tallies.items()}
    first = next(iter(tallies.values()))
    rows = [["", *tallies], ["---"] * (1 + len(tallies))]
    means = [mean_of(own) for own in levels.values()]
    rows.append(["mean of difficulties", *(f"{mean:.1%} ({low:.0%} to {high:.0%})" for mean, low, high in means)])
    rows.append(["all episodes", *(_cell((tally.successes, tally.episodes)) for tally in tallies.values())])
    for level in next(iter(levels.values())):
        rows.append([f"{level.replace('_', ' ')}", *(_cell(own[level]) for own in levels.values())])
    rows += [[task, *(_cell(tally.tasks[task]) for tally in tallies.values())] for task in first.tasks]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"# Meta-World, protocol {protocol.name}\n\n```\n{played}\n```\n\n{table}\n"


def _shares(counts: Counts) -> dict[str, Any]:
    won, count = counts
    return {"successes": won, "episodes": count, "success_rate": won / count, "interval_95": wilson(won, count)}


def _cell(counts: Sequence[int]) -> str:
    won, count = counts
    low, high = wilson(won, count)
    return f"{won} of {count} = {won / count:.0%} ({low:.0%} to {high:.0%})"
