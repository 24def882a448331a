"""Parquet files: columns of numbers as arrays, rows of meta files, and pictures at random.

Pictures lie in row groups that are compressed as a whole, so one costs the decompression of its group's column. Those
that were read last are kept.
"""

import functools
import math
import os
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np

from jaxvla.data.formats.records import Kept
from jaxvla.errors import DataError

_kept = Kept()


def read_rows(path: str, columns: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The rows of a file as plain values, of some of its columns or of all.

    Raises:
        DataError: it is missing, damaged, or lacks a column; names it.
    """
    return read_table(path, columns).to_pylist()


def read_table(path: str, columns: Sequence[str] = ()) -> Any:
    """Some of the columns of a file, or all, as Arrow's table; raises as `read_rows`."""
    file = _open(path)
    _check_columns(path, file, columns)
    return _guarded(path, lambda: file.read(columns=list(columns) or None))


def read_columns(path: str, shapes: dict[str, tuple[int, ...]]) -> dict[str, np.ndarray]:
    """Columns of numbers.

    Args:
        path: of the file.
        shapes: by its name, the shape of each column's values; (1,) of plain numbers.

    Returns:
        By name, [rows, values of the shape] of the file's own type; flags are uint8.

    Raises:
        DataError: the file is missing or damaged, it lacks a column, or a column has values of another shape or none;
            names both.
    """
    file = _open(path)
    _check_columns(path, file, shapes)
    table = _guarded(path, lambda: file.read(columns=list(shapes)))
    return {name: _numbers(path, name, table.column(name), shape) for name, shape in shapes.items()}


def column_names(path: str) -> tuple[str, ...]:
    """The columns of a file; raises as `read_rows`."""
    return tuple(_open(path).schema_arrow.names)


def missing_pictures(path: str, column: str) -> int:
    """How many rows have no picture in the file itself, as far as its footer says it.

    Raises:
        DataError: the column is no column of pictures; names it.
    """
    metadata = _metadata(path, os.stat(path).st_mtime_ns)
    ordinal = _picture_ordinal(path, column, metadata)
    chunks = [metadata.row_group(i).column(ordinal) for i in range(metadata.num_row_groups)]
    return sum(chunk.statistics.null_count or 0 for chunk in chunks if chunk.statistics is not None)


def read_picture(path: str, column: str, row: int) -> bytes:
    """The encoded picture of a row: the field `bytes` of a struct, as Hugging Face's datasets store it.

    Raises:
        DataError: the file is damaged, has no such row, or the row no picture in it; names both.
    """
    changed = os.stat(path).st_mtime_ns
    metadata = _metadata(path, changed)
    ends = np.cumsum([metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)])
    group = int(np.searchsorted(ends, row, side="right"))
    if group == len(ends):
        raise DataError(f"{path}: no row {row}, it has {metadata.num_rows}: it changed, download it again")
    key = (path, changed, column, group)
    pictures = _kept.get(key)
    if pictures is None:
        _picture_ordinal(path, column, metadata)
        table = _guarded(path, lambda: _open(path, metadata).read_row_group(group, columns=[f"{column}.bytes"]))
        pictures = table.column(column).combine_chunks().field("bytes")
        _kept.put(key, pictures, pictures.nbytes)
    start = int(ends[group]) - metadata.row_group(group).num_rows
    data = pictures[row - start].as_py()
    if data is None:
        raise DataError(f"{path}: row {row} has no picture in {column!r}, but a path at most: embed the pictures")
    return data


@functools.lru_cache(256)
def _metadata(path: str, changed: int) -> Any:
    """The footer of a file, which knows no columns that were written since it `changed`."""
    return _open(path).metadata


def _open(path: str, metadata: Any = None) -> Any:
    import pyarrow.parquet  # here, for it takes a quarter of a second that only who reads such files needs to wait

    if not os.path.isfile(path):
        raise DataError(f"{path} is missing: download it")
    return _guarded(path, lambda: pyarrow.parquet.ParquetFile(path, metadata=metadata))


def _guarded(path: str, read: Any) -> Any:
    """What `read` gives; what Arrow raises about a file as a DataError."""
    import pyarrow

    try:
        return read()
    except (pyarrow.ArrowException, OSError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path}: is cut off or damaged ({reason}): download or make it again") from error


def _check_columns(path: str, file: Any, columns: Collection[str]) -> None:
    there = file.schema_arrow.names
    for name in columns:
        if name not in there:
            raise DataError(f"{path}: no column {name!r}, it has {', '.join(there)}")


def _picture_ordinal(path: str, column: str, metadata: Any) -> int:
    """Which of the file's flat columns holds the bytes of pictures."""
    names = [metadata.schema.column(i).path for i in range(len(metadata.schema))]
    if f"{column}.bytes" not in names:
        raise DataError(f"{path}: column {column!r} holds no pictures (a struct with `bytes`)")
    return names.index(f"{column}.bytes")


def _numbers(path: str, name: str, column: Any, shape: tuple[int, ...]) -> np.ndarray:
    """Values [rows, size] of a column of numbers, or of lists of them of one shape; NaN where there is none."""
    import pyarrow.compute
    from pyarrow import types

    array, rows, own = column.combine_chunks(), len(column), []
    while types.is_list(array.type) or types.is_large_list(array.type) or types.is_fixed_size_list(array.type):
        lengths = pyarrow.compute.list_value_length(array).unique().to_pylist()
        if rows and (len(lengths) != 1 or not lengths[0]):
            raise DataError(
                f"{path}: column {name!r} holds lists of {_some(lengths)} values, by info.json {_said(shape)}"
            )
        own += lengths
        array = pyarrow.compute.list_flatten(array)
    if not (types.is_integer(array.type) or types.is_floating(array.type) or types.is_boolean(array.type)):
        raise DataError(f"{path}: column {name!r} holds {array.type}, no numbers")
    if rows and tuple(own or [1]) != tuple(shape):
        raise DataError(f"{path}: column {name!r} holds values {_said(own)}, by info.json {_said(shape)}")
    flags = types.is_boolean(array.type)
    values = (array.cast(pyarrow.uint8()) if flags else array).to_numpy(zero_copy_only=False)
    return values.reshape(rows, math.prod(shape))


def _said(shape: Sequence[int]) -> str:
    return f"of shape {list(shape)}"


def _some(lengths: Sequence[int | None]) -> str:
    return " or ".join(str(length or 0) for length in lengths[:3])
