"""What a configuration takes of the trajectories and transitions that files hold."""

import pathlib
from collections.abc import Sequence

import numpy as np

from jaxvla.data.columns import Part
from jaxvla.data.formats.index import MIN_TRANSITIONS, Index
from jaxvla.data.source_config import SourceConfig
from jaxvla.data.transforms import filters, selection
from jaxvla.errors import DataError


def settings(config: SourceConfig, split: str) -> tuple[object, ...]:
    """What the result of `choose` depends on, beside the share that is held out and its arrays."""
    subset = (
        (config.max_trajectories, config.trajectory_share, config.subset_seed) if _has_subset(config, split) else ()
    )
    dropped = (config.drop_first, config.no_op_below) if config.drop_first or config.no_op_below else ()
    return (subset, dropped, config.actions if config.no_op_below else None)


def choose(
    config: SourceConfig,
    root: pathlib.Path,
    split: str,
    share: float,
    indices: Sequence[Index],
    usable: Sequence[np.ndarray],
) -> tuple[list[Part], list[str]]:
    """What a split uses of each file, and lines that say what it leaves out.

    Args:
        config: which parts it takes.
        root: the folder, for messages.
        split: "train" or "val".
        share: of the trajectories, which is held out for "val"; 0 where that has files of its own.
        indices: of the files.
        usable: bool [n] for each of them, see `selection.usable`.

    Raises:
        ConfigError: nothing is left for training.
        DataError: no trajectory has transitions enough left.
    """
    lines = []
    if share:
        masks = selection.hold_out(indices, usable, share, split)
        held_out = _count(masks) if split == "val" else _count(usable) - _count(masks)
        lines.append(
            f"held out     {held_out} of {_count(usable)} trajectories for val, which has no files of its own "
            f"(validation_share={share:g})"
        )
        usable = masks
    if _has_subset(config, split):
        how = config.max_trajectories, config.trajectory_share, config.subset_seed
        masks = selection.subset(indices, usable, *how)
        lines.append(
            f"subset       {_count(masks)} of {_count(usable)} train trajectories (subset_seed={config.subset_seed})"
        )
        usable = masks
    if not config.drop_first and not config.no_op_below:
        return [Part(index, mask) for index, mask in zip(indices, usable)], lines
    kept, dropped = _drop(config, root, split, [index.select(mask) for index, mask in zip(indices, usable)])
    return [Part(index, np.ones(len(index.lengths), bool)) for index in kept], lines + dropped


def _has_subset(config: SourceConfig, split: str) -> bool:
    return split == "train" and (config.max_trajectories > 0 or config.trajectory_share < 1)


def _count(masks: Sequence[np.ndarray]) -> int:
    return sum(int(mask.sum()) for mask in masks)


def _drop(
    config: SourceConfig, root: pathlib.Path, split: str, indices: Sequence[Index]
) -> tuple[Sequence[Index], list[str]]:
    """Indices without the transitions that are dropped, and lines that say which these are."""
    options = config.actions, config.drop_first, config.no_op_below
    found = [filters.idle_steps(index, *options) for index in indices]
    total = sum(len(index.actions) for index in indices)
    counts = {reason: sum(int(own[reason].sum()) for own in found) for reason in found[0]}
    reasons = ", ".join(f"{number} {reason}" for reason, number in counts.items() if number) or "none"
    lines = [f"dropped      {sum(counts.values())} of {total} {split} transitions: {reasons}"]
    kept, short = zip(*(selection.drop(index, np.any([*own.values()], 0)) for index, own in zip(indices, found)))
    lost = [key for keys in short for key in keys]
    if not any(len(index.lengths) for index in kept):
        raise DataError(
            f"{root}: of no {split} trajectory {MIN_TRANSITIONS} transitions are left: lower bridgedata_config."
            f"no_op_below={config.no_op_below:g} or drop_first={config.drop_first}"
        )
    if lost:
        lines.append(
            f"             fewer than {MIN_TRANSITIONS} are left of {len(lost)} trajectories, such as {lost[0]}"
        )
    return kept, lines
