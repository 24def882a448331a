"""TFRecord files, tf.train.Example and serialized tensors, without TensorFlow and without reading more than needed.

A TFRecord file is a row of records: length (uint64), masked CRC of the length, payload, masked CRC of the payload. The
payload is a tf.train.Example. In BridgeData each of its features holds one tensor as `tf.io.serialize_tensor` writes
it, with the elements stored raw, so the walk over the headers gives the place of every array in the file, and a frame
can be read as a slice of it.

    with open(path, "rb") as file:
        read = file_reader(file.fileno())
        for record in scan_records(file.fileno(), name=path):
            features = parse_example(read, record, name=path)
            tensor = parse_tensor(read, features["actions"].values[0], name=path)

Sources: tensorflow/core/lib/io/record_writer.h, core/example/{example,feature}.proto, core/framework/tensor.proto.
"""

import math
import os
import struct
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import BinaryIO, NamedTuple

import google_crc32c
import numpy as np

from jaxvla.data.files import reading
from jaxvla.data.formats.protobuf import VARINT, Field, Read, Span, Walker, header, varint
from jaxvla.errors import DataError

Piece = bytes | np.ndarray  # an array here is flat uint8, so that len() counts bytes

_HEADER = struct.Struct("<QI")
_CRC = struct.Struct("<I")

_KINDS = {1: "bytes", 2: "float", 3: "int64"}  # the oneof of tf.train.Feature

# By number, the dtype and the TensorProto field that lists its values (core/framework/{types,tensor}.proto).
_DTYPES = {
    1: (np.dtype(np.float32), 5),
    2: (np.dtype(np.float64), 6),
    3: (np.dtype(np.int32), 7),
    4: (np.dtype(np.uint8), 7),
    5: (np.dtype(np.int16), 7),
    6: (np.dtype(np.int8), 7),
    7: (np.dtype(object), 8),
    9: (np.dtype(np.int64), 10),
    10: (np.dtype(np.bool_), 11),
    17: (np.dtype(np.uint16), 7),
    19: (np.dtype(np.float16), 13),
    22: (np.dtype(np.uint32), 16),
    23: (np.dtype(np.uint64), 17),
}
_ENUM = {dtype: number for number, (dtype, _) in _DTYPES.items()}
_CONTENT, _FLOAT_VAL, _DOUBLE_VAL, _STRING_VAL = 4, 5, 6, 8
_INTEGER_VALS = (7, 10, 11, 13, 16, 17)  # halves are listed as their bits

_MAX_RANK = 32
_MAX_ELEMENTS = 1 << 48
_MAX_REPEATED = 1 << 24  # elements that may be made by repetition: a damaged shape must not exhaust the memory


class FeatureSpan(NamedTuple):
    """One feature of an Example: its kind, and its values.

    `values` lists the spans of the byte strings for kind "bytes"; it is float32 [n] for "float", int64 [n] for "int64".
    Of a feature that was not to be read it lists the spans of its packed numbers.
    """

    kind: str
    values: list[Span] | np.ndarray


class TensorSpan(NamedTuple):
    """A serialized tensor.

    Exactly one of `content` and `values` is set: the span of the raw little-endian elements in C order, or the elements
    of a tensor that is stored otherwise (an array of `shape`; a flat list of bytes for strings, whose dtype is object).
    """

    dtype: np.dtype
    shape: tuple[int, ...]
    content: Span | None
    values: np.ndarray | list[bytes] | None


def masked_crc32c(*pieces: bytes | memoryview | np.ndarray) -> int:
    """The CRC-32C of the concatenated pieces, rotated and shifted as TFRecord files store it."""
    crc = 0
    for piece in pieces:
        # The extension takes arrays without a copy, but refuses memoryviews.
        crc = google_crc32c.extend(crc, np.frombuffer(piece, np.uint8) if len(piece) else b"")
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def file_reader(descriptor: int) -> Read:
    """Reads from an open file by offset; several threads may share it."""
    return lambda offset, n: os.pread(descriptor, n, offset)


def buffer_reader(data: bytes | memoryview) -> Read:
    """Reads from memory by offset."""
    return lambda offset, n: bytes(data[offset : offset + n])


