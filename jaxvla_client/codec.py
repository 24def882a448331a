"""Messages with arrays in them as bytes, and back: msgpack, in the forms that openpi and vla-eval write arrays in.

What comes is not trusted. Its structure is walked before anything is made of it: depth, number of items, and every
length that it declares against what is there. An array is made when its dtype is one of plain numbers or text and its
shape fits its bytes. No pickle, no extension types.

The format is that of https://github.com/msgpack/msgpack/blob/master/spec.md.
"""

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import msgpack
import numpy as np

from jaxvla_client.errors import CodecError

_REFUSED_KINDS = "VOcmM"
# As `numpy.dtype.str` writes it; of text the number is characters.
_NUMBERS = re.compile(r"[<>|=]?(b1|[iu][1248]|f[248])")
_TEXT = re.compile(r"[<>|=]?[US][1-9][0-9]{0,5}")
_MAX_DIMENSIONS = 8


@dataclasses.dataclass(frozen=True)
class Bounds:
    """What a message may be at most.

    Attributes:
        nbytes: of the message.
        depth: of maps and lists in one another.
        items: keys, values and elements in all; an array counts 8 or so, whatever its size.
    """

    nbytes: int = 32 * 2**20
    depth: int = 16
    items: int = 10_000


@dataclasses.dataclass(frozen=True)
class ArrayForm:
    """How one protocol writes an array: a map of these keys.

    Attributes:
        key: makes a key of the form from its name.
        others: (what marks a map as this, what makes a value of it); more than arrays that the form has.
    """

    key: Callable[[str], bytes | str]
    others: tuple[tuple[bytes | str, Callable[[Mapping[Any, Any]], Any]], ...] = ()

    @functools.cached_property
    def _keys(self) -> tuple[bytes | str, ...]:
        return tuple(map(self.key, ("__ndarray__", "data", "dtype", "shape")))

    def pack(self, value: Any) -> Any:
        """The map that stands for an array or a number of numpy; for `msgpack` to call with what it does not know.

        Raises:
            CodecError: it is neither, or of a dtype that is no number and no text.
        """
        if not isinstance(value, np.ndarray | np.generic):
            raise CodecError(f"a {type(value).__name__} cannot be sent; numbers, text, lists, dicts and arrays can")
        if value.dtype.kind in _REFUSED_KINDS:
            raise CodecError(f"an array of dtype {value.dtype} cannot be sent; numbers and text can")
        if isinstance(value, np.generic):
            return value.item()
        return dict(zip(self._keys, (True, value.tobytes(), value.dtype.str, list(value.shape))))

    def unpack(self, value: dict[Any, Any]) -> Any:
        """The array that a map stands for, read-only; other maps stay.

        Raises:
            CodecError: the map says that it is an array, and is not.
        """
        is_array, data, dtype, shape = self._keys
        if is_array in value:
            return array_of(value.get(data), value.get(dtype), value.get(shape))
        for mark, make in self.others:
            if mark in value:
                return make(value)
        return value


def pack(message: Any, form: ArrayForm | None = None) -> bytes:
    """A message of numbers, text, bytes, lists, dicts, arrays, and numbers of numpy, as bytes.

    Args:
        message: to pack.
        form: of its arrays; None for openpi's.

    Raises:
        CodecError: something in it is of another type, or too large.
    """
    try:
        return msgpack.packb(message, default=(form or OPENPI).pack)
    except (ValueError, TypeError, OverflowError) as error:
        raise CodecError(f"the message cannot be packed: {error}") from error


def unpack(data: bytes, bounds: Bounds | None = None, form: ArrayForm | None = None) -> Any:
    """The message that `pack`, or another implementation of the same form, packed; arrays are read-only.

    Args:
        data: all of it.
        bounds: what is admitted; None for `Bounds()`.
        form: of its arrays; None for openpi's.

    Raises:
        CodecError: it is damaged, beyond the bounds, or holds what is refused.
    """
    bounds = bounds or Bounds()
    if len(data) > bounds.nbytes:
        raise CodecError(f"the message is of {len(data)} bytes; {bounds.nbytes} are admitted")
    _check_structure(data, bounds)
    try:
        return msgpack.unpackb(data, object_hook=(form or OPENPI).unpack)
    except (ValueError, TypeError, OverflowError) as error:
        raise CodecError(f"the message is no msgpack of str or bytes keys and UTF-8: {error}") from error


def array_of(data: Any, dtype: Any, shape: Any) -> np.ndarray:
    """The read-only array of these bytes.

    Args:
        data: bytes in C order.
        dtype: as `numpy.dtype.str` has it.
        shape: a list of whole numbers.

    Raises:
        CodecError: one of them is of another type, or the bytes are not as many as dtype and shape say.
    """
    kind = as_dtype(dtype)
    if not isinstance(shape, list | tuple) or not all(type(size) is int and 0 <= size < 2**31 for size in shape):
        raise CodecError(f"an array's shape must be a list of whole numbers, not {_short(shape)}")
    if len(shape) > _MAX_DIMENSIONS:
        raise CodecError(f"an array may have {_MAX_DIMENSIONS} dimensions, not {len(shape)}")
    if not isinstance(data, bytes):
        raise CodecError(f"an array's data must be bytes, not {type(data).__name__}")
    declared = math.prod(shape) * kind.itemsize
    if declared != len(data):
        raise CodecError(f"an array of {kind}{list(shape)} is {declared} bytes, but {len(data)} came")
    # frombuffer refuses no bytes at all.
    return np.frombuffer(data, kind).reshape(shape) if data else _empty(kind, shape)


