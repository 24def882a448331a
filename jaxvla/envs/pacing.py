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

# Of `Paced.jumps`, in the table.
_COLUMNS = ("mean", "episode_max", "change", "discontinuity")
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
    def jumps(self) -> dict[str, float | None]:
        """Over all episodes: "mean" and "max" of the jumps, "episode_max", the mean of the largest of each episode.

        And "change", the mean between actions with no decision in between, and "discontinuity", the mean of these, None
        where nothing was left of any chunk. Episodes of one decision have no jump.
        """
        discontinuities = [each for result in self.results for each in result.discontinuities]
        episodes = [result.jumps for result in self.results if result.jumps]
        every = [jump for jumps in episodes for jump in jumps] or [0.0]
        return {
            "mean": float(np.mean(every)),
            "max": float(np.max(every)),
            "episode_max": float(np.mean([max(jumps) for jumps in episodes] or [0.0])),
            "change": float(np.mean([result.change for result in self.results])),
            "discontinuity": float(np.mean(discontinuities)) if discontinuities else None,
        }

    def to_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {"way": self.way, "latency": self.latency, "jumps": self.jumps, **Tally.of(self.results).to_json()}


def markdown(rows: Sequence[Paced]) -> str:
    """A table of the rows."""
    head = [
        "",
        "latency",
        "success",
        "95 % interval",
        "jump",
        "largest of an episode",
        "change within",
        "discontinuity",
        "ms a decision",
    ]
    lines = [head, ["---"] * len(head)]
    for row in rows:
        tally, jumps = Tally.of(row.results), row.jumps
        low, high = wilson(tally.successes, tally.episodes)
        numbers = ["" if jumps[name] is None else f"{jumps[name]:.2f}" for name in _COLUMNS]
        share = [f"{tally.successes} of {tally.episodes}", f"{100 * low:.0f} to {100 * high:.0f} %"]
        lines.append([row.way, str(row.latency), *share, *numbers, f"{tally.milliseconds:.1f}"])
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def plot(rows: Sequence[Paced], path: pathlib.Path) -> None:
    """Draws success with its 95 % intervals, and jumps, by latency.

    Args:
        rows: any number of ways at any latencies.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    ways: dict[str, list[Paced]] = {}
    for row in rows:
        ways.setdefault(row.way, []).append(row)
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
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
        right.plot(latencies, [row.jumps["mean"] for row in own], **style)
        right.plot(latencies, [row.jumps["change"] for row in own], color=style["color"], linestyle=":")
    left.set(title="success", ylim=(0, 1), ylabel="share of episodes")
    right.set(title="jump at a decision (dotted: change between others)", ylim=(0, None), ylabel="standard deviations")
    for axes in (left, right):
        axes.set(xlabel="latency, control steps", xticks=sorted({row.latency for row in rows}))
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False)
    figure.savefig(path, dpi=130)
