"""A mixture: datasets of any formats that are drawn from as one, each by its weight.

Each dataset keeps its own cameras, statistics and widths. In a batch, what a row's dataset lacks is black or 0, and
masks say so. Members are numbered by their names in ascending order, and what counts through all of them (trajectories,
annotations) goes end to end in this order.
"""

import contextlib
import dataclasses
import math
from collections.abc import Iterator

import numpy as np

from jaxvla.data import opening
from jaxvla.data.dataset import DataConfig, Dataset, open_dataset
from jaxvla.data.mixture_config import MixtureConfig
from jaxvla.data.order import Order
from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError, DataError


@dataclasses.dataclass(frozen=True, eq=False)
class Member:
    """A dataset of a mixture.

    Attributes:
        name: what people call it.
        dataset: one split of it.
        weight: how often it is drawn beside the others; positive, need not sum to 1.
    """

    name: str
    dataset: Dataset
    weight: float = 1.0


@dataclasses.dataclass(frozen=True, eq=False)
class Mixture:
    """One split of all datasets of a run. Picklable; holds no pixels.

    Attributes:
        members: at least one, names ascending.
        text_starts: int64 [members], where the annotations of each begin among those of all.
        trajectory_starts: int64 [members], where its trajectories do.
        drawable_starts: int64 [members], where its transitions that can be drawn do.

    Raises:
        ConfigError: two datasets of one name, a weight that is not positive, images of several sizes, or a size of no
            camera.
    """

    members: tuple[Member, ...]

    def __post_init__(self) -> None:
        names = self.names
        if list(names) != sorted(names):
            raise ValueError(f"members are in the order of their names, not {names}")
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ConfigError(f"two datasets are called {min(twice)!r}: give each a name of its own")
        for member in self.members:
            if not 0 < member.weight < math.inf:
                raise ConfigError(f"the weight of dataset {member.name!r} must be positive, not {member.weight:g}")
        sizes = {member.name: member.dataset.source.image_size for member in self.members}
        if len({tuple(size) for size in sizes.values()}) > 1:
            listed = ", ".join(f"{name} {height} x {width}" for name, (height, width) in sizes.items())
            raise ConfigError(
                f"the datasets give images of several sizes ({listed}): set config.data.image_size=(height,width)"
            )
        cameras = {name for dataset in self.datasets for name, _ in dataset.source.cameras}
        if strange := self.config.camera_sizes.keys() - cameras:
            raise ConfigError(
                f"config.data.camera_sizes.{min(strange)} is of no camera; there are: {', '.join(sorted(cameras))}"
            )
        counts = {
            "text_starts": [len(dataset.source.language.numbers) for dataset in self.datasets],
            "trajectory_starts": [len(dataset.source) for dataset in self.datasets],
            "drawable_starts": [dataset.num_transitions for dataset in self.datasets],
        }
        for field, numbers in counts.items():
            object.__setattr__(self, field, np.cumsum(numbers) - np.array(numbers))

    @classmethod
    def of(cls, dataset: Dataset, name: str = "data") -> "Mixture":
        """The mixture of one dataset."""
        return cls((Member(name, dataset),))

    @property
    def names(self) -> tuple[str, ...]:
        """Of the datasets, as they are numbered."""
        return tuple(member.name for member in self.members)

    @property
    def datasets(self) -> tuple[Dataset, ...]:
        """As they are numbered."""
        return tuple(member.dataset for member in self.members)

    @property
    def config(self) -> DataConfig:
        """What becomes of the trajectories, the same for all datasets."""
        return self.members[0].dataset.config

    @property
    def shares(self) -> dict[str, float]:
        """By name, the share of the batches that a dataset has; they sum to 1."""
        total = math.fsum(member.weight for member in self.members)
        return {member.name: member.weight / total for member in self.members}

    @property
    def num_transitions(self) -> int:
        """How many transitions can be drawn."""
        return sum(dataset.num_transitions for dataset in self.datasets)

    @property
    def num_trajectories(self) -> int:
        """How many trajectories there are."""
        return sum(len(dataset.source) for dataset in self.datasets)

    @property
    def paths(self) -> tuple[str, ...]:
        """The files of all datasets."""
        return tuple(path for dataset in self.datasets for path in dataset.source.paths)

    @property
    def group_sizes(self) -> tuple[int, ...]:
        """How many transitions can be drawn of each group of each dataset."""
        return tuple(size for dataset in self.datasets for size in dataset.group_sizes)

    @property
    def weights(self) -> tuple[float, ...]:
        """How often each group of each dataset is drawn."""
        if len(self.members) == 1:
            return self.members[0].dataset.weights  # as they are: a sum that divides them could move a last bit
        shares = self.shares
        return tuple(
            shares[name] * weight / math.fsum(dataset.weights)
            for name, dataset in zip(self.names, self.datasets)
            for weight in dataset.weights
        )

    @property
    def spec(self) -> BatchSpec:
        """The sizes of this mixture's batches: all cameras, and the widest proprio and actions.

        The limits of a dimension are the widest of the datasets that have it.
        """
        specs = [dataset.spec for dataset in self.datasets]
        action_dim, cameras = max(spec.action_dim for spec in specs), [spec.cameras for spec in specs]
        limits = [[s.action_limits[i] for s in specs if i < s.action_dim] for i in range(action_dim)]
        return dataclasses.replace(
            specs[0],
            cameras=tuple(dict.fromkeys(camera for own in cameras for camera in own)),
            proprio_dim=max(spec.proprio_dim for spec in specs),
            action_dim=action_dim,
            action_limits=tuple((min(low for low, _ in own), max(high for _, high in own)) for own in limits),
            several_action_dims=len({spec.action_dim for spec in specs}) > 1,
            several_camera_sets=len(set(map(frozenset, cameras))) > 1,
            camera_sizes=tuple(dict.fromkeys(pair for spec in specs for pair in spec.camera_sizes)),
        )

    @property
    def padded_share(self) -> float:
        """See `Dataset.padded_share`, over the transitions of all datasets."""
        padded = math.fsum(dataset.padded_share * dataset.num_transitions for dataset in self.datasets)
        return padded / self.num_transitions

    @property
    def report(self) -> tuple[str, ...]:
        """Those of the datasets; where there are several, each line says whose it is."""
        return self._labelled([(name, dataset.report) for name, dataset in zip(self.names, self.datasets)])

    def describe_actions(self) -> tuple[str, ...]:
        """Those of the datasets, likewise."""
        lines = [(name, dataset.describe_actions()) for name, dataset in zip(self.names, self.datasets)]
        return self._labelled(lines)

    def describe(self) -> tuple[str, ...]:
        """How large each dataset is, and how often it is drawn, a line for each; none where there is but one."""
        if len(self.members) == 1:
            return ()
        width = max(map(len, self.names))
        return tuple(
            f"{name:<{width}}  {len(dataset.source)} trajectories, {dataset.num_transitions} transitions, "
            f"{self.shares[name]:.1%} of the samples"
            for name, dataset in zip(self.names, self.datasets)
        )

    def annotations(self) -> tuple[str, ...]:
        """All annotations, dataset after dataset: the table that a batch's `language` points into."""
        return tuple(text for dataset in self.datasets for text in dataset.annotations())

    def order(self, seed: int) -> Order:
        """The endless training stream, over the groups of all datasets."""
        return Order(self.group_sizes, self.weights, seed)

    def drawn(self, seed: int, start: int, stop: int) -> dict[str, float]:
        """By name, the share that a dataset has of positions `start` to `stop` (exclusive) of the stream."""
        group, _ = self.order(seed).at(np.arange(start, stop))
        member_of_group = np.repeat(np.arange(len(self.members)), [len(d.group_sizes) for d in self.datasets])
        counts = np.bincount(member_of_group[group], minlength=len(self.members))
        return {name: count / (stop - start) for name, count in zip(self.names, counts.tolist())}

    def locate(self, drawable: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The member of each of n transitions, and its row of the member's `actions`; each int64 [n].

        Args:
            drawable: int64 [n], numbers among the transitions of all members that can be drawn, end to end.
        """
        member = np.searchsorted(self.drawable_starts, drawable, side="right") - 1
        row = np.empty_like(drawable)
        for number in np.unique(member).tolist():
            own = member == number
            row[own] = self.members[number].dataset.drawable[drawable[own] - self.drawable_starts[number]]
        return member, row

    def find(self, trajectory: int) -> tuple[Member, int]:
        """The member that a trajectory is of, and its number there; `trajectory` counts through all members."""
        number = int(np.searchsorted(self.trajectory_starts, trajectory, side="right")) - 1
        return self.members[number], trajectory - int(self.trajectory_starts[number])

    def _labelled(self, lines: list[tuple[str, tuple[str, ...]]]) -> tuple[str, ...]:
        label = "" if len(lines) == 1 else "  [{}]"
        return tuple(line + label.format(name) for name, own in lines for line in own)


def open_mixture(config: MixtureConfig, data: DataConfig, split: str, training: Mixture | None = None) -> Mixture:
    """Opens one split of all datasets, see `open_dataset`.

    Args:
        config: which.
        data: what becomes of their trajectories.
        split: "train" or "val".
        training: the mixture of the training split, whose statistics and weights another split takes.

    Raises:
        DataError, ConfigError: as of `open_dataset` and `Mixture`; where there are several datasets, it says whose.
    """
    _check_there(config)
    members = []
    for number, (name, source) in enumerate(config.sources.items()):
        trained = None if training is None else training.members[number]
        with _said_of(name if len(config.sources) > 1 else ""):
            statistics = None if trained is None else trained.dataset.statistics
            dataset = open_dataset(source, data, split, statistics)
        weight = config.weight_of(name, dataset.num_transitions) if trained is None else trained.weight
        members.append(Member(name, dataset, weight))
    return Mixture(tuple(members))


def _check_there(config: MixtureConfig) -> None:
    """Raises DataError for datasets that are found by their names, and are not there: all of several at once."""
    names = tuple(name for name, source in config.sources.items() if not opening.is_there(source))
    if not names or len(config.sources) == 1:
        return
    roots = " and ".join(dict.fromkeys(str(config.sources[name].data_path) for name in names))
    if len(names) == len(config.sources):
        raise DataError(
            f"none of the {len(names)} datasets lies below {roots} as <name>/<version>, such as {names[0]}: set the "
            "data path to the folder that holds them"
        )
    raise DataError(
        f"{len(names)} of {len(config.sources)} datasets do not lie below {roots} as <name>/<version>: download them, "
        f'or leave them out: --bridgedata_config.leave_out="{names}"'
    )


@contextlib.contextmanager
def _said_of(name: str) -> Iterator[None]:
    """Errors say which dataset they are of."""
    try:
        yield
    except (ConfigError, DataError) as error:
        if not name:
            raise
        raise type(error)(f"dataset {name}: {error}") from error
