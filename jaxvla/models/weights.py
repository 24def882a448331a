"""Parameters from and to files of named tensors, by a table that is read in both directions.

table = expand(ROWS, sizes, layers)               one Weight per parameter
params = read_params(folder, stored, table)       straight into the wanted dtype and placement
tensors = host_tensors(params, table)             made one by one, when they are written
"""

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
from jaxvla.models.safetensors_io import HostTensor, StoredTensor

# A linear layer is [out, in] there, [in, out] here. A tensor of more axes, such as the convolution of patches
# [out, channel, time, row, column], is flattened behind its first axis before it is transposed.
COPY = "copy"
TRANSPOSE = "transpose"
# The axes called "one", which come first, are left out here.
SQUEEZE = "squeeze"

# Name of a tensor, where * is the number of a layer; path of the parameter; operation; axes there, by their names.
# Several names with spaces between are tensors of one shape that make up one parameter, one behind the other along its
# last axis: the kernels of queries, keys and values as one.
Row = tuple[str, str, str, str]

_MAX_THREADS = 16
_CHUNK_BYTES = 2**20  # stays in the cache of a core between reading, converting and transposing
_BLOCK_BYTES = 2**26
_ALIGNMENT = 64  # XLA takes over host memory aligned so as a CPU array; other memory it copies

# [start, stop) along every axis of an array.
Box = tuple[tuple[int, int], ...]


def read_config(folder: str | pathlib.Path, key: str, kind: str, example: str) -> dict[str, Any]:
    """The config.json of a folder of weights.

    Args:
        folder: holds it.
        key: under which it says what it is of.
        kind: what it must say there.
        example: what to give in place of a folder that has none.

    Raises:
        WeightsError: no such folder or file, not JSON, or of something else.
    """
    path = pathlib.Path(folder).expanduser() / "config.json"
    if not path.is_file():
        there = "has no config.json" if path.parent.is_dir() else "does not exist"
        raise WeightsError(f"{path.parent} {there}: give a local folder {example}")
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise WeightsError(f"{path} is not JSON: download it again") from error
    found = values.get(key) if isinstance(values, dict) else None
    if found != kind:
        raise WeightsError(f"{path} has {key} {found!r}; only {kind!r} is read")
    return values


