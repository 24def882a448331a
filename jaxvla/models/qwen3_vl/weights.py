"""Qwen3-VL weights from and to Hugging Face folders, without torch and without a second full copy in memory."""

import pathlib
from collections.abc import Mapping
from typing import Any

import jax

from jaxvla.models.hf_folder import read_folder, write_folder
from jaxvla.models.module import Params
from jaxvla.models.qwen3_vl.config import MODEL_TYPE, Qwen3VLConfig, to_hf
from jaxvla.models.qwen3_vl.weight_table import weight_table
from jaxvla.models.safetensors_io import StoredTensor
from jaxvla.models.weights import host_tensors, read_config


def read_hf_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """The config.json of a folder of Qwen3-VL weights, for `from_hf`.

    Raises:
        WeightsError: no such folder or file, not JSON, or the configuration of another architecture.
    """
    return read_config(folder, "model_type", MODEL_TYPE, "of Hugging Face weights")


def load_hf(
    folder: str | pathlib.Path,
    config: Qwen3VLConfig,
    shardings: Mapping[str, Any] | None = None,
    dtype: jax.typing.DTypeLike = "float32",
) -> Params:
    """Reads a Hugging Face folder straight into parameters, see `jaxvla.models.weights.read_params`.

    Args:
        folder: holds config.json and model.safetensors, or shards and model.safetensors.index.json.
        config: sizes of the model, `from_hf(read_hf_config(folder))`.
        shardings: one for every parameter, nested like `param_shapes(config)`; None for the default device.
        dtype: of the parameters.

    Raises:
        WeightsError: no weights there, another architecture, a damaged file, or tensors that are missing, left over or
            of another shape than the configuration says.
    """
    folder = pathlib.Path(folder).expanduser()
    read_hf_config(folder)
    return read_folder(folder, weight_table(config), shardings, dtype, _full_names)


def save_hf(
    params: Params,
    config: Qwen3VLConfig,
    folder: str | pathlib.Path,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    max_shard_bytes: int = 5 * 10**9,
    source: str | pathlib.Path | None = None,
) -> None:
    """Writes a folder that `transformers` loads: weights and config.json, aside first, then renamed.

    Args:
        params: of a model of this configuration; one tensor at a time is brought to the host.
        config: sizes of the model.
        folder: is made; must be empty where it exists.
        dtype: of the tensors; None for that of each parameter.
        max_shard_bytes: above it the weights are spread over several files with an index.
        source: a folder whose tokenizer, processor and generation files are copied as they are; a tokenizer that got
            new tokens is saved into the folder afterwards, by itself.

    Raises:
        WeightsError: the folder is not empty or cannot be written, `source` holds no tokenizer, or the parameters do
            not fit the configuration or live on other hosts.
    """
    tensors = host_tensors(params, weight_table(config), dtype)
    write_folder(pathlib.Path(folder).expanduser(), tensors, {"config.json": to_hf(config)}, max_shard_bytes, source)


def _full_names(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Names as Qwen3VLForConditionalGeneration writes them; the bare Qwen3VLModel leaves the prefix out."""
    if any(name.startswith("model.") for name in stored):
        return stored
    return {name if name.startswith("lm_head.") else f"model.{name}": tensor for name, tensor in stored.items()}
