"""From plain mappings to frozen dataclasses: every key known, every value of the declared type, or one clear error."""

import collections.abc
import dataclasses
import difflib
import os
import pathlib
import types
import typing
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from jaxvla.errors import ConfigError

T = TypeVar("T")


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "config") -> T:
    """Builds the dataclass `cls` from `values`, recursively.

    Args:
        cls: a dataclass. A field whose type is a dataclass takes a mapping, `tuple[X, ...]` takes a list or tuple,
            a mapping has values of its type, float takes an int; fields without a default must be present.
        values: plain nested values, such as `ConfigDict.to_dict()` gives.
        where: the name of `values` in error messages, such as "config.optimizer".

    Raises:
        ConfigError: an unknown key (with the nearest known one), a missing key, or a value of the wrong type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    hints = typing.get_type_hints(cls)
    for key in values:
        if key not in fields:
            raise ConfigError(unknown_key(f"{where}.{key}", key, fields))
    for name, field in fields.items():
        if name not in values and field.default is field.default_factory is dataclasses.MISSING:
            raise ConfigError(f"{where}.{name} is missing: give it a value of type {_type_name(hints[name])}")
    return cls(**{key: _convert(hints[key], value, f"{where}.{key}") for key, value in values.items()})


def unknown_key(path: str, key: str, known: Iterable[str]) -> str:
    """The one line that says that `path` names no known key, which one was perhaps meant, and which there are."""
    known = sorted(known)
    near = difflib.get_close_matches(key, known, n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    return f"unknown key {path}: {meant}known are {', '.join(known) or 'none'}"


def local_path(text: str | os.PathLike, name: str = "") -> pathlib.Path:
    """The path that a user gave, with ~ for the home folder.

    Args:
        text: the path.
        name: of the setting or flag that gave it, for errors.

    Raises:
        ConfigError: the address of a bucket or another remote place, or ~ where no home is known.
    """
    given = f"{name}: {text}" if name else f"{text}"
    if "://" in os.fspath(text):
        raise ConfigError(f"{given} is no local path: use a local disk, or mount the bucket and give the folder")
    try:
        return pathlib.Path(text).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"{given} cannot be found: no home folder is known; give the whole path") from error


def _convert(hint: Any, value: Any, where: str) -> Any:
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in args:
            return None
        return _convert(next(arg for arg in args if arg is not type(None)), value, where)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_mapping(hint, value, where)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = (args[0],) * len(value) if args[-1] is Ellipsis else args
        if len(kinds) != len(value):
            raise ConfigError(f"{where} needs {len(kinds)} values, not {len(value)}: {value!r}")
        return tuple(_convert(kind, item, f"{where}[{i}]") for i, (kind, item) in enumerate(zip(kinds, value)))
    if origin in (dict, collections.abc.Mapping) and isinstance(value, Mapping):
        return {key: _convert(args[1], item, f"{where}.{key}") for key, item in value.items()} if args else dict(value)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(hint, type) and isinstance(value, hint) and not (hint is int and isinstance(value, bool)):
        return value
    raise ConfigError(f"{where} must be {_type_name(hint)}, not {type(value).__name__} {value!r}")


def leaves(values: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """The values of nested mappings that are none themselves, by their paths, such as "optimizer.learning_rate"."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        found |= leaves(value, f"{above}{key}.") if isinstance(value, Mapping) else {f"{above}{key}": value}
    return found


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
