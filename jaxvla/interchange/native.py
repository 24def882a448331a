"""Any agent as a folder without Orbax: parameters in one file, what else a checkpoint keeps, and a card.

    model.safetensors    the parameters by their paths, "policy/dense0/kernel"
    assets.json          `Assets`, and the "step" of the checkpoint
    README.md            the card

`load_policy` plays such a folder as it plays the checkpoint.
"""

import os
import pathlib
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxvla.agents import make_agent
from jaxvla.assets import Assets
from jaxvla.checkpoint import parse_assets
from jaxvla.errors import CheckpointError, WeightsError
from jaxvla.interchange.exports import Export, write_export
from jaxvla.interchange.processors import read_object
from jaxvla.models.module import Params
from jaxvla.models.safetensors_io import HostTensor, StoredTensor, open_checkpoint
from jaxvla.models.weights import check_names, to_host

ASSETS = "assets.json"
_STEP = "step"


def is_export(path: pathlib.Path) -> bool:
    """Whether a folder is one of these."""
    return (path / ASSETS).is_file()


def write_native(folder: str | os.PathLike, params: Params, assets: Assets, step: int, card: str) -> None:
    """Writes the parameters as they are, in their dtypes, adapters apart.

    Args:
        folder: is made; must be empty where it exists.
        params: of the agent.
        assets: of the checkpoint.
        step: of the checkpoint.
        card: content of README.md.

    Raises:
        WeightsError: the folder is not empty or cannot be written.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    tensors = {path: HostTensor(x.shape, np.dtype(x.dtype), lambda x=x: to_host(x)) for path, x in flat.items()}
    write_export(folder, Export(tensors, {ASSETS: {_STEP: step, **assets.to_json()}}, card))


def read_native_assets(folder: pathlib.Path) -> tuple[Assets, int]:
    """The assets and the step of a folder that `write_native` wrote.

    Raises:
        CheckpointError: they are damaged, or of another version.
    """
    path = folder / ASSETS
    try:
        values = read_object(path)
    except WeightsError as error:
        raise CheckpointError(f"{error}, or export it again") from error
    step = values.pop(_STEP, None)
    if type(step) is not int:
        raise CheckpointError(f"{path} names no step: export it again")

    def unusable(reason: str) -> CheckpointError:
        return CheckpointError(f"{path} cannot be read ({reason}): export it again")

    return parse_assets(values, path, unusable), step


def read_native(folder: pathlib.Path, assets: Assets) -> Params:
    """The parameters of such a folder, on the first device of this process.

    Raises:
        WeightsError: they are damaged, or not those of the agent.
    """
    agent = make_agent(assets.agent, assets.agent_kwargs, assets.spec)
    shapes = traverse_util.flatten_dict(jax.eval_shape(agent.init, jax.random.key(0)), sep="/")
    with open_checkpoint(folder) as stored:
        check_names(str(folder), stored, shapes, f"keep {ASSETS} with the weights that it came with")
        flat = {path: _read(folder, stored[path], shape) for path, shape in shapes.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _read(folder: pathlib.Path, tensor: StoredTensor, shape: Any) -> jax.Array:
    if (tensor.shape, tensor.dtype) != (shape.shape, np.dtype(shape.dtype)):
        raise WeightsError(
            f"{folder} does not fit the agent: {tensor.name} is {tensor.dtype}{list(tensor.shape)} there, "
            f"{shape.dtype}{list(shape.shape)} here"
        )
    rows = tensor.read_rows(0, tensor.shape[0] if tensor.shape else 1)
    return jax.device_put(rows.reshape(tensor.shape), jax.local_devices()[0])