def scan_records(file: str | os.PathLike | int, name: str | None = None) -> list[Span]:
    """The payload spans of all records of a TFRecord file, found by reading 12 bytes per record.

    Args:
        file: a path, or the descriptor of an open file.
        name: what the file is called in error messages; the path where one is given.

    Raises:
        DataError: the file is missing, cut off or damaged; names the path, the record and its byte position.
    """
    if not isinstance(file, int):
        with reading(file), open(file, "rb") as opened:
            return scan_records(opened.fileno(), name or os.fspath(file))
    name = name or f"file descriptor {file}"
    size = os.fstat(file).st_size
    spans = []
    position = 0
    while position < size:
        where = f"{name}: record {len(spans)} at byte {position}"
        raw = os.pread(file, _HEADER.size, position)
        if len(raw) < _HEADER.size:
            raise DataError(f"{where} is cut off: the file ends at byte {size}; make the file again")
        length, crc = _HEADER.unpack(raw)
        if masked_crc32c(raw[:8]) != crc:
            raise DataError(f"{where} is damaged: the checksum of its length is wrong; make the file again")
        span = Span(position + _HEADER.size, length)
        position = span.end + _CRC.size
        if position > size:
            raise DataError(f"{where} needs {length} bytes, but the file ends at byte {size}; make the file again")
        spans.append(span)
    return spans


def read_record(read: Read, span: Span, name: str) -> bytes:
    """The whole payload of one record, its checksum verified.

    Raises:
        DataError: the payload is cut off or does not match its checksum.
    """
    data = read(span.offset, span.length + _CRC.size)
    payload, crc = data[: span.length], data[span.length :]
    if len(crc) < _CRC.size or masked_crc32c(payload) != _CRC.unpack(crc)[0]:
        raise DataError(f"{name}: the record at byte {span.offset} does not match its checksum; make the file again")
    return payload


def parse_example(read: Read, span: Span, name: str, unread: Collection[str] = ()) -> dict[str, FeatureSpan]:
    """Finds the features of the tf.train.Example at `span`, without reading the byte strings that they hold.

    A feature of which no kind is set is left out, as TensorFlow does.

    Args:
        read: from the file.
        span: of the record.
        name: for error messages.
        unread: features of so many numbers that these are not to be read either.

    Raises:
        DataError: the bytes are no Example; names the byte position.
    """
    walker = Walker(read, name)
    features = {}
    for example_field in walker.fields(span):
        if example_field.number != 1:
            continue
        for entry in walker.message(example_field):
            if entry.number != 1:
                continue
            key, feature = "", None
            for field in walker.message(entry):
                if field.number == 1:
                    key = walker.text(field)
                elif field.number == 2:
                    feature = field
            found = None if feature is None else _parse_feature(walker, feature, key in unread)
            if found is not None:
                features[key] = found
    return features


def _parse_feature(walker: Walker, feature: Field, unread: bool) -> FeatureSpan | None:
    kind, parts = "", []
    for field in walker.message(feature):
        if field.number not in _KINDS:
            continue
        if _KINDS[field.number] != kind:  # the last kind of a oneof counts
            kind, parts = _KINDS[field.number], []
        for value in walker.message(field):
            if value.number == 1:
                read_as = {"bytes": walker.payload, "float": walker.floats, "int64": walker.integers}[kind]
                parts.append(walker.payload(value) if unread else read_as(value))
    if unread or kind in ("", "bytes"):
        return FeatureSpan(kind, parts) if kind else None
    dtype = {"float": np.float32, "int64": np.int64}[kind]
    return FeatureSpan(kind, np.concatenate([np.zeros(0, dtype), *parts]).astype(dtype, copy=False))


def parse_tensor(read: Read, span: Span, name: str) -> TensorSpan:
    """Finds the elements of the tensor that `tf.io.serialize_tensor` wrote at `span`; raw elements are not read.

    Tensors whose elements are stored as a list of values are read whole. Where the list is shorter than the tensor its
    last value is repeated, and an empty list means zeros (or empty strings), as TensorFlow does.

    Raises:
        DataError: the bytes are no tensor, its dtype is not supported, or shape and content disagree.
    """
    walker = Walker(read, name)
    number, shape, content, values = 0, (), None, {}
    for field in walker.fields(span):
        if field.number == 1:
            number = walker.integer(field)
        elif field.number == 2:
            shape = _parse_shape(walker, field)
        elif field.number == _CONTENT:
            content = walker.payload(field)
        elif field.number == _STRING_VAL:
            values.setdefault(field.number, []).append([walker.bytes(walker.payload(field))])
        elif field.number in (_FLOAT_VAL, _DOUBLE_VAL):
            floats = walker.floats(field, np.float32 if field.number == _FLOAT_VAL else np.float64)
            values.setdefault(field.number, []).append(floats)
        elif field.number in _INTEGER_VALS:
            values.setdefault(field.number, []).append(walker.integers(field))
    if number not in _DTYPES:
        raise walker.damaged(span.offset, f"a tensor has the unsupported dtype number {number}")
    dtype, value_field = _DTYPES[number]
    if content is None or not content.length:
        return TensorSpan(dtype, shape, None, _fill(walker, span, dtype, shape, values.get(value_field, [])))
    if dtype.hasobject or content.length != math.prod(shape) * dtype.itemsize:
        what = f"a tensor of {dtype.name} {list(shape)} has {content.length} bytes of content"
        raise walker.damaged(content.offset, what)
    return TensorSpan(dtype, shape, content, None)


