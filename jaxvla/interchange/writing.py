"""A trained agent as LeRobot saves its policies: config.json, processors with their statistics, model.safetensors."""

import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvla.agents import Agent
from jaxvla.assets import Assets
from jaxvla.errors import ConfigError
from jaxvla.interchange.exports import Export, check_target, write_export
from jaxvla.interchange.kinds import KINDS, Kind
from jaxvla.interchange.policy_folder import ACTION, CONFIG, IMAGES, STATE
from jaxvla.interchange.processors import (
    BATCH,
    DEVICE,
    NORMALIZE,
    POSTPROCESSOR,
    PREPROCESSOR,
    RENAME,
    UNNORMALIZE,
    Pipeline,
    Step,
    write_pipeline,
)
from jaxvla.interchange.statistics import MODES, written_field
from jaxvla.models.module import Params

_CPU = {"device": "cpu", "float_dtype": None}
_EPSILON = 1e-8


def check_written(assets: Assets) -> None:
    """Raises ConfigError for an agent that LeRobot does not have, or one of several robots."""
    if assets.agent not in KINDS:
        raise ConfigError(
            f"LeRobot has no policy {assets.agent!r}, only those of {', '.join(KINDS)} are written in its layout: "
            "--format safetensors takes every agent"
        )
    spec, robot = assets.spec, assets.robot_spec
    for what, theirs, ours in (
        ("cameras", robot.cameras, spec.cameras),
        ("numbers in its state", robot.proprio_dim, spec.proprio_dim),
        ("numbers in an action", robot.action_dim, spec.action_dim),
    ):
        if theirs != ours:
            raise ConfigError(
                f"the robot of {assets.names[0]} has other {what} than the batches of its mixture, {theirs} and "
                f"{ours}: LeRobot's policies are of one robot, so train on this dataset alone"
            )


def write_policy(folder: str | os.PathLike, agent: Agent, params: Params, assets: Assets, card: str) -> None:
    """Writes a folder that LeRobot's `from_pretrained` reads, strictly, and that acts there as here.

    Args:
        folder: is made; must be empty where it exists.
        agent: with its adapters merged.
        params: its parameters.
        assets: of one dataset.
        card: content of README.md.

    Raises:
        ConfigError: as `check_written`.
        WeightsError: the folder is not empty or cannot be written.
    """
    check_written(assets)
    kind, path = KINDS[assets.agent], check_target(folder).absolute()
    pipelines = _pipelines(kind, agent, assets, path)

    def write(partial: pathlib.Path) -> None:
        for pipeline in pipelines:
            write_pipeline(partial, pipeline)
        kind.write_more(agent, assets, partial)

    tensors = kind.tensors(params, kind.table(agent))
    write_export(path, Export(tensors, {CONFIG: config_of(kind, agent, assets, path)}, card, write))


def config_of(kind: Kind, agent: Agent, assets: Assets, path: pathlib.Path) -> dict[str, Any]:
    """The content of config.json of a folder that will lie at a path."""
    features = features_of(assets)
    return {
        "type": assets.agent,
        "n_obs_steps": 1,
        "normalization_mapping": _modes(kind, assets),
        "input_features": {name: entry for name, entry in features.items() if name != ACTION},
        "output_features": {ACTION: features[ACTION]},
        "device": None,
        "use_amp": False,
        "push_to_hub": False,
        "repo_id": None,
        "private": None,
        "tags": None,
        "license": None,
        "chunk_size": assets.spec.action_horizon,
        "n_action_steps": assets.execution.steps(assets.spec.action_horizon),
        **kind.write_values(agent, assets, path),
    }


def features_of(assets: Assets) -> dict[str, dict[str, Any]]:
    """What goes in and out, by LeRobot's names: cameras by those of the data, where it is a LeRobotDataset."""
    spec = assets.robot_spec
    found = {
        name: {"type": "VISUAL", "shape": [3, *spec.size_of(camera)]}
        for camera, name in camera_features(assets).items()
    }
    if spec.proprio_dim:
        found[STATE] = {"type": "STATE", "shape": [spec.proprio_dim]}
    return found | {ACTION: {"type": "ACTION", "shape": [spec.action_dim]}}


def camera_features(assets: Assets) -> dict[str, str]:
    """The feature of each camera."""
    (name,) = assets.names
    data = {**assets.data_config, **dict(assets.data_config.get("datasets", {})).get(name, {})}
    stored = dict(data.get("cameras") or {}) if data.get("format") == "lerobot" else {}
    named = {camera: str(stored.get(camera, "")) for camera in assets.robot_spec.cameras}
    return {camera: own if own.startswith("observation.") else IMAGES + camera for camera, own in named.items()}


def _modes(kind: Kind, assets: Assets) -> dict[str, str]:
    state, actions = MODES[assets.proprio_normalization], MODES[assets.action_normalization]
    return {"VISUAL": kind.pictures, "STATE": state, "ACTION": actions}


def _pipelines(kind: Kind, agent: Agent, assets: Assets, path: pathlib.Path) -> tuple[Pipeline, Pipeline]:
    features, modes = features_of(assets), _modes(kind, assets)
    statistics = _statistics(kind, assets)

    def normalizes(step: str, names: Mapping[str, Any]) -> Step:
        return Step(step, {"eps": _EPSILON, "features": dict(names), "norm_map": modes}, statistics)

    before = (Step(RENAME, {"rename_map": {}}), Step(BATCH), *kind.language(agent, assets, path), Step(DEVICE, _CPU))
    outputs = {ACTION: features[ACTION]}
    return (
        Pipeline(PREPROCESSOR, (*before, normalizes(NORMALIZE, features))),
        Pipeline(POSTPROCESSOR, (normalizes(UNNORMALIZE, outputs), Step(DEVICE, _CPU))),
    )


def _statistics(kind: Kind, assets: Assets) -> dict[str, dict[str, np.ndarray]]:
    count = assets.statistics.num_transitions
    found = {ACTION: written_field(assets.action_normalizer(), count, acts=True)}
    if assets.robot_spec.proprio_dim:
        found[STATE] = written_field(assets.proprio_normalizer(), count, acts=False)
    pictures = dict(kind.picture_statistics())
    return found | ({name: pictures for name in camera_features(assets).values()} if pictures else {})
