"""Weight files in the safetensors format, byte ranges in and streams out, with no second copy in memory.

    8 bytes   length n of the header, little-endian
    n bytes   JSON: {"name": {"dtype": "BF16", "shape": [2, 3], "data_offsets": [begin, end]}, "__metadata__": {...}}
    the rest  the tensors, row-major and gapless; data_offsets count from here

A checkpoint is one file `model.safetensors`, or shards that `model.safetensors.index.json` lists. Files are read with
pread, not mapped: a file that shrinks under a map kills the process, and touched pages of a map count as its memory.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import struct
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from jaxvla.errors import WeightsError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"

_DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "I64": np.dtype(np.int64),  # counters that torch's BatchNorm keeps beside its parameters
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_MAX_HEADER = 100 * 10**6  # the bound of the reference implementation


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """Where one tensor lies in an open file.

    Attributes:
        name: in the file.
        dtype: of numpy, or bfloat16.
        shape: in the file.
        file: open for reading.
        offset: of its first byte in the file.
    """

    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    file: BinaryIO
    offset: int

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def row_bytes(self) -> int:
        """Size in bytes of one slice along axis 0; of a scalar, its own."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Slices start to stop of axis 0, flattened behind it: [stop - start, prod(shape[1:])]. Threads may share it.

        Raises:
            WeightsError: the file ends before.
        """
        size = (stop - start) * self.row_bytes
        content = os.pread(self.file.fileno(), size, self.offset + start * self.row_bytes)
        if len(content) != size:
            raise WeightsError(f"{self.file.name} ends inside {self.name}: the file changed while it was read")
        return np.frombuffer(content, self.dtype).reshape(stop - start, -1)


@dataclasses.dataclass(frozen=True)
class HostTensor:
    """One tensor to be written.

    Attributes:
        shape: of it.
        dtype: of it.
        make: returns it.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    make: Callable[[], np.ndarray]

    @property
    def nbytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize


