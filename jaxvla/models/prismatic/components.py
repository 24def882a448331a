"""The files that OpenVLA-OFT puts beside OpenVLA's folder: action head, state projector, vision towers with FiLM.

    action_head--150000_checkpoint.pt      or --latest_checkpoint, one of each; written ones are .safetensors

Those of a distributed run have "module." before every name. In that of the vision towers adapters are not merged; here
they are.
"""

import contextlib
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxvla.errors import WeightsError
from jaxvla.models.module import Params
from jaxvla.models.prismatic.config import PrismaticConfig
from jaxvla.models.prismatic.weight_table import ACTION_HEAD, PROPRIO_PROJECTOR, VISION_BACKBONE, component_tables
from jaxvla.models.safetensors_io import HostTensor, StoredTensor, open_checkpoint
from jaxvla.models.torch_file import SUFFIX, open_torch
from jaxvla.models.weights import Weight, check_names, host_tensors, read_params

# What a configuration must say of each, in the settings of an agent.
NEEDS = {
    ACTION_HEAD: "parallel.enabled",
    PROPRIO_PROJECTOR: "parallel.proprio",
    VISION_BACKBONE: "parallel.film",
}
_ENDING = "_checkpoint.safetensors"
_ADAPTERS = (".lora_A.default.weight", ".lora_B.default.weight")
# Adapters are scaled by this over their rank, or by 1 where that is less.
_MOST_ALPHA = 16


def find_components(folder: pathlib.Path, config: PrismaticConfig) -> dict[str, pathlib.Path]:
    """The files of a folder by what they hold; those that it lacks are not named.

    Raises:
        WeightsError: several of a kind, or one that the model has no place for.
    """
    found = {}
    for name, setting in NEEDS.items():
        paths = sorted(folder.glob(f"{name}--*_checkpoint.*"))
        if not paths:
            continue
        if len(paths) > 1:
            there = ", ".join(path.name for path in paths)
            raise WeightsError(f"{folder} has several files of {name}, {there}: keep the one to start from")
        (path,) = paths
        if name not in component_tables(config):
            raise WeightsError(
                f"{path} has weights that the model has no place for: set config.agent_kwargs.{setting} to True, or "
                "move the file away"
            )
        found[name] = path
    return found


def load_components(paths: Mapping[str, pathlib.Path], config: PrismaticConfig, shardings: Params) -> Params:
    """The float32 parameters of files from `find_components`.

    Args:
        paths: of the files.
        config: of the model.
        shardings: of all parameters.

    Raises:
        WeightsError: a damaged file, or tensors that are missing, left over or of another shape.
    """
    placed, flat = traverse_util.flatten_dict(shardings, sep="/"), {}
    for name, path in paths.items():
        table = component_tables(config)[name]
        own = traverse_util.unflatten_dict({weight.path: placed[weight.path] for weight in table}, sep="/")
        with _opened(path) as (stored, adapters):
            names = [name for weight in table for name in weight.hf_names]
            check_names(str(path), stored, names, "use the file that came with the weights, and the sizes of its run")
            params = traverse_util.flatten_dict(read_params(path, stored, table, own), sep="/")
            for weight in table:
                params[weight.path] = _adapted(path, weight, params[weight.path], adapters)
            flat |= params
    return traverse_util.unflatten_dict(flat, sep="/")


def component_tensors(
    params: Params, config: PrismaticConfig, dtype: jax.typing.DTypeLike | None = None
) -> dict[str, dict[str, HostTensor]]:
    """The files of a model by their names; see `jaxvla.models.weights.host_tensors`."""
    return {
        f"{name}--latest{_ENDING}": host_tensors(part_of(params, table), table, dtype)
        for name, table in component_tables(config).items()
    }


def part_of(params: Params, table: Sequence[Weight]) -> Params:
    """The parameters that a table names, of those that there are."""
    flat, paths = traverse_util.flatten_dict(params, sep="/"), {weight.path for weight in table}
    return traverse_util.unflatten_dict({path: leaf for path, leaf in flat.items() if path in paths}, sep="/")


@contextlib.contextmanager
def _opened(path: pathlib.Path) -> Iterator[tuple[dict[str, StoredTensor], dict[str, StoredTensor]]]:
    """The tensors of a file by the names of the table, and those of its adapters."""
    with (open_torch if path.suffix == SUFFIX else open_checkpoint)(path) as stored:
        plain = {name.removeprefix("module."): tensor for name, tensor in stored.items()}
        adapters = {name: tensor for name, tensor in plain.items() if name.endswith(_ADAPTERS)}
        yield {name.replace(".base_layer.", "."): x for name, x in plain.items() if name not in adapters}, adapters


def _adapted(path: pathlib.Path, weight: Weight, kernel: Any, adapters: Mapping[str, StoredTensor]) -> Any:
    """A kernel with the product of its adapters added, in the order of the layers where it is stacked."""
    deltas = []
    for name in weight.hf_names:
        module = name.removesuffix(".weight")
        pair = [adapters.get(module + ending) for ending in _ADAPTERS]
        if None in pair:
            continue
        a_ri, b_or = (tensor.read_rows(0, tensor.shape[0]).astype(np.float32) for tensor in pair)
        if (b_or.shape[1], a_ri.shape[0], a_ri.shape[1], b_or.shape[0]) != (len(a_ri), len(a_ri), *weight.part_shape):
            raise WeightsError(
                f"{path}: the adapters of {module} are {list(pair[0].shape)} and {list(pair[1].shape)}, which do not "
                f"go with its weight, {list(weight.hf_shape)}: use the file that came with the weights"
            )
        deltas.append(min(1, _MOST_ALPHA / len(a_ri)) * (b_or @ a_ri).T)
    if not deltas:
        return kernel
    if len(deltas) < len(weight.hf_names):
        raise WeightsError(f"{path} has adapters of some layers of {weight.path} only: it is damaged, copy it again")
    delta = jax.device_put(np.stack(deltas) if weight.stacked else deltas[0], kernel.sharding)
    return kernel + delta
