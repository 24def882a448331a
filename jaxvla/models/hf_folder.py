"""Folders as Hugging Face lays them out: weights, config.json, and the files of a tokenizer beside them."""

import json
import pathlib
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxvla.errors import WeightsError
from jaxvla.models.module import Params
from jaxvla.models.safetensors_io import (
    HostTensor,
    StoredTensor,
    open_checkpoint,
    write_checkpoint,
    write_safetensors,
)
from jaxvla.models.torch_file import SUFFIX, open_torch
from jaxvla.models.weights import Weight, check_empty, check_names, read_params, written_aside

# What stands beside the weights and is copied as it is.
TOKENIZER_FILES = (
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "generation_config.json",
    "merges.txt",
    "preprocessor_config.json",
    "processor_config.json",
    "special_tokens_map.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)


def read_folder(
    folder: pathlib.Path,
    table: Sequence[Weight],
    shardings: Mapping[str, Any] | None,
    dtype: jax.typing.DTypeLike,
    renamed: Callable[[dict[str, StoredTensor]], dict[str, StoredTensor]] = dict,
) -> Params:
    """The parameters of a table, from a folder that has these tensors and no others.

    Args:
        folder: holds model.safetensors, or shards and model.safetensors.index.json; or a .pt file of torch.save.
        table: which tensor is which parameter.
        shardings: one for every parameter, nested as they are; None for the default device.
        dtype: of the parameters.
        renamed: the tensors by the names of the table.

    Raises:
        WeightsError: no weights there, a damaged file, or tensors that are missing, left over or of another shape.
    """
    with (open_torch if folder.suffix == SUFFIX else open_checkpoint)(folder) as stored:
        stored = renamed(stored)
        names = [name for weight in table for name in weight.hf_names]
        check_names(str(folder), stored, names, "use the config.json that came with the weights")
        return read_params(folder, stored, table, shardings, dtype)


def write_folder(
    folder: pathlib.Path,
    tensors: Mapping[str, HostTensor],
    contents: Mapping[str, Mapping[str, Any]],
    max_shard_bytes: int,
    source: str | pathlib.Path | None,
    beside: Mapping[str, Mapping[str, HostTensor]] | None = None,
) -> None:
    """Writes a folder, aside first, then renamed.

    Args:
        folder: is made; must be empty where it exists.
        tensors: in the order in which they are written.
        contents: of JSON files by their names; "config.json" gets the dtype of the first tensor.
        max_shard_bytes: above it the weights are spread over several files with an index.
        source: a folder whose `TOKENIZER_FILES` are copied as they are; None for none.
        beside: the tensors of further files of weights by their names; None for none.

    Raises:
        WeightsError: the folder is not empty or cannot be written, or `source` holds no tokenizer.
    """
    check_empty(folder)
    copied = [] if source is None else _tokenizer_files(pathlib.Path(source).expanduser())
    # The dtype in which other frameworks load the weights, unless they are told otherwise.
    dtype = {"dtype": next(iter(tensors.values())).dtype.name}
    contents = contents | {"config.json": {**contents["config.json"], **dtype}}
    try:
        with written_aside(folder) as partial:
            write_checkpoint(partial, tensors, max_shard_bytes)
            for name, own in (beside or {}).items():
                write_safetensors(partial / name, own)
            for path in copied:
                shutil.copyfile(path, partial / path.name)
            for name, values in contents.items():
                (partial / name).write_text(json.dumps(values, indent=2) + "\n")
    except OSError as error:
        raise WeightsError(f"cannot write the weights to {folder}: {error.strerror}") from error


def _tokenizer_files(source: pathlib.Path) -> list[pathlib.Path]:
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not any(path.name.startswith(("tokenizer", "vocab")) for path in found):
        raise WeightsError(f"{source} holds no tokenizer: looked for {', '.join(TOKENIZER_FILES)}")
    return found