@contextlib.contextmanager
def open_checkpoint(folder: pathlib.Path) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of a folder, or of one file, by name, with their files open inside the context.

    Raises:
        WeightsError: no weights, a missing or damaged file, or an index that does not tell what the shards hold.
    """
    with contextlib.ExitStack() as stack:
        single = folder if folder.is_file() else folder / SINGLE
        if single.is_file():
            yield read_header(stack.enter_context(opened(single)))
            return
        if not (folder / INDEX).is_file():
            raise WeightsError(f"{folder} holds no weights: neither {SINGLE} nor {INDEX}; other formats are not read")
        weight_map = _read_index(folder / INDEX)
        tensors: dict[str, StoredTensor] = {}
        for shard in sorted(set(weight_map.values())):
            if not (folder / shard).is_file():
                raise WeightsError(f"{folder / INDEX} names the shard {shard}, which is missing: download it again")
            found = read_header(stack.enter_context(opened(folder / shard)))
            mapped = {name for name, where in weight_map.items() if where == shard}
            if mapped != found.keys():
                differing = ", ".join(sorted(mapped ^ found.keys())[:3])
                raise WeightsError(f"{folder / INDEX} and {shard} disagree on what the shard holds: {differing}")
            tensors |= found
        yield tensors


def read_header(file: BinaryIO) -> dict[str, StoredTensor]:
    """The tensors of an open safetensors file by name, every byte of the file accounted for.

    Raises:
        WeightsError: truncated, or not a safetensors file that we read.
    """
    size = os.fstat(file.fileno()).st_size
    start = file.read(8)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= _MAX_HEADER:
        raise WeightsError(f"{file.name} is no safetensors file: it has no header of a plausible length")
    if 8 + length > size:
        raise WeightsError(_truncated(file, 8 + length, size))
    try:
        header = json.loads(file.read(length))
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        tensors = [_stored(name, entry, file, 8 + length) for name, entry in entries.items()]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{file.name} has a damaged header ({type(error).__name__}): download it again") from error
    tensors.sort(key=lambda tensor: (tensor.offset, tensor.nbytes))
    end = 8 + length
    for tensor in tensors:
        if tensor.offset != end:
            raise WeightsError(f"{file.name} is damaged: {tensor.name} does not begin where the tensor before it ends")
        end += tensor.nbytes
    if end > size:
        raise WeightsError(_truncated(file, end, size))
    if end < size:
        raise WeightsError(f"{file.name} is damaged: {size - end} bytes follow its last tensor")
    return {tensor.name: tensor for tensor in tensors}


def write_checkpoint(folder: pathlib.Path, tensors: Mapping[str, HostTensor], max_shard_bytes: int) -> None:
    """Writes tensors, in their order, into one file, or into shards and an index where one file would be too large.

    Raises:
        WeightsError: a dtype in which parameters are not stored.
    """
    shards: list[dict[str, HostTensor]] = [{}]
    size = 0
    for name, tensor in tensors.items():
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    if len(shards) == 1:
        write_safetensors(folder / SINGLE, tensors)
        return
    weight_map = {}
    for i, shard in enumerate(shards):
        file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        write_safetensors(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")


def write_safetensors(path: pathlib.Path, tensors: Mapping[str, HostTensor]) -> None:
    """Writes one file and waits until it is on disk; every tensor is made when its turn comes.

    Raises:
        WeightsError: a dtype in which parameters are not stored.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses files without this word
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _NAMES:
            known = ", ".join(map(str, _NAMES))
            raise WeightsError(f"{name} has dtype {tensor.dtype}, which is not saved; cast it to one of {known}")
        begin, end = end, end + tensor.nbytes
        header[name] = {
            "dtype": _NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that the tensors are aligned in a map
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, tensor in tensors.items():
            content = np.asarray(tensor.make(), order="C")
            if (content.shape, content.dtype) != (tensor.shape, tensor.dtype):
                raise ValueError(f"{name} was made as {content.shape} {content.dtype}, unlike its header")
            file.write(content.reshape(-1).view(np.uint8))
        file.flush()
        os.fsync(file.fileno())


def _stored(name: str, entry: Mapping[str, Any], file: BinaryIO, data_start: int) -> StoredTensor:
    """The entry of one tensor; raises ValueError, KeyError or TypeError where it is malformed."""
    if entry["dtype"] not in _DTYPES:
        raise WeightsError(
            f"{file.name}: {name} is stored as {entry['dtype']}, only {', '.join(_DTYPES)} are read; "
            "use weights that are not quantized"
        )
    dtype, shape = _DTYPES[entry["dtype"]], tuple(entry["shape"])
    begin, end = entry["data_offsets"]
    if not all(type(number) is int and number >= 0 for number in (*shape, begin, end)):
        raise ValueError
    if end - begin != math.prod(shape) * dtype.itemsize:
        raise WeightsError(f"{file.name} is damaged: {name} {list(shape)} {dtype} is said to take {end - begin} bytes")
    return StoredTensor(name, dtype, shape, file, data_start + begin)


def opened(path: pathlib.Path) -> BinaryIO:
    """A file of weights, for reading.

    Raises:
        WeightsError: it cannot be read.
    """
    try:
        return open(path, "rb")
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error


def _read_index(path: pathlib.Path) -> dict[str, str]:
    try:
        weight_map = json.loads(path.read_bytes())["weight_map"]
        # A shard is a plain file name: an index cannot point out of its folder.
        valid = weight_map and all(pathlib.PurePath(shard).name == shard for shard in weight_map.values())
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        valid = False
    if not valid:
        raise WeightsError(f"{path} is damaged: no weight_map from tensor names to file names; download it again")
    return weight_map


def _truncated(file: BinaryIO, expected: int, size: int) -> str:
    return f"{file.name} is truncated: its header speaks of {expected} bytes, it has {size}; download it again"
