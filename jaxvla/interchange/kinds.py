"""The policies of LeRobot that are read and written, by their type there, which is the name of the agent here."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from jaxvla.agents.act import table_of
from jaxvla.assets import Assets
from jaxvla.data.schema import BatchSpec
from jaxvla.interchange import act
from jaxvla.interchange.policy_folder import PolicyFolder
from jaxvla.interchange.processors import Step
from jaxvla.models.act import weights
from jaxvla.models.lerobot import WhyUnused
from jaxvla.models.module import Params
from jaxvla.models.safetensors_io import HostTensor
from jaxvla.models.weights import Weight


@dataclasses.dataclass(frozen=True)
class Kind:
    """What is particular to one type of policy.

    Attributes:
        all_cameras: whether it needs all cameras of config.json; else some of them do.
        read_kwargs: the `agent_kwargs` that its weights fix.
        check: raises WeightsError where batches do not fit the weights.
        table: which tensor is which parameter.
        why_unused: why a tensor of a checkpoint is no parameter.
        tensors: what model.safetensors holds.
        language: the steps of the preprocessor that make tokens of instructions.
        write_values: the part of config.json that is of this type alone.
        pictures: LeRobot's normalization of pictures.
        picture_statistics: what it does that by; empty for none.
    """

    all_cameras: bool
    read_kwargs: Callable[[PolicyFolder], dict[str, Any]]
    check: Callable[[PolicyFolder, BatchSpec], None]
    table: Callable[[Any], tuple[Weight, ...]]
    why_unused: WhyUnused
    tensors: Callable[[Params, tuple[Weight, ...]], dict[str, HostTensor]]
    language: Callable[[Assets], tuple[Step, ...]]
    write_values: Callable[[Any, Assets], dict[str, Any]]
    pictures: str
    picture_statistics: Callable[[], Mapping[str, Any]]


KINDS: Mapping[str, Kind] = {
    "act": Kind(
        all_cameras=True,
        read_kwargs=act.read_kwargs,
        check=act.check,
        table=table_of,
        why_unused=weights.why_unused,
        tensors=weights.tensors_of,
        language=lambda assets: (),
        write_values=act.write_values,
        pictures="MEAN_STD",
        picture_statistics=act.picture_statistics,
    ),
}
