"""Which datasets a run draws from: the keys of configs/data_config.py, read as one or as several."""

import dataclasses
import math
import os
import re
from collections.abc import Mapping
from typing import Any

from jaxvla.config import from_mapping, local_path, unknown_key
from jaxvla.data.oxe import mixtures
from jaxvla.data.source_config import SourceConfig
from jaxvla.data.standardizing import is_own
from jaxvla.errors import ConfigError

BALANCES = ("weights", "size", "equal")

_WHERE = "bridgedata_config"
_NAME = re.compile(r"[\w+-][\w.+-]*")
_VERSION = re.compile(r"\d+(\.\d+)*")


@dataclasses.dataclass(frozen=True)
class MixtureConfig:
    """Which datasets, and how often each is drawn.

    Attributes:
        sources: where each dataset is, by its name; names ascending, which numbers the datasets.
        weights: of each, as configured.
        balance: what its share follows from: its weight; its weight times its number of transitions ("size"); or
            nothing, all being drawn equally often ("equal").

        several_encodings: whether datasets whose actions are known to be different things may be in it.

    Raises:
        ConfigError: no datasets, an unknown balance, a weight that is not positive, or one beside "equal"; actions that
            no policy learns as one.
    """

    sources: Mapping[str, SourceConfig]
    weights: Mapping[str, float]
    balance: str = "weights"
    several_encodings: bool = False

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("a mixture needs at least one dataset")
        if self.balance not in BALANCES:
            raise ConfigError(f"{_WHERE}.balance must be one of {', '.join(BALANCES)}, not {self.balance!r}")
        for name, weight in self.weights.items():
            if not 0 < weight < math.inf:
                raise ConfigError(f"{_WHERE}.datasets.{name}.weight must be positive, not {weight:g}: leave it out")
            if self.balance == "equal" and weight != 1:
                raise ConfigError(
                    f"{_WHERE}.datasets.{name}.weight={weight:g} has no effect with balance='equal': set it to 1.0, or "
                    "balance to weights"
                )

        if not self.several_encodings:
            _check_encodings(self.sources)

    def weight_of(self, name: str, num_transitions: int) -> float:
        """How often a dataset of that many transitions is drawn, beside the others."""
        return self.weights[name] * (num_transitions if self.balance == "size" else 1)


@dataclasses.dataclass(frozen=True)
class _Choice:
    """The keys that are not of one source."""

    name: str = ""
    balance: str = "weights"
    datasets: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    mixture: str = ""
    leave_out: tuple[str, ...] = ()
    several_encodings: bool = False


