"""Training that begins from a policy of LeRobot: what its folder says takes its place among the settings."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import traverse_util

from jaxvla.agents import Agent, Start
from jaxvla.config import from_mapping, leaves, local_path
from jaxvla.data.formats.lerobot_meta import read_info
from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError, WeightsError
from jaxvla.interchange.kinds import KINDS
from jaxvla.interchange.playing import as_held
from jaxvla.interchange.policy_folder import PolicyFolder, read_policy
from jaxvla.models.lerobot import load_table, report_of
from jaxvla.models.module import Params

_WHERE = "config.policy.path"
# The keys of `agent_kwargs` that name other weights to start from.
_OTHER_WEIGHTS = ("encoder.path", "vlm_path")


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The keys of config.policy: `path` is the folder of a policy of LeRobot that training starts from, or empty."""

    path: str = ""


@dataclasses.dataclass(frozen=True, eq=False)
class Settings:
    """The settings of a run that begins from a policy.

    Attributes:
        train: as configs/train_config.py gives them, but for what the policy fixes.
        data: as configs/data_config.py gives them, with cameras as the policy calls them.
        policy: the folder.
        report: lines for people: what the folder changed.
    """

    train: dict[str, Any]
    data: dict[str, Any]
    policy: PolicyFolder
    report: tuple[str, ...]


def settings_from(settings: Mapping[str, Any], source_settings: Mapping[str, Any]) -> Settings | None:
    """The settings that `config.policy.path` makes of others; None where it is empty.

    The folder fixes what its weights were made for: sizes, chunk, normalization, names of cameras. How they are trained
    is as the run says; so is what is played of a chunk, where it says anything.

    Args:
        settings: as configs/train_config.py gives them.
        source_settings: as configs/data_config.py gives them, expanded.

    Raises:
        ConfigError: settings that contradict the folder.
        WeightsError, DataError: the folder, or meta of the data, cannot be read.
    """
    config = from_mapping(PolicyConfig, settings.get("policy", {}), "config.policy")
    if not config.path:
        return None
    policy = read_policy(config.path, KINDS, _WHERE)
    _check(settings, policy)
    changes = _changes(settings, policy)
    before, after = leaves(settings), leaves(changes)
    report = [f"{key} {_text(before.get(key))} -> {_text(new)}" for key, new in after.items() if before.get(key) != new]
    data, lines = _with_cameras(source_settings, policy)
    return Settings(_merged(settings, changes), data, policy, (*report, *lines))


def start_from(policy: PolicyFolder, agent: Agent, spec: BatchSpec) -> Start:
    """The parameters of a policy, for an agent of the settings that it made.

    Raises:
        WeightsError: it has other tensors, or batches other dimensions or cameras.
    """
    kind = KINDS[policy.type]
    kind.check(policy, spec)
    wanted = tuple(name for name in policy.cameras if name in spec.cameras)
    if spec.cameras != wanted:
        raise WeightsError(f"{policy.path} sees {', '.join(wanted)}, the batches hold {', '.join(spec.cameras)}")
    table, why = kind.table(agent), kind.why_unused(agent)

    def load(shardings: Params) -> Params:
        placed = traverse_util.flatten_dict(shardings, sep="/")
        own = traverse_util.unflatten_dict({weight.path: placed[weight.path] for weight in table}, sep="/")
        return as_held(agent, load_table(policy.path, table, why, own)[0])

    lines = report_of(policy.path, table, why).lines()
    return Start(load, (f"{policy.type} from {policy.path}", *lines))


def _check(settings: Mapping[str, Any], policy: PolicyFolder) -> None:
    if settings["agent"] != policy.type:
        raise ConfigError(
            f"{_WHERE}: {policy.config_path} is of type {policy.type!r}, and config.agent is {settings['agent']!r}: "
            f"give --config train_config.py:{policy.type}, or another folder"
        )
    given = leaves(settings["agent_kwargs"])
    for key in _OTHER_WEIGHTS:
        if given.get(key):
            raise ConfigError(
                f"config.agent_kwargs.{key} is {given[key]}, and the policy of {_WHERE} has these weights, too: empty "
                "one of them"
            )
    kinds = {policy.normalization(kind) for kind in ("ACTION", *(["STATE"] if policy.proprio_dim else []))}
    if len(kinds) > 1:
        raise ConfigError(
            f"{_WHERE}: {policy.path} normalizes states and actions differently, by {policy.mode_of('STATE')} and "
            f"{policy.mode_of('ACTION')}: a training does both alike"
        )