@dataclasses.dataclass(frozen=True)
class Weight:
    """One row of the table for one configuration: a parameter, and the tensors of a checkpoint that make it up.

    Attributes:
        path: of the parameter, "text/norm/scale".
        hf_names: its tensors; `parts` of them, or as many for each layer of a stack.
        hf_shape: of each of them.
        transposed: the tensor, flattened behind its first axis, is the transpose of the parameter.
        stacked: the parameter has a leading layer axis.
        parts: tensors that stand one behind the other along the last axis of the parameter.
        dropped: leading axes of length one that the tensor has and the parameter has not.
    """

    path: str
    hf_names: tuple[str, ...]
    hf_shape: tuple[int, ...]
    transposed: bool
    stacked: bool
    parts: int = 1
    dropped: int = 0

    @property
    def part_shape(self) -> tuple[int, ...]:
        """Of what one tensor gives the parameter."""
        if self.transposed:
            return (math.prod(self.hf_shape[1:]), self.hf_shape[0])
        return self.hf_shape[self.dropped :]

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the parameter."""
        *first, last = self.part_shape
        matrix = (*first, self.parts * last)
        return (len(self.hf_names) // self.parts, *matrix) if self.stacked else matrix


@dataclasses.dataclass(frozen=True)
class LoadReport:
    """What became of the tensors of a folder, by the names there. What is missing is an error.

    Attributes:
        used: tensors that parameters were made of.
        unused: the others, and why.
    """

    used: tuple[str, ...]
    unused: Mapping[str, str]

    def lines(self) -> list[str]:
        """For a terminal: how many were used, then each that was not."""
        reasons = [f"{name} is not used: {reason}" for name, reason in self.unused.items()]
        return [f"{len(self.used)} tensors were read, {len(self.unused)} were not used", *reasons]


def expand(rows: Iterable[Row], sizes: Mapping[str, int], layers: Mapping[str, Sequence[int]]) -> tuple[Weight, ...]:
    """The rows of a table for one configuration.

    Args:
        rows: of the table.
        sizes: of the axes that rows name.
        layers: the numbers of the layers that each stack holds, by the beginning of its paths.
    """
    weights = []
    for name, path, operation, shape in rows:
        stack = next((stack for stack in layers if path.startswith(stack)), None)
        parts, axes = name.split(), shape.split()
        numbers = ("",) if stack is None else tuple(map(str, layers[stack]))
        names = tuple(part.replace("*", number) for number in numbers for part in parts)
        if names:
            hf_shape = tuple(sizes[axis] for axis in axes)
            dropped = axes.count("one") if operation == SQUEEZE else 0
            weights.append(
                Weight(path, names, hf_shape, operation == TRANSPOSE, stack is not None, len(parts), dropped)
            )
    return tuple(weights)


def shapes_of(table: Sequence[Weight], dtype: jax.typing.DTypeLike = "float32") -> dict[str, Any]:
    """The parameters as a nested dict of `jax.ShapeDtypeStruct`s, such as sharding rules take; nothing is computed."""
    flat = {weight.path: jax.ShapeDtypeStruct(weight.shape, dtype) for weight in table}
    return traverse_util.unflatten_dict(flat, sep="/")


def read_params(
    where: str | pathlib.Path,
    stored: Mapping[str, StoredTensor],
    table: Sequence[Weight],
    shardings: Mapping[str, Any] | None = None,
    dtype: jax.typing.DTypeLike = "float32",
) -> Params:
    """The parameters of `table`, read from open files.

    Each process reads only the rows that its devices hold. On the way to an accelerator the host holds one parameter
    at a time; on the CPU the arrays take over the memory that was filled.

    Args:
        where: the folder, for errors.
        stored: every tensor of the table.
        table: which tensor is which parameter.
        shardings: one for every parameter, nested as they are; None for the default device.
        dtype: of the parameters.

    Raises:
        WeightsError: a tensor of another shape than the configuration says, a file that changed, or shardings of
            another tree.
    """
    placed = None if shardings is None else traverse_util.flatten_dict(dict(shardings), sep="/")
    if placed is not None:
        paths = [weight.path for weight in table]
        check_names("the tree of shardings", placed, paths, "make it of param_shapes(config)")
    _check_shapes(where, stored, table)
    flat = {}
    with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
        for weight in table:
            tensors = [stored[name] for name in weight.hf_names]
            sharding = None if placed is None else placed[weight.path]
            flat[weight.path] = _load(weight, tensors, sharding, np.dtype(dtype), pool)
    return traverse_util.unflatten_dict(flat, sep="/")


def host_tensors(
    params: Params, table: Sequence[Weight], dtype: jax.typing.DTypeLike | None = None
) -> dict[str, HostTensor]:
    """The tensors of these parameters by name; one at a time is brought to the host, when it is written.

    Args:
        params: of a model of the table's configuration.
        table: which tensor is which parameter.
        dtype: of the tensors; None for that of each parameter.

    Raises:
        WeightsError: the parameters do not fit the table, or live on other hosts.
    """
    flat = traverse_util.flatten_dict(params, sep="/")
    paths = [weight.path for weight in table]
    check_names("the tree of parameters", flat, paths, "save it with its own configuration")
    for weight in table:
        _check_leaf(weight, flat[weight.path])
    tensors = {}
    for weight in table:
        leaf = flat[weight.path]
        stored_dtype = np.dtype(leaf.dtype if dtype is None else dtype)
        for index, name in enumerate(weight.hf_names):
            make = functools.partial(_hf_tensor, weight, leaf, index, stored_dtype)
            tensors[name] = HostTensor(weight.hf_shape, stored_dtype, make)
    return tensors


def to_host(array: Any) -> np.ndarray:
    """A copy of an array in host memory, made in blocks: of a whole one JAX would keep the copy while it lives."""
    if not array.shape:
        return np.asarray(array)
    out = np.empty(array.shape, array.dtype)
    step = max(1, _BLOCK_BYTES // max(out[:1].nbytes, 1))
    for row in range(0, len(out), step):
        out[row : row + step] = array[row : row + step]
    return out


def check_names(where: str, found: Iterable[str], expected: Iterable[str], mend: str) -> None:
    """Raises WeightsError, with what is missing and what is left over, unless the names are those expected.

    Args:
        where: what holds the names.
        found, expected: the names.
        mend: what to do about it.
    """
    found, expected = set(found), set(expected)
    problems = [
        f"{len(names)} {what} ({', '.join(sorted(names)[:3])}{', ...' if len(names) > 3 else ''})"
        for what, names in (("missing", expected - found), ("left over", found - expected))
        if names
    ]
    if problems:
        raise WeightsError(f"{where} does not fit the configuration: {' and '.join(problems)}; {mend}")


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


def _check_shapes(where: str | pathlib.Path, stored: Mapping[str, StoredTensor], table: Sequence[Weight]) -> None:
    for weight in table:
        for name in weight.hf_names:
            if stored[name].shape != weight.hf_shape:
                raise WeightsError(
                    f"{where} does not fit the configuration: {name} is {list(stored[name].shape)} there, "
                    f"{list(weight.hf_shape)} here; use the config.json that came with the weights"
                )
            if stored[name].dtype.kind == "i":
                raise WeightsError(f"{where} holds {name} as {stored[name].dtype}: use weights that are not quantized")


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
    for index, tensor in enumerate(tensors):
        tensor = dataclasses.replace(tensor, shape=tensor.shape[weight.dropped :])
        targets = [_target(weight, index, box, buffer) for box, buffer in buffers.items()]
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


def _target(weight: Weight, index: int, box: Box, buffer: np.ndarray) -> _Target | None:
    """Where in the buffer, which holds this box of the parameter, the tensor of this index goes; None for nowhere."""
    layer, part = divmod(index, weight.parts)
    if weight.stacked:
        start, stop = box[0]
        if not start <= layer < stop:
            return None
        box, buffer = box[1:], buffer[layer - start]
    # The part's range along the last axis of the box, counted from the beginning of the part.
    size = weight.part_shape[-1]
    first, last = (min(max(edge - part * size, 0), size) for edge in box[-1])
    if first == last:
        return None
    skipped = part * size + first - box[-1][0]
    buffer = buffer[..., skipped : skipped + last - first]
    if weight.transposed:
        return _Target(buffer.T, (first, last), box[0])
    if len(box) == 1:
        return _Target(buffer[:, None], (first, last), (0, 1))
    return _Target(buffer, box[0], (first, last))


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


def _hf_tensor(weight: Weight, leaf: Any, index: int, dtype: np.dtype) -> np.ndarray:
    layer, part = divmod(index, weight.parts)
    matrix = leaf[layer] if weight.stacked else leaf
    if weight.parts > 1:
        size = weight.part_shape[-1]
        matrix = matrix[..., part * size : (part + 1) * size]
    matrix = to_host(matrix).astype(dtype, copy=False)
    return (matrix.T if weight.transposed else matrix).reshape(weight.hf_shape)