def expand(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings in which `mixture` and `leave_out` have become `datasets`, and a single dataset has its name.

    Of a dataset that `datasets` names as well, the keys there count.

    Raises:
        ConfigError: an unknown key, mixture or dataset.
    """
    choice, outer = _parts(settings)
    expanded = dict(settings)
    if not (choice.mixture or choice.datasets):
        name = outer.get("standardization", "")
        named = name and not choice.name and not is_own(name)
        return {**expanded, "name": name} if named else expanded
    datasets = {name: dict(own) for name, own in choice.datasets.items()}
    if choice.mixture:
        _check_outer(choice.mixture, outer)
        variant = expanded.pop("variant", "")
        for name, weight in mixtures.find(choice.mixture, variant or None).items():
            entry = {"format": "rlds", "standardization": name, "variant": variant, "weight": weight}
            if choice.balance == "equal":
                del entry["weight"]
            datasets[name] = entry | datasets.get(name, {})
    for name in choice.leave_out:
        if name not in datasets:
            raise ConfigError(unknown_key(f"{name} in {_WHERE}.leave_out", name, datasets))
    kept = {name: own for name, own in datasets.items() if name not in choice.leave_out}
    if not kept:
        raise ConfigError(f"{_WHERE}.leave_out={choice.leave_out} leaves nothing of {', '.join(datasets)}")
    return {**expanded, "mixture": "", "leave_out": (), "datasets": kept}


def read_mixture(settings: Mapping[str, Any]) -> MixtureConfig:
    """The mixture of plain settings, as configs/data_config.py gives them; one dataset is a mixture of one.

    Raises:
        ConfigError: an unknown key, or a value that is refused, by itself or beside others.
    """
    choice, outer = _parts(expand(settings))
    several = choice.several_encodings
    if not choice.datasets:
        source = from_mapping(SourceConfig, outer, _WHERE)
        name = choice.name or name_of(source.data_path, source.tfds_name)
        _check_name(f"{_WHERE}.name", choice.name or "unnamed")
        if choice.leave_out:
            raise ConfigError(f"{_WHERE}.leave_out={choice.leave_out} has no effect: there is one dataset, {name}")
        return MixtureConfig({name: source}, {name: 1.0}, choice.balance, several)
    if choice.name:
        raise ConfigError(f"{_WHERE}.name={choice.name!r} has no effect: {_WHERE}.datasets has the names")
    if outer.get("data_path") and all("data_path" in of_one for of_one in choice.datasets.values()):
        raise ConfigError(
            f"{_WHERE}.data_path={outer['data_path']!r} has no effect, each dataset has its own: set "
            f"{_WHERE}.datasets.{min(choice.datasets)}.data_path"
        )
    names = sorted(choice.datasets)
    sources = {name: _source(name, choice.datasets[name], outer) for name in names}
    weights = {name: _weight(name, choice.datasets[name]) for name in names}
    return MixtureConfig(sources, weights, choice.balance, several)


def _parts(settings: Mapping[str, Any]) -> tuple[_Choice, dict[str, Any]]:
    """The keys that choose datasets, and those of all of them."""
    own = [field.name for field in dataclasses.fields(_Choice)]
    known = [*own, *(field.name for field in dataclasses.fields(SourceConfig))]
    for key in settings:
        if key not in known:
            raise ConfigError(unknown_key(f"{_WHERE}.{key}", key, known))
    choice = from_mapping(_Choice, {key: settings[key] for key in own if key in settings}, _WHERE)
    return choice, {key: value for key, value in settings.items() if key not in own}


def name_of(data_path: str | os.PathLike, tfds_name: str = "") -> str:
    """What a dataset is called that has no name: the last folder of its path that is no version number.

    Args:
        data_path, tfds_name: as of its configuration.

    Raises:
        ConfigError: the path has no such folder.
    """
    path = local_path(data_path, "data_path").absolute() / tfds_name.replace(":", "/")
    parts = path.parts[1:]
    names = [part for part in parts if not _VERSION.fullmatch(part)]
    if not names:
        raise ConfigError(f"{data_path} gives the dataset no name: set {_WHERE}.name")
    return names[-1]


def _check_outer(mixture: str, outer: Mapping[str, Any]) -> None:
    """Raises ConfigError for keys of one dataset that stand beside a mixture."""
    for key in ("tfds_name", "standardization"):
        if outer.get(key):
            raise ConfigError(
                f"{_WHERE}.{key}={outer[key]!r} has no effect: those of mixture {mixture} have their own, set it in "
                f"{_WHERE}.datasets"
            )


def _check_encodings(sources: Mapping[str, SourceConfig]) -> None:
    """Raises ConfigError where the same dimension of the actions is one thing in a dataset, and another in others."""
    kinds: dict[str, list[str]] = {}
    for name, source in sources.items():
        if source.dataset is not None:
            kinds.setdefault(source.dataset.actions, []).append(name)
    if len(kinds) < 2:
        return
    most = max(kinds, key=lambda kind: len(kinds[kind]))
    odd = {name: kind for kind, names in kinds.items() if kind != most for name in names}
    listed = "; ".join(f"{name} has {kind}" for name, kind in odd.items())
    first, more = kinds[most][0], len(kinds[most]) - 1
    others = f"{first} and {more} more have" if more else f"{first} has"
    raise ConfigError(
        f"a policy would learn different things in the same dimensions: {listed}; {others} {most}: leave out by "
        f"{_WHERE}.leave_out={tuple(odd)}, or set {_WHERE}.several_encodings=True"
    )


def _source(name: str, own: Mapping[str, Any], outer: Mapping[str, Any]) -> SourceConfig:
    """The keys of one dataset, and those of the outer configuration where it has none; of `actions` likewise."""
    where = f"{_WHERE}.datasets.{name}"
    _check_name(f"the name of {where}", name)
    own = {key: value for key, value in own.items() if key != "weight"}
    known = [field.name for field in dataclasses.fields(SourceConfig)]
    for key in own:
        if key not in known:
            raise ConfigError(unknown_key(f"{where}.{key}", key, [*known, "weight"]))
    merged = {**outer, **own}
    if isinstance(own.get("actions"), Mapping):
        merged["actions"] = {**outer.get("actions", {}), **own["actions"]}
    try:
        return from_mapping(SourceConfig, merged, where)
    except ConfigError as error:
        raise ConfigError(str(error) if where in str(error) else f"{where}: {error}") from error


def _weight(name: str, own: Mapping[str, Any]) -> float:
    weight = own.get("weight", 1.0)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ConfigError(f"{_WHERE}.datasets.{name}.weight must be float, not {type(weight).__name__} {weight!r}")
    return float(weight)


def _check_name(what: str, name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{what} must be of letters, digits and any of _ . + -, not {name!r}")
