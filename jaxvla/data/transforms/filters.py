"""Which steps and which trajectories a run does without, because of the numbers in them. Pure functions of tables.

Axis letters as in the schema; T is the sum of the transitions of all n trajectories, which lie end to end.
"""

import dataclasses
import math

import numpy as np

from jaxvla.data.formats.index import Index
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class FilterConfig:
    """What of a split is not drawn; the keys of config.data.filters, of which 0 switches each off.

    Attributes:
        max_action, max_proprio: a trajectory with an action, or a state, of which a normalized dimension is larger than
            this or smaller than its negative is left out, as Octo and OpenVLA do. Where a normalization has bounds,
            only dimensions that are not normalized can be.
        max_steps: at most so many transitions of a training trajectory are drawn, always the same ones, so that long
            ones count no more than others. Octo draws others in each pass.
    """

    max_action: float = 0.0
    max_proprio: float = 0.0
    max_steps: int = 0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not 0 <= getattr(self, field.name) < math.inf:
                raise ConfigError(
                    f"config.data.filters.{field.name} must be 0 or more, not {getattr(self, field.name)}"
                )


def first_steps(lengths: np.ndarray, count: int) -> np.ndarray:
    """True at the first `count` transitions of each trajectory: bool [T].

    OpenVLA leaves out the first one of BridgeData, at which the operator has not moved yet.
    """
    starts = np.cumsum(lengths) - lengths
    return np.arange(int(lengths.sum())) - np.repeat(starts, lengths) < count


def no_ops(actions: np.ndarray, lengths: np.ndarray, gripper: tuple[int, ...], below: float) -> np.ndarray:
    """True at transitions at which a robot does nothing: bool [T]. OpenVLA's rule for LIBERO, where `below` is 1e-4.

    The norm of the movement is smaller than `below`, and the gripper is told the same as at the transition before; at
    the first of a trajectory the movement alone decides. The same as to compare with the last one that was kept, which
    has the gripper of all no-ops behind it.

    Args:
        actions: movements, and absolute grippers, [T, d].
        lengths: int [n].
        gripper: the dimensions that are grippers.
        below: in the units of the movements.
    """
    moving = np.setdiff1d(np.arange(actions.shape[1]), gripper)
    still = np.linalg.norm(actions[:, moving].astype(np.float64), axis=1) < below
    held = np.ones(len(actions), bool)
    held[1:] = (actions[1:, list(gripper)] == actions[:-1, list(gripper)]).all(1)
    return still & (held | first_steps(lengths, 1))


def idle_steps(index: Index, convention: ActionConvention, first: int, below: float) -> dict[str, np.ndarray]:
    """By its reason, which transitions of an index are to be dropped: bool [T] each, True for one reason at most.

    Args:
        index: of n trajectories.
        convention: makes the actions that a policy learns, whose movements count.
        first: see `first_steps`.
        below: see `no_ops`; 0 for none.

    Raises:
        ConfigError: actions that cannot be what the convention says.
    """
    at_start = first_steps(index.lengths, first)
    idle = np.zeros(len(index.actions), bool)
    if below and len(index.lengths):
        convention.check(index.actions.shape[1], index.proprio.shape[1])
        ends = np.cumsum(index.lengths)[:-1]
        states = np.split(index.proprio, ends + np.arange(1, len(index.lengths)))
        parts = [convention.transform(*pair) for pair in zip(np.split(index.actions, ends), states)]
        idle = no_ops(np.concatenate(parts), index.lengths, convention.gripper, below)
    return {"at the start of a trajectory": at_start, "no-ops": idle & ~at_start}


def beyond(values: np.ndarray, lengths: np.ndarray, largest: float) -> dict[int, tuple[int, int, float]]:
    """The trajectories with a value whose size is more than `largest`: of each the first step, dimension and value.

    Args:
        values: normalized, [sum of lengths, d].
        lengths: int [n], rows of each trajectory.
        largest: positive.
    """
    rows, dimensions = np.nonzero(np.abs(values) > largest)
    ends = np.cumsum(lengths)
    numbers, first = np.unique(np.searchsorted(ends, rows, "right"), return_index=True)
    places = zip(rows[first], rows[first] - (ends - lengths)[numbers], dimensions[first])
    return {i: (int(step), int(d), float(values[row, d])) for i, (row, step, d) in zip(numbers.tolist(), places)}


def some_of_each(owner: np.ndarray, most: int, seeds: np.ndarray) -> np.ndarray:
    """At most `most` entries of each owner, drawn at random: bool [m].

    Args:
        owner: int [m], ascending.
        most: positive.
        seeds: uint64 by owner, so that what is drawn of one does not depend on the others.
    """
    keep = np.ones(len(owner), bool)
    numbers, starts, counts = np.unique(owner, return_index=True, return_counts=True)
    for number, start, count in zip(numbers.tolist(), starts.tolist(), counts.tolist()):
        if count > most:
            drawn = np.random.Generator(np.random.Philox(key=int(seeds[number]))).permutation(count)[:most]
            keep[start : start + count] = False
            keep[start + drawn] = True
    return keep