def as_dtype(text: Any) -> np.dtype:
    """The dtype of that name: a number or text of fixed length.

    Raises:
        CodecError: it is of another kind, or no dtype.
    """
    text = text.decode("ascii", "replace") if isinstance(text, bytes) else text
    kind = _known_dtype(text) if isinstance(text, str) and len(text) < 16 else None
    if kind is None:
        raise CodecError(f"an array's dtype must be one of numbers or text, such as '<f4' or '|u1', not {_short(text)}")
    return kind


@functools.lru_cache(maxsize=256)
def _known_dtype(text: str) -> np.dtype | None:
    return np.dtype(text) if _NUMBERS.fullmatch(text) or _TEXT.fullmatch(text) else None


def _empty(kind: np.dtype, shape: list[int] | tuple[int, ...]) -> np.ndarray:
    try:
        array = np.zeros(shape, kind)
    except ValueError as error:  # sizes beside a 0 may be too large for an address
        raise CodecError(f"an array of {kind}{list(shape)} cannot be: {error}") from error
    array.flags.writeable = False
    return array


def _scalar(value: Mapping[Any, Any]) -> np.generic:
    """A number of numpy in openpi's form."""
    kind, given = as_dtype(value.get(b"dtype")), value.get(b"data")
    if not isinstance(given, bool | int | float | str | bytes):
        raise CodecError(f"a number's data must be a number, not {type(given).__name__}")
    try:
        return kind.type(given)
    except (ValueError, TypeError, OverflowError) as error:
        raise CodecError(f"{_short(given)} is no {kind}") from error


def _short(value: Any) -> str:
    if isinstance(value, str | bytes | list | tuple):
        value = value[:60]
    text = repr(value) if isinstance(value, str | int | float | bytes | list | tuple | None) else type(value).__name__
    return text if len(text) <= 60 else f"{text[:57]}..."


# https://github.com/Physical-Intelligence/openpi, openpi_client/msgpack_numpy.py: the keys are bytes.
OPENPI = ArrayForm(str.encode, ((b"__npgeneric__", _scalar),))

# By the first byte of an item: (bytes of the number that follows it, the number where none does, how many items are
# in it for each of that number: 0 where it counts bytes); None for extensions and bytes that are not used.
_ITEMS: list[tuple[int, int, int] | None] = [
    *((0, 0, 0) for _ in range(0x80)),  # whole numbers
    *((0, count, 2) for count in range(16)),
    *((0, count, 1) for count in range(16)),
    *((0, count, 0) for count in range(32)),  # text
    *((0, 0, 0) if first != 0xC1 else None for first in range(0xC0, 0xC4)),
    *((width, 0, 0) for width in (1, 2, 4)),
    *(None for _ in range(3)),
    *((0, count, 0) for count in (4, 8, 1, 2, 4, 8, 1, 2, 4, 8)),
    *(None for _ in range(5)),
    *((width, 0, 0) for width in (1, 2, 4)),  # text
    *((width, 0, per) for per in (1, 2) for width in (2, 4)),
    *((0, 0, 0) for _ in range(0x20)),  # negative ones
]


def _check_structure(data: bytes, bounds: Bounds) -> None:
    """Walks over the items of a message without making any.

    Raises:
        CodecError: it ends too early or too late, or is beyond the bounds.
    """
    size = len(data)
    position, declared = 0, 1
    left, above = 1, []  # what is left to walk of the innermost map or list, and of those around it
    while left or above:
        if not left:
            left = above.pop()
            continue
        if position >= size:
            raise CodecError(f"the message of {size} bytes is cut off")
        kind = _ITEMS[data[position]]
        if kind is None:
            raise CodecError(f"the message holds an extension or unused type, 0x{data[position]:02x}")
        width, count, per = kind
        left, position = left - 1, position + 1
        if width:
            count, position = int.from_bytes(data[position : position + width], "big"), position + width
        inside = count * per
        if not per:
            position += count
        if position > size:
            raise CodecError(f"the message of {size} bytes is cut off: something in it ends at {position}")
        if not inside:
            continue
        declared += inside
        if declared > bounds.items:
            raise CodecError(f"the message declares more than {bounds.items} items")
        above.append(left)
        left = inside
        if len(above) > bounds.depth:
            raise CodecError(f"the message nests deeper than {bounds.depth}")
    if position != size:
        raise CodecError(f"the message ends after {position} of {size} bytes")
