"""Whether a dataset's actions are what its convention says, by what the data shows; and what they are, in two lines.

A claim that would turn the actions into something else is an error, one that the data only does not bear out a warning.
"""

import dataclasses

import numpy as np

from jaxvla.data.source import TrajectorySource
from jaxvla.data.tables import blocks
from jaxvla.data.transforms.actions import CLOSED_BELOW, OPEN_ABOVE, ActionConvention
from jaxvla.data.transforms.normalization import CONSTANT_BELOW, FieldStatistics
from jaxvla.errors import ConfigError

_WHERE = "bridgedata_config.actions"
_NO_RELABEL = "set config.data.relabel_actions=False"

_NEAR_TURN = 1.5 * np.pi  # a step of an angle that is nearer to a whole turn than to half of one
_TOLERANCE = 0.01

# A movement that is commanded is reached in part or late, but it is reached: on BridgeData each dimension correlates
# by 0.7 to 0.9 with what was commanded, on unrelated data by less than 0.2 in all but few of a hundred transitions.
EXPLAINED = 0.2
ENOUGH = 100
STATES_THEMSELVES = 0.95

# Transitions that are looked at, in so many pieces, where there are more.
_MOST = 1 << 18
_PIECES = 64


@dataclasses.dataclass(frozen=True, eq=False)
class _Steps:
    """Transitions of whole trajectories: actions [n, d], the states before and after them [n, p], and whose they are.

    `numbers` int64 [m] are the trajectories, `starts` int64 [m] the rows that each begins with.
    """

    source: TrajectorySource
    numbers: np.ndarray
    starts: np.ndarray
    actions: np.ndarray
    before: np.ndarray
    after: np.ndarray

    @classmethod
    def of(cls, source: TrajectorySource) -> "_Steps":
        """All transitions of a source, or of a larger one about `_MOST`, in pieces from everywhere in it."""
        each = max(1, -(-len(source.taught) // _MOST))
        pieces = list(blocks(source, _MOST // _PIECES))[::each]
        numbers = np.concatenate([np.arange(piece.start, piece.stop) for piece in pieces])
        rows = np.concatenate([np.arange(*_extent(source.action_starts, source.lengths, piece)) for piece in pieces])
        frames = rows + np.repeat(numbers, source.lengths[numbers])
        starts = np.cumsum(source.lengths[numbers]) - source.lengths[numbers]
        return cls(source, numbers, starts, source.actions[rows], source.proprio[frames], source.proprio[frames + 1])

    def place(self, row: int) -> str:
        """Names transition `row`."""
        number = int(np.searchsorted(self.starts, row, "right")) - 1
        return f"step {row - int(self.starts[number])} of trajectory {self.source.keys[int(self.numbers[number])]!r}"


def _extent(starts: np.ndarray, lengths: np.ndarray, piece: slice) -> tuple[int, int]:
    """First transition of successive trajectories, and the one behind their last."""
    last = piece.stop - 1
    return int(starts[piece.start]), int(starts[last] + lengths[last])


def check_actions(source: TrajectorySource, convention: ActionConvention, own: bool = True) -> tuple[str, ...]:
    """Holds what `convention` says against the actions and states of a source; see `_Steps.of`.

    Args:
        source: the data.
        convention: what is said of it.
        own: whether somebody said it of this very data. What a table says of all copies of a dataset changes nothing in
            it, so grippers of another range are a warning.

    Returns:
        warnings, of one line each.

    Raises:
        ConfigError: the transforms that the convention asks for would make something else of these actions.
    """
    steps = _Steps.of(source)
    remarks = [remark for d in convention.gripper for remark in _gripper(steps, convention, d, own)]
    if convention.relabel:
        _refuse_quaternions(steps, convention)
        remarks += _movements(steps, convention)
    return (*remarks, *_jumps(steps, convention))


def describe_actions(convention: ActionConvention, statistics: FieldStatistics) -> tuple[str, str]:
    """What the actions are, and the range of each dimension after the transforms; one line each."""
    dims = len(statistics.mean)
    moving = len(convention.movements(dims))
    parts = [f"{moving} as stored"] if moving else []
    if convention.relabel and moving:
        wrapped = ", angles wrapped" if convention.wrap else ""
        parts = [f"{moving} reached movements (differences of states{wrapped})"]
    for d in convention.gripper:
        binarized = ", binarized" if convention.binarize else ""
        parts.append(f"gripper {d} ({convention.open:g} open, {convention.closed:g} closed{binarized})")
    if convention == ActionConvention():
        parts.append(f"nothing is said of them in {_WHERE}")
    labels = convention.labels(dims)
    ranges = (f"{label} {low:.3g}..{high:.3g}" for label, low, high in zip(labels, statistics.min, statistics.max))
    return f"{dims}: {', '.join(parts)}", f"from {', '.join(ranges)}"


def _gripper(steps: _Steps, convention: ActionConvention, d: int, own: bool) -> list[str]:
    """Range and ends of one gripper dimension."""
    values = steps.actions[:, d].astype(np.float64)
    opening = (values - convention.closed) / (convention.open - convention.closed)
    found = f"gripper dimension {d} of the actions goes from {values.min():.4g} to {values.max():.4g}"
    said = f"{_WHERE} says {convention.open:g} open, {convention.closed:g} closed"
    mend = f"set {_WHERE}.open and closed to the values of this data"
    outside = np.flatnonzero((opening < -CLOSED_BELOW) | (opening > 2 - OPEN_ABOVE))
    if own and len(outside) > _TOLERANCE * len(values):
        raise ConfigError(f"{found}, {len(outside) / len(values):.0%} of it outside of what {said}: {mend}")
    remarks = []
    if len(outside):
        first = int(outside[0])
        example = f"{values[first]:.4g} at {steps.place(first)}"
        remarks.append(f"{found}, {len(outside)} of it outside of what {said} ({example})")
    reached = {"opens": (opening > OPEN_ABOVE).any(), "closes": (opening < CLOSED_BELOW).any()}
    if all(reached.values()):
        return remarks
    if convention.binarize and np.ptp(opening) > _TOLERANCE:
        raise ConfigError(
            f"{found}, where {said}: to binarize it would undo what it does; {mend}, or {_WHERE}.binarize=False"
        )
    never = " and ".join(f"never {verb}" for verb, does in reached.items() if not does)
    return [*remarks, f"the gripper {never}: {found}, where {said}; if it should, {mend}"]


def _refuse_quaternions(steps: _Steps, convention: ActionConvention) -> None:
    moving = set(convention.movements(steps.actions.shape[1]))
    for first in range(steps.before.shape[1] - 3):
        window = steps.before[:, first : first + 4].astype(np.float64)
        unit = (abs(np.linalg.norm(window, axis=1) - 1) < 1e-3).all()
        if unit and (window.std(0) > 1e-3).sum() >= 2 and moving & set(range(first, first + 4)):
            raise ConfigError(
                f"proprio dimensions {first} to {first + 3} are a quaternion (length 1 in all {len(window)} states), "
                f"whose differences are no rotation: {_NO_RELABEL}"
            )


def _movements(steps: _Steps, convention: ActionConvention) -> list[str]:
    """Whether the commands explain the differences of the states that are to take their place."""
    moving = np.array(convention.movements(steps.actions.shape[1]), int)
    moving = moving[np.ptp(steps.actions[:, moving], axis=0) > CONSTANT_BELOW]
    if not len(moving):
        return []
    commanded = steps.actions[:, moving]
    reached = convention.differences(steps.before, steps.after)[:, moving]
    with_movement, slope = _correlation(commanded, reached)
    with_state, _ = _correlation(commanded, steps.after[:, moving])
    _refuse_gripper(commanded, with_movement, slope, moving)
    middle, count = float(np.median(with_movement)), len(commanded)
    if np.median(with_state) > STATES_THEMSELVES and middle < 0.5 and count >= ENOUGH / 5:
        raise ConfigError(
            "the actions are states to be reached, not movements (they correlate by "
            f"{np.median(with_state):.2f} with the next state, by {middle:.2f} with the way to it): {_NO_RELABEL}"
        )
    if middle < EXPLAINED:
        message = (
            f"the actions do not explain the differences of the states (correlation {middle:.2f} over {count} "
            "transitions), which are to take their place: they are no movements of the proprio"
        )
        if count >= ENOUGH:
            raise ConfigError(f"{message}: {_NO_RELABEL}")
        return [f"{message}; if so, {_NO_RELABEL}"]
    remarks = []
    apart = moving[with_movement < EXPLAINED]
    if len(apart) and count >= ENOUGH:
        remarks.append(
            f"action {_numbers(apart)} does not explain the differences of the same proprio, which are to take its "
            f"place (correlation {with_movement.min():.2f}); if it is no movement of it, {_NO_RELABEL}"
        )
    ratio = float(np.median(slope[with_movement >= EXPLAINED]))
    if not 0.2 < ratio < 5:
        remarks.append(
            f"the reached movements are {ratio:.2g} times the commanded ones: relabelled, the actions have the units "
            f"of the states; to keep their own, {_NO_RELABEL}"
        )
    return remarks


def _refuse_gripper(commanded: np.ndarray, correlation: np.ndarray, slope: np.ndarray, moving: np.ndarray) -> None:
    """A dimension that is nearly always at one of two values, and does not move the state by as much."""
    low, high = commanded.min(0), commanded.max(0)
    near = (commanded - low < _TOLERANCE * (high - low)).mean(0), (high - commanded < _TOLERANCE * (high - low)).mean(0)
    switch = (np.minimum(*near) > 0.05) & (np.add(*near) > 0.8) & ((correlation < 0.5) | (slope < 0.5))
    if switch.any():
        k = int(np.argmax(switch))
        raise ConfigError(
            f"action dimension {moving[k]} is a gripper rather than a movement, {low[k]:.4g} or {high[k]:.4g} in "
            f"{np.add(*near)[k]:.0%} of the steps: set {_WHERE}.gripper, open and closed, or {_NO_RELABEL[4:]}"
        )


def _jumps(steps: _Steps, convention: ActionConvention) -> list[str]:
    """Angles that wrap: a warning for each dimension that nothing is done about."""
    count, dims = steps.actions.shape
    tables = {"proprio": (steps.before, steps.after, np.arange(count))}
    if not convention.relabel:  # relabelled ones are differences
        rows = np.delete(np.arange(count), steps.starts) - 1
        tables["action"] = (steps.actions[rows], steps.actions[rows + 1], rows)
    handled = convention.angles if convention.wrap or not convention.relabel else ()
    remarks = []
    for what, (before, after, rows) in tables.items():
        turning = turns(before, after)
        for d in np.setdiff1d(np.flatnonzero(turning.any(0)), handled).tolist():
            jumps = np.flatnonzero(turning[:, d])
            first = int(jumps[0])
            example = f"{before[first, d]:.3g} to {after[first, d]:.3g} at {steps.place(int(rows[first]))}"
            angles = tuple(sorted({*convention.angles, d}))
            mend = f"a policy sees that, too; set {_WHERE}.angles={angles} if it is known"
            if convention.relabel and d in convention.movements(dims):
                mend = f"so do its differences; set {_WHERE}.angles={angles} and wrap=True"
            remarks.append(
                f"{what} dimension {d} jumps by 2 pi in {len(jumps)} of {len(rows)} steps ({example}): {mend}"
            )
    return remarks


def turns(before: np.ndarray, after: np.ndarray) -> np.ndarray:
    """Where steps from `before` to `after` [n, d] are those of an angle (rad) that jumps by 2 pi: bool [n, d]."""
    low, high = before.min(0), before.max(0)
    angle = (np.maximum(-low, high) <= np.pi + _TOLERANCE) | ((low >= -_TOLERANCE) & (high <= 2 * np.pi + _TOLERANCE))
    return angle & (high - low > _NEAR_TURN) & (abs(after - before) > _NEAR_TURN)


def _correlation(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of each column of x with that of y, and the slope of y over x; 0 where y does not move."""
    x, y = (values - values.mean(0, dtype=np.float64) for values in (x, y))
    both, xx, yy = (x * y).sum(0), (x * x).sum(0), (y * y).sum(0)
    still = np.ptp(y, axis=0) < CONSTANT_BELOW
    return np.where(still, 0, both / np.sqrt(np.where(still, 1, xx * yy))), np.where(still, 0, both / xx)


def _numbers(dimensions: np.ndarray) -> str:
    return f"dimension{'s' if len(dimensions) > 1 else ''} {', '.join(map(str, dimensions))}"
