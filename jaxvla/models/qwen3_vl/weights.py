"""Qwen3-VL weights from and to Hugging Face folders, without torch and without a second full copy in memory."""

import contextlib
import dataclasses
import functools
import json
import math
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from flax import traverse_util
from jax.sharding import Sharding

from jaxvla.errors import WeightsError
from jaxvla.models.module import Params
from jaxvla.models.qwen3_vl.config import MODEL_TYPE, Qwen3VLConfig, to_hf
from jaxvla.models.qwen3_vl.weight_table import Weight, weight_table
from jaxvla.models.safetensors_io import HostTensor, StoredTensor, open_checkpoint, write_checkpoint

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
    "tokenizer_config.json",
    "video_preprocessor_config.json",
    "vocab.json",
)

_MAX_THREADS = 16
_CHUNK_BYTES = 2**20  # stays in the cache of a core between reading, converting and transposing
_BLOCK_BYTES = 2**26
_ALIGNMENT = 64  # XLA takes over host memory aligned so as a CPU array; other memory it copies

# [start, stop) along every axis of an array.
Box = tuple[tuple[int, int], ...]


def read_hf_config(folder: str | pathlib.Path) -> dict[str, Any]:
    """The config.json of a folder of Qwen3-VL weights, for `from_hf`.

    Raises:
        WeightsError: no such folder or file, not JSON, or the configuration of another architecture.
    """
    path = pathlib.Path(folder).expanduser() / "config.json"
    if not path.is_file():
        there = "has no config.json" if path.parent.is_dir() else "does not exist"
        raise WeightsError(f"{path.parent} {there}: give a local folder of Hugging Face weights")
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: download it again") from error
    model_type = values.get("model_type") if isinstance(values, dict) else None
    if model_type != MODEL_TYPE:
        raise WeightsError(f"{path} has model_type {model_type!r}; only {MODEL_TYPE!r} is read")
    return values


def load_hf(
    folder: str | pathlib.Path,
    config: Qwen3VLConfig,
    shardings: Mapping[str, Any] | None = None,
    dtype: jax.typing.DTypeLike = "float32",
) -> Params:
    """Reads a Hugging Face folder straight into parameters of the wanted dtype and placement.

    Each process reads only the rows that its devices hold. On the way to an accelerator the host holds one parameter
    at a time; on the CPU the arrays take over the memory that was filled.

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
    table = weight_table(config)
    placed = None if shardings is None else traverse_util.flatten_dict(dict(shardings), sep="/")
    if placed is not None:
        _check_names(
            "the tree of shardings", placed, [weight.path for weight in table], "make it of param_shapes(config)"
        )
    with open_checkpoint(folder) as stored, ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        stored = _full_names(stored)
        names = [name for weight in table for name in weight.hf_names]
        _check_names(str(folder), stored, names, "use the config.json that came with the weights")
        _check_shapes(folder, stored, table)
        flat = {}
        for weight in table:
            tensors = [stored[name] for name in weight.hf_names]
            sharding = None if placed is None else placed[weight.path]
            flat[weight.path] = _load(weight, tensors, sharding, np.dtype(dtype), pool)
    return traverse_util.unflatten_dict(flat, sep="/")


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
    folder = pathlib.Path(folder).expanduser()
    check_empty(folder)
    copied = [] if source is None else _tokenizer_files(pathlib.Path(source).expanduser())
    flat = traverse_util.flatten_dict(params, sep="/")
    table = weight_table(config)
    _check_names(
        "the tree of parameters", flat, [weight.path for weight in table], "save it with its own configuration"
    )
    for weight in table:
        _check_leaf(weight, flat[weight.path])
    tensors = {}
    for weight in table:
        leaf = flat[weight.path]
        stored_dtype = np.dtype(leaf.dtype if dtype is None else dtype)
        for layer, name in enumerate(weight.hf_names):
            make = functools.partial(_hf_tensor, weight, leaf, layer, stored_dtype)
            tensors[name] = HostTensor(weight.hf_shape, stored_dtype, make)
    # The dtype in which other frameworks load the weights, unless they are told otherwise.
    values = to_hf(config) | {"dtype": tensors[table[0].hf_names[0]].dtype.name}
    try:
        with written_aside(folder) as partial:
            write_checkpoint(partial, tensors, max_shard_bytes)
            (partial / "config.json").write_text(json.dumps(values, indent=2) + "\n")
            for path in copied:
                shutil.copyfile(path, partial / path.name)
    except OSError as error:
        raise WeightsError(f"cannot write the weights to {folder}: {error.strerror}") from error


def check_empty(folder: pathlib.Path) -> None:
    """Raises WeightsError if there is something that writing `folder` would replace."""
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise WeightsError(f"{folder} is not empty: choose another folder for the weights, or remove it")


@contextlib.contextmanager
def written_aside(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """A folder that takes its place when the context ends well, and else leaves nothing."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = pathlib.Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        yield partial
        partial.chmod(0o755)  # mkdtemp makes it private
        partial.rename(folder)
    except BaseException:
        shutil.rmtree(partial)
        raise


def _full_names(stored: dict[str, StoredTensor]) -> dict[str, StoredTensor]:
    """Names as Qwen3VLForConditionalGeneration writes them; the bare Qwen3VLModel leaves the prefix out."""
    if any(name.startswith("model.") for name in stored):
        return stored
    return {name if name.startswith("lm_head.") else f"model.{name}": tensor for name, tensor in stored.items()}


