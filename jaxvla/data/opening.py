"""From a source's configuration to its trajectories: files found and indexed, what cannot be used left out."""

import contextlib
import pathlib

import numpy as np

from jaxvla.data import skipping
from jaxvla.data.files import reading
from jaxvla.data.formats import bridge_tfrecord, rlds, rlds_files
from jaxvla.data.formats.index import Index, open_indices
from jaxvla.data.source import TrajectorySource
from jaxvla.data.source_config import SourceConfig
from jaxvla.data.transforms import selection
from jaxvla.errors import ConfigError, DataError


def _find_groups(config: SourceConfig, root: pathlib.Path, split: str) -> tuple[list[list[str]], tuple[str, ...]]:
    """The files of each group that are stored as a split, and lines that say what was not found."""
    if config.format == "rlds":
        rlds_files.check_version(root)
        return [rlds_files.find_files(root, split)], ()
    found = [bridge_tfrecord.find_files(root, patterns, config.exclude, split) for patterns in config.include]
    lost = sorted({link for _, links in found for link in links})
    notes = (f"warning: {len(lost)} links lead nowhere and are left out, such as {lost[0]}",) if lost else ()
    return [files for files, _ in found], notes


def _has_split(config: SourceConfig, root: pathlib.Path, split: str) -> bool:
    """Whether any group has files of a split."""
    if config.format == "rlds":
        rlds_files.check_version(root)
        return split in rlds_files.splits(root)
    for patterns in config.include:
        with contextlib.suppress(DataError):
            return bool(bridge_tfrecord.find_files(root, patterns, config.exclude, split)[0])
    return False


def stored_splits(config: SourceConfig, root: pathlib.Path) -> tuple[str, ...]:
    """The names of the splits that have files of their own; a share that is held out has none."""
    if config.format == "rlds":
        rlds_files.check_version(root)
        return rlds_files.splits(root)
    return tuple(split for split in ("train", "val") if _has_split(config, root, split))


def stored_cameras(config: SourceConfig, root: pathlib.Path) -> dict[str, str]:
    """The cameras that a configuration names, by their names in batches: what they are called in the files."""
    if config.format != "rlds":
        return config.cameras
    reader = rlds.RLDSFormat.of(root, config.step_keys)
    return {name: reader.camera(stored, name, str(root)) for name, stored in config.cameras.items()}


def index_split(config: SourceConfig, root: pathlib.Path, split: str) -> tuple[list[str], list[Index], tuple[str, ...]]:
    """The files that a split is stored in, each once, with their indices of all cameras, and lines that say what lacks.

    Raises:
        DataError: there are none, or one is damaged.
    """
    with reading(root):
        groups, notes = _find_groups(config, root, split)
    paths = [*dict.fromkeys(path for group in groups for path in group)]
    indices, missing = _read_indices(config, root, split, paths)
    return paths, indices, (*notes, *missing)


def _find_stored(config: SourceConfig, root: pathlib.Path, split: str) -> tuple[list[list[str]], tuple[str, ...]]:
    """`_find_groups` of the files that hold a split, held out or not."""
    if not config.validation_share:
        return _find_groups(config, root, split)
    if _has_split(config, root, "val"):
        raise ConfigError(
            f"{root} has a val split of its own: set bridgedata_config.validation_share=0.0 to use it, or remove it"
        )
    return _find_groups(config, root, "train")


def open_source(
    config: SourceConfig, image_size: tuple[int, ...], root: pathlib.Path, split: str
) -> tuple[TrajectorySource, np.ndarray, tuple[str, ...]]:
    """The trajectories of a split that can be used, the group of each of their files, and `Dataset.report`."""
    with reading(root):
        files, notes = _find_stored(config, root, split)
    stored = "train" if config.validation_share else split
    paths, groups = [path for group in files for path in group], np.repeat(np.arange(len(files)), [*map(len, files)])
    cameras = stored_cameras(config, root)
    indices, missing = _read_indices(config, root, stored, paths)
    kept, skipped = selection.usable(paths, indices, cameras)
    total = sum(index.total for index in indices)
    skipping.check(skipped, total, stored, config.max_skipped, str(root))
    if config.validation_share:
        kept = selection.hold_out(kept, config.validation_share, split)
    filled = np.flatnonzero([len(index.lengths) for index in kept])
    chosen = [kept[i] for i in filled]
    source = TrajectorySource(tuple(paths[i] for i in filled), chosen, tuple(cameras.items()), image_size)
    return source, groups[filled], (*notes, *skipping.describe(skipped, total, stored), *missing)


def _read_indices(
    config: SourceConfig, root: pathlib.Path, split: str, paths: list[str]
) -> tuple[list[Index], tuple[str, ...]]:
    """The indices of files, and lines that say what the dataset has not."""
    if config.format != "rlds":
        return open_indices(paths, bridge_tfrecord.build_index), ()
    reader = rlds.RLDSFormat.of(root, config.step_keys)
    indices = open_indices(paths, reader.build_index, repr(reader))
    rlds_files.check_counts(root, split, paths, [index.total for index in indices])
    missing = reader.unlabelled()
    return indices, (f"language     {missing}",) if missing else ()
