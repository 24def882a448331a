"""The policies of LeRobot that are read and written, by their type there, which is the name of the agent here."""

import dataclasses
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from jaxvla.agents.act import table_of
from jaxvla.assets import Assets
from jaxvla.data.schema import BatchSpec
from jaxvla.interchange import act, smolvla
from jaxvla.interchange.policy_folder import PolicyFolder
from jaxvla.interchange.processors import Step
from jaxvla.models.act import weights as act_weights
from jaxvla.models.lerobot import WhyUnused
from jaxvla.models.module import Params
from jaxvla.models.safetensors_io import HostTensor
from jaxvla.models.smolvla import weights as smolvla_weights
from jaxvla.models.smolvla.weight_table import weight_table
from jaxvla.models.weights import Weight


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is particular to one type of policy.

    Attributes:
        all_cameras: whether it needs all cameras of config.json; else some of them do.
        read_kwargs: the `agent_kwargs` that its weights fix.
        read_language: the keys of config.language that they fix, with a tokenizer that is given or found; empty for a
            policy that is told nothing.
        check: raises WeightsError where batches do not fit the weights.
        table: which tensor is which parameter.
        why_unused: of an agent, why a tensor of a checkpoint is no parameter.
        tensors: what model.safetensors holds.
        language: the steps of the preprocessor that make tokens of instructions, for a folder that will lie at a path.
        write_values: the part of config.json that is of this type alone, likewise.
        write_more: writes other files into a folder.
        pictures: LeRobot's normalization of pictures.
        picture_statistics: what it does that by; empty for none.
    """

    all_cameras: bool
    read_kwargs: Callable[[PolicyFolder], dict[str, Any]]
    read_language: Callable[[PolicyFolder, str], dict[str, Any]]
    check: Callable[[PolicyFolder, BatchSpec], None]
    table: Callable[[Any], tuple[Weight, ...]]
    why_unused: Callable[[Any], WhyUnused]
    tensors: Callable[[Params, tuple[Weight, ...]], dict[str, HostTensor]]
    language: Callable[[Any, Assets, pathlib.Path], tuple[Step, ...]]
    write_values: Callable[[Any, Assets, pathlib.Path], dict[str, Any]]
    write_more: Callable[[Any, Assets, pathlib.Path], None]
    pictures: str
    picture_statistics: Callable[[], Mapping[str, Any]]


KINDS: Mapping[str, Kind] = {
    "act": Kind(
        all_cameras=True,
        read_kwargs=act.read_kwargs,
        read_language=lambda policy, path: {},
        check=act.check,
        table=table_of,
        why_unused=lambda agent: act_weights.why_unused,
        tensors=act_weights.tensors_of,
        language=lambda agent, assets, path: (),
        write_values=lambda agent, assets, path: act.write_values(agent, assets),
        write_more=lambda agent, assets, path: None,
        pictures="MEAN_STD",
        picture_statistics=act.picture_statistics,
    ),
    "smolvla": Kind(
        all_cameras=False,
        read_kwargs=smolvla.read_kwargs,
        read_language=smolvla.read_language,
        check=smolvla.check,
        table=lambda agent: weight_table(agent.config.model),
        why_unused=lambda agent: smolvla_weights.why_unused(agent.config.model),
        tensors=smolvla_weights.tensors_of,
        language=smolvla.language_steps,
        write_values=smolvla.write_values,
        write_more=smolvla.write_more,
        pictures="IDENTITY",
        picture_statistics=dict,
    ),
}
