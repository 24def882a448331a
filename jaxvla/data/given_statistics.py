"""The statistics that a training split is normalized by: of a file that a user brings, or collected from the data.

The file is OpenVLA's dataset_statistics.json, or the one that a run folder has.
"""

import dataclasses
import pathlib

import numpy as np

from jaxvla.config import local_path
from jaxvla.data.openvla_statistics import parse_openvla, read_datasets
from jaxvla.data.source import TrajectorySource
from jaxvla.data.source_config import SourceConfig
from jaxvla.data.statistics import open_statistics
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.data.transforms.normalization import FieldStatistics, Statistics
from jaxvla.errors import ConfigError, DataError

_KEY = "bridgedata_config.statistics_path"


def training_statistics(
    config: SourceConfig, root: pathlib.Path, source: TrajectorySource, convention: ActionConvention
) -> tuple[Statistics, tuple[str, ...]]:
    """The statistics of a training split, and lines that say where they are from, where that is a file.

    A file without states, or with zeros in their place, as OpenVLA's published ones have, leaves them to the data. Its
    mask of actions counts where the configuration has none.

    Args:
        config: says which file, if any.
        root: see `open_statistics`.
        source: the split.
        convention: what becomes of its actions.

    Raises:
        ConfigError: no local path, or no such dataset in the file.
        DataError: the file cannot be read, or is of other dimensions than the data; or see `open_statistics`.
    """
    if not config.statistics_path:
        return open_statistics(root, source, convention), ()
    path = local_path(config.statistics_path, "statistics_path")
    given, name = read_statistics(path, config.statistics_name)
    if config.action_mask:
        given = dataclasses.replace(given, action_mask=config.action_mask)
    what = f"{path} ({name})" if name else str(path)
    _check_width(what, root, "actions", given.actions, source.actions)
    line = f"statistics   of {what}, {given.num_transitions} transitions"
    if _is_blank(given.proprio):
        own = open_statistics(root, source, convention)
        return dataclasses.replace(given, proprio=own.proprio), (
            f"{line}; those of the states, which it lacks, are own",
        )
    _check_width(what, root, "states", given.proprio, source.proprio)
    return given, (line,)


def read_statistics(path: pathlib.Path, name: str = "") -> tuple[Statistics, str]:
    """The statistics of one dataset, and what the file calls it; "" where it holds but one that has no name.

    Args:
        path: OpenVLA's dataset_statistics.json, or that of a run.
        name: of the dataset; "" for the only one.

    Raises:
        ConfigError: there is none of this name, or there are several and none is named.
        DataError: the file cannot be read, or something in it is missing, of another width, or not finite.
    """
    content = read_datasets(path)
    if "actions" in content:
        if name:
            raise ConfigError(f"{path} is of one dataset without a name: set bridgedata_config.statistics_name to ''")
        return _parse_own(path, content), ""
    if name not in content and (name or len(content) != 1):
        there = ", ".join(sorted(content)) or "none"
        raise ConfigError(f"{path}: no dataset {name!r}; it has {there}: set bridgedata_config.statistics_name")
    name = name or next(iter(content))
    entry = content[name]
    if isinstance(entry, dict) and "actions" in entry:
        return _parse_own(path, entry), name
    return parse_openvla(path, name, entry), name


def _parse_own(path: pathlib.Path, entry: dict) -> Statistics:
    try:
        return Statistics.from_json(entry)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({type(error).__name__}: {error}): copy it from its run again") from error


def _is_blank(field: FieldStatistics) -> bool:
    return not any(np.any(getattr(field, one.name)) for one in dataclasses.fields(field))


def _check_width(what: str, root: pathlib.Path, name: str, field: FieldStatistics, values: np.ndarray) -> None:
    if len(field.mean) != values.shape[1]:
        raise DataError(
            f"{what} has {name} of {len(field.mean)} dimensions, {root} of {values.shape[1]}: the statistics are of "
            f"another dataset; correct {_KEY}, or set it to '' to take the data's own"
        )
