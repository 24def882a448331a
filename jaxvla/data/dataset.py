"""From configuration to a dataset: files found and indexed, actions transformed, statistics made, tables normalized."""

import dataclasses
import pathlib
from collections.abc import Iterator

import numpy as np

from jaxvla.data import opening, skipping
from jaxvla.data.formats import arrays
from jaxvla.data.formats.index import NO_TEXT
from jaxvla.data.given_statistics import training_statistics
from jaxvla.data.schema import BatchSpec
from jaxvla.data.source import TrajectorySource
from jaxvla.data.source_config import SourceConfig, check_image_size
from jaxvla.data.tables import Normalized, blocks, kept_rows, steps_of
from jaxvla.data.text.paraphrases import Paraphrases
from jaxvla.data.transforms import filters, selection
from jaxvla.data.transforms.action_checks import check_actions, describe_actions
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.data.transforms.filters import FilterConfig
from jaxvla.data.transforms.goals import GoalConfig
from jaxvla.data.transforms.images import check_filter
from jaxvla.data.transforms.normalization import Normalizer, Statistics
from jaxvla.data.transforms.tasks import TaskConfig
from jaxvla.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What becomes of the trajectories; the keys of config.data in configs/train_config.py."""

    relabel_actions: bool | None = None
    goal_relabeling: GoalConfig = dataclasses.field(default_factory=GoalConfig)
    obs_horizon: int = 1
    action_horizon: int = 1
    normalization: str = "normal"
    image_size: tuple[int, ...] = ()
    camera_sizes: dict[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    resize: str = "lanczos"
    skip_unlabeled: bool = False
    filters: FilterConfig = dataclasses.field(default_factory=FilterConfig)
    tasks: TaskConfig = dataclasses.field(default_factory=TaskConfig)
    learn_padding: bool = False
    num_threads: int = 2
    prefetch: int = 4

    def __post_init__(self) -> None:
        for name in ("obs_horizon", "action_horizon", "num_threads", "prefetch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"config.data.{name} must be at least 1, not {getattr(self, name)}")
        check_image_size("config.data", self.image_size)
        for camera, size in self.camera_sizes.items():
            if min(size) < 1:
                raise ConfigError(f"config.data.camera_sizes.{camera} must be (height, width), not {size}")
        if self.camera_sizes and not self.image_size:
            raise ConfigError(
                f"config.data.camera_sizes are of {', '.join(self.camera_sizes)} alone: set config.data.image_size for "
                "the others"
            )
        check_filter(self.resize, "config.data.resize")


@dataclasses.dataclass(frozen=True, eq=False)
class Dataset:
    """One split of the data, ready to be drawn from. Picklable; holds no pixels.

    Attributes:
        source: the trajectories of all groups, end to end.
        config: how they are used.
        statistics: of the training split, whichever split this is.
        actions: float32 [sum T, d], transformed, and normalized where they are indexed.
        proprio: float32 [sum (T + 1), p], likewise.
        drawable: int64 [m], the transitions that can be drawn, as rows of `actions`; ascending, group after group.
        group_sizes: how many of them each group has.
        weights: the share of batches that each group has.
        convention: what the actions are.
        report: lines for the start of a run: what was left out, what is missing, the ways of the pictures, warnings.
    """

    source: TrajectorySource
    config: DataConfig
    statistics: Statistics
    action_normalizer: Normalizer
    proprio_normalizer: Normalizer
    actions: Normalized
    proprio: Normalized
    drawable: np.ndarray
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
        cameras, sizes = tuple(name for name, _ in self.source.cameras), self.config.camera_sizes
        return BatchSpec(
            cameras=cameras,
            image_size=tuple(self.source.image_size),
            camera_sizes=tuple((camera, size) for camera, size in sizes.items() if camera in cameras),
            proprio_dim=self.proprio.shape[1],
            action_dim=self.actions.shape[1],
            obs_horizon=self.config.obs_horizon,
            action_horizon=self.config.action_horizon,
            action_limits=self.action_normalizer.limits(),
        )

    @property
    def padded_share(self) -> float:
        """The share of action slots, over all transitions that can be drawn, that are not to be learned.

        They lie behind a trajectory's end, or from a transition on that is not taught.
        """
        horizon = self.config.action_horizon
        padded = sum(
            int(np.maximum(horizon - self.learned_ahead(self.drawable[rows]), 0).sum())
            for rows in arrays.rows_at_a_time(len(self.drawable))
        )
        return float(padded / (self.num_transitions * horizon))

    def learned_ahead(self, transitions: np.ndarray) -> np.ndarray:
        """How many slots of the chunks that begin at transitions int [n], rows of `actions`, are learned: int [n].

        What follows a transition that is not taught answers to what happened in it, which nobody can foresee. Slots
        behind the end repeat the last action; with `learn_padding` they are learned, where all before them are.
        """
        ahead = self.source.taught_ahead[transitions]
        if not self.config.learn_padding:
            return ahead
        trajectory, step = self.source.locate(transitions)
        return np.where(ahead == self.source.lengths[trajectory] - step, self.config.action_horizon, ahead)

    def describe_actions(self) -> tuple[str, str]:
        """What the actions are, and the range of each dimension, as they are learned; one line each."""
        return describe_actions(self.convention, self.statistics.actions)

    def annotations(self) -> tuple[str, ...]:
        """All annotations, trajectory after trajectory: the table that a batch's `language` points into."""
        return self.source.language.all()


