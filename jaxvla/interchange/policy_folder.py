"""What a policy's folder of LeRobot says, without its parameters.

    config.json          what it is ("type"), its sizes, what goes in and out, how that is normalized
    model.safetensors    parameters; of policies before LeRobot 0.4 statistics, too
    policy_*processor    see `jaxvla.interchange.processors`

Source: lerobot 0.4.4 and 0.3.3, lerobot/configs/policies.py and lerobot/policies/normalize.py.
"""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from jaxvla.checkpoint import is_run_folder
from jaxvla.config import local_path
from jaxvla.contract import Execution
from jaxvla.data.transforms.normalization import FieldStatistics
from jaxvla.errors import WeightsError
from jaxvla.interchange.processors import (
    NORMALIZE,
    POSTPROCESSOR,
    PREPROCESSOR,
    RENAME,
    UNNORMALIZE,
    Pipeline,
    Stored,
    read_object,
    read_pipeline,
)
from jaxvla.interchange.statistics import kind_of, read_field
from jaxvla.models.lerobot import COMPILED, STATISTICS
from jaxvla.models.safetensors_io import SINGLE, open_checkpoint

CONFIG = "config.json"
STATE, ACTION, IMAGES = "observation.state", "action", "observation.images."
_TYPE = "type"
_BELOW = "pretrained_model"
_ADAPTERS = "adapter_config.json"


@dataclasses.dataclass(frozen=True)
class Feature:
    """Something that goes in or out: "VISUAL" (channel, height, width), "STATE", "ENV" or "ACTION"."""

    type: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True, eq=False)
class PolicyFolder:
    """A policy of LeRobot.

    Attributes:
        path: of the folder.
        values: content of config.json.
        inputs, outputs: features by name, in their order.
        preprocessor, postprocessor: None where there is none.
        statistics: by the names that they have there.
    """

    path: pathlib.Path
    values: Mapping[str, Any]
    inputs: Mapping[str, Feature]
    outputs: Mapping[str, Feature]
    preprocessor: Pipeline | None
    postprocessor: Pipeline | None
    statistics: Stored

    @property
    def type(self) -> str:
        """Which policy it is, such as "act"."""
        return self.values[_TYPE]

    @property
    def config_path(self) -> pathlib.Path:
        """Of config.json, for errors."""
        return self.path / CONFIG

    @functools.cached_property
    def cameras(self) -> dict[str, str]:
        """The features that are pictures, in their order, by the names that cameras have in batches."""
        names = [name for name, feature in self.inputs.items() if feature.type == "VISUAL"]
        return {camera_name(name): name for name in names}

    @property
    def proprio_dim(self) -> int:
        """How many numbers the robot's state has; 0 where it is not looked at."""
        return self.inputs[STATE].shape[0] if STATE in self.inputs else 0

    @property
    def action_dim(self) -> int:
        """How many numbers an action has."""
        return self.outputs[ACTION].shape[0]

    @property
    def renamed(self) -> dict[str, str]:
        """Names of data that became names of the policy, by the latter."""
        step = None if self.preprocessor is None else self.preprocessor.step(RENAME)
        return {} if step is None else {to: name for name, to in dict(step.config.get("rename_map") or {}).items()}

    @property
    def execution(self) -> Execution:
        """What LeRobot plays of its chunks."""
        ensemble = self.values.get("temporal_ensemble_coeff")
        return Execution(int(self.values["n_action_steps"]), None if ensemble is None else float(ensemble))

    def mode_of(self, kind: str) -> str:
        """How features of a type are normalized, in the words of LeRobot; what no file names is not."""
        pipeline, step = (self.postprocessor, UNNORMALIZE) if kind == "ACTION" else (self.preprocessor, NORMALIZE)
        found = None if pipeline is None else pipeline.step(step)
        modes = self.values.get("normalization_mapping") if found is None else found.config.get("norm_map")
        return str((modes or {}).get(kind, "IDENTITY"))

    def normalization(self, kind: str) -> str:
        """Our kind of normalization of "STATE" or "ACTION".

        Raises:
            WeightsError: there is none that is the same.
        """
        return kind_of(self.mode_of(kind), f"{self.path}: {kind}")

    def field(self, name: str, dataset: str | None = None) -> FieldStatistics:
        """The statistics by which a state or an action is normalized.

        Args:
            name: of the feature.
            dataset: of which of several, for policies whose statistics are called "<dataset>.buffer.<feature>".

        Raises:
            WeightsError: there are none under these names, or they are not of this feature; names those that there are.
        """
        feature = {**self.inputs, **self.outputs}[name]
        mode = self.mode_of(feature.type)
        given = name if dataset is None else f"{dataset}.buffer.{name}"
        stored = self.statistics.get(given, self.statistics.get(name))
        if stored is None and mode != "IDENTITY":
            there = ", ".join(self.statistics) or "none at all"
            foreign = [key for key in self.statistics if key.endswith(f".buffer.{name}")]
            mend = f"dataset={foreign[0].removesuffix(f'.buffer.{name}')!r} takes these" if foreign else "train it on"
            raise WeightsError(
                f"{self.path} has no statistics of {name!r}, by which it is normalized ({mode}); there are: {there}: "
                f"{mend}, or the policy would act in no units"
            )
        return read_field(stored or {}, mode, feature.shape[0], f"{self.path}: {given}")