def _changes(settings: Mapping[str, Any], policy: PolicyFolder) -> dict[str, Any]:
    """Nested settings that the folder fixes."""
    data = {"action_horizon": policy.values["chunk_size"], "normalization": policy.normalization("ACTION")}
    changes = {"agent_kwargs": KINDS[policy.type].read_kwargs(policy), "data": data}
    if language := KINDS[policy.type].read_language(policy, settings.get("language", {}).get("path", "")):
        changes["language"] = language
    execution = settings.get("execution", {})
    if not execution.get("execute_steps") and execution.get("ensemble") is None:
        played = policy.execution
        changes["execution"] = {"execute_steps": played.execute_steps, "ensemble": played.ensemble}
    return changes


def _merged(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
    """`old` with the leaves of `new` in it."""
    nested = {key: _merged(old.get(key, {}), value) for key, value in new.items() if isinstance(value, Mapping)}
    return {**old, **new, **nested}


def _with_cameras(source_settings: Mapping[str, Any], policy: PolicyFolder) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Source settings whose cameras have the names of the policy, in its order, of each dataset; and what changed."""
    if not source_settings.get("datasets"):
        cameras = _cameras(source_settings, policy, "bridgedata_config")
        return {**source_settings, "cameras": cameras}, _said(source_settings, cameras, policy, "cameras")
    datasets, lines = {}, ()
    for name, own in source_settings["datasets"].items():
        cameras = _cameras({**source_settings, **own}, policy, f"bridgedata_config.datasets.{name}")
        lines += _said({**source_settings, **own}, cameras, policy, f"datasets.{name}.cameras")
        datasets[name] = {**own, "cameras": cameras}
    return {**source_settings, "datasets": datasets}, lines


def _cameras(source: Mapping[str, Any], policy: PolicyFolder, where: str) -> dict[str, str]:
    """The policy's cameras by name: what they are called in the data.

    They are those that the settings name so; else, of a LeRobotDataset, the features of the policy's own names, or of
    those that LeRobot renamed to them.
    """
    given, wanted = dict(source.get("cameras") or {}), policy.cameras
    needed = len(wanted) if KINDS[policy.type].all_cameras else 1
    found = {name: given[name] for name in wanted if name in given}
    if len(found) >= needed:
        return found
    there: tuple[str, ...] = ()
    if source.get("format") == "lerobot" and source.get("data_path"):
        there = read_info(local_path(source["data_path"])).cameras
        own = {name: (feature, policy.renamed.get(feature)) for name, feature in wanted.items()}
        found = {name: next((x for x in pair if x in there), "") for name, pair in own.items()}
        found = {name: feature for name, feature in found.items() if feature}
        if len(found) >= needed:
            return found
    listed = ", ".join(there) or ", ".join(given) or "nobody says which"
    examples = " ".join(
        f"--{where}.cameras.{name}={there[i] if i < len(there) else 'NAME'}" for i, name in enumerate(wanted)
    )
    raise ConfigError(
        f"{_WHERE}: the cameras of {policy.path} are {', '.join(wanted.values())}; those of the data are {listed}: say "
        f"which is which, {examples}"
    )


def _said(source: Mapping[str, Any], cameras: Mapping[str, str], policy: PolicyFolder, key: str) -> tuple[str, ...]:
    before, lacking = dict(source.get("cameras") or {}), [name for name in policy.cameras if name not in cameras]
    changed = () if before == dict(cameras) else (f"{key} {_text(before)} -> {_text(cameras)}",)
    return changed + ((f"{key} without {', '.join(lacking)}, which the policy sees, too",) if lacking else ())


def _text(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={item}" for name, item in value.items()) or "none"
    return "absent" if value is None else f"{value}"
