"""From a source's configuration to its trajectories: files found and indexed, what cannot be used left out."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxvla.config import local_path
from jaxvla.data import choosing, columns, skipping
from jaxvla.data.columns import Columns
from jaxvla.data.files import check_folder, reading
from jaxvla.data.formats import arrays, bridge_tfrecord, frame_cache, lerobot_meta, rlds, rlds_files, sidecar
from jaxvla.data.formats.arrays import Pieces
from jaxvla.data.formats.index import VERSION, Index
from jaxvla.data.formats.indexing import open_indices
from jaxvla.data.formats.lerobot import LeRobotFormat
from jaxvla.data.formats.rlds_files import Part
from jaxvla.data.formats.rlds_versions import find_version, has_dataset
from jaxvla.data.formats.split_slices import SplitSlice
from jaxvla.data.formats.standard import Standardize
from jaxvla.data.source import TrajectorySource, find_sizes
from jaxvla.data.source_config import SourceConfig
from jaxvla.data.text.paraphrases import Paraphrases
from jaxvla.data.transforms import selection
from jaxvla.errors import ConfigError, DataError

_VALIDATION = ("val", "validation")
# The formats whose folders say which splits there are.
_SPLITTING = {"rlds": rlds_files, "lerobot": lerobot_meta}


def find_root(config: SourceConfig) -> pathlib.Path:
    """The folder of the data: `data_path`, or the version folder below it of a dataset that has a name.

    That is its `tfds_name`, or what a dataset of Open X-Embodiment is called.

    Raises:
        ConfigError: no local path, or no name of a dataset.
        DataError: a folder that cannot be read, or no such dataset or version.
    """
    root = local_path(config.data_path, "data_path")
    check_folder(root)
    with reading(root):
        names = _names(config, root)
        there = [name for name in names if has_dataset(root, name)]
        return find_version(root, (*there, *names)[0]) if names else root


def is_there(config: SourceConfig) -> bool:
    """Whether the dataset of a name lies below `data_path`; True where that is the folder of the data itself."""
    root = local_path(config.data_path, "data_path")
    with reading(root):
        names = _names(config, root)
        return not names or any(has_dataset(root, name) for name in names)


def _names(config: SourceConfig, root: pathlib.Path) -> tuple[str, ...]:
    """What the dataset may be called below `root`; none where `root` is that of the data itself."""
    if config.tfds_name:
        return (config.tfds_name,)
    if config.dataset is None or (root / rlds_files.FEATURES).exists():
        return ()
    return config.dataset.folders


def store_path(config: SourceConfig) -> str:
    """Where the annotations of the data lie: `reasoning_path`, below `find_root` unless it is absolute; "" for none."""
    return str(find_root(config) / local_path(config.reasoning_path)) if config.reasoning_path else ""


@dataclasses.dataclass(frozen=True)
class _Files:
    """The files that hold a split: whole ones in groups, or parts of one group's; `notes` say what is to be known."""

    groups: list[list[str]]
    parts: tuple[Part, ...] = ()
    notes: tuple[str, ...] = ()


def _find_groups(config: SourceConfig, root: pathlib.Path, split: str) -> _Files:
    """The files of each group that are stored as a split, and lines that say what was not found."""
    if config.format in _SPLITTING:
        _SPLITTING[config.format].check_version(root)
        which = _slice_of(config, root, split)
        parts = _find_parts(config, root, which)
        return _Files([[part.path for part in parts]], tuple(parts), _describe_part(config, root, split, which, parts))
    found = [bridge_tfrecord.find_files(root, patterns, config.exclude, split) for patterns in config.include]
    lost = sorted({link for _, links in found for link in links})
    notes = (f"warning: {len(lost)} links lead nowhere and are left out, such as {lost[0]}",) if lost else ()
    return _Files([files for files, _ in found], notes=notes)


