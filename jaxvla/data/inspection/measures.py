"""The tables of a dataset in figures: by dimension, by episode, and how well the actions explain the states."""

import dataclasses
import hashlib
from collections.abc import Sequence

import numpy as np

from jaxvla.data.formats.index import NO_TEXT
from jaxvla.data.inspection.recordings import Recordings
from jaxvla.data.source import TrajectorySource
from jaxvla.data.transforms.action_checks import EXPLAINED, STATES_THEMSELVES, turns
from jaxvla.data.transforms.actions import CLOSED_BELOW, OPEN_ABOVE, ActionConvention
from jaxvla.data.transforms.normalization import CONSTANT_BELOW, FieldStatistics

BINS = 32

# A dimension that is so near to one of its two ends in so many of its values, at each of them in some, is a switch.
_END, _AT_ENDS, _AT_EACH = 0.02, 0.9, 0.01
# Of the range of a dimension: an episode in which nothing goes farther stands still, and so does such a step.
_STILL_EPISODE, _STILL_STEP = 0.01, 0.001
# A correlation with the change of a state of another number tells only where it is high: there are many of these.
_ELSEWHERE = 0.5
# An episode of so many steps tells how its actions go with its states, in dimensions where most episodes show it.
_LONG, _STEADY, _UNRELATED = 20, 0.5, 0.1
# Steps of a state: so many times those that nearly all are below, and so much of its range, no robot makes.
_JUMP_STEPS, _JUMP_RANGE = 10, 0.5
# Values so many spreads beyond the quantiles, where a spread is their distance, or four deviations.
_FAR, _DEVIATIONS = 5, 4


@dataclasses.dataclass(frozen=True, eq=False)
class Field:
    """The d dimensions of actions or proprio.

    Attributes:
        names: of the dimensions.
        statistics: of all rows.
        histograms: int64 [d, BINS], from the smallest to the largest value of each.
        constant: bool [d], dimensions that never move.
        switches: bool [d], dimensions that are nearly always at one of two values.
        far: (row, dimension) of the values far outside of the quantiles, int64 [k, 2].
    """

    names: tuple[str, ...]
    statistics: FieldStatistics
    histograms: np.ndarray
    constant: np.ndarray
    switches: np.ndarray
    far: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Explanation:
    """How the d actions go with the states, over all transitions.

    Attributes:
        moving: bool [d], dimensions that move and are no gripper's.
        own: float64 [d], correlation with the change of the proprio of the same number; nan where there is none.
        best: float64 [d], the strongest correlation with the change of a proprio, or with the state that is reached.
        what: with which.
        explained: bool [d].
    """

    moving: np.ndarray
    own: np.ndarray
    best: np.ndarray
    what: tuple[str, ...]
    explained: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Measures:
    """The figures of the m episodes that are looked at, of n transitions in all.

    Attributes:
        lengths: int64 [m], transitions.
        actions, proprio: by dimension.
        grippers: the action dimensions that are a gripper's, said or guessed.
        explanation: of the actions.
        still: bool [m], episodes in which no state moves.
        idle: the share of transitions in which none does.
        unexplained: bool [m], episodes whose actions have nothing to do with their states, unlike those of others.
        opens, closes: bool [m, grippers], whether the gripper does in an episode; of a guessed one, whether it is at
            its high, or low, value.
        turns, jumps: (transition, dimension) where a state turns by 2 pi, and where it jumps, int64 [k, 2].
        duplicates: episodes of equal actions and states, each group in order.
        labelled: float64 [m], the share of an episode's transitions with an instruction.
    """

    lengths: np.ndarray
    actions: Field
    proprio: Field
    grippers: tuple[int, ...]
    explanation: Explanation
    still: np.ndarray
    idle: float
    unexplained: np.ndarray
    opens: np.ndarray
    closes: np.ndarray
    turns: np.ndarray
    jumps: np.ndarray
    duplicates: tuple[tuple[int, ...], ...]
    labelled: np.ndarray


