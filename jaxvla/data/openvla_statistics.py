"""OpenVLA's dataset_statistics.json, by which its policies and their descendants normalize actions.

    {NAME: {"action": {"mean": [d numbers], "std", "max", "min", "q01", "q99", "mask": [d booleans]},
            "proprio": the same of [p], without a mask,
            "num_transitions": n, "num_trajectories": m}, ...}

Without a mask all dimensions are normalized. Files may lack the proprio; that of the published ones is all zeros. The
config.json of a policy has the same as "norm_stats", and is read, too.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvla.data.conversion.workers import writing
from jaxvla.data.files import reading
from jaxvla.data.formats import sidecar
from jaxvla.data.transforms.normalization import FieldStatistics, Normalizer, Statistics
from jaxvla.errors import ConfigError, DataError

_KEYS = ("mean", "std", "max", "min", "q01", "q99")
_COUNTS = ("num_transitions", "num_trajectories")


def read_openvla(path: str | os.PathLike, name: str) -> Statistics:
    """The statistics of one dataset, in float32; proprio of 0 dimensions where the file has none.

    Args:
        path: dataset_statistics.json, or the config.json of a policy.
        name: of the dataset, OpenVLA's `unnorm_key`, such as "bridge_orig".

    Raises:
        ConfigError: the file has no such dataset.
        DataError: the file cannot be read, or something in it is missing, of another width, or not finite.
    """
    datasets = read_datasets(path)
    if name not in datasets:
        raise ConfigError(f"{path}: no dataset {name!r}; it has {', '.join(sorted(datasets)) or 'none'}")
    return parse_openvla(path, name, datasets[name])


def read_datasets(path: str | os.PathLike) -> dict[str, Any]:
    """The content of a file of statistics, by the names of the datasets, as it is.

    Raises:
        DataError: the file cannot be read, or holds something else.
    """
    with reading(path), open(path, encoding="utf-8") as file:
        try:
            datasets = json.load(file)
        except ValueError as error:
            raise DataError(f"{path}: is not JSON: {error}") from error
    if isinstance(datasets, dict) and isinstance(datasets.get("norm_stats"), dict):
        datasets = datasets["norm_stats"]
    if not isinstance(datasets, dict) or "action" in datasets:
        raise DataError(f"{path}: has no names of datasets, as OpenVLA's file has: {{NAME: {{'action': ...}}}}")
    return datasets


def parse_openvla(path: str | os.PathLike, name: str, entry: object) -> Statistics:
    """What `read_datasets` gives of one dataset; raises as `read_openvla`."""
    return _parse(_Node(os.fspath(path), name, entry))


def write_openvla(path: str | os.PathLike, datasets: Mapping[str, Statistics]) -> None:
    """Writes the statistics of named datasets as OpenVLA does; what `read_openvla` gives is what was written.

    Raises:
        DataError: the file cannot be written, or a value is not finite.
    """
    path = pathlib.Path(path)
    content = openvla_entries(datasets)
    for name, entry in content.items():
        _parse(_Node(str(path), name, entry))
    with writing(path), sidecar.writing(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")


def openvla_entries(datasets: Mapping[str, Statistics]) -> dict[str, Any]:
    """The content of a file of statistics of named datasets."""
    return {name: _entry(statistics) for name, statistics in datasets.items()}


def as_openvla_does(actions: Normalizer, proprio: Normalizer, own: Statistics) -> Statistics:
    """The statistics by which OpenVLA does what these normalizers do.

    It knows quantiles alone: they are put where each dimension is scaled to -1 and 1, to its one value where it is
    constant. Dimensions that pass through are outside of the mask.

    Args:
        actions, proprio: of one dataset.
        own: its statistics.

    Raises:
        ConfigError: they do not map bounds to -1 and 1.
    """
    for normalizer in (actions, proprio):
        if normalizer.kind not in ("bounds", "bounds_q99"):
            raise ConfigError(
                f"OpenVLA scales what lies between two bounds, and this policy was trained with normalization "
                f"{normalizer.kind!r}: train with config.data.normalization='bounds_q99' or 'bounds'"
            )
    mask = actions.mask or (True,) * len(own.actions.mean)
    fields = []
    for normalizer, scaled in ((actions, np.array(mask)), (proprio, True)):
        field = normalizer.statistics
        shift, scale = normalizer.affine()
        low, high = (shift + sign * scale for sign in (-1, 1))
        ends = {"q01": np.where(scaled, low, field.q01), "q99": np.where(scaled, high, field.q99)}
        fields.append(dataclasses.replace(field, **{name: x.astype(np.float32) for name, x in ends.items()}))
    return Statistics(*fields, own.num_transitions, own.num_trajectories, mask)


def openvla_normalizer(statistics: Statistics) -> Normalizer:
    """That of OpenVLA's actions, whose `inverse` is 0.5 (a + 1) (q99 - q01) + q01 in all dimensions of the mask.

    `Normalizer("bounds_q99", ...)` is the same map but in dimensions that move although q01 = q99, for which it takes
    minimum and maximum; a policy of OpenVLA knows the one value there. Actions beyond [-1, 1], which none of its tokens
    says, count as the ends.
    """
    field = statistics.actions
    bounds = dataclasses.replace(field, min=field.q01, max=field.q99)
    return Normalizer("bounds", bounds, statistics.action_mask or None)


@dataclasses.dataclass(frozen=True)
class _Node:
    """A value of the file and where it stands."""

    path: str
    key: str
    value: Any

    def at(self, key: str) -> "_Node":
        """What stands below."""
        if not isinstance(self.value, dict):
            raise self.wrong(f"is {_short(self.value)}, not a mapping with {key!r}")
        if key not in self.value:
            raise self.wrong(f"has no {key!r}, only {', '.join(map(repr, self.value)) or 'nothing'}")
        return _Node(self.path, f"{self.key}.{key}", self.value[key])

    def wrong(self, what: str) -> DataError:
        """An error that names this place."""
        return DataError(f"{self.path}: {self.key} {what}")

    def items(self, kinds: tuple[type, ...], what: str) -> list[Any]:
        """The items of a list that holds nothing else than `kinds`."""
        if not isinstance(self.value, list) or any(type(item) not in kinds for item in self.value):
            raise self.wrong(f"is {_short(self.value)}, not a list of {what}")
        return self.value

    def numbers(self) -> np.ndarray:
        """A list of numbers, float32 [n]."""
        numbers = np.array(self.items((int, float), "numbers"), np.float64)
        bad = np.flatnonzero(~(abs(numbers) <= np.finfo(np.float32).max))
        if len(bad):
            raise self.wrong(f"is {numbers[bad[0]]} in dimension {bad[0]}, not a finite number")
        return numbers.astype(np.float32)

    def count(self) -> int:
        """A number of things."""
        if type(self.value) is not int or self.value < 0:
            raise self.wrong(f"is {_short(self.value)}, not a number of them")
        return self.value


def _parse(node: _Node) -> Statistics:
    actions = _field(node.at("action"))
    mask: tuple[bool, ...] = ()
    if "mask" in node.value["action"]:
        given = node.at("action").at("mask")
        mask = tuple(given.items((bool,), "booleans"))
        _check_width(given, len(mask), len(actions.mean))
    none = FieldStatistics(*[np.empty(0, np.float32)] * len(_KEYS))
    proprio = _field(node.at("proprio")) if "proprio" in node.value else none
    return Statistics(actions, proprio, *(node.at(key).count() for key in _COUNTS), mask)


def _field(node: _Node) -> FieldStatistics:
    values = {key: node.at(key).numbers() for key in _KEYS}
    for key, array in values.items():
        _check_width(node.at(key), len(array), len(values[_KEYS[0]]))
    for low, high in (("min", "max"), ("q01", "q99")):
        bad = np.flatnonzero(values[low] > values[high])
        if len(bad):
            d = bad[0]
            raise node.at(low).wrong(f"is {values[low][d]} in dimension {d}, above {high}, {values[high][d]}")
    return FieldStatistics(**values)


def _check_width(node: _Node, width: int, wanted: int) -> None:
    if width != wanted:
        raise node.wrong(f"has {width} entries, the mean has {wanted}")


def _entry(statistics: Statistics) -> dict[str, Any]:
    """One dataset as the file has it."""
    fields = {}
    for name, field in (("action", statistics.actions), ("proprio", statistics.proprio)):
        fields[name] = {key: getattr(field, key).astype(float).tolist() for key in _KEYS}
    fields["action"]["mask"] = list(statistics.action_mask or (True,) * len(statistics.actions.mean))
    if not len(statistics.proprio.mean):
        del fields["proprio"]
    return fields | {key: getattr(statistics, key) for key in _COUNTS}


def _short(value: Any) -> str:
    """A value as far as it fits into a line."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
