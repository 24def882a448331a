"""From the name of a standardization, as a configuration gives it, to the hook that applies it.

A name is that of a dataset of `jaxvla.data.oxe.registry`, or of a function of one's own: `module:function`, or
`path/to/file.py:function`.
"""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import pathlib
import sys
import traceback
import types
from collections.abc import Callable, Mapping
from typing import Any

from jaxvla.config import local_path
from jaxvla.data.files import reading
from jaxvla.data.formats.standard import Standardize, paths
from jaxvla.data.oxe import registry
from jaxvla.data.oxe.standardization import proprio, standardize
from jaxvla.data.transforms import actions
from jaxvla.errors import ConfigError, DataError, JaxvlaError

_WHERE = "bridgedata_config.standardization"
_SUFFIX = ".py"


def is_own(name: str) -> bool:
    """Whether a standardization is a function of one's own, and not a dataset of the registry."""
    return ":" in name


def find(name: str, variant: str = "") -> Standardize:
    """The hook of a standardization.

    Args:
        name: see the module docstring.
        variant: whose way is taken where "octo" and "openvla" differ; empty for the default of `standardize`.

    Raises:
        ConfigError: there is no such dataset, file, module or function, or its file cannot be imported.
    """
    if is_own(name):
        place, _, function = name.rpartition(":")
        own = _Own(name, place, function, _version(name, place))
        own.load()
        return Standardize(name, own, own.version)
    registry.find(name)
    sources = [pathlib.Path(actions.__file__), *sorted(pathlib.Path(registry.__file__).parent.glob(f"*{_SUFFIX}"))]
    return Standardize(f"{name} {variant}".strip(), functools.partial(_registered, name, variant), _digest(*sources))


def _registered(name: str, variant: str, trajectory: Mapping[str, Any]) -> Mapping[str, Any]:
    standard = standardize(name, trajectory, variant or None)
    return {**standard, "proprio": proprio(name, standard)}


def _digest(*paths: pathlib.Path) -> str:
    """Names the content of sources: what they do is another thing as soon as they are."""
    content = hashlib.sha256()
    for path in paths:
        with reading(path):
            content.update(path.read_bytes())
    return content.hexdigest()[:16]


@dataclasses.dataclass(frozen=True)
class _Own:
    """A function of one's own, by the names of its place and of itself: so it can be pickled, whatever file it is in.

    Each process loads it where it calls it first. `version` is that of the place.
    """

    name: str
    place: str
    function: str
    version: str

    def load(self) -> Callable[[dict[str, Any]], Mapping[str, Any]]:
        """The function.

        Raises:
            ConfigError: it is not there, or what holds it cannot be imported.
        """
        module = _module(self.name, self.place, self.version)
        found = getattr(module, self.function, None)
        if not callable(found):
            there = ", ".join(sorted(_functions(module))) or "none"
            raise ConfigError(f"{_WHERE}={self.name!r}: no function {self.function!r}, {self.place} has {there}")
        return found

    def __call__(self, trajectory: dict[str, Any]) -> Mapping[str, Any]:
        """Calls it.

        Raises:
            DataError: it raised something, or gave no mapping; names the line.
        """
        function = self.load()
        try:
            made = function(trajectory)
        except JaxvlaError:
            raise
        except Exception as error:  # whatever it raises, it is the user's, who needs the line and the episode
            frames = traceback.extract_tb(error.__traceback__)
            last = next((frame for frame in reversed(frames) if frame.filename == _file(function)), frames[-1])
            raise DataError(
                f"standardization {self.name!r} raised {_line(error)} ({last.filename}, line {last.lineno}); "
                f"the steps have {', '.join(paths(trajectory))}"
            ) from error
        if not isinstance(made, Mapping):
            raise DataError(f"standardization {self.name!r} gives {type(made).__name__}; it must give a dict")
        return made


@functools.lru_cache
def _module(name: str, place: str, version: str) -> types.ModuleType:
    """The module of a file, or of a dotted name; once in a process, of a file once for each version."""
    try:
        if not place.endswith(_SUFFIX):
            return importlib.import_module(place)
        return _executed(_path(name, place), f"jaxvla_standardization_{version}")
    except JaxvlaError:
        raise
    except Exception as error:  # whatever the user's file raises
        raise ConfigError(f"{_WHERE}={name!r}: {place} cannot be imported ({_line(error)})") from error


def _executed(path: pathlib.Path, called: str) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(called, path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[called] = module  # dataclasses look their module up
    try:
        # Not by the loader, which takes bytecode that is as old as the file to the second, and as long, for its own.
        exec(compile(path.read_bytes(), str(path), "exec"), module.__dict__)
    except BaseException:
        del sys.modules[called]
        raise
    return module


def _version(name: str, place: str) -> str:
    return _digest(_path(name, place)) if place.endswith(_SUFFIX) else _module_version(name, place)


@functools.lru_cache
def _module_version(name: str, place: str) -> str:
    """That of the source which a process has imported, once it has: it imports none again."""
    return _digest(pathlib.Path(_module(name, place, "").__file__))


def _path(name: str, place: str) -> pathlib.Path:
    path = local_path(place, _WHERE).absolute()
    if not path.is_file():
        raise ConfigError(f"{_WHERE}={name!r}: no file {path}")
    return path


def _file(function: Callable[..., Any]) -> str:
    return getattr(getattr(function, "__code__", None), "co_filename", "")


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _functions(module: types.ModuleType) -> list[str]:
    return [key for key, value in vars(module).items() if isinstance(value, types.FunctionType)]
