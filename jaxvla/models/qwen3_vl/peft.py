"""Adapters as a folder of Hugging Face's PEFT: PeftModel.from_pretrained(model, folder) loads them."""

import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from flax import traverse_util

from jaxvla.errors import WeightsError
from jaxvla.models.lora import LORA, LoraConfig
from jaxvla.models.module import Params
from jaxvla.models.qwen3_vl.config import Qwen3VLConfig
from jaxvla.models.qwen3_vl.weight_table import weight_table
from jaxvla.models.safetensors_io import HostTensor, write_safetensors
from jaxvla.models.weights import Weight, check_empty, written_aside

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Tables in which a new token has a row, and the axis of the rows.
_TABLES = {"text/embed_tokens/embedding": 0, "text/lm_head/kernel": 1}


def save_peft(
    params: Params,
    config: Qwen3VLConfig,
    lora: LoraConfig,
    folder: str | pathlib.Path,
    *,
    base: str = "",
    tokens: Sequence[int] = (),
) -> None:
    """Writes adapter_config.json and adapter_model.safetensors, aside first, then renamed.

    A layer of a stack is a module there. Names and shapes are those of PEFT 0.21: BASE.lora_A.weight [rank, in] and
    BASE.lora_B.weight [out, rank], for the convolution of the patches with its axes behind.

    Args:
        params: of `add_lora`; float32 adapters.
        config: sizes of the model.
        lora: rank, alpha and dropout of the adapters.
        folder: is made; must be empty where it exists.
        base: folder or name of the model that the adapters belong to; empty for whichever the reader loads.
        tokens: ids of new tokens, whose rows the base does not have: they come along, as trainable tokens.

    Raises:
        WeightsError: the folder is not empty or cannot be written, or there are no adapters.
    """
    folder = pathlib.Path(folder).expanduser()
    check_empty(folder)
    if LORA not in params:
        raise WeightsError("the parameters hold no adapters: save the model itself")
    weights = {weight.path: weight for weight in weight_table(config)}
    adapters = traverse_util.flatten_dict(params[LORA], sep="/")
    tensors, modules = {}, []
    for module in sorted({path.rpartition("/")[0] for path in adapters}):
        for name, a, b in _layers(
            weights[f"{module}/kernel"], adapters[f"{module}/lora_a"], adapters[f"{module}/lora_b"]
        ):
            modules.append(name)
            tensors |= {f"{_PREFIX}{name}.lora_A.weight": a, f"{_PREFIX}{name}.lora_B.weight": b}
    rows = _token_rows(params, weights, tokens)
    for name, values in rows.items():
        tensors[f"{_PREFIX}{name}.token_adapter.trainable_tokens_delta"] = values
    values = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": base or None,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "lora_dropout": lora.dropout,
        "target_modules": modules,
        "trainable_token_indices": {name.rpartition(".")[2]: list(tokens) for name in rows} or None,
        "bias": "none",
        "fan_in_fan_out": False,
    }
    try:
        with written_aside(folder) as partial:
            write_safetensors(partial / WEIGHTS, {name: _tensor(array) for name, array in tensors.items()})
            (partial / CONFIG).write_text(json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise WeightsError(f"cannot write the adapters to {folder}: {error.strerror}") from error


def _layers(weight: Weight, a: Any, b: Any) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """The module of each layer, and its factors in PEFT's shapes."""
    a, b = np.asarray(a), np.asarray(b)
    stacks = (a, b) if weight.stacked else (a[None], b[None])
    for name, a_ir, b_ro in zip(weight.hf_names, *stacks):
        rank, *inner = a_ir.shape[1], *weight.hf_shape[1:]
        axes = (1,) * (len(inner) - 1)
        yield name.removesuffix(".weight"), a_ir.T.reshape(rank, *inner), b_ro.T.reshape(-1, rank, *axes)


def _token_rows(params: Params, weights: dict[str, Weight], tokens: Sequence[int]) -> dict[str, np.ndarray]:
    """The rows of these tokens in every table, by the module that holds it."""
    if not tokens:
        return {}
    flat = traverse_util.flatten_dict(params, sep="/")
    ids = np.asarray(tokens)
    return {
        weights[path].hf_names[0].removesuffix(".weight"): np.moveaxis(
            np.asarray(flat[path][ids] if axis == 0 else flat[path][:, ids]), axis, 0
        )
        for path, axis in _TABLES.items()
        if path in flat
    }


def _tensor(array: np.ndarray) -> HostTensor:
    return HostTensor(array.shape, array.dtype, lambda: array)