def _find_parts(config: SourceConfig, root: pathlib.Path, which: SplitSlice) -> list[Part]:
    """Where a split, or a slice of it, is stored."""
    if config.format == "lerobot":
        return lerobot_meta.find_parts(root, which, config.episodes, config.exclude_episodes)
    return rlds_files.find_parts(root, which)


def _slice_of(config: SourceConfig, root: pathlib.Path, split: str) -> SplitSlice:
    """What of the dataset's own splits is a split."""
    if split == "train":
        return SplitSlice.parse(config.train_split, "bridgedata_config.train_split")
    if config.val_split:
        return SplitSlice.parse(config.val_split, "bridgedata_config.val_split")
    there = _SPLITTING[config.format].splits(root) if split in _VALIDATION else ()
    return SplitSlice(next((name for name in _VALIDATION if name in there), split))


def _describe_part(
    config: SourceConfig, root: pathlib.Path, split: str, which: SplitSlice, parts: list[Part]
) -> tuple[str, ...]:
    """Lines that say which data it is, where that is not plain, and whether one trains on what is held out."""
    lines = (f"dataset      {root}",) if root != local_path(config.data_path) else ()
    if config.standardization:
        lines += (f"standardized by {' '.join((config.standardization, config.variant)).strip()}",)
    if str(which) != split:
        lines += (f"split        {split} is {which}",)
    if split == "train":
        return lines
    trained = _slice_of(config, root, "train")
    if trained.split == which.split:
        of = {part.path: part for part in _find_parts(config, root, trained)}
        shared = [
            min(part.stop, of[part.path].stop) - max(part.start, of[part.path].start)
            for part in parts
            if part.path in of
        ]
        if any(count > 0 for count in shared):
            lines += (f"warning: {which} and {trained} share episodes: policies are validated on what they learned",)
    return lines


def _has_split(config: SourceConfig, root: pathlib.Path, split: str) -> bool:
    """Whether any group has files of a split."""
    if config.format in _SPLITTING:
        there = stored_splits(config, root)
        return _slice_of(config, root, split).split in there
    for patterns in config.include:
        with contextlib.suppress(DataError):
            return bool(bridge_tfrecord.find_files(root, patterns, config.exclude, split)[0])
    return False


def stored_splits(config: SourceConfig, root: pathlib.Path) -> tuple[str, ...]:
    """The names of the splits that have files of their own; a share that is held out has none."""
    if config.format in _SPLITTING:
        _SPLITTING[config.format].check_version(root)
        return _SPLITTING[config.format].splits(root)
    return tuple(split for split in ("train", "val") if _has_split(config, root, split))


def stored_cameras(config: SourceConfig, root: pathlib.Path, standardize: Standardize | None = None) -> dict[str, str]:
    """The cameras that a configuration names, by their names in batches: what they are called in the files."""
    if config.format not in _SPLITTING:
        return config.cameras
    reader = _reader(config, root, standardize)
    if not config.cameras:
        there = ", ".join(reader.cameras) or "no pictures at all"
        raise ConfigError(
            f"bridgedata_config.cameras is empty, and the steps of {root} have {there}: name at least one, as in "
            "bridgedata_config.cameras.images0"
        )
    return {name: reader.camera(stored, name, str(root)) for name, stored in config.cameras.items()}


def index_split(
    config: SourceConfig, root: pathlib.Path, split: str, standardize: Standardize | None = None
) -> tuple[list[str], list[Index], tuple[str, ...]]:
    """The files that a split is stored in, each once, with their indices of all cameras, and lines that say what lacks.

    Raises:
        DataError: there are none, or one is damaged.
    """
    with reading(root):
        files = _stored_files(config, root, split)
    paths = [*dict.fromkeys(path for group in files.groups for path in group)]
    reader = _Reader.of(config, root, standardize)
    return paths, reader.read(paths, files.parts), (*files.notes, *reader.notes)