def open_dataset(
    source_config: SourceConfig, config: DataConfig, split: str, statistics: Statistics | None = None
) -> Dataset:
    """Opens one split: indexes its files where that was not done yet, transforms and normalizes its tables.

    Args:
        source_config: which files.
        config: what becomes of them.
        split: "train" or "val".
        statistics: those of the training split; see `training_statistics` where none are given.

    Raises:
        DataError: nothing found, a damaged file, or no transition that can be used.
        ConfigError: settings that do not fit the data.
    """
    root = opening.find_root(source_config)
    convention = _convention(source_config, config)
    source, groups, report = _open_source(source_config, config, root, split, convention)
    convention.check(source.actions.shape[1], source.proprio.shape[1])
    table = _transform_actions(source, root, convention)
    report += _describe_untaught(source, split)
    if config.skip_unlabeled:
        report += _describe_unlabelled(source, split)
    report += source.pixel_path()
    if statistics is None:
        report += tuple(
            f"warning: {remark}" for remark in check_actions(source, convention, not source_config.is_known)
        )
        statistics, said = training_statistics(source_config, root, source, convention)
        report += said
    _check_dimensions(root, split, table, source.proprio, statistics)
    mask = _action_mask(source_config, statistics)
    action_normalizer = Normalizer(config.normalization, statistics.actions, mask or None, convention.gripper)
    if mask != statistics.action_mask:
        statistics = dataclasses.replace(statistics, action_mask=mask)
    proprio_normalizer = Normalizer(config.normalization, statistics.proprio)
    actions, proprio = Normalized(table, action_normalizer), Normalized(source.proprio, proprio_normalizer)
    drawable, left_out = _choose_drawn(source, config, root, split, (actions, proprio))
    report += left_out
    group_sizes = _group_sizes(source_config, groups, source, drawable)
    _check_groups(source_config, config, root, split, source, group_sizes)
    return Dataset(
        source,
        config,
        statistics,
        action_normalizer,
        proprio_normalizer,
        actions,
        proprio,
        drawable,
        group_sizes,
        source_config.sample_weights or (1.0,) * len(group_sizes),
        convention,
        report,
    )


