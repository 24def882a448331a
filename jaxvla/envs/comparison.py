"""Several ways to act, each trained from several seeds, held against one another in the same episodes."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvla.envs.evaluation import Tally, Z, wilson
from jaxvla.envs.rollout import Result


@dataclasses.dataclass(frozen=True)
class Row:
    """How one way to act did.

    Attributes:
        results: of every episode, by the seed of training; those of a seed are the same episodes in all rows.
        milliseconds: that one robot waits for a decision; NaN where that was not measured.
        tokens: said before a decision, the mean.
        slots: thought in before a decision.
    """

    results: Mapping[int, Sequence[Result]]
    milliseconds: float = math.nan
    tokens: float = 0.0
    slots: int = 0

    @property
    def tally(self) -> Tally:
        """Of all seeds."""
        return Tally.of([result for own in self.results.values() for result in own])

    @property
    def rates(self) -> dict[int, float]:
        """The share of successes of each seed."""
        return {seed: float(np.mean([result.success for result in own])) for seed, own in self.results.items()}

    def minus(self, base: "Row") -> tuple[float, float, float]:
        """By how much the share of successes is above another row's, with the bounds of its 95 % interval.

        Episodes are held against the same ones of the other row, seed by seed, so that what makes some of them hard
        for both does not widen the interval. It is one over episodes: of what other seeds of training would give it
        says no more than `rates` show.

        Args:
            base: of the same episodes for every seed that both have.

        Returns:
            The difference and the two bounds; NaN where they have no seed in common.
        """
        pairs = [
            float(own.success) - float(other.success)
            for seed in self.results.keys() & base.results.keys()
            for own, other in zip(_sorted(self.results[seed]), _sorted(base.results[seed]), strict=True)
        ]
        if not pairs:
            return math.nan, math.nan, math.nan
        mean, spread = float(np.mean(pairs)), Z * float(np.std(pairs)) / math.sqrt(len(pairs))
        return mean, mean - spread, mean + spread

    def to_json(self, base: "Row | None" = None) -> dict[str, Any]:
        """As JSON values, with the difference to another row where one is given."""
        difference = {} if base is None else {"minus_base": [_finite(x) for x in self.minus(base)]}
        seeds = {
            str(seed): {"success_rate": rate, "episodes": len(self.results[seed])} for seed, rate in self.rates.items()
        }
        own = {"seeds": seeds, "ms_per_decision": _finite(self.milliseconds)}
        return {**self.tally.to_json(), **own, "tokens": self.tokens, "slots": self.slots, **difference}


def markdown(rows: Mapping[str, Row], base: str) -> str:
    """A table of the rows, and one of their successes in each task where there are several.

    Args:
        rows: by name.
        base: name of the row that the others are held against, where it is there.
    """
    head = [
        "",
        "success",
        "95 % interval",
        "seeds, lowest to highest",
        f"minus {base}",
        "ms a decision",
        "tokens",
        "slots",
    ]
    lines = [head, ["---"] * len(head)]
    for name, row in rows.items():
        tally, rates = row.tally, row.rates.values()
        low, high = wilson(tally.successes, tally.episodes)
        difference = "" if name == base or base not in rows else _difference(*row.minus(rows[base]))
        waits = "" if math.isnan(row.milliseconds) else f"{row.milliseconds:.0f}"
        spread = f"{_percent(min(rates))} to {_percent(max(rates))} % of {len(rates)}"
        share = f"{_percent(tally.successes / tally.episodes)} % ({tally.successes} of {tally.episodes})"
        interval = f"{_percent(low)} to {_percent(high)} %"
        lines.append([name, share, interval, spread, difference, waits, f"{row.tokens:.1f}", str(row.slots)])
    tallies = {name: row.tally for name, row in rows.items()}
    tasks = sorted({task for tally in tallies.values() for task in tally.tasks})
    text = _lines(lines)
    if len(tasks) > 1:
        shares = [
            [name, *("{} of {}".format(*tally.tasks[task]) if task in tally.tasks else "" for task in tasks)]
            for name, tally in tallies.items()
        ]
        text += "\n" + _lines([["", *tasks], ["---"] * (1 + len(tasks)), *shares])
    return text


def _sorted(results: Sequence[Result]) -> list[Result]:
    return sorted(results, key=lambda result: result.number)


def _difference(mean: float, low: float, high: float) -> str:
    return "" if math.isnan(mean) else f"{100 * mean:+.0f} ({100 * low:+.0f} to {100 * high:+.0f})"


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _lines(cells: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in cells)
