"""The pictures of figures: lengths and actions, as PNGs that read on light and on dark paper. Matplotlib loads late."""

import io
from typing import TYPE_CHECKING

import numpy as np

from jaxvla.data.inspection.measures import Measures, explained_by_number
from jaxvla.data.inspection.recordings import Recordings

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_ACTION, _CHANGE, _INK = "#4477aa", "#cc7711", "#85858d"
_BARS = 40

# Panels of actions, before there are two columns of them.
ROWS = 8


def draw_lengths(lengths: np.ndarray) -> bytes:
    """The histogram of the lengths of episodes, in steps."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 2.4), layout="constrained")
    axes = figure.subplots()
    low, high = int(lengths.min()), int(lengths.max())
    width = -(-(high - low + 1) // _BARS)  # whole, or some bars would hold more lengths than others
    axes.hist(lengths, bins=np.arange(low, high + width + 1, width) - 0.5, color=_ACTION, alpha=0.8)
    axes.axvline(float(np.median(lengths)), color=_CHANGE, linewidth=1, linestyle="--")
    axes.set(xlabel="steps (dashed: the median)", ylabel="episodes")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True, min_n_ticks=1)
    _tidy(axes)
    return _png(figure)


def draw_actions(recordings: Recordings, measures: Measures, row: int) -> bytes:
    """The actions of an episode over its steps, and beside each that is a movement how the state changed.

    Args:
        recordings, measures: of the dataset.
        row: the episode, as a row of `Recordings.source`.
    """
    from matplotlib.figure import Figure

    table = recordings.source.table(row)
    changes = recordings.convention.differences(table.proprio[:-1], table.proprio[1:])
    movements, names = explained_by_number(measures), measures.actions.names
    columns = 1 if len(names) <= ROWS else 2
    rows = -(-len(names) // columns)
    figure = Figure(figsize=(4.6 * columns + 1.8, 0.72 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True)
    for d, axes in enumerate(panels.T.flat):
        if d >= len(names):
            axes.set_axis_off()
            continue
        if d in movements:
            axes.plot(changes[:, d], color=_CHANGE, linewidth=2.4, alpha=0.6, drawstyle="steps-mid")
        axes.plot(table.actions[:, d], color=_ACTION, linewidth=1.1, drawstyle="steps-mid")
        axes.set_ylabel(names[d], rotation=0, ha="right", va="center")
        axes.margins(x=0.01, y=0.12)
        axes.locator_params(axis="y", nbins=3)
        _tidy(axes)
    for axes in panels[-1]:
        axes.set_xlabel("step")
    figure.align_ylabels()
    return _png(figure)


def _tidy(axes: "Axes") -> None:
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(_INK)
    axes.tick_params(colors=_INK, labelsize=8)
    for label in (axes.xaxis.label, axes.yaxis.label):
        label.set(color=_INK, fontsize=8)


def _png(figure: "Figure") -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=120, transparent=True, metadata={"Software": None})
    return file.getvalue()
