"""What LeRobot does to an observation before a policy sees it, and to actions after: lists of steps, as data.

    policy_preprocessor.json    {"name": ..., "steps": [{"registry_name": ..., "config": ..., "state_file": ...}, ...]}
    policy_postprocessor.json   likewise
    *.safetensors               the statistics of a step, "<feature>.<statistic>"

Nothing here runs a step: the loader and the policy do what they say, from the settings and assets that
`jaxvla.interchange` makes of them. Source: lerobot 0.4.4, lerobot/processor/pipeline.py and normalize_processor.py.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvla.errors import WeightsError
from jaxvla.models.safetensors_io import HostTensor, open_checkpoint, write_safetensors

PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor", "policy_postprocessor"
RENAME, BATCH, DEVICE = "rename_observations_processor", "to_batch_processor", "device_processor"
NEW_LINE, TOKENIZE = "smolvla_new_line_processor", "tokenizer_processor"
NORMALIZE, UNNORMALIZE = "normalizer_processor", "unnormalizer_processor"
# The steps that mean something here; a policy with another one would be played without it.
KNOWN = (RENAME, BATCH, DEVICE, NEW_LINE, TOKENIZE, NORMALIZE, UNNORMALIZE)

# By feature, its statistics by name, such as {"action": {"mean": [d], "std": [d]}}.
Stored = Mapping[str, Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True, eq=False)
class Step:
    """One step.

    Attributes:
        kind: its name in LeRobot's registry, one of `KNOWN`.
        config: its settings.
        statistics: those that it keeps in a file of its own; empty where it has none.
    """

    kind: str
    config: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    statistics: Stored = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, eq=False)
class Pipeline:
    """The steps of a file, in their order."""

    name: str
    steps: tuple[Step, ...]

    def step(self, kind: str) -> Step | None:
        """The first step of a kind; None where there is none."""
        return next((step for step in self.steps if step.kind == kind), None)


def read_pipeline(folder: pathlib.Path, name: str) -> Pipeline | None:
    """The pipeline `name` of a policy; None where the folder has none, as those before LeRobot 0.4.

    Raises:
        WeightsError: a file is missing or damaged, or a step is none that is done here.
    """
    path = folder / f"{name}.json"
    if not path.exists():
        return None
    values = read_object(path)
    try:
        return Pipeline(name, tuple(_step(folder, path, entry) for entry in values["steps"]))
    except (LookupError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"{path} is damaged ({error!r}): download it again") from error


def write_pipeline(folder: pathlib.Path, pipeline: Pipeline) -> None:
    """Writes a pipeline and the statistics of its steps.

    Raises:
        OSError: it cannot be written.
    """
    steps: list[dict[str, Any]] = []
    for number, step in enumerate(pipeline.steps):
        steps.append({"registry_name": step.kind, "config": dict(step.config)})
        if step.statistics:
            steps[-1]["state_file"] = f"{pipeline.name}_step_{number}_{step.kind}.safetensors"
            write_safetensors(folder / steps[-1]["state_file"], _tensors(step.statistics))
    text = json.dumps({"name": pipeline.name, "steps": steps}, indent=2)
    (folder / f"{pipeline.name}.json").write_text(text + "\n")


def read_object(path: pathlib.Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        WeightsError: the file is missing, cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{path} is not JSON: download it again") from error
    if not isinstance(values, dict):
        raise WeightsError(f"{path} holds a {type(values).__name__}, no object: download it again")
    return values


def read_statistics(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """The statistics of a step's file, as they are named there, each flattened.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    found: dict[str, dict[str, np.ndarray]] = {}
    with open_checkpoint(path) as stored:
        for name, tensor in stored.items():
            feature, _, statistic = name.rpartition(".")
            rows = tensor.shape[0] if tensor.shape else 1
            found.setdefault(feature, {})[statistic] = tensor.read_rows(0, rows).reshape(-1)
    return found


def _step(folder: pathlib.Path, path: pathlib.Path, entry: Mapping[str, Any]) -> Step:
    kind, file = entry.get("registry_name") or str(entry["class"]), entry.get("state_file")
    if kind not in KNOWN:
        raise WeightsError(
            f"{path} has a step {kind!r}, which is not done here, and without which the policy would act otherwise; "
            f"known are {', '.join(KNOWN)}"
        )
    if file is None:
        return Step(kind, dict(entry.get("config") or {}))
    if pathlib.PurePath(file).name != file or not (folder / file).is_file():
        raise WeightsError(f"{path} names the file {file!r}, which is not in {folder}: download it, too")
    return Step(kind, dict(entry.get("config") or {}), read_statistics(folder / file))


def _tensors(statistics: Stored) -> dict[str, HostTensor]:
    flat = {f"{feature}.{name}": x for feature, own in statistics.items() for name, x in own.items()}
    return {name: HostTensor(x.shape, x.dtype, lambda x=x: x) for name, x in flat.items()}
