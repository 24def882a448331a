"""From configuration to a dataset: files found and indexed, actions transformed, statistics made, tables normalized."""

import dataclasses
import json
import pathlib

import numpy as np

from jaxvla.config import local_path
from jaxvla.data import bridge_tfrecord, rlds, sidecar
from jaxvla.data.action_checks import check_actions, describe_actions
from jaxvla.data.actions import ActionConvention
from jaxvla.data.files import check_folder
from jaxvla.data.goals import GoalConfig
from jaxvla.data.index import open_indices
from jaxvla.data.normalization import FieldStatistics, Normalizer, Statistics
from jaxvla.data.schema import BatchSpec
from jaxvla.data.source import TrajectorySource
from jaxvla.errors import ConfigError, DataError

FORMATS = ("bridge_tfrecord", "rlds")


def check_image_size(where: str, size: tuple[int, ...]) -> None:
    """Raises ConfigError unless `size` is (height, width), or () for the size in which images come."""
    if len(size) not in (0, 2) or any(side < 1 for side in size):
        raise ConfigError(f"{where}.image_size must be (height, width) or (), not {size}")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Which files; the keys of configs/data_config.py, where they are explained."""

    format: str
    data_path: str
    include: tuple[tuple[str, ...], ...] = ()
    exclude: tuple[str, ...] = ()
    sample_weights: tuple[float, ...] = ()
    cameras: dict[str, str] = dataclasses.field(default_factory=lambda: {"images0": "images0"})
    image_size: tuple[int, ...] = ()
    action_mask: tuple[bool, ...] = ()
    actions: ActionConvention = dataclasses.field(default_factory=ActionConvention)
    reasoning_path: str = "reasoning.sqlite"
    max_mismatched: float = 0.1

    def __post_init__(self) -> None:
        where = "bridgedata_config"
        if self.format not in FORMATS:
            raise ConfigError(f"{where}.format must be one of {', '.join(FORMATS)}, not {self.format!r}")
        if not self.cameras:
            raise ConfigError(f"{where}.cameras is empty: name at least one, such as images0")
        check_image_size(where, self.image_size)
        if self.format == "bridge_tfrecord" and not (self.include and all(self.include)):
            raise ConfigError(f"{where}.include needs groups of glob patterns, such as (('**',),), not {self.include}")
        groups = len(self.include) if self.format == "bridge_tfrecord" else 1
        if self.sample_weights and len(self.sample_weights) != groups:
            raise ConfigError(f"{where}.sample_weights has {len(self.sample_weights)} entries for {groups} groups")
        if any(not weight > 0 for weight in self.sample_weights):
            raise ConfigError(f"{where}.sample_weights must be positive, not {self.sample_weights}")
        if not 0 <= self.max_mismatched <= 1:
            raise ConfigError(f"{where}.max_mismatched must lie in [0, 1], not {self.max_mismatched}")


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What becomes of the trajectories; the keys of config.data in configs/train_config.py."""

    relabel_actions: bool | None = None
    goal_relabeling: GoalConfig = dataclasses.field(default_factory=GoalConfig)
    obs_horizon: int = 1
    action_horizon: int = 1
    normalization: str = "normal"
    image_size: tuple[int, ...] = ()
    skip_unlabeled: bool = False
    num_threads: int = 2
    prefetch: int = 4

    def __post_init__(self) -> None:
        for name in ("obs_horizon", "action_horizon", "num_threads", "prefetch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"config.data.{name} must be at least 1, not {getattr(self, name)}")
        check_image_size("config.data", self.image_size)


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of the data, ready to be drawn from. Picklable; holds no pixels.

    Attributes:
        source: the trajectories of all groups, end to end.
        config: how they are used.
        statistics: of the training split, whichever split this is.
        actions: float32 [sum T, d], transformed and normalized.
        proprio: float32 [sum (T + 1), p], normalized.
        usable: int64 [n], how many leading transitions of each trajectory are drawn from.
        group_sizes: how many usable transitions each group has.
        weights: the share of batches that each group has.
        convention: what the actions are.
        report: lines that a run prints at its start: the ways of the pictures, and warnings.
    """

    source: TrajectorySource
    config: DataConfig
    statistics: Statistics
    action_normalizer: Normalizer
    proprio_normalizer: Normalizer
    actions: np.ndarray
    proprio: np.ndarray
    usable: np.ndarray
    group_sizes: tuple[int, ...]
    weights: tuple[float, ...]
    convention: ActionConvention
    report: tuple[str, ...]

    @property
    def num_transitions(self) -> int:
        """How many transitions can be drawn."""
        return sum(self.group_sizes)

    @property
    def spec(self) -> BatchSpec:
        """The sizes of this dataset's batches."""
        return BatchSpec(
            cameras=tuple(name for name, _ in self.source.cameras),
            image_size=tuple(self.source.image_size),
            proprio_dim=self.proprio.shape[1],
            action_dim=self.actions.shape[1],
            obs_horizon=self.config.obs_horizon,
            action_horizon=self.config.action_horizon,
            action_limits=self.action_normalizer.limits(),
        )

    @property
    def padded_share(self) -> float:
        """The share of action slots, over all transitions that can be drawn, that lie behind a trajectory's end."""
        behind = sum(
            np.clip(ahead - (self.source.lengths - self.usable), 0, self.usable).sum()
            for ahead in range(1, self.config.action_horizon)
        )
        return float(behind / (self.num_transitions * self.config.action_horizon))

    def describe_actions(self) -> tuple[str, str]:
        """What the actions are, and the range of each dimension, as they are learned; one line each."""
        return describe_actions(self.convention, self.statistics.actions)

    def annotations(self) -> tuple[str, ...]:
        """All annotations, trajectory after trajectory: the table that a batch's `language` points into."""
        return tuple(text for texts in self.source.language for text in texts)


def open_dataset(
    source_config: SourceConfig, config: DataConfig, split: str, statistics: Statistics | None = None
) -> Dataset:
    """Opens one split: indexes its files where that was not done yet, transforms and normalizes its tables.

    Args:
        source_config: which files.
        config: what becomes of them.
        split: "train" or "val".
        statistics: those of the training split; computed, and kept beside the data, where none are given.

    Raises:
        DataError: nothing found, a damaged file, or no transition that can be used.
        ConfigError: settings that do not fit the data.
    """
    root = local_path(source_config.data_path, "data_path")
    check_folder(root)
    groups = _find_groups(source_config, root, split)
    image_size = _image_size(source_config, config)
    source = _open_source(source_config, image_size, root, tuple(path for files in groups for path in files))
    convention = _convention(source_config, config)
    convention.check(source.actions.shape[1], source.proprio.shape[1])
    table = _transform_actions(source, convention)
    remarks = ()
    if statistics is None:
        remarks = check_actions(source, convention)
        statistics = _kept_statistics(source, table, root, convention)
    action_normalizer = Normalizer(
        config.normalization, statistics.actions, source_config.action_mask or None, convention.gripper
    )
    proprio_normalizer = Normalizer(config.normalization, statistics.proprio)
    usable = config.goal_relabeling.usable_transitions(source.lengths)
    if config.skip_unlabeled:
        usable = np.where([bool(texts) for texts in source.language], usable, 0)
    group_sizes = _group_sizes(groups, source, usable)
    if not all(group_sizes):
        empty = (
            "" if source_config.format == "rlds" else f" of include group {source_config.include[group_sizes.index(0)]}"
        )
        raise DataError(
            f"{root}: no {split} transition{empty} can be used with goal_relabeling.strategy="
            f"{config.goal_relabeling.strategy} and skip_unlabeled={config.skip_unlabeled}: change these"
        )
    return Dataset(
        source,
        config,
        statistics,
        action_normalizer,
        proprio_normalizer,
        action_normalizer.forward(table),
        proprio_normalizer.forward(source.proprio),
        usable,
        group_sizes,
        source_config.sample_weights or (1.0,) * len(groups),
        convention,
        (*source.pixel_path(), *(f"warning: {remark}" for remark in remarks)),
    )


def _image_size(source_config: SourceConfig, config: DataConfig) -> tuple[int, ...]:
    """Of a batch; () for the stored size."""
    given = {size for size in (source_config.image_size, config.image_size) if size}
    if len(given) > 1:
        raise ConfigError(
            f"bridgedata_config.image_size={source_config.image_size} and config.data.image_size={config.image_size} "
            "disagree: set one of them to (), or both to the same"
        )
    return given.pop() if given else ()


def _find_groups(config: SourceConfig, root: pathlib.Path, split: str) -> list[list[str]]:
    if config.format == "rlds":
        return [rlds.find_files(root, split)]
    return [bridge_tfrecord.find_files(root, patterns, config.exclude, split) for patterns in config.include]


def _open_source(
    config: SourceConfig, image_size: tuple[int, ...], root: pathlib.Path, paths: tuple[str, ...]
) -> TrajectorySource:
    if config.format == "rlds":
        reader = rlds.RLDSFormat.of(root, rlds.StepKeys())
        indices = open_indices(paths, reader.build_index, repr(reader))
    else:
        indices = open_indices(paths, bridge_tfrecord.build_index)
    return TrajectorySource(paths, indices, tuple(config.cameras.items()), image_size)


def _convention(source_config: SourceConfig, config: DataConfig) -> ActionConvention:
    """What the dataset says of its actions, or the run in its place."""
    if config.relabel_actions is None:
        return source_config.actions
    return dataclasses.replace(source_config.actions, relabel=config.relabel_actions)


def _transform_actions(source: TrajectorySource, convention: ActionConvention) -> np.ndarray:
    """Actions [sum T, d] in robot units, after the transforms of whole trajectories."""
    if not (convention.relabel or convention.binarize):
        return source.actions
    tables = (source.table(i) for i in range(len(source)))
    return np.concatenate([convention.transform(table.actions, table.proprio) for table in tables])


def _kept_statistics(source: TrajectorySource, table: np.ndarray, root: pathlib.Path, *settings: object) -> Statistics:
    name = sidecar.fingerprint(source.paths, settings)

    def make() -> Statistics:
        last_frames = source.frame_starts + source.lengths
        observed = np.delete(source.proprio, last_frames, axis=0)
        return Statistics(FieldStatistics.of(table), FieldStatistics.of(observed), len(table), len(source))

    return sidecar.kept(
        root / f"dataset_statistics-{name}.json",
        lambda content: Statistics.from_json(json.loads(content)),
        make,
        lambda statistics: statistics.dumps().encode(),
    )


def _group_sizes(groups: list[list[str]], source: TrajectorySource, usable: np.ndarray) -> tuple[int, ...]:
    per_file = np.bincount(source.file_of, usable, len(source.paths)).astype(int)
    ends = np.cumsum([len(files) for files in groups])
    return tuple(int(part.sum()) for part in np.split(per_file, ends[:-1]))