def _parse_shape(walker: Walker, field: Field) -> tuple[int, ...]:
    shape = []
    for part in walker.message(field):
        if part.number == 3 and part.value:
            raise walker.damaged(part.span.offset, "a tensor has no known rank")
        if part.number == 2:
            sizes = [walker.integer(size) for size in walker.message(part) if size.number == 1]
            shape.append(sizes[-1] if sizes else 0)
    elements = math.prod(abs(size) or 1 for size in shape)
    if len(shape) > _MAX_RANK or elements > _MAX_ELEMENTS or any(size < 0 for size in shape):
        raise walker.damaged(field.span.offset, f"a tensor has the impossible shape {shape}")
    return tuple(shape)


def _fill(
    walker: Walker, span: Span, dtype: np.dtype, shape: tuple[int, ...], parts: Sequence
) -> np.ndarray | list[bytes]:
    count, given = math.prod(shape), sum(map(len, parts))
    if given > count or count > _MAX_REPEATED:
        raise walker.damaged(span.offset, f"a tensor of shape {list(shape)} is stored as a list of {given} values")
    if dtype.hasobject:
        strings = [value for part in parts for value in part]
        return strings + (strings[-1:] or [b""]) * (count - given)
    if not given:
        return np.zeros(shape, dtype)
    values = np.concatenate(parts)
    values = values.astype(np.uint16).view(dtype) if dtype == np.float16 else values.astype(dtype)
    return np.pad(values, (0, count - given), "edge").reshape(shape)


def read_tensor(read: Read, span: Span, name: str) -> np.ndarray | list[bytes]:
    """The tensor that `tf.io.serialize_tensor` wrote at `span`: a read-only array, or a flat list of bytes for strings.

    Raises:
        DataError: as `parse_tensor`.
    """
    tensor = parse_tensor(read, span, name)
    if tensor.content is None:
        return tensor.values
    data = Walker(read, name).bytes(tensor.content)
    return np.frombuffer(data, tensor.dtype.newbyteorder("<")).reshape(tensor.shape)


def encode_tensor(value: np.ndarray | Sequence[str]) -> list[Piece]:
    """The bytes of `tf.io.serialize_tensor(value)`, in pieces; the elements of an array are not copied.

    Args:
        value: an array of a dtype of the table above, or a list of strings, which gives a string tensor of shape [n].
    """
    if not isinstance(value, np.ndarray):
        strings = [text.encode() for text in value]
        values = b"".join(header(_STRING_VAL, len(text)) + text for text in strings)
        return [_tensor_start(_ENUM[np.dtype(object)], (len(strings),)) + values]
    content = np.ascontiguousarray(value, value.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    start = _tensor_start(_ENUM[value.dtype.newbyteorder("=")], value.shape)
    return [start + header(_CONTENT, len(content)), content] if len(content) else [start]


def _tensor_start(number: int, shape: tuple[int, ...]) -> bytes:
    sizes = [varint(1 << 3 | VARINT) + varint(size) if size else b"" for size in shape]
    dims = b"".join(header(2, len(size)) + size for size in sizes)
    return varint(1 << 3 | VARINT) + varint(number) + header(2, len(dims)) + dims


def encode_example(features: Mapping[str, Sequence[Piece]]) -> list[Piece]:
    """The bytes of a tf.train.Example whose features each hold one byte string, given in pieces; nothing is copied."""
    entries: list[Piece] = []
    for name, pieces in features.items():
        key = name.encode()
        value = header(1, sum(map(len, pieces)))  # from the innermost message, BytesList, outwards
        size = len(value) + sum(map(len, pieces))
        bytes_list = header(1, size)
        feature = header(2, size + len(bytes_list))
        size += len(bytes_list) + len(feature)
        start = header(1, len(key)) + key
        entries += [header(1, size + len(start)) + start + feature + bytes_list + value, *pieces]
    return [header(1, sum(map(len, entries))), *entries]


class RecordWriter:
    """Writes a TFRecord file; a context manager, which opens and closes it."""

    _file: BinaryIO

    def __init__(self, path: str | os.PathLike) -> None:
        self._path = path

    def __enter__(self) -> "RecordWriter":
        self._file = open(self._path, "wb")
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def write(self, payload: Iterable[Piece]) -> None:
        """Appends one record whose payload is the concatenation of the pieces."""
        pieces = list(payload)
        length = struct.pack("<Q", sum(map(len, pieces)))
        self._file.write(length + _CRC.pack(masked_crc32c(length)))
        for piece in pieces:
            self._file.write(piece)
        self._file.write(_CRC.pack(masked_crc32c(*pieces)))
