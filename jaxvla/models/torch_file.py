"""Tensors of files that torch.save wrote, by where they lie in the file, without torch and without running anything.

Such a file is a zip archive of stored, uncompressed entries: a pickle `data.pkl`, and the bytes of each storage as
`data/KEY`. A pickle is a program; this one is admitted to build dicts, lists and what stands for tensors, no more. Of
tensors it says storage, offset, shape and strides: the bytes are read later, like those of safetensors files.
"""

import collections
import contextlib
import io
import math
import pathlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from jaxvla.errors import WeightsError
from jaxvla.models.safetensors_io import StoredTensor, opened

SUFFIX = ".pt"

_STORAGES = {
    "DoubleStorage": np.dtype(np.float64),
    "FloatStorage": np.dtype(np.float32),
    "HalfStorage": np.dtype(np.float16),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype(np.int64),
}
_LOCAL_HEADER = 30


@contextlib.contextmanager
def open_torch(path: pathlib.Path) -> Iterator[dict[str, StoredTensor]]:
    """The tensors of a file, with it open inside the context; what is not a tensor is left out.

    Names of nested dicts are joined by dots: that of {"model": {"projector": {"0.weight": ...}}} is
    "model.projector.0.weight".

    Raises:
        WeightsError: no file, another format, a damaged one, or a pickle that names anything but tensors; says which.
    """
    with opened(path) as file:
        entries = _entries(file)
        tensors = dict(_named("", _unpickle(entries, file)))
        if not tensors:
            raise WeightsError(f"{path} holds no tensors by name: give the file of a state dict")
        yield {name: _stored(name, tensor, entries, file) for name, tensor in tensors.items()}


class _Entry(NamedTuple):
    """Where the bytes of an entry lie."""

    offset: int
    nbytes: int


# NamedTuples: a pickle can set attributes of other objects behind their back.
class _Storage(NamedTuple):
    """A run of numbers."""

    kind: str
    key: str
    length: int


class _Tensor(NamedTuple):
    """A view of a storage, in numbers and not bytes."""

    storage: _Storage
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def _entries(file: BinaryIO) -> dict[str, _Entry]:
    """The entries of an archive by their names, without its own folder."""
    try:
        with zipfile.ZipFile(file) as archive:
            infos = archive.infolist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError, EOFError) as error:
        raise WeightsError(
            f"{file.name} is no whole file of torch.save since version 1.6 ({error}): download it again, or save it "
            "again with a newer torch"
        ) from error
    found = {}
    for info in infos:
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
            raise WeightsError(f"{file.name} is compressed or encrypted in {info.filename}, as torch.save writes none")
        file.seek(info.header_offset)
        header = file.read(_LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER or header[:4] != b"PK\3\4":
            raise WeightsError(f"{file.name} is damaged: {info.filename} does not lie where its table says")
        offset = info.header_offset + _LOCAL_HEADER + sum(struct.unpack("<HH", header[26:]))
        found[info.filename.partition("/")[2]] = _Entry(offset, info.file_size)
    if "data.pkl" not in found:
        raise WeightsError(f"{file.name} is an archive, but none of torch.save: it holds no data.pkl")
    order = _read(file, found["byteorder"]) if "byteorder" in found else b"little"
    if order != b"little":
        raise WeightsError(f"{file.name} was written in {order.decode(errors='replace')} byte order, which is not read")
    return found


def _read(file: BinaryIO, entry: _Entry) -> bytes:
    file.seek(entry.offset)
    return file.read(entry.nbytes)


def _unpickle(entries: Mapping[str, _Entry], file: BinaryIO) -> Any:
    try:
        return _Unpickler(_read(file, entries["data.pkl"]), file.name).load()
    except WeightsError:
        raise
    except Exception as error:  # a damaged pickle is a damaged program: it can fail in any way
        said = " ".join(str(error).split()) or type(error).__name__
        raise WeightsError(f"{file.name} holds no whole pickle ({said}): download it again") from None


class _Unpickler(pickle.Unpickler):
    """Gives bound methods, and one builtin type, to the pickle: neither can be altered by it."""

    def __init__(self, content: bytes, path: str) -> None:
        super().__init__(io.BytesIO(content), encoding="utf-8")
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        """The few globals that a pickle may name; a kind of storage is known by its name alone."""
        if module == "torch" and name in _STORAGES:
            return name
        admitted: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2"): self._tensor,
            ("torch._utils", "_rebuild_parameter"): self._parameter,
        }
        if (module, name) not in admitted:
            raise WeightsError(
                f"{self._path}: its pickle names {module}.{name}, and only dicts of tensors of {', '.join(_STORAGES)} "
                "are read: it is not run; save its state dict alone, or take the weights as safetensors"
            )
        return admitted[module, name]

    def persistent_load(self, saved: Any) -> _Storage:
        """A storage, of which the pickle has no more than the key."""
        word, kind, key, _, length = saved
        if word != "storage" or kind not in _STORAGES or type(key) is not str or type(length) is not int:
            raise ValueError(f"{saved!r} is no storage")
        return _Storage(kind, key, length)

    def _tensor(self, storage: Any, start: Any, shape: Any, strides: Any, *_: Any) -> _Tensor:
        numbers = (start, *shape, *strides)
        if type(storage) is not _Storage or not all(type(number) is int and number >= 0 for number in numbers):
            raise ValueError("a tensor is no view of a storage")
        return _Tensor(storage, start, tuple(shape), tuple(strides))

    def _parameter(self, tensor: Any, *_: Any) -> Any:
        return tensor


def _named(prefix: str, value: Any) -> Iterator[tuple[str, _Tensor]]:
    if type(value) is _Tensor:
        yield prefix, value
    elif isinstance(value, dict):
        for key, part in value.items():
            if type(key) is str:
                yield from _named(f"{prefix}.{key}" if prefix else key, part)


def _stored(name: str, tensor: _Tensor, entries: Mapping[str, _Entry], file: BinaryIO) -> StoredTensor:
    """Where the bytes of a tensor lie, which are all there and in a row."""
    storage, dtype = tensor.storage, _STORAGES[tensor.storage.kind]
    entry, size = entries.get(f"data/{storage.key}"), math.prod(tensor.shape)
    if entry is None or entry.nbytes != storage.length * dtype.itemsize or tensor.start + size > storage.length:
        raise WeightsError(f"{file.name} is damaged: {name} {list(tensor.shape)} {dtype} is not all there")
    if len(tensor.strides) != len(tensor.shape):
        raise WeightsError(
            f"{file.name} is damaged: {name} has the shape {list(tensor.shape)} and strides {list(tensor.strides)}"
        )
    expected = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    in_a_row = all(length == 1 or own == usual for length, own, usual in zip(tensor.shape, tensor.strides, expected))
    if size and not in_a_row:
        raise WeightsError(f"{file.name} holds {name} as a view with strides {tensor.strides}: save it contiguous")
    return StoredTensor(name, dtype, tensor.shape, file, entry.offset + tensor.start * dtype.itemsize)
