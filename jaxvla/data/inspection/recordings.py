"""What is looked at: the episodes of all splits of a dataset, numbered, whatever its format."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvla.data import opening
from jaxvla.data.formats import bridge_tfrecord, lerobot_meta, rlds_files
from jaxvla.data.formats.index import Index
from jaxvla.data.mixture_config import name_of, read_mixture
from jaxvla.data.skipping import Skipped
from jaxvla.data.source import TrajectorySource
from jaxvla.data.source_config import SourceConfig
from jaxvla.data.transforms import selection
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.errors import ConfigError, DataError

_ANY_SIZE = (1, 1)  # of the frames of a batch, which nobody asks for here


@dataclasses.dataclass(frozen=True, eq=False)
class Recordings:
    """The n episodes that can be used, numbered from 0, split after split, and those of them that are looked at.

    Attributes:
        root, format: of the dataset.
        splits: the names of the stored ones.
        counts: how many episodes each has, those that cannot be used included.
        split_of: int64 [n], the split of each episode.
        numbers: int64 [m], the episodes that are looked at, ascending.
        source: their tables, in this order; it has no cameras.
        cameras: the stored names of those that are looked at.
        skipped: why, and which, for each episode that cannot be used.
        faults: the same for episodes of which only a camera cannot be used; the reason is the camera's name.
        convention: what is said of the actions; nothing, unless a configuration says it (`said`).
        control_frequency: steps per second, Hz; 0 where it is not known.
        notes: lines that say what was not found.
    """

    root: pathlib.Path
    format: str
    splits: tuple[str, ...]
    counts: tuple[int, ...]
    split_of: np.ndarray
    numbers: np.ndarray
    source: TrajectorySource
    cameras: tuple[str, ...]
    skipped: tuple[Skipped, ...]
    faults: tuple[Skipped, ...]
    convention: ActionConvention
    said: bool
    control_frequency: float
    notes: tuple[str, ...]
    _paths: tuple[str, ...]
    _indices: tuple[Index, ...]

    @property
    def files(self) -> tuple[str, ...]:
        """The data files of all episodes."""
        return self._paths

    def name(self, row: int) -> str:
        """What an episode that is looked at is called: its number, its split and its key."""
        return f"{self.place(row)} {self.source.keys[row]}"

    def place(self, row: int) -> str:
        """Its number and its split."""
        number = int(self.numbers[row])
        return f"#{number} ({self.splits[self.split_of[number]]})"

    def seen(self, camera: str) -> np.ndarray:
        """Which of the n episodes have frames of a camera: bool [n]."""
        found = []
        for index in self._indices:
            starts = np.cumsum(index.lengths + 1) - index.lengths - 1
            there = camera in index.frames
            found.append(index.frames[camera].sizes[starts] > 0 if there else np.zeros(len(starts), bool))
        return np.concatenate(found)

    def views(
        self, camera: str, numbers: np.ndarray, image_size: tuple[int, int] = _ANY_SIZE, resize: str = "lanczos"
    ) -> TrajectorySource:
        """The episodes `numbers`, ascending, with frames of a camera, which all of them must have.

        Args:
            camera: its stored name.
            numbers: int [m].
            image_size, resize: of frames that are not asked for as they are stored, see `TrajectorySource`.

        Raises:
            DataError: the first frame of one of the files is no picture.
        """
        paths, indices = self._chosen(numbers)
        return TrajectorySource.of(paths, indices, ((camera, camera),), image_size, resize)

    def tables(self, number: int) -> TrajectorySource:
        """One of the n episodes, whether it is looked at or not.

        Raises:
            ConfigError: there is none of this number.
        """
        if not 0 <= number < len(self.split_of):
            raise ConfigError(f"there is no episode {number}: {self.root} has 0 to {len(self.split_of) - 1}")
        return TrajectorySource.of(*self._chosen(np.array([number])), (), _ANY_SIZE)

    def _chosen(self, numbers: np.ndarray) -> tuple[tuple[str, ...], list[Index]]:
        return _select(self._paths, self._indices, numbers)


def find_config(root: pathlib.Path) -> SourceConfig:
    """The configuration by which a dataset is opened, found out by what lies in its folder.

    Raises:
        DataError: nothing that is read lies there; names what does, and what to do.
    """
    if not root.is_dir():
        raise DataError(
            f"no data folder {root}: give a folder of TFRecords, an RLDS version folder or a LeRobotDataset"
        )
    if (root / "features.json").exists():
        return SourceConfig("rlds", str(root))
    if (root / lerobot_meta.INFO).exists():
        return SourceConfig("lerobot", str(root))
    config = SourceConfig("bridge_tfrecord", str(root), (("**",),))
    if opening.stored_splits(config, root):
        return config
    if any(root.glob("*/features.json")) or any(root.glob("*/*/features.json")):
        rlds_files.check_version(root)  # which names those below
    there = ", ".join(sorted(path.name for path in root.iterdir())[:5]) or "nothing"
    raise DataError(
        f"{root} holds no dataset that is read: neither features.json (an RLDS version folder) nor "
        f"{lerobot_meta.INFO} (a LeRobotDataset) nor <task>/(train|val)/out.tfrecord; it has {there}: convert raw data "
        "first (README, From raw data to a policy)"
    )


def choose_config(
    root: pathlib.Path | None, settings: Mapping[str, Any] | None, dataset: str = ""
) -> tuple[str, SourceConfig, bool]:
    """The dataset of a folder, or of a configuration, or of a configuration at the folder; and whether there is one.

    Args:
        root: the folder; None for that of the configuration.
        settings: the plain values of --bridgedata_config; None where it is not given.
        dataset: which one of a configuration that has several.

    Returns:
        Its name, its configuration, and whether somebody wrote that.

    Raises:
        ConfigError: neither is given, or no such dataset.
        DataError: nothing that is read lies in the folder.
    """
    if settings is None:
        if root is None:
            raise ConfigError("give the folder of a dataset, or --bridgedata_config data_config.py:NAME")
        found = find_config(root)
        return name_of(found.data_path), found, False
    sources = read_mixture(dict(settings) | ({} if root is None else {"data_path": str(root)})).sources
    name = dataset or next(iter(sources))
    if name not in sources or (len(sources) > 1 and not dataset):
        raise ConfigError(f"--dataset must be one of those of the config, {', '.join(sources)}, not {dataset!r}")
    return name, sources[name], True


def open_recordings(config: SourceConfig, said: bool, max_episodes: int, seed: int) -> Recordings:
    """Opens all stored splits of a dataset.

    Args:
        config: where it lies.
        said: whether somebody wrote `config` for this dataset; otherwise all stored cameras are looked at.
        max_episodes: how many episodes are looked at, at most; 0 for all.
        seed: of the choice of these.

    Raises:
        DataError: there is no split, a file is damaged, or no episode can be used.
        ConfigError: what is said of the actions does not fit their dimensions.
    """
    root = opening.find_root(config)
    splits = opening.stored_splits(config, root)
    if not splits and config.format == "bridge_tfrecord":
        bridge_tfrecord.find_files(root, config.include[0], config.exclude, "train")  # which says why
    standardize = config.standardize
    cameras = (*opening.stored_cameras(config, root, standardize).values(),) if said else ()
    opened = [opening.index_split(config, root, split, standardize) for split in splits]
    paths = [path for own, _, _ in opened for path in own]
    indices = [index for _, own, _ in opened for index in own]
    faults = [fault for path, index in zip(paths, indices) for fault in _faults(path, index)]
    keep, skipped = selection.usable(paths, indices, {})
    kept = [index.select(own) for index, own in zip(indices, keep)]
    lengths = [len(index.lengths) for index in kept]
    if not sum(lengths):
        why = f" (such as {skipped[0][0]}: {skipped[0][1]})" if skipped else ""
        raise DataError(f"{root}: none of its {len(skipped)} episodes can be used{why}: make or download them again")
    split_of = np.repeat(np.arange(len(splits)), [len(own) for own, _, _ in opened])
    stored = sorted({camera for index in kept if len(index.lengths) for camera in index.frames})
    numbers = np.arange(sum(lengths))
    if 0 < max_episodes < len(numbers):
        numbers = np.sort(np.random.default_rng(seed).choice(numbers, max_episodes, replace=False))
    source = TrajectorySource.of(*_select(paths, kept, numbers), (), _ANY_SIZE)
    config.actions.check(source.actions.shape[1], source.proprio.shape[1])
    return Recordings(
        root=root,
        format=config.format,
        splits=splits,
        counts=tuple(sum(index.total for index in own) for _, own, _ in opened),
        split_of=np.repeat(split_of, lengths),
        numbers=numbers,
        source=source,
        cameras=cameras or tuple(stored),
        skipped=tuple(skipped),
        faults=tuple(fault for fault in faults if not cameras or fault[0] in cameras),
        convention=config.actions,
        said=said,
        control_frequency=config.control_frequency,
        notes=tuple(dict.fromkeys(note for _, _, notes in opened for note in notes)),
        _paths=tuple(paths),
        _indices=tuple(kept),
    )


def _select(paths: Sequence[str], indices: Sequence[Index], numbers: np.ndarray) -> tuple[tuple[str, ...], list[Index]]:
    """The files that hold episodes `numbers`, and their indices of these alone."""
    ends = np.cumsum([len(index.lengths) for index in indices])
    chosen = []
    for path, index, end in zip(paths, indices, ends.tolist()):
        keep = np.isin(np.arange(end - len(index.lengths), end), numbers)
        if keep.any():
            chosen.append((path, index.select(keep)))
    return tuple(path for path, _ in chosen), [index for _, index in chosen]


def _faults(path: str, index: Index) -> list[Skipped]:
    return [(camera, f"{path}: trajectory {index.keys[i]!r}: {what}") for i, camera, what in index.faults]
