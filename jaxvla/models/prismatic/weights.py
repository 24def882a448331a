"""OpenVLA's weights from and to Hugging Face folders, without torch and without a second full copy in memory.

What OpenVLA-OFT adds is in files beside them, see `jaxvla.models.prismatic.components`.
"""

import functools
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from jaxvla.errors import WeightsError
from jaxvla.models.hf_folder import read_folder, write_folder
from jaxvla.models.module import Params
from jaxvla.models.prismatic.components import component_tensors, part_of
from jaxvla.models.prismatic.config import MODEL_TYPE, PrismaticConfig, from_hf, to_hf, with_pixel_scales
from jaxvla.models.prismatic.weight_table import LLM, TOWERS, param_shapes, weight_table
from jaxvla.models.safetensors_io import HostTensor, StoredTensor
from jaxvla.models.torch_file import SUFFIX
from jaxvla.models.weights import Weight, check_names, host_tensors, read_config

# Of the published folder: three shards.
MAX_SHARD_BYTES = 7 * 10**9
_PREPROCESSOR = "preprocessor_config.json"
# Of a checkpoint of the original training: its parameters, beside the state of an optimizer.
_MODEL = "model."


def read_hf(folder: str | pathlib.Path) -> PrismaticConfig:
    """The configuration of a folder of OpenVLA, with the pixel scales of its preprocessor_config.json.

    Raises:
        WeightsError: no such folder or file, not JSON, or the configuration of another architecture.
        ConfigError: a variant that this port does not have.
    """
    folder = pathlib.Path(folder).expanduser()
    values = read_config(folder, "model_type", MODEL_TYPE, "such as a download of openvla/openvla-7b")
    config = from_hf(values, str(folder / "config.json"))
    path = folder / _PREPROCESSOR
    if not path.is_file():
        return config
    try:
        scales = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read ({error}): download it again") from error
    return with_pixel_scales(config, scales if isinstance(scales, Mapping) else {}, str(path))


def load_hf(
    folder: str | pathlib.Path,
    config: PrismaticConfig,
    shardings: Mapping[str, Any] | None = None,
    dtype: jax.typing.DTypeLike = "float32",
) -> Params:
    """Reads a folder straight into parameters, see `jaxvla.models.weights.read_params`.

    Args:
        folder: holds config.json and model.safetensors, or shards and model.safetensors.index.json; or a checkpoint of
            the original training, one .pt file, which is read without running what it holds.
        config: sizes of the model, those of `read_hf(folder)`; a .pt file has none to read.
        shardings: one for every parameter, nested like `param_shapes(config)`; None for the default device.
        dtype: of the parameters.

    Raises:
        WeightsError: no weights there, a damaged file, or tensors that are missing, left over or of another shape.
    """
    path = pathlib.Path(folder).expanduser()
    renamed = functools.partial(_from_prismatic, config) if path.suffix == SUFFIX else dict
    return read_folder(path, weight_table(config), shardings, dtype, renamed)


def save_hf(
    params: Params,
    config: PrismaticConfig,
    folder: str | pathlib.Path,
    *,
    dtype: jax.typing.DTypeLike | None = None,
    max_shard_bytes: int = MAX_SHARD_BYTES,
    source: str | pathlib.Path | None = None,
    norm_stats: Mapping[str, Any] | None = None,
) -> None:
    """Writes a folder that the published code loads, aside first, then renamed.

    Of a model with a `head` or FiLM the files of these are written, too, as safetensors.

    Args:
        params: of a model of this configuration; one tensor at a time is brought to the host.
        config: sizes of the model.
        folder: is made; must be empty where it exists.
        dtype: of the tensors; None for that of each parameter. The published ones are bfloat16.
        max_shard_bytes: above it the weights are spread over several files with an index.
        source: a folder whose tokenizer and processor files are copied as they are.
        norm_stats: statistics of the datasets by their names, as dataset_statistics.json has them; None for none.

    Raises:
        WeightsError: the folder is not empty or cannot be written, `source` holds no tokenizer, or the parameters do
            not fit the configuration or live on other hosts.
    """
    table = weight_table(config)
    beside = component_tensors(params, config, dtype)
    check_names(
        "the tree of parameters", _paths(params), _paths(param_shapes(config)), "save it with its own configuration"
    )
    tensors = _in_order(host_tensors(part_of(params, table), table, dtype), table)
    # The published code reads an older name of the dtype.
    contents = {"config.json": to_hf(config) | {"torch_dtype": next(iter(tensors.values())).dtype.name}}
    if norm_stats is not None:
        contents["config.json"]["norm_stats"] = dict(norm_stats)
        contents["dataset_statistics.json"] = dict(norm_stats)
    if source is None:
        scales = [{"mean": list(scale.mean), "std": list(scale.std)} for scale in _scales(config)]
        contents[_PREPROCESSOR] = {"tvf_normalize_params": scales}
    write_folder(pathlib.Path(folder).expanduser(), tensors, contents, max_shard_bytes, source, beside)


def _from_prismatic(config: PrismaticConfig, stored: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The tensors of a checkpoint of the original training by the names of the folder that was made of it.

    It calls a single tower "featurizer", and numbers the layers of a projector with the GELUs between them.
    """
    towers = list(config.towers)
    featurizers = [f"{name}_featurizer." for name in towers] if len(towers) > 1 else ["featurizer."]
    prefixes = {
        **{f"vision_backbone.{own}": theirs for own, theirs in zip(featurizers, TOWERS)},
        **{f"projector.projector.{2 * i}.": f"projector.fc{i + 1}." for i in range(len(config.projector_dims) - 1)},
        "llm_backbone.llm.": LLM,
    }
    if config.projector == "linear":
        prefixes |= {"projector.projector.": "projector.fc1."}
    renamed = {}
    for name, tensor in stored.items():
        if not name.startswith(_MODEL):
            continue
        own = name.removeprefix(_MODEL)
        prefix = next((prefix for prefix in prefixes if own.startswith(prefix)), "")
        # What wrote the folder renames what is called gamma.
        changed = (prefixes[prefix] if prefix else "") + own.removeprefix(prefix)
        renamed[changed.replace(".gamma", ".scale_factor")] = tensor
    return renamed


def _in_order(tensors: Mapping[str, HostTensor], table: tuple[Weight, ...]) -> dict[str, HostTensor]:
    """The tensors as torch lists them, layer by layer, which decides what shard each is in."""
    places: dict[str, tuple[int, int, int]] = {}
    starts: dict[str, int] = {}
    for row, weight in enumerate(table):
        for name in weight.hf_names:
            before, _, after = name.partition("s.") if weight.stacked else (name, "", "0")
            number = int(after.partition(".")[0])
            places[name] = (starts.setdefault(before, row), number, row)
    return {name: tensors[name] for name in sorted(tensors, key=places.__getitem__)}


def _paths(params: Params) -> list[str]:
    return list(traverse_util.flatten_dict(params, sep="/"))


def _scales(config: PrismaticConfig) -> list[Any]:
    return [getattr(config, f"{name}_pixels") for name in config.towers]
