"""Policies that take time to decide, held against one another: success and jumps by how chunks are played, and latency.

Jumps and discontinuities are what `rollout.Result` says they are.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvla.envs.evaluation import Tally, wilson
from jaxvla.envs.rollout import Result

_COLORS = ("#4477aa", "#228833", "#cc3311", "#aa3377", "#777777")


@dataclasses.dataclass(frozen=True)
class Paced:
    """How one way of playing did at one latency.

    Attributes:
        way: its name.
        latency: control steps that a decision took.
        results: of every episode.
    """

    way: str
    latency: int
    results: Sequence[Result]

    @property
    def jumps(self) -> dict[str, float]:
        """Over all episodes: "mean" and "max" of the jumps, "episode_max", the mean of the largest of each episode.

        And "change", the mean between actions with no decision in between. Episodes of one decision have no jump.
        """
        change = float(np.mean([result.change for result in self.results]))
        return {**_over_episodes([result.jumps for result in self.results]), "change": change}

    @property
    def discontinuities(self) -> dict[str, float]:
        """Over all episodes, as `jumps`; empty where nothing was left of any chunk when the next one came."""
        own = [result.discontinuities for result in self.results]
        return _over_episodes(own) if any(own) else {}

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        measured = {"jumps": self.jumps, "discontinuities": self.discontinuities}
        return {"way": self.way, "latency": self.latency, **measured, **Tally.of(self.results).to_json()}


def _over_episodes(values: Sequence[Sequence[float]]) -> dict[str, float]:
    """Of what was measured at the decisions of each episode; those with nothing do not count."""
    episodes = [own for own in values if own]
    every = [value for own in episodes for value in own] or [0.0]
    largest = [max(own) for own in episodes] or [0.0]
    return {"mean": float(np.mean(every)), "max": float(np.max(every)), "episode_max": float(np.mean(largest))}


def markdown(rows: Sequence[Paced]) -> str:
    """A table of the rows."""
    head = ["", "latency", "success", "95 % interval", "jump", "largest of an episode", "change within"]
    head += ["discontinuity", "largest of an episode", "ms a decision"]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        tally = Tally.of(row.results)
        low, high = wilson(tally.successes, tally.episodes)
        share = [f"{tally.successes} of {tally.episodes}", f"{100 * low:.0f} to {100 * high:.0f} %"]
        numbers = [f"{row.jumps[name]:.2f}" for name in ("mean", "episode_max", "change")]
        found = row.discontinuities
        numbers += [f"{found[name]:.2f}" if found else "" for name in ("mean", "episode_max")]
        lines.append([row.way, str(row.latency), *share, *numbers, f"{tally.milliseconds:.1f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(rows: Sequence[Paced], path: pathlib.Path) -> None:
    """Draws success with its 95 % intervals, jumps, and discontinuities, by latency.

    Args:
        rows: any number of ways at any latencies.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    ways: dict[str, list[Paced]] = {}
    for row in rows:
        ways.setdefault(row.way, []).append(row)
    figure = Figure(figsize=(14, 4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    for number, (way, own) in enumerate(ways.items()):
        style: Mapping[str, Any] = {"color": _COLORS[number % len(_COLORS)], "label": way, "marker": "o"}
        own = sorted(own, key=lambda row: row.latency)
        latencies = np.array([row.latency for row in own])
        tallies = [Tally.of(row.results) for row in own]
        rates = np.array([tally.successes / tally.episodes for tally in tallies])
        bounds = np.array([wilson(tally.successes, tally.episodes) for tally in tallies])
        spread = np.abs(bounds - rates[:, None]).T
        # Beside each other, where intervals would hide one another.
        aside = 0.06 * (number - (len(ways) - 1) / 2)
        left.errorbar(latencies + aside, rates, spread, capsize=3, **style)
        middle.plot(latencies, [row.jumps["mean"] for row in own], **style)
        middle.plot(latencies, [row.jumps["change"] for row in own], color=style["color"], linestyle=":")
        right.plot(latencies, [row.discontinuities.get("mean", np.nan) for row in own], **style)
    left.set(title="success", ylim=(0, 1), ylabel="share of episodes")
    middle.set(title="jump at a decision (dotted: change between others)", ylim=(0, None), ylabel="standard deviations")
    right.set(title="discontinuity: from what the chunk before had", ylim=(0, None), ylabel="standard deviations")
    for axes in (left, middle, right):
        axes.set(xlabel="latency, control steps", xticks=sorted({row.latency for row in rows}))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
