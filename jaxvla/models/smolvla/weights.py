"""SmolVLA's weights from and to LeRobot's folders, without torch, with a report of every tensor."""

import pathlib
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxvla.models.lerobot import WhyUnused, load_table, report_of
from jaxvla.models.module import Params
from jaxvla.models.safetensors_io import HostTensor
from jaxvla.models.smolvla.config import MODEL_TYPE, SmolVLAConfig
from jaxvla.models.smolvla.weight_table import HEAD, LAST_NORM, UNUSED, VLM_PREFIX, weight_table
from jaxvla.models.weights import LoadReport, Weight, host_tensors, read_config

_EMBEDDING = VLM_PREFIX + "model.text_model.embed_tokens.weight"
_LATER_LAYER = re.compile(re.escape(VLM_PREFIX) + r"model\.text_model\.layers\.(\d+)\.")


def read_lerobot_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """The config.json of a folder of LeRobot, for `from_lerobot`.

    Raises:
        WeightsError: no such folder or file, not JSON, or that of another policy.
    """
    return read_config(folder, "type", MODEL_TYPE, "such as a download of lerobot/smolvla_base")


def load_lerobot(
    folder: str | pathlib.Path,
    config: SmolVLAConfig,
    shardings: Mapping[str, Any] | None = None,
    dtype: jax.typing.DTypeLike = "float32",
) -> tuple[Params, LoadReport]:
    """Reads a policy's model.safetensors straight into parameters, see `jaxvla.models.lerobot.load_table`.

    Args:
        folder: holds model.safetensors, or shards and their index.
        config: sizes of the model, `from_lerobot(read_lerobot_config(folder))`.
        shardings: one for every parameter, nested like `param_shapes(config)`; None for the default device.
        dtype: of the parameters; checkpoints hold bfloat16, and float32 masters train better.

    Raises:
        WeightsError: no weights there, a damaged file, or tensors that are missing, unknown or of another shape.
    """
    return load_table(folder, weight_table(config), why_unused(config), shardings, dtype)


def load_vlm(
    folder: str | pathlib.Path,
    config: SmolVLAConfig,
    shardings: Mapping[str, Any] | None = None,
    dtype: jax.typing.DTypeLike = "float32",
) -> tuple[Params, LoadReport]:
    """Reads SmolVLM2's own folder: the modules vision, connector and text, for an expert that begins at random.

    Args:
        folder: a download of HuggingFaceTB/SmolVLM2-500M-Video-Instruct; layers behind the kept ones are not used.
        config: sizes of the model.
        shardings: one for every parameter of these modules.
        dtype: of the parameters.

    Raises:
        WeightsError: as `load_lerobot`.
    """
    return load_table(folder, _vlm_table(config), why_unused(config), shardings, dtype, VLM_PREFIX)


def vlm_report(folder: str | pathlib.Path, config: SmolVLAConfig) -> LoadReport:
    """What `load_vlm` reads, from the headers of the files alone.

    Raises:
        WeightsError: no weights there, a damaged file, or tensors that are missing or unknown.
    """
    return report_of(folder, _vlm_table(config), why_unused(config), VLM_PREFIX)


def tensors_of(params: Params, table: tuple[Weight, ...]) -> dict[str, HostTensor]:
    """The tensors of LeRobot's model.safetensors by name, made when they are written.

    LeRobot's model has two more, which compute nothing in a policy: an output head of the language model, here the
    embedding, as SmolLM2 ties them, and the language model's last norm, here ones.

    Args:
        params: of the model.
        table: from `weight_table`.

    Raises:
        WeightsError: the parameters do not fit the table, or live on other hosts.
    """
    tensors = host_tensors(params, table)
    embedding = tensors[_EMBEDDING]
    ones = np.ones(embedding.shape[1], embedding.dtype)
    return tensors | {HEAD: embedding, LAST_NORM: HostTensor(ones.shape, ones.dtype, lambda: ones)}


def why_unused(config: SmolVLAConfig) -> WhyUnused:
    """Why a tensor of LeRobot, or of SmolVLM2 with its names in a policy, is no parameter."""

    def why(name: str) -> str:
        later = _LATER_LAYER.match(name)
        if later and int(later[1]) >= config.text.num_hidden_layers:
            return f"the policy keeps {config.text.num_hidden_layers} layers"
        return UNUSED.get(name, "")

    return why


def _vlm_table(config: SmolVLAConfig) -> tuple[Weight, ...]:
    return tuple(weight for weight in weight_table(config) if weight.hf_names[0].startswith(VLM_PREFIX))
