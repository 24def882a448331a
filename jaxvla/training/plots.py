"""Pictures of a run: curves, and predicted against true actions. Matplotlib loads only when one is drawn."""

import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TRAINING, _VALIDATION, _BASELINE = "#4477aa", "#cc3311", "#777777"
_SUCCESS = "#aa6600"
# Parts of the loss that agents report beside it.
_PARTS = {"action_loss": "#228833", "lm_loss": "#aa3377"}


def plot_losses(metrics: pathlib.Path, path: pathlib.Path, metric: str = "mse") -> None:
    """Draws the training loss with its parts, and beside it a validation metric with its mean-action baseline.

    A run with rollouts has a third panel: their success, in the band of its 95 % intervals. Where the run went through
    stages, their beginnings are marked.

    Args:
        metrics: a metrics.jsonl.
        path: the PNG to write.
        metric: name of the validation metric.
    """
    from matplotlib.figure import Figure

    rows = [json.loads(line) for line in metrics.read_text().splitlines()]
    played = any("rollout/success" in row for row in rows)
    panels = 3 if played else 2
    figure = Figure(figsize=(5.5 * panels, 4.2))
    left, right, *others = _grid(figure, 1, panels, above=0.4, between=(1.0, 0.0))[0]
    _curve(left, rows, "training/loss", color=_TRAINING, label="training, mean over the log interval")
    for name, color in _PARTS.items():
        _curve(left, rows, f"training/{name}", color=color, label=name)
    _curve(right, rows, f"training/{metric}", color=_TRAINING, label="training (augmented, with dropout)")
    _curve(right, rows, f"validation/{metric}", color=_VALIDATION, label="validation", marker="o", markersize=4)
    _curve(right, rows, "validation/mse_mean_action", color=_BASELINE, label="validation, mean action", linestyle="--")
    if played:
        _success(others[0], rows)
    for axes, title in zip((left, right, *others), ("loss", metric, "success in closed loop")):
        axes.set(title=title, xlabel="step")
        _tidy(axes)
        if axes.lines:
            axes.legend(frameon=False)
            _mark_stages(axes, rows)
    right.set_ylabel("of normalized actions")
    figure.savefig(path, dpi=130)


def plot_actions(predicted: np.ndarray, true: np.ndarray, names: Sequence[str], path: pathlib.Path) -> None:
    """Draws predicted against true actions: one row per dimension, over the transitions and as a scatter.

    Args:
        predicted: [n, d], in robot units.
        true: [n, d], in robot units.
        names: of the d dimensions, with units, such as "x (m)".
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 1.7 * len(names) + 0.6))
    grid = _grid(figure, len(names), 2, above=0.35, between=(0.9, 0.3), width_ratios=(4, 1))
    for d, name in enumerate(names):
        series, scatter = grid[d]
        series.plot(true[:, d], color=_BASELINE, label="demonstrated")
        series.plot(predicted[:, d], color=_VALIDATION, label="predicted", linewidth=1.2)
        series.set_ylabel(name)
        low, high = np.min([true[:, d], predicted[:, d]]), np.max([true[:, d], predicted[:, d]])
        margin = 0.05 * (high - low) or 1e-3
        limits = (low - margin, high + margin)
        scatter.plot(limits, limits, color=_BASELINE, linewidth=0.8)
        scatter.scatter(true[:, d], predicted[:, d], s=7, color=_VALIDATION, alpha=0.6, linewidths=0)
        scatter.set(xlim=limits, ylim=limits, box_aspect=1, ylabel="predicted")
        for axes in (series, scatter):
            _tidy(axes)
    grid[0, 0].legend(frameon=False, ncols=2, loc="lower right", bbox_to_anchor=(1, 1))
    grid[-1, 0].set_xlabel("transition")
    grid[-1, 1].set_xlabel("demonstrated")
    figure.savefig(path, dpi=110)


def plot_comparison(
    shares: Mapping[str, tuple[float, tuple[float, float]]], seeds: Mapping[str, Sequence[float]], path: pathlib.Path
) -> None:
    """Draws shares of successes as bars with their 95 % intervals, and a dot for each seed of training.

    Args:
        shares: by what was played: the share, and the bounds of its interval.
        seeds: by the same names, the share of each seed.
        path: the PNG to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(1.6 + 1.2 * len(shares), 4.2), layout="constrained")
    axes = figure.subplots()
    for i, (name, (share, (low, high))) in enumerate(shares.items()):
        axes.bar(i, share, width=0.6, color=_TRAINING, alpha=0.5)
        # The bounds of a share of 0 or 1 may lie beyond it by a rounding.
        axes.errorbar(
            i, share, [[max(share - low, 0)], [max(high - share, 0)]], color="black", capsize=5, linewidth=1.2
        )
        places = i + 0.12 * (np.arange(len(seeds[name])) - (len(seeds[name]) - 1) / 2)
        axes.scatter(places, seeds[name], s=22, color=_VALIDATION, zorder=3, label="" if i else "one seed")
    axes.set(ylim=(0, 1), ylabel="share of episodes that succeed", xticks=range(len(shares)))
    axes.set_xticklabels(shares)
    _tidy(axes)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=130)


def _grid(
    figure: "Figure", rows: int, columns: int, above: float, between: tuple[float, float], **options: Any
) -> np.ndarray:
    """Axes [rows, columns], with so many inches above them, and between columns and rows for the labels.

    Matplotlib would find the room by itself, but draws everything several times to do so.
    """
    (width, height), (across, down), left, right, below = figure.get_size_inches(), between, 0.95, 0.15, 0.55
    margins = {
        "left": left / width,
        "right": 1 - right / width,
        "bottom": below / height,
        "top": 1 - above / height,
        # In widths and heights of axes.
        "wspace": across * columns / (width - left - right - across * (columns - 1)),
        "hspace": down * rows / (height - below - above - down * (rows - 1)),
    }
    return figure.subplots(rows, columns, squeeze=False, gridspec_kw=margins, **options)


def _curve(axes: "Axes", rows: Sequence[Mapping[str, Any]], name: str, **style: Any) -> None:
    points = [(row["step"], row[name]) for row in rows if row.get(name) is not None]
    if points:
        axes.plot(*zip(*points), linewidth=1.4, **style)


def _success(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """The share of episodes that succeeded."""
    found = [row for row in rows if "rollout/success" in row]
    steps = [row["step"] for row in found]
    low, high = ([row[f"rollout/success_{end}"] for row in found] for end in ("low", "high"))
    axes.fill_between(steps, low, high, color=_SUCCESS, alpha=0.2, linewidth=0, label="95 % interval")
    _curve(axes, rows, "rollout/success", color=_SUCCESS, label="rollouts", marker="o", markersize=4)
    axes.set(ylim=(-0.02, 1.02), ylabel="share of episodes")


def _mark_stages(axes: "Axes", rows: Sequence[Mapping[str, Any]]) -> None:
    """A line where each stage begins: after the last log of the stage before."""
    logs = [(row["step"], round(row["training/stage"])) for row in rows if "training/stage" in row]
    for (step, before), (_, stage) in itertools.pairwise(logs):
        if stage != before:
            axes.axvline(step, color=_BASELINE, linewidth=0.8, linestyle=":")
            place = {"xycoords": ("data", "axes fraction"), "xytext": (2, 4), "textcoords": "offset points"}
            axes.annotate(f"stage {stage}", (step, 0), fontsize=8, rotation=90, color=_BASELINE, **place)


def _tidy(axes: "Axes") -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