def measure(recordings: Recordings) -> Measures:
    """Measures the episodes that are looked at, all at once: their tables are in memory as it is."""
    source, convention = recordings.source, recordings.convention
    before, after = _steps(source)
    dims = source.proprio.shape[1]
    shared = convention.relabel and len(convention.names) == dims  # then each number means the same in both
    names = convention.names if shared else tuple(f"proprio {d}" for d in range(dims))
    actions = _field(source.actions, convention.labels(source.actions.shape[1]))
    proprio = _field(source.proprio, names)
    grippers = convention.gripper if recordings.said else _guess_grippers(actions)
    turning = turns(before, after)
    changes = _changes(convention, before, after, turning.any(0))
    commands, moves = _clipped(source.actions), _clipped(changes)
    explanation = _explain(commands, moves, after, actions, grippers, names)
    reach = _reach(proprio)
    still = ~(_ranges(source.proprio, source.frame_starts) > np.maximum(_STILL_EPISODE * reach, CONSTANT_BELOW)).any(1)
    high, low = _ends(source, convention, grippers, recordings.said, actions)
    return Measures(
        lengths=source.lengths,
        actions=actions,
        proprio=proprio,
        grippers=grippers,
        explanation=explanation,
        still=still,
        idle=float((abs(changes) <= np.maximum(_STILL_STEP * reach, CONSTANT_BELOW)).all(1).mean()),
        unexplained=_unexplained(source, commands, moves, explanation) & ~still,
        opens=high,
        closes=low,
        turns=np.argwhere(turning),
        jumps=_jumps(changes, turning, proprio),
        duplicates=_duplicates(source, still),
        labelled=np.add.reduceat(source.texts != NO_TEXT, source.action_starts) / source.lengths,
    )


def explained_by_number(measures: Measures) -> list[int]:
    """The action dimensions that are movements of the proprio of the same number."""
    own = measures.explanation.own
    return np.flatnonzero(measures.explanation.moving & (np.nan_to_num(own) >= EXPLAINED)).tolist()


def _steps(source: TrajectorySource) -> tuple[np.ndarray, np.ndarray]:
    """The states before and after all transitions, each [n, p]."""
    starts = source.frame_starts
    before, after = (np.delete(source.proprio, frames, axis=0) for frames in (starts + source.lengths, starts))
    return before, after


def _changes(convention: ActionConvention, before: np.ndarray, after: np.ndarray, angles: np.ndarray) -> np.ndarray:
    """The differences of the states, float64 [n, p], those of angles the short way round."""
    every = tuple(sorted({*np.flatnonzero(angles).tolist(), *convention.angles}))
    return dataclasses.replace(convention, angles=every, wrap=bool(every)).differences(before, after)


def _field(values: np.ndarray, names: Sequence[str]) -> Field:
    statistics = FieldStatistics.of(values)
    low, high = (x.astype(np.float64) for x in (statistics.min, statistics.max))
    span = high - low
    constant = span < CONSTANT_BELOW
    at_low, at_high = ((abs(values - end) <= _END * span).mean(0) for end in (low, high))
    switches = ~constant & (at_low + at_high > _AT_ENDS) & (np.minimum(at_low, at_high) > _AT_EACH)
    bins = ((values - low) / np.where(constant, 1, span) * BINS).astype(np.int64).clip(0, BINS - 1)
    histograms = np.stack([np.bincount(column, minlength=BINS) for column in bins.T])
    q01, q99 = (x.astype(np.float64) for x in (statistics.q01, statistics.q99))
    spread = np.maximum(q99 - q01, _DEVIATIONS * statistics.std)
    far = (values < q01 - _FAR * spread) | (values > q99 + _FAR * spread)
    return Field(tuple(names), statistics, histograms, constant, switches, np.argwhere(far & ~switches & ~constant))


def _reach(field: Field) -> np.ndarray:
    """The distance of the quantiles of each dimension, float64 [d]."""
    return field.statistics.q99.astype(np.float64) - field.statistics.q01


def _guess_grippers(actions: Field) -> tuple[int, ...]:
    """The switches among the actions, where they are few enough to be grippers."""
    found = np.flatnonzero(actions.switches).tolist()
    return tuple(found) if len(found) <= 2 < len(actions.names) else ()


