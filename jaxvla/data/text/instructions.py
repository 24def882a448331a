"""The annotations of all datasets as arrays, for batches: each different text is encoded once and kept beside the data.

Axis letters: n annotations, m different texts among them, b batch, l columns of an `InstructionSpec`.
"""

import dataclasses
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import BinaryIO

import numpy as np

from jaxvla.data.formats import sidecar
from jaxvla.data.mixture import Mixture
from jaxvla.data.schema import InstructionSpec

_VERSION = 1
# Texts whose encodings are in memory at a time.
_CHUNK = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False)
class InstructionTable:
    """What each annotation of a mixture says. Picklable.

    Attributes:
        values_ml: [m + 1, l], the encoded texts, and last what stands where there is none; may be a memory map.
        row_of_n: int32 [n + 1], where the annotations of `Mixture.annotations()` are in it, and last where none is.
    """

    values_ml: np.ndarray
    row_of_n: np.ndarray

    def take(self, annotation_b: np.ndarray) -> np.ndarray:
        """The batch key `instruction` [b, l] of the annotations int [b], -1 for none."""
        return np.asarray(self.values_ml[self.row_of_n[annotation_b]])


def open_table(
    mixture: Mixture, spec: InstructionSpec, encode: Callable[[Sequence[str]], np.ndarray], stamp: object
) -> InstructionTable:
    """The table of a mixture: read from where it was kept, or encoded and kept.

    Args:
        mixture: whose annotations; the table lies beside its first file, or in the user's cache where that folder is
            read-only. Where neither takes it, it is held in memory.
        spec: of the values.
        encode: texts to rows [k, l]; called for many different ones at a time.
        stamp: what the result of `encode` depends on.
    """
    annotations = mixture.annotations()
    texts = list(dict.fromkeys(annotations))
    digest = hashlib.sha256(json.dumps(texts).encode()).hexdigest()
    name = sidecar.fingerprint((), _VERSION, spec, stamp, digest)
    beside = pathlib.Path(mixture.paths[0]).parent / f"instructions-{name}.npy"
    shape = (len(texts) + 1, spec.length)

    def read(path: pathlib.Path) -> np.ndarray | None:
        values_ml = np.load(path, mmap_mode="r")
        return values_ml if (values_ml.shape, values_ml.dtype) == (shape, spec.dtype) else None

    values_ml = sidecar.find(beside, read)
    if values_ml is None:
        path = sidecar.keep(beside, lambda file: _write(file, shape, _rows(texts, spec, encode), spec))
        values_ml = read(path) if path else np.concatenate(list(_rows(texts, spec, encode)))
    return InstructionTable(values_ml, rows_of(annotations, texts))


def rows_of(annotations: Sequence[str], texts: Sequence[str]) -> np.ndarray:
    """Where each annotation is among different texts, int32 [n + 1]; the last entry is the row behind all of them."""
    number = {text: i for i, text in enumerate(texts)}
    return np.array([*(number[text] for text in annotations), len(texts)], np.int32)


def _rows(
    texts: Sequence[str], spec: InstructionSpec, encode: Callable[[Sequence[str]], np.ndarray]
) -> Iterator[np.ndarray]:
    """The rows of a table, some [k, l] at a time."""
    for start in range(0, len(texts), _CHUNK):
        yield encode(texts[start : start + _CHUNK]).astype(spec.dtype)
    yield spec.unlabelled()[None]


def _write(file: BinaryIO, shape: tuple[int, int], rows: Iterable[np.ndarray], spec: InstructionSpec) -> None:
    header = {"descr": np.lib.format.dtype_to_descr(spec.dtype), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    # Encoding may take long, so a disk without room is to refuse before it.
    os.posix_fallocate(file.fileno(), 0, file.tell() + math.prod(shape) * spec.dtype.itemsize)
    for part in rows:
        file.write(part.tobytes())