def _check_names(where: str, found: Iterable[str], expected: Iterable[str], mend: str) -> None:
    found, expected = set(found), set(expected)
    problems = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", expected - found), ("left over", found - expected))
        if names
    ]
    if problems:
        raise WeightsError(f"{where} does not fit the configuration: {' and '.join(problems)}; {mend}")


def _check_shapes(folder: pathlib.Path, stored: Mapping[str, StoredTensor], table: Sequence[Weight]) -> None:
    for weight in table:
        for name in weight.hf_names:
            if stored[name].shape != weight.hf_shape:
                raise WeightsError(
                    f"{folder} does not fit the configuration: {name} is {list(stored[name].shape)} there, "
                    f"{list(weight.hf_shape)} here; use the config.json that came with the weights"
                )


def _load(
    weight: Weight,
    tensors: Sequence[StoredTensor],
    sharding: Sharding | None,
    dtype: np.dtype,
    pool: ThreadPoolExecutor,
) -> jax.Array:
    """One parameter, every shard of it in host memory of its own that is filled chunk by chunk."""
    everywhere = (slice(None),) * len(weight.shape)
    places = [everywhere] if sharding is None else sharding.addressable_devices_indices_map(weight.shape).values()
    buffers: dict[Box, np.ndarray] = {}
    for place in places:
        box = _box(place, weight.shape)
        if box not in buffers:
            buffers[box] = _aligned_empty([stop - start for start, stop in box], dtype)
    tasks = []
    for layer, tensor in enumerate(tensors):
        targets = [_target(weight, layer, box, buffer) for box, buffer in buffers.items()]
        targets = [target for target in targets if target is not None]
        if targets:
            first, last = min(target.rows[0] for target in targets), max(target.rows[1] for target in targets)
            step = max(1, _CHUNK_BYTES // max(tensor.row_bytes, 1))
            tasks += [(tensor, row, min(row + step, last), targets) for row in range(first, last, step)]
    list(pool.map(lambda task: _fill(*task), tasks))
    if sharding is None:
        array = jax.device_put(buffers[_box(everywhere, weight.shape)])
    else:
        array = jax.make_array_from_callback(weight.shape, sharding, lambda at: buffers[_box(at, weight.shape)])
    # Transfers run behind; without waiting, the host would hold the buffers of several parameters.
    return jax.block_until_ready(array)


@dataclasses.dataclass(frozen=True)
class _Target:
    """Where rows and columns of a stored tensor, flattened behind its first axis, go: view [rows, columns]."""

    view: np.ndarray
    rows: tuple[int, int]
    columns: tuple[int, int]


def _target(weight: Weight, layer: int, box: Box, buffer: np.ndarray) -> _Target | None:
    if weight.stacked:
        start, stop = box[0]
        if not start <= layer < stop:
            return None
        box, buffer = box[1:], buffer[layer - start]
    if weight.transposed:
        return _Target(buffer.T, box[1], box[0])
    if len(box) == 1:
        return _Target(buffer[:, None], box[0], (0, 1))
    return _Target(buffer, box[0], box[1])


def _fill(tensor: StoredTensor, start: int, stop: int, targets: Sequence[_Target]) -> None:
    wanted = [target for target in targets if target.rows[0] < stop and start < target.rows[1]]
    if not wanted:
        return
    # Converting before transposing is faster than numpy's conversion of strided memory.
    chunk = tensor.read_rows(start, stop).astype(wanted[0].view.dtype, copy=False)
    for target in wanted:
        low, high = max(start, target.rows[0]), min(stop, target.rows[1])
        view = target.view[low - target.rows[0] : high - target.rows[0]]
        view[...] = chunk[low - start : high - start, slice(*target.columns)]


def _box(place: tuple[slice, ...], shape: tuple[int, ...]) -> Box:
    return tuple(part.indices(size)[:2] for part, size in zip(place, shape))


def _aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    return memory[start : start + size].view(dtype).reshape(shape)


def _check_leaf(weight: Weight, leaf: Any) -> None:
    if leaf.shape != weight.shape:
        raise WeightsError(
            f"the tree of parameters does not fit the configuration: {weight.path} is {list(leaf.shape)}, "
            f"not {list(weight.shape)}"
        )
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        raise WeightsError(f"{weight.path} is spread over several hosts: export from a checkpoint on one host")


def _hf_tensor(weight: Weight, leaf: Any, layer: int, dtype: np.dtype) -> np.ndarray:
    matrix = _to_host(leaf[layer] if weight.stacked else leaf).astype(dtype, copy=False)
    return (matrix.T if weight.transposed else matrix).reshape(weight.hf_shape)


def _to_host(array: Any) -> np.ndarray:
    """Copied in blocks: of a whole array JAX would keep the copy for as long as the array lives."""
    out = np.empty(array.shape, array.dtype)
    step = max(1, _BLOCK_BYTES // max(out[:1].nbytes, 1))
    for row in range(0, len(out), step):
        out[row : row + step] = array[row : row + step]
    return out


def _tokenizer_files(source: pathlib.Path) -> list[pathlib.Path]:
    found = [source / name for name in TOKENIZER_FILES if (source / name).is_file()]
    if not any(path.name.startswith(("tokenizer", "vocab")) for path in found):
        raise WeightsError(f"{source} holds no tokenizer: looked for {', '.join(TOKENIZER_FILES)}")
    return found