def _ranges(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Between the largest and the smallest value of each episode and dimension, [m, d]."""
    return np.maximum.reduceat(values, starts) - np.minimum.reduceat(values, starts)


def _ends(
    source: TrajectorySource, convention: ActionConvention, grippers: tuple[int, ...], said: bool, actions: Field
) -> tuple[np.ndarray, np.ndarray]:
    """`Measures.opens` and `closes`."""
    values = source.actions[:, list(grippers)].astype(np.float64)
    opened, closed = convention.open, convention.closed
    if not said:
        opened, closed = (end[list(grippers)] for end in (actions.statistics.max, actions.statistics.min))
    opening = (values - closed) / (np.asarray(opened, np.float64) - closed)
    masks = (opening > OPEN_ABOVE, opening < CLOSED_BELOW)
    high, low = (np.logical_or.reduceat(mask, source.action_starts, axis=0) for mask in masks)
    return high, low


def _clipped(values: np.ndarray) -> np.ndarray:
    """Float64 [n, d] without the outliers, each of which would outweigh all others in a correlation."""
    low, high = np.quantile(values, [0.01, 0.99], axis=0)
    spread = np.where(high > low, high - low, np.inf)  # a dimension that rarely moves has nothing else
    return np.clip(values.astype(np.float64), low - spread, high + spread)


def _correlations(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Of each column of x [n, d] with each of y [n, p]: float64 [d, p]; 0 where one does not move."""

    def unit(values: np.ndarray) -> np.ndarray:
        centred = values - values.mean(0, dtype=np.float64)
        length = np.where(np.ptp(values, axis=0) < CONSTANT_BELOW, np.inf, np.linalg.norm(centred, axis=0))
        return centred / length

    return unit(x).T @ unit(y)


def _explain(
    commands: np.ndarray,
    changes: np.ndarray,
    after: np.ndarray,
    actions: Field,
    grippers: tuple[int, ...],
    names: tuple[str, ...],
) -> Explanation:
    d, p = commands.shape[1], changes.shape[1]
    moving = ~actions.constant
    moving[list(grippers)] = False
    with_change, with_state = _correlations(commands, changes), _correlations(commands, after)
    own = np.full(d, np.nan)
    own[: min(d, p)] = np.diagonal(with_change)
    change, state = abs(with_change).argmax(1), with_state.argmax(1)
    rows = np.arange(d)
    strongest, reached = with_change[rows, change], with_state[rows, state]
    is_state = (reached >= STATES_THEMSELVES) & (reached > abs(strongest))
    what = [f"{names[state[i]]} that is reached" if is_state[i] else f"the change of {names[change[i]]}" for i in rows]
    explained = (np.nan_to_num(own) >= EXPLAINED) | (abs(strongest) >= _ELSEWHERE) | is_state
    return Explanation(moving, own, np.where(is_state, reached, strongest), tuple(what), explained & moving)


def _unexplained(
    source: TrajectorySource, commands: np.ndarray, changes: np.ndarray, explanation: Explanation
) -> np.ndarray:
    """Episodes in which the actions do not go with the states in dimensions where those of others do: bool [m]."""
    steady = np.flatnonzero(explanation.moving & (np.nan_to_num(explanation.own) >= _STEADY))
    if not len(steady):
        return np.zeros(len(source), bool)
    starts, counts = source.action_starts, source.lengths[:, None]
    x, y = commands[:, steady], changes[:, steady]

    def total(products: np.ndarray) -> np.ndarray:
        return np.add.reduceat(products, starts)

    both = total(x * y) - total(x) * total(y) / counts
    xx, yy = (np.maximum(total(z * z) - total(z) ** 2 / counts, 0) for z in (x, y))
    moves = (xx > 0) & (np.sqrt(yy / counts) > 0.05 * y.std(0))  # else rounding and noise are what correlates
    own = np.where(moves, both / np.sqrt(np.where(moves, xx * yy, 1)), np.nan)
    enough = (source.lengths >= _LONG) & (moves.sum(1) * 2 >= len(steady))
    found = np.zeros(len(source), bool)
    found[enough] = np.nanmedian(own[enough], axis=1) < _UNRELATED
    return found


def _jumps(changes: np.ndarray, turning: np.ndarray, proprio: Field) -> np.ndarray:
    """Steps of a state, other than whole turns, that are far larger than those that it makes otherwise."""
    usual = np.quantile(abs(changes), 0.99, axis=0)
    large = abs(changes) > np.maximum(_JUMP_STEPS * usual, _JUMP_RANGE * _reach(proprio))
    return np.argwhere(large & ~turning & ~proprio.switches & ~proprio.constant)


def _duplicates(source: TrajectorySource, still: np.ndarray) -> tuple[tuple[int, ...], ...]:
    groups: dict[bytes, list[int]] = {}
    for row in np.flatnonzero(~still).tolist():
        table = source.table(row)
        digest = hashlib.sha256(np.ascontiguousarray(table.actions))
        digest.update(np.ascontiguousarray(table.proprio))
        groups.setdefault(digest.digest(), []).append(row)
    return tuple(tuple(rows) for rows in groups.values() if len(rows) > 1)
