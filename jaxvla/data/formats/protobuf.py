"""The protobuf wire format as far as TFRecord files use it: a walk over fields that skips payloads, and the encoding.

Source: https://protobuf.dev/programming-guides/encoding
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from jaxvla.errors import DataError

Read = Callable[[int, int], bytes]  # (offset, n) -> the n bytes from offset on, fewer at the end of the data

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5  # wire types

_WINDOW = 96  # bytes fetched at once: the headers of one feature of a BridgeData example fit into it
_MAX_VARINT = 10
_MASK64 = (1 << 64) - 1


class Span(NamedTuple):
    """Where `length` bytes lie: from `offset` on, counted from the start of the file or buffer."""

    offset: int
    length: int

    @property
    def end(self) -> int:
        """The offset of the first byte behind the span."""
        return self.offset + self.length


class Field(NamedTuple):
    """One field of a message: its number, wire type, the value of a varint, and the span of any other payload."""

    number: int
    wire_type: int
    value: int
    span: Span


class Walker:
    """Walks the messages of one record. Reads small windows only, so that skipping a payload costs nothing.

    Args:
        read: gives bytes by offset, from a file or a buffer.
        name: what the data is called in error messages, such as the path of the file.
    """

    def __init__(self, read: Read, name: str) -> None:
        self._read = read
        self._name = name
        self._window = b""
        self._window_offset = 0

    def fields(self, span: Span) -> Iterator[Field]:
        """The fields of the message that lies at `span`, in stored order.

        Raises:
            DataError: the bytes are not a message, or a field reaches beyond its end.
        """
        position = span.offset
        while position < span.end:
            tag, position = self._varint(position, span.end)
            number, wire_type = tag >> 3, tag & 7
            value = length = 0
            if wire_type == VARINT:
                value, position = self._varint(position, span.end)
            elif wire_type == BYTES:
                length, position = self._varint(position, span.end)
            elif wire_type in (FIXED64, FIXED32):
                length = 8 if wire_type == FIXED64 else 4
            else:
                raise self.damaged(position, f"a field has the unknown wire type {wire_type}")
            if number == 0:
                raise self.damaged(position, "a field has number 0")
            if position + length > span.end:
                raise self.damaged(position, f"a field of {length} bytes reaches beyond the end of its message")
            yield Field(number, wire_type, value, Span(position, length))
            position += length

    def message(self, field: Field) -> Iterator[Field]:
        """The fields of the message that `field` holds."""
        return self.fields(self.payload(field))

    def payload(self, field: Field) -> Span:
        """The span of a field that must be length-delimited."""
        if field.wire_type != BYTES:
            raise self.damaged(field.span.offset, f"field {field.number} has wire type {field.wire_type}, not {BYTES}")
        return field.span

    def integer(self, field: Field) -> int:
        """The value of a field that must be a varint, as a signed 64-bit integer."""
        if field.wire_type != VARINT:
            raise self.damaged(field.span.offset, f"field {field.number} has wire type {field.wire_type}, not {VARINT}")
        return field.value - (1 << 64) if field.value >> 63 else field.value

    def bytes(self, span: Span) -> bytes:
        """The bytes at `span`."""
        data = self._read(span.offset, span.length)
        if len(data) != span.length:
            raise self.damaged(span.offset + len(data), "the data ends here")
        return bytes(data)

    def text(self, field: Field) -> str:
        """The UTF-8 text that `field` holds."""
        span = self.payload(field)
        try:
            return self.bytes(span).decode()
        except UnicodeDecodeError as error:
            raise self.damaged(span.offset, f"text is not UTF-8 ({error.reason})") from None

    def integers(self, field: Field) -> np.ndarray:
        """The int64 values of one occurrence of a repeated integer field, packed or not."""
        if field.wire_type == VARINT:
            return np.array([self.integer(field)], np.int64)
        raw = np.frombuffer(self.bytes(self.payload(field)), np.uint8)
        ends = np.flatnonzero(raw < 0x80)
        lengths = np.diff(ends, prepend=-1)
        if not raw.size:
            return np.zeros(0, np.int64)
        if raw[-1] >= 0x80 or lengths.max() > _MAX_VARINT:
            raise self.damaged(field.span.offset, "a packed list of integers is not whole")
        starts = ends - lengths + 1
        shifts = 7 * (np.arange(raw.size) - np.repeat(starts, lengths))
        groups = (raw & 0x7F).astype(np.uint64) << shifts.astype(np.uint64)
        return np.bitwise_or.reduceat(groups, starts).view(np.int64)

    def floats(self, field: Field, dtype: type[np.floating] = np.float32) -> np.ndarray:
        """The values of one occurrence of a repeated float32 or float64 field, packed or not."""
        size = np.dtype(dtype).itemsize
        if field.wire_type not in (BYTES, FIXED32 if size == 4 else FIXED64) or field.span.length % size:
            raise self.damaged(field.span.offset, f"field {field.number} holds no list of {np.dtype(dtype).name}")
        return np.frombuffer(self.bytes(field.span), np.dtype(dtype).newbyteorder("<"))

    def damaged(self, position: int, what: str) -> DataError:
        """The error for a fault at byte `position`."""
        return DataError(f"{self._name}: damaged at byte {position}: {what}; make the file again")

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = shift = 0
        for index in range(position, min(end, position + _MAX_VARINT)):
            if not 0 <= index - self._window_offset < len(self._window):
                self._window, self._window_offset = self._read(index, _WINDOW), index
                if not len(self._window):
                    raise self.damaged(index, "the data ends here")
            byte = self._window[index - self._window_offset]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value & _MASK64, index + 1
            shift += 7
        raise self.damaged(position, "an integer does not end")


def byte_values(data: bytes) -> np.ndarray | None:
    """The values, uint8 [n], of varints that are all below 256; None where they are not.

    Such a varint is one byte, or, from 128 on, the value itself and a byte 1.
    """
    raw = np.frombuffer(data, np.uint8)
    follows = np.zeros(len(raw), bool)
    follows[1:] = raw[:-1] >= 0x80
    return raw[~follows] if (raw[follows] == 1).all() and raw[-1:].all() < 0x80 else None


def varint(value: int) -> bytes:
    """The base-128 encoding of an integer of at most 64 bits; negative ones as two's complement."""
    value &= _MASK64
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def header(number: int, length: int) -> bytes:
    """What stands before a length-delimited payload of `length` bytes in field `number`."""
    return varint(number << 3 | BYTES) + varint(length)
