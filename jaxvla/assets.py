"""What a checkpoint keeps beside the parameters."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

import jaxvla
from jaxvla.config import from_mapping
from jaxvla.contract import CONVENTIONS, PIXELS, CameraContract, Contract, Conventions, Execution
from jaxvla.data.mixture_config import name_of
from jaxvla.data.schema import BatchSpec
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.data.transforms.normalization import Normalizer, Statistics
from jaxvla.errors import ConfigError


@dataclasses.dataclass(frozen=True, eq=False)
class DatasetAssets:
    """What a checkpoint keeps of each of several datasets.

    Attributes:
        statistics, action_mask, actions, stored_sizes, control_frequency: see `Assets`.
        cameras: those that it has.
        weight: how often it is drawn beside the others.
    """

    statistics: Statistics
    action_mask: tuple[bool, ...]
    actions: ActionConvention
    cameras: tuple[str, ...]
    stored_sizes: Mapping[str, tuple[int, int]]
    control_frequency: float
    weight: float

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return fields | {"statistics": self.statistics.to_json(), "actions": dataclasses.asdict(self.actions)}


@dataclasses.dataclass(frozen=True, eq=False)
class Assets:
    """Everything beside the parameters that rebuilds the agent and speaks to the robot in its units.

    Of several datasets each has its own units: these are in `datasets`, `statistics` is None, and the other fields that
    `DatasetAssets` has are empty. `of` gives the assets of one of them, in the form that those of a single one have.

    Attributes:
        agent: name of the method, such as "gc_bc".
        agent_kwargs: its keyword arguments, plain values.
        spec: sizes of the batches that it was trained on.
        statistics: of the training data, in robot units, in its own number of dimensions.
        action_normalization: kind of `Normalizer` of the actions.
        proprio_normalization: kind of `Normalizer` of the proprio.
        action_mask: which action dimensions are normalized; empty for all.
        train_config: the whole training configuration, as plain values.
        data_config: the whole data configuration, as plain values.
        text: how prompts become tokens (`reasoning.texts.Wording.to_json`); None where the agent reads none.
        language: how instructions are encoded (`agents.language.Language.to_json`); None where the agent follows none.
        actions: what the numbers of an action are; None where the checkpoint is too old to say.
        stored_sizes: (height, width) at which the training frames of a camera were stored, by camera: a camera's frame
            goes through it to its size in `spec`. Cameras that it does not name, and those of older checkpoints, go
            straight there.
        execution: what is played of the chunks of actions; all of them where the checkpoint is too old to say.
        control_frequency: of the actions, Hz; 0 where it is not known.
        cameras: those that the dataset has; empty for all of `spec`.
        datasets: by name, in the order of their numbers; empty where there is but one.
        version: of jaxvla.
    """

    agent: str
    agent_kwargs: Mapping[str, Any]
    spec: BatchSpec
    statistics: Statistics | None
    action_normalization: str
    proprio_normalization: str
    action_mask: tuple[bool, ...]
    train_config: Mapping[str, Any]
    data_config: Mapping[str, Any]
    text: Mapping[str, Any] | None = None
    language: Mapping[str, Any] | None = None
    actions: ActionConvention | None = None
    stored_sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    execution: Execution = dataclasses.field(default_factory=Execution)
    control_frequency: float = 0.0
    cameras: tuple[str, ...] = ()
    datasets: Mapping[str, DatasetAssets] = dataclasses.field(default_factory=dict)
    version: str = jaxvla.__version__

    @property
    def names(self) -> tuple[str, ...]:
        """Of the datasets, as they are numbered."""
        if self.datasets:
            return tuple(self.datasets)
        given = (*self.data_config.get("datasets", ()), self.data_config.get("name"))[0]
        return (given or name_of(self.data_config["data_path"], self.data_config.get("tfds_name", "")),)

    def of(self, dataset: str | None = None) -> "Assets":
        """The assets of one dataset.

        Args:
            dataset: its name; None for the only one.

        Raises:
            ConfigError: there is none of this name, or there are several and none is named.
        """
        if dataset is None and not self.datasets:
            return self
        if dataset is None:
            raise ConfigError(
                f"the checkpoint is of {len(self.names)} datasets with units of their own: give one as dataset; "
                f"there are: {', '.join(self.names)}"
            )
        if dataset not in self.names:
            raise ConfigError(f"the checkpoint has no dataset {dataset!r}; there are: {', '.join(self.names)}")
        if not self.datasets:
            return self
        chosen = self.datasets[dataset]
        own = {
            field.name: getattr(chosen, field.name) for field in dataclasses.fields(chosen) if field.name != "weight"
        }
        data_config = {**self.data_config, "datasets": {dataset: self.data_config["datasets"][dataset]}}
        return dataclasses.replace(self, datasets={}, data_config=data_config, **own)

    @property
    def robot_spec(self) -> BatchSpec:
        """The sizes of what a robot gives and gets: those of the batches but for what the dataset lacks."""
        proprio_dim, action_dim = len(self.statistics.proprio.mean), len(self.statistics.actions.mean)
        return dataclasses.replace(
            self.spec,
            cameras=self.cameras or self.spec.cameras,
            proprio_dim=proprio_dim,
            action_dim=action_dim,
            action_limits=self.spec.action_limits[:action_dim],
        )

    @property
    def resize(self) -> str:
        """How frames get from the stored size to that of the batches, one of `images.FILTERS`."""
        return self.train_config.get("data", {}).get("resize", "lanczos")

    def mean_action(self) -> np.ndarray:
        """The normalized mean action of the training data: [d], or of several datasets [n, d] by number, 0 behind."""
        if not self.datasets:
            return self.action_normalizer().forward(self.statistics.actions.mean)
        means = np.zeros((len(self.datasets), self.spec.action_dim), np.float32)
        for mean_d, name in zip(means, self.names):
            own = self.of(name).mean_action()
            mean_d[: len(own)] = own
        return means

    def action_normalizer(self) -> Normalizer:
        """Between robot units and the actions of a batch."""
        ends = () if self.actions is None else self.actions.gripper
        return Normalizer(self.action_normalization, self.statistics.actions, self.action_mask or None, ends)

    def proprio_normalizer(self) -> Normalizer:
        """Between robot units and the proprio of a batch."""
        return Normalizer(self.proprio_normalization, self.statistics.proprio)

    def contract(self) -> Contract:
        """How the policy is to be played.

        Raises:
            ConfigError: more actions are to be played than a chunk has.
        """
        spec = self.robot_spec
        return Contract(
            control_frequency=self.control_frequency,
            execute_steps=self.execution.steps(spec.action_horizon),
            action_horizon=spec.action_horizon,
            ensemble=self.execution.ensemble,
            obs_horizon=spec.obs_horizon,
            cameras={name: CameraContract(self.stored_sizes.get(name), spec.size_of(name)) for name in spec.cameras},
            proprio_dim=spec.proprio_dim,
            action_dim=spec.action_dim,
            actions=self.actions,
            pixels=PIXELS if self.resize == "lanczos" else f"{PIXELS} by {self.resize}",
            ensemble_by=self.execution.ensemble_by,
            ensemble_last=self.execution.ensemble_last,
            realtime=self.execution.realtime,
            conventions=self._conventions(),
        )

    def _conventions(self) -> Conventions | None:
        """Those of the benchmark whose data this is; pictures are cropped only where training cropped them."""
        own = {**self.data_config, **next(iter(self.data_config.get("datasets", {}).values()), {})}
        found = CONVENTIONS.get(own.get("standardization", ""))
        cropped = "random_resized_crop" in self.train_config.get("augment", {}).get("order", ())
        return found if found is None or cropped else dataclasses.replace(found, crop=1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; tuples become lists, and limits that there are not, for which JSON has no number, null."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        spec = dataclasses.asdict(self.spec)
        spec["action_limits"] = [[x if math.isfinite(x) else None for x in pair] for pair in self.spec.action_limits]
        actions = None if self.actions is None else dataclasses.asdict(self.actions)
        execution = dataclasses.asdict(self.execution)
        statistics = None if self.statistics is None else self.statistics.to_json()
        datasets = {name: dataset.to_json() for name, dataset in self.datasets.items()}
        fields |= {"spec": spec, "statistics": statistics, "actions": actions, "execution": execution}
        fields |= {"datasets": datasets}
        return json.loads(json.dumps(fields))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Assets":
        """The inverse of `to_json`; lists inside the configurations stay lists.

        Raises:
            ConfigError: an unknown or missing key, or a value of another type.
        """
        made: dict[str, Any] = {"datasets": {}}
        if values["statistics"] is not None or not values.get("datasets"):
            made["statistics"] = Statistics.from_json(values["statistics"])
        for name, own in values.get("datasets", {}).items():
            made["datasets"][name] = {**own, "statistics": Statistics.from_json(own["statistics"])}
        if isinstance(values["spec"], Mapping):
            limits = [
                (-math.inf if low is None else low, math.inf if high is None else high)
                for low, high in values["spec"].get("action_limits", ())
            ]
            made["spec"] = {**values["spec"], "action_limits": limits}
        return from_mapping(cls, {**values, **made}, "assets")
