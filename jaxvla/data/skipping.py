"""Trajectories that cannot be used: each is left out, counted by its reason and said, and too many are an error."""

import collections
import math
from collections.abc import Sequence

from jaxvla.errors import DataError

# Why a trajectory is left out, in the same words for all that share it, and which it is and what exactly is wrong.
Skipped = tuple[str, str]


class UnusableError(DataError):
    """A trajectory, or a file of them, that is left out.

    Args:
        reason: the kind of fault, the same words for all that share it.
        detail: the path, and what exactly is wrong with it.
    """

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


def describe(skipped: Sequence[Skipped], total: int, split: str) -> tuple[str, ...]:
    """Lines for the start of a run: how many of `total` trajectories were left out, why, and an example of each."""
    if not skipped:
        return ()
    return (
        f"skipped      {len(skipped)} of {total} {split} trajectories ({len(skipped) / total:.1%})",
        *(f"             {line}" for line in _by_reason(skipped)),
    )


def check(
    skipped: Sequence[Skipped],
    total: int,
    split: str,
    max_skipped: float,
    where: str,
    option: str = "bridgedata_config.max_skipped",
) -> None:
    """Refuses data of which too much was left out.

    Args:
        skipped: what was.
        total: the trajectories that there are, the skipped ones included.
        split: whose.
        max_skipped: the share that may be.
        where: the data path.
        option: what says `max_skipped`.

    Raises:
        DataError: there is nothing, all of it was skipped, or more than `max_skipped`; names the reasons.
    """
    if not total:
        raise DataError(f"{where}: the {split} files hold no trajectories: make or download them again")
    share = len(skipped) / total
    if share <= max_skipped and len(skipped) < total:
        return
    mend = "repair the data"
    if len(skipped) < total:
        mend += f", or set {option}={math.ceil(share * 100) / 100}"
    raise DataError(
        f"{where}: {len(skipped)} of {total} {split} trajectories cannot be used, over {option}={max_skipped}: "
        f"{'; '.join(_by_reason(skipped))}: {mend}"
    )


def _by_reason(skipped: Sequence[Skipped]) -> list[str]:
    """The reasons, the commonest first, each with its number and its first example."""
    counts = collections.Counter(reason for reason, _ in skipped)
    first = dict(reversed(skipped))
    return [f"{count} {reason}, such as {first[reason]}" for reason, count in counts.most_common()]