def _stored_files(config: SourceConfig, root: pathlib.Path, split: str) -> _Files:
    """All of the files of a split, whatever the configuration takes of it."""
    if config.format not in _SPLITTING:
        return _find_groups(config, root, split)
    parts = _find_parts(config, root, SplitSlice(split))
    return _Files([[part.path for part in parts]], tuple(parts))


def _held_out(config: SourceConfig, root: pathlib.Path) -> float:
    """The share of the training split that is held out; of datasets of the registry 0 where there is a split for it.

    Raises:
        ConfigError: any other dataset has one.
    """
    if not config.validation_share or not _has_split(config, root, "val"):
        return config.validation_share
    if config.dataset is not None:
        return 0.0
    raise ConfigError(
        f"{root} has a val split of its own: set bridgedata_config.validation_share=0.0 to use it, or remove it"
    )


def open_source(
    config: SourceConfig,
    image_size: tuple[int, ...],
    root: pathlib.Path,
    split: str,
    standardize: Standardize | None = None,
    resize: str = "lanczos",
    paraphrases: Paraphrases | None = None,
    camera_sizes: Mapping[str, tuple[int, int]] | None = None,
) -> tuple[TrajectorySource, np.ndarray, tuple[str, ...]]:
    """The trajectories of a split that can be used, the group of each of their files, and `Dataset.report`.

    Args:
        config: which files.
        image_size: (height, width) of the frames that are given out; () for the stored size.
        root: see `find_root`.
        split: "train" or "val"; of an RLDS dataset also another that it has.
        standardize: makes actions, states and texts of an RLDS dataset's features; None to take them by `config`.
        resize: how frames get to that size, one of `images.FILTERS`.
        paraphrases: other words for the annotations; None for none.
        camera_sizes: sizes of cameras that differ from `image_size`, by camera; None for none.
    """
    with reading(root):
        share = _held_out(config, root)
        stored = "train" if share else split
        files = _find_groups(config, root, stored)
    paths = [path for group in files.groups for path in group]
    groups = np.repeat(np.arange(len(files.groups)), [*map(len, files.groups)])
    cameras = tuple(stored_cameras(config, root, standardize).items())
    reader = _Reader.of(config, root, standardize)
    with reading(root):
        opened, made = _open_columns(config, root, (split, share), paths, files.parts, reader, cameras)
    skipped, total = [tuple(why) for why in made["skipped"]], made["total"]
    skipping.check(skipped, total, stored, config.max_skipped, str(root))
    notes = (*files.notes, *skipping.describe(skipped, total, stored), *reader.notes, *made["left_out"])
    if paraphrases is not None:
        notes += paraphrases.describe(set(opened.language.distinct))
    sizes = {camera: {tuple(size) for size in own} for camera, own in made["sizes"].items()}
    where = tuple(paths[i] for i in made["files"]), opened, cameras, sizes
    others = {} if paraphrases is None else paraphrases.of
    source = TrajectorySource(*where, image_size, resize, others, camera_sizes or {})
    with reading(root):
        caches, said = _find_caches(config, root, source)
    source = dataclasses.replace(source, caches=caches) if caches else source
    return source, groups[made["files"]], (*notes, *said)


def cache_folder(config: SourceConfig, root: pathlib.Path) -> pathlib.Path:
    """Where the frame caches of a dataset lie: `frame_cache`, or a folder beside the data."""
    return local_path(config.frame_cache, "frame_cache") if config.frame_cache else root / frame_cache.FOLDER


def _find_caches(
    config: SourceConfig, root: pathlib.Path, source: TrajectorySource
) -> tuple[dict[str, frame_cache.FrameCache], tuple[str, ...]]:
    """By camera, the cache of its frames where one fits, and lines that say which, or why not."""
    folder, caches, said = cache_folder(config, root), {}, ()
    if not folder.is_dir():
        if config.frame_cache:
            raise ConfigError(f"bridgedata_config.frame_cache: no folder {folder}: correct it, or set it to ''")
        return {}, ()
    for camera, stored in source.cameras:
        key = frame_cache.Key(stored, tuple(source.size_of(camera)), source.resize)
        cache, lines = frame_cache.find_cache(folder, key, root, source.data_files(camera))
        caches |= {camera: cache} if cache is not None else {}
        said += lines
    return caches, said