def _open_source(
    source_config: SourceConfig, config: DataConfig, root: pathlib.Path, split: str, convention: ActionConvention
) -> tuple[TrajectorySource, np.ndarray, tuple[str, ...]]:
    """`opening.open_source` as a run asks for it."""
    own = config.tasks.paraphrases if split == "train" else ""
    return opening.open_source(
        dataclasses.replace(source_config, actions=convention),
        _image_size(source_config, config),
        root,
        split,
        source_config.standardize,
        config.resize,
        Paraphrases.read(own) if own else None,
        config.camera_sizes,
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


def _action_mask(source_config: SourceConfig, statistics: Statistics) -> tuple[bool, ...]:
    """The action dimensions that are normalized: as configured, else as the statistics came; empty for all."""
    said, came = source_config.action_mask, statistics.action_mask
    if said and came and said != came:
        raise ConfigError(
            f"bridgedata_config.action_mask={said} is not the mask that the statistics came with, {came}: set it to "
            "that, or take statistics without one"
        )
    return said or came


def _convention(source_config: SourceConfig, config: DataConfig) -> ActionConvention:
    """What the dataset says of its actions, or the run in its place."""
    if config.relabel_actions is None:
        return source_config.actions
    return dataclasses.replace(source_config.actions, relabel=config.relabel_actions)


def _transform_actions(source: TrajectorySource, root: pathlib.Path, convention: ActionConvention) -> np.ndarray:
    """Actions [sum T, d] in robot units, after the transforms of whole trajectories."""
    if not (convention.relabel or convention.binarize):
        return source.actions

    def transform(block: slice) -> np.ndarray:
        tables = (source.table(i) for i in range(block.start, block.stop))
        return np.concatenate([convention.transform(table.actions, table.proprio) for table in tables])

    return kept_rows(root, "actions", source, convention, transform)


def _check_dimensions(
    root: pathlib.Path, split: str, table: np.ndarray, proprio: np.ndarray, statistics: Statistics
) -> None:
    for name, values, field in (("actions", table, statistics.actions), ("states", proprio, statistics.proprio)):
        if values.shape[1] != len(field.mean):
            raise DataError(
                f"{root}: the {split} split has {name} of {values.shape[1]} dimensions, the statistics are of "
                f"{len(field.mean)}: both must be of one robot"
            )


def _outliers(
    source: TrajectorySource, config: FilterConfig, actions: Normalized, proprio: Normalized
) -> dict[int, skipping.Skipped]:
    """By its number, each trajectory that is left out for a value, and why."""
    found: dict[int, skipping.Skipped] = {}
    tables = (("action", actions, source.action_starts, 0), ("proprio", proprio, source.frame_starts, 1))
    for name, values, starts, more in tables:
        largest = getattr(config, f"max_{name}")
        reason = f"{'an action' if name == 'action' else 'a state'} beyond config.data.filters.max_{name}"
        for block in blocks(source) if largest else ():
            lengths, start = source.lengths[block] + more, int(starts[block.start])
            rows = values[start : start + int(lengths.sum())]
            for i, (step, dimension, value) in filters.beyond(rows, lengths, largest).items():
                number = block.start + i
                where = f"trajectory {source.keys[number]!r}: step {step}, dimension {dimension}: {value:g} normalized"
                found.setdefault(number, (reason, where))
    return found


def _choose_drawn(
    source: TrajectorySource,
    config: DataConfig,
    root: pathlib.Path,
    split: str,
    tables: tuple[Normalized, Normalized],
) -> tuple[np.ndarray, tuple[str, ...]]:
    """`Dataset.drawable`, of normalized tables, and lines that say what `config.filters` leave out."""
    chosen, drawable = config.filters, _drawable(source, root, config)
    outliers = _outliers(source, chosen, *tables)
    report = skipping.describe([*outliers.values()], len(source), split)
    if len(outliers) == len(source):
        raise DataError(
            f"{root}: config.data.filters leave all {len(source)} {split} trajectories out: raise max_action="
            f"{chosen.max_action:g} or max_proprio={chosen.max_proprio:g}"
        )
    if outliers:
        drawable = drawable[~np.isin(source.locate(drawable)[0], [*outliers])]
    if not chosen.max_steps or split != "train":
        return drawable, report
    trajectory, _ = source.locate(drawable)
    parts = (part for block in blocks(source) for part in _actions_of(source, block))
    seeds = selection.seeds(source.keys, parts)
    kept = drawable[filters.some_of_each(trajectory, chosen.max_steps, seeds)]
    most = f"at most {chosen.max_steps} of a trajectory"
    return kept, (*report, f"subsampled   {len(kept)} of {len(drawable)} train transitions, {most}")


def _actions_of(source: TrajectorySource, block: slice) -> Iterator[np.ndarray]:
    """The actions of each of successive trajectories, as they are stored."""
    for start, length in zip(source.action_starts[block].tolist(), source.lengths[block].tolist()):
        yield source.actions[start : start + length]


def _drawable(source: TrajectorySource, root: pathlib.Path, config: DataConfig) -> np.ndarray:
    """See `Dataset`; without what `config.filters` leave out."""
    goals = config.goal_relabeling

    def choose(block: slice) -> np.ndarray:
        rows, step, length = steps_of(source, block)
        can = goals.has_goal(step, length) & source.taught[rows]
        if config.skip_unlabeled:
            can &= source.texts[rows] != NO_TEXT
        return rows.start + np.flatnonzero(can)

    return kept_rows(root, "drawable", source, (goals.nearest, config.skip_unlabeled), choose)


def _describe_untaught(source: TrajectorySource, split: str) -> tuple[str, ...]:
    total = len(source.taught)
    count = total - np.count_nonzero(source.taught)
    return (f"not taught   {count} of {total} {split} transitions, which are not drawn",) if count else ()


def _describe_unlabelled(source: TrajectorySource, split: str) -> tuple[str, ...]:
    count, total = np.count_nonzero(source.texts == NO_TEXT), len(source.texts)
    return (f"unlabelled   {count} of {total} {split} transitions, which are not drawn",) if count else ()


def _group_sizes(
    config: SourceConfig, groups: np.ndarray, source: TrajectorySource, drawable: np.ndarray
) -> tuple[int, ...]:
    count = len(config.include) if config.format == "bridge_tfrecord" else 1
    # The trajectories of a group are successive, so both ends of its transitions are found in `drawable`.
    first = np.searchsorted(groups[source.file_of], np.arange(count + 1))
    ends = np.searchsorted(drawable, np.append(source.action_starts, len(source.actions))[first])
    return tuple(np.diff(ends).tolist())


def _check_groups(
    source_config: SourceConfig,
    config: DataConfig,
    root: pathlib.Path,
    split: str,
    source: TrajectorySource,
    group_sizes: tuple[int, ...],
) -> None:
    """Refuses groups without a transition to draw; a share that is held out need not have some of every group."""
    if any(group_sizes) if split == "val" and source_config.validation_share else all(group_sizes):
        return
    if config.skip_unlabeled and (source.texts == NO_TEXT).all():
        name = "" if source_config.format != "rlds" else " or name their feature in bridgedata_config.language_key,"
        raise DataError(
            f"{root}: no {split} transition has an instruction, which config.data.skip_unlabeled=True asks for: set it "
            f"to False,{name} or add instructions"
        )
    grouped = source_config.format == "bridge_tfrecord"
    group = f" of include group {source_config.include[group_sizes.index(0)]}" if grouped else ""
    raise DataError(
        f"{root}: no {split} transition{group} can be used with goal_relabeling.strategy="
        f"{config.goal_relabeling.strategy} and skip_unlabeled={config.skip_unlabeled}: change these"
    )
