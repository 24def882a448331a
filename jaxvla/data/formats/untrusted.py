"""Pickles and object .npy files from elsewhere, read without running anything that they name.

A pickle is a program. This reader admits plain containers and numpy arrays, scalars and dtypes, and rebuilds the numpy
objects itself from checked parts: numpy's own constructors trust the state that a pickle hands them, so that an object
dtype which hides its flags, or a list shorter than its array, would turn bytes of the file into pointers.
"""

import collections
import io
import math
import os
import pickle
import re
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np

from jaxvla.data.files import reading
from jaxvla.errors import DataError

_BUILTINS = (bool, bytearray, bytes, complex, dict, float, frozenset, int, list, set, str, tuple)
_OBJECT = np.dtype(object)
_DTYPE_NAME = re.compile(r"[biufc]\d{1,2}|O8?|[SU]\d{1,6}")


def load_pickle(path: str | os.PathLike) -> Any:
    """The content of a pickle file: plain containers, numbers, strings and numpy arrays.

    Raises:
        DataError: the file is missing or damaged, or names anything else; says which.
    """
    path = os.fspath(path)
    with _opened(path) as file:
        return _unpickle(file, path)


def loads_pickle(data: bytes, source: str) -> Any:
    """The content of a pickle that came over a wire; what is admitted is that of `load_pickle`.

    Args:
        data: the whole pickle.
        source: what an error calls it.

    Raises:
        DataError: as `load_pickle`.
    """
    return _unpickle(io.BytesIO(data), source)


def load_object_npy(path: str | os.PathLike) -> np.ndarray:
    """The array of an .npy file of dtype object, as `np.save` writes lists of dicts, or of any plain dtype.

    Raises:
        DataError: the file is missing, damaged or no .npy file, or its objects are others than `load_pickle` admits.
    """
    path = os.fspath(path)
    with _opened(path) as file:
        try:
            version = np.lib.format.read_magic(file)
            readers = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            dtype = readers[version](file)[2]
            if dtype != _OBJECT:
                file.seek(0)
                return np.load(file, allow_pickle=False)
        except (ValueError, EOFError, KeyError, SyntaxError, MemoryError) as error:
            raise DataError(f"{path}: not a whole .npy file ({_one_line(error)}); make it again") from None
        array = _unpickle(file, path)
    if not isinstance(array, np.ndarray) or array.dtype != _OBJECT:
        raise DataError(f"{path}: holds a {type(array).__name__}, not an array of objects; make it again")
    return array.view(np.ndarray)


def _opened(path: str) -> BinaryIO:
    with reading(path):
        return open(path, "rb")


def _unpickle(file: BinaryIO | io.BytesIO, path: str) -> Any:
    try:
        return _Unpickler(file, path).load()
    except DataError:
        raise
    except Exception as error:  # a damaged pickle is a damaged program: it can fail in any way
        raise DataError(f"{path}: not a whole pickle ({_one_line(error)}); make it again") from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


class _Dtype:
    """Stands for a dtype while unpickling: simple names only, byte order the only state that counts."""

    def __init__(self, name: Any) -> None:
        if not isinstance(name, str) or not _DTYPE_NAME.fullmatch(name):
            raise ValueError(f"the dtype {name!r} is not admitted")
        self.value = np.dtype(name)

    def __setstate__(self, state: Sequence[Any]) -> None:
        _, order, *structure = state[:5]
        if structure != [None, None, None] or order not in ("<", ">", "=", "|"):
            raise ValueError(f"the dtype state {state!r} is not admitted")
        self.value = self.value.newbyteorder(order)


class _Array(np.ndarray):
    """An array that takes its pickled state only when the parts agree with each other."""

    def __setstate__(self, state: Sequence[Any]) -> None:
        shape, dtype, fortran, data = state[-4:]
        if not isinstance(dtype, _Dtype) or not isinstance(shape, tuple):
            raise ValueError("an array's state has no shape and dtype")
        if isinstance(data, str):  # Python 2 pickles
            data = data.encode("latin1")
        kind, per_item = (list, 1) if dtype.value == _OBJECT else (bytes, dtype.value.itemsize)
        if not isinstance(data, kind) or len(data) != math.prod(shape) * per_item or min(shape, default=0) < 0:
            raise ValueError(f"an array of {dtype.value} {list(shape)} does not come with as many elements")
        super().__setstate__((1, shape, dtype.value, bool(fortran), data))


class _Unpickler(pickle.Unpickler):
    """Gives bound methods and builtin types to the pickle: neither can be altered by it."""

    def __init__(self, file: BinaryIO | io.BytesIO, path: str) -> None:
        super().__init__(file, encoding="latin1")
        self._path = path

    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        """The few globals that a pickle may name."""
        module = {"__builtin__": "builtins"}.get(module, module.replace("numpy._core", "numpy.core", 1))
        admitted = {("builtins", kind.__name__): kind for kind in _BUILTINS} | {
            ("collections", "OrderedDict"): collections.OrderedDict,
            ("_codecs", "encode"): self._encode,
            ("numpy", "dtype"): self._dtype,
            ("numpy", "ndarray"): self._ndarray,
            ("numpy", "array"): self._array,
            ("numpy.core.multiarray", "_reconstruct"): self._reconstruct,
            ("numpy.core.multiarray", "scalar"): self._scalar,
            ("numpy.core.numeric", "_frombuffer"): self._frombuffer,
        }
        if (module, name) not in admitted:
            raise DataError(
                f"{self._path}: the pickle names {module}.{name}, which is not plain data; it is not loaded"
            )
        return admitted[module, name]

    def _encode(self, text: str, encoding: str) -> bytes:
        if encoding != "latin1":
            raise ValueError(f"the encoding {encoding!r} is not admitted")
        return text.encode("latin1")

    def _dtype(self, name: Any, align: Any = False, copy: Any = False) -> _Dtype:
        return _Dtype(name)

    def _reconstruct(self, subtype: Any, shape: Any, typecode: Any) -> np.ndarray:
        if subtype != self._ndarray:
            raise ValueError("subclasses of arrays are not admitted")
        return _Array((0,), np.uint8)

    def _scalar(self, dtype: _Dtype, data: bytes | str) -> np.generic:
        data = data.encode("latin1") if isinstance(data, str) else data
        return np.frombuffer(data, dtype.value, 1)[0]

    def _frombuffer(self, data: Any, dtype: _Dtype, shape: tuple[int, ...], order: str) -> np.ndarray:
        return np.frombuffer(data, dtype.value).reshape(shape, order=order)

    def _ndarray(self, shape: tuple[int, ...], dtype: str, data: bytes | bytearray) -> np.ndarray:
        return np.frombuffer(data, _Dtype(dtype.lstrip("<>|")).value.newbyteorder(dtype[0])).reshape(shape)

    def _array(self, items: list, dtype: str) -> np.ndarray:
        array = np.empty(len(items), _Dtype(dtype).value)
        array[:] = items
        return array