def _open_columns(
    config: SourceConfig,
    root: pathlib.Path,
    part: tuple[str, float],
    paths: list[str],
    parts: tuple[Part, ...],
    reader: "_Reader",
    cameras: tuple[tuple[str, str], ...],
) -> tuple[Columns, dict[str, Any]]:
    """The columns of a split, mapped from where they were kept or made and kept, and what was noted when they were.

    `part` is the split, and the share of the training split that is held out for "val".
    """
    split, share = part
    settings = (VERSION, reader.variant, parts, cameras, split, share, choosing.settings(config, split))
    # Options may say of which content files are that an index is made of, and name no other place.
    name, stamp = sidecar.fingerprint((), paths, settings), sidecar.fingerprint(paths, settings, reader.options)

    def make() -> tuple[dict[str, Pieces], dict[str, Any]]:
        indices = reader.read(paths, parts)
        masks, skipped = selection.usable(paths, indices, dict(cameras))
        total = sum(index.total for index in indices)
        skipping.check(skipped, total, "train" if share else split, config.max_skipped, str(root))
        found, left_out = choosing.choose(config, root, split, share, indices, masks)
        filled = [i for i, own in enumerate(found) if own.keep.any()]
        chosen = [found[i] for i in filled]
        pieces, shapes = columns.layout(chosen, cameras)
        sizes = find_sizes([paths[i] for i in filled], columns.first_frames(chosen, cameras))
        noted = {"skipped": skipped, "total": total, "left_out": left_out, "files": filled, "shapes": shapes}
        return pieces, noted | {"sizes": {camera: sorted(own) for camera, own in sizes.items()}}

    found = arrays.kept(root / f"{split}_columns-{name}.arrays", stamp, make)
    shapes = {camera: [tuple(shape) for shape in own] for camera, own in found.notes["shapes"].items()}
    return Columns.read(found, shapes, name, stamp), found.notes


@dataclasses.dataclass(frozen=True)
class _Reader:
    """How the files of a dataset are indexed.

    Attributes:
        build, options, variant: see `open_indices`.
        notes: lines that say what is known of the whole before, and what it has not.
    """

    build: Callable[[str], Index]
    options: str
    variant: str
    notes: tuple[str, ...]

    @classmethod
    def of(cls, config: SourceConfig, root: pathlib.Path, standardize: Standardize | None) -> "_Reader":
        if config.format not in _SPLITTING:
            return cls(bridge_tfrecord.build_index, "", "", ())
        reader = _reader(config, root, standardize)
        return cls(reader.build_index, repr(reader), reader.variant, reader.notes())

    def read(self, paths: list[str], parts: tuple[Part, ...]) -> list[Index]:
        """The indices of files, or of the parts of them that are said."""
        indices = open_indices(paths, self.build, self.options, self.variant)
        if not parts:
            return indices
        rlds_files.check_counts(parts, [index.total for index in indices])
        return [index.between(part.start, part.stop, part.left_out) for index, part in zip(indices, parts)]


def _reader(
    config: SourceConfig, root: pathlib.Path, standardize: Standardize | None
) -> rlds.RLDSFormat | LeRobotFormat:
    """What reads a dataset that says which splits and features it has."""
    if config.format == "rlds":
        return rlds.RLDSFormat.of(root, config.step_keys, standardize)
    if standardize is not None:
        raise ConfigError(
            f"{root}: standardization {standardize.name!r} is of RLDS datasets, this one is a LeRobotDataset"
        )
    return LeRobotFormat.of(root, config.action_key, config.proprio_key, config.actions.relabel)