def camera_name(feature: str) -> str:
    """What a camera is called in batches whose feature has this name: that without what stands before all of them."""
    return feature.removeprefix(IMAGES).removeprefix("observation.")


def is_policy_folder(path: pathlib.Path) -> bool:
    """Whether a folder holds a policy of LeRobot, or the most of one, and no run of ours.

    Raises:
        WeightsError: its config.json cannot be read.
    """
    if not (path / CONFIG).is_file() or is_run_folder(path):
        return False
    return (path / SINGLE).is_file() or _TYPE in read_object(path / CONFIG)


def read_policy(folder: str | os.PathLike, types: Collection[str], where: str = "") -> PolicyFolder:
    """Reads all of a folder but its parameters.

    Args:
        folder: such as .../checkpoints/last/pretrained_model.
        types: of policies that are read.
        where: the setting that names the folder, for errors.

    Raises:
        ConfigError: no local path.
        WeightsError: no such folder or file, a damaged one, or a policy of another type.
    """
    path = local_path(folder, where).absolute()
    _check_there(path)
    values = read_object(path / CONFIG)
    if values.get(_TYPE) not in types:
        raise WeightsError(
            f"{path / CONFIG} is of a policy of type {values.get(_TYPE)!r}; read are those of {', '.join(types)}"
        )
    inputs, outputs = (_features(path, values, key) for key in ("input_features", "output_features"))
    if ACTION not in outputs or (STATE in inputs and len(inputs[STATE].shape) != 1):
        raise WeightsError(f"{path / CONFIG} has no output feature {ACTION!r}, or a {STATE!r} that is no vector")
    pipelines = [read_pipeline(path, name) for name in (PREPROCESSOR, POSTPROCESSOR)]
    steps = [pipeline and pipeline.step(kind) for pipeline, kind in zip(pipelines, (NORMALIZE, UNNORMALIZE))]
    statistics: dict[str, Mapping[str, np.ndarray]] = {}
    for step in steps:
        statistics |= {} if step is None else step.statistics
    if pipelines == [None, None]:
        statistics = _buffers(path, [*inputs, *outputs])
    made = PolicyFolder(path, values, inputs, outputs, *pipelines, statistics)
    _check_names(made)
    return made


def _check_there(path: pathlib.Path) -> None:
    if not path.is_dir():
        raise WeightsError(f"there is no folder {path}: give that of a policy of LeRobot, which holds {CONFIG}")
    if (path / _ADAPTERS).is_file():
        raise WeightsError(f"{path} holds adapters, no whole policy: merge them into it with peft, and save that")
    if (path / CONFIG).is_file():
        return
    below = [found.parent for found in sorted(path.glob(f"**/{_BELOW}/{CONFIG}"))[-1:]]
    mend = f": give {below[0]}, which lies below it" if below else ": give a folder that LeRobot saved a policy to"
    raise WeightsError(f"{path} has no {CONFIG}{mend}")


def _features(path: pathlib.Path, values: Mapping[str, Any], key: str) -> dict[str, Feature]:
    try:
        return {
            str(name): Feature(str(entry["type"]), tuple(int(side) for side in entry["shape"]))
            for name, entry in values[key].items()
        }
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(
            f"{path / CONFIG} has no {key} that can be read ({error!r}): save it with LeRobot >= 0.2"
        ) from error


def _buffers(path: pathlib.Path, names: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """The statistics that older policies keep among their weights, by the names of the features."""
    found: dict[str, dict[str, np.ndarray]] = {}
    buffers = {f"buffer_{name.replace('.', '_')}": name for name in names}
    with open_checkpoint(path) as stored:
        for full, tensor in stored.items():
            group, _, rest = full.replace(COMPILED, "").partition(".")
            buffer, _, statistic = rest.rpartition(".")
            if f"{group}." in STATISTICS and buffer in buffers:
                rows = tensor.read_rows(0, tensor.shape[0] if tensor.shape else 1)
                found.setdefault(buffers[buffer], {})[statistic] = rows.reshape(-1)
    return found


def _check_names(policy: PolicyFolder) -> None:
    pictures = [feature for feature in policy.inputs.values() if feature.type == "VISUAL"]
    if len(policy.cameras) < len(pictures) or any(len(feature.shape) != 3 for feature in pictures):
        raise WeightsError(f"{policy.config_path} has two cameras of one name, or pictures without 3 axes")
    steps = policy.values.get("n_action_steps")
    chunk, ensemble = policy.values.get("chunk_size"), policy.values.get("temporal_ensemble_coeff")
    if type(steps) is not int or type(chunk) is not int or not 1 <= steps <= chunk:
        raise WeightsError(f"{policy.config_path} has no chunk_size and n_action_steps, numbers from 1 to the former")
    if type(ensemble) not in (int, float, type(None)):
        raise WeightsError(f"{policy.config_path}: temporal_ensemble_coeff is {ensemble!r}, no number")
    steps_given = [
        step for pipeline in (policy.preprocessor, policy.postprocessor) if pipeline for step in pipeline.steps
    ]
    mappings = {key: step.config.get(key) for step in steps_given for key in ("norm_map", "rename_map")}
    mappings["normalization_mapping"] = policy.values.get("normalization_mapping")
    for key, given in mappings.items():
        if given is not None and not isinstance(given, Mapping):
            raise WeightsError(f"{policy.path}: {key} is {given!r}, no mapping: download the folder again")
