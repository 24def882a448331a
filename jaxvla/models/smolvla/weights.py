"""SmolVLA's weights from and to LeRobot's folders, without torch, with a report of every tensor."""

import json
import pathlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax

from jaxvla.errors import WeightsError
from jaxvla.models.module import Params
from jaxvla.models.safetensors_io import StoredTensor, open_checkpoint, write_checkpoint
from jaxvla.models.smolvla.config import MODEL_TYPE, SmolVLAConfig
from jaxvla.models.smolvla.weight_table import UNUSED, VLM_PREFIX, weight_table
from jaxvla.models.weights import (
    LoadReport,
    Weight,
    check_empty,
    check_names,
    host_tensors,
    read_config,
    read_params,
    written_aside,
)

# What torch.compile puts between the names of a policy.
_COMPILED = "_orig_mod."
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
    """Reads a policy's model.safetensors straight into parameters, see `jaxvla.models.weights.read_params`.

    Names with the prefix that torch.compile leaves are read as well, and statistics of old checkpoints are passed over.

    Args:
        folder: holds model.safetensors, or shards and their index.
        config: sizes of the model, `from_lerobot(read_lerobot_config(folder))`.
        shardings: one for every parameter, nested like `param_shapes(config)`; None for the default device.
        dtype: of the parameters; checkpoints hold bfloat16, and float32 masters train better.

    Raises:
        WeightsError: no weights there, a damaged file, or tensors that are missing, unknown or of another shape.
    """
    return _load(folder, config, weight_table(config), shardings, dtype, lambda name: name.replace(_COMPILED, ""))


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
    return _load(folder, config, _vlm_table(config), shardings, dtype, _vlm_name)


def vlm_report(folder: str | pathlib.Path, config: SmolVLAConfig) -> LoadReport:
    """What `load_vlm` reads, from the headers of the files alone.

    Raises:
        WeightsError: no weights there, a damaged file, or tensors that are missing or unknown.
    """
    folder = pathlib.Path(folder).expanduser()
    with open_checkpoint(folder) as found:
        return _accounted(folder, config, _vlm_table(config), found, _vlm_name)[1]


def save_lerobot(
    params: Params,
    config: SmolVLAConfig,
    folder: str | pathlib.Path,
    values: Mapping[str, Any],
    *,
    dtype: jax.typing.DTypeLike | None = None,
) -> None:
    """Writes model.safetensors and config.json under LeRobot's names, aside first, then renamed.

    The output head of the language model and its last norm, which a policy does not use, are left out: LeRobot draws
    what a file lacks, and says so.

    Args:
        params: of a model of this configuration; one tensor at a time is brought to the host.
        config: sizes of the model.
        folder: is made; must be empty where it exists.
        values: content of config.json, such as that of the policy that training began from.
        dtype: of the tensors; None for that of each parameter.

    Raises:
        WeightsError: the folder is not empty or cannot be written, or the parameters do not fit the configuration or
            live on other hosts.
    """
    folder = pathlib.Path(folder).expanduser()
    check_empty(folder)
    tensors = host_tensors(params, weight_table(config), dtype)
    try:
        with written_aside(folder) as partial:
            write_checkpoint(partial, tensors, sum(tensor.nbytes for tensor in tensors.values()))
            (partial / "config.json").write_text(json.dumps(dict(values), indent=4) + "\n")
    except OSError as error:
        raise WeightsError(f"cannot write the weights to {folder}: {error.strerror}") from error


def _vlm_table(config: SmolVLAConfig) -> tuple[Weight, ...]:
    return tuple(weight for weight in weight_table(config) if weight.hf_names[0].startswith(VLM_PREFIX))


def _vlm_name(name: str) -> str:
    return VLM_PREFIX + name


def _load(
    folder: str | pathlib.Path,
    config: SmolVLAConfig,
    table: tuple[Weight, ...],
    shardings: Mapping[str, Any] | None,
    dtype: jax.typing.DTypeLike,
    full_name: Callable[[str], str],
) -> tuple[Params, LoadReport]:
    folder = pathlib.Path(folder).expanduser()
    with open_checkpoint(folder) as found:
        stored, report = _accounted(folder, config, table, found, full_name)
        return read_params(folder, stored, table, shardings, dtype), report


def _accounted(
    folder: pathlib.Path,
    config: SmolVLAConfig,
    table: tuple[Weight, ...],
    found: Mapping[str, StoredTensor],
    full_name: Callable[[str], str],
) -> tuple[dict[str, StoredTensor], LoadReport]:
    """The tensors by their names in a policy, and what becomes of them."""
    stored = {full_name(name): tensor for name, tensor in found.items()}
    unused = {name: reason for name in stored if (reason := _why_unused(name, config))}
    used = tuple(name for weight in table for name in weight.hf_names)
    mend = "use the config.json that came with the weights"
    check_names(str(folder), stored.keys() - unused.keys(), used, mend)
    return stored, LoadReport(used, unused)


def _why_unused(name: str, config: SmolVLAConfig) -> str:
    later = _LATER_LAYER.match(name)
    if later and int(later[1]) >= config.text.num_hidden_layers:
        return f"the policy keeps {config.text.num_hidden_layers} layers"
    return next((reason for pattern, reason in UNUSED.items() if re.search(pattern, name)), "")
