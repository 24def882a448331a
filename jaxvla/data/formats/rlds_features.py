"""features.json of a TFDS dataset: the features of its steps, what they hold, and how they are stored.

Sources: tensorflow_datasets/core/proto/feature.proto, core/example_serializer.py and the docstrings of core/features.
TFDS joins the names of nested features by "/", and a name may hold a slash itself.
"""

import dataclasses
import json
import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxvla.data.files import reading
from jaxvla.errors import DataError

# What a feature holds, in the words of messages.
NUMBERS, TEXT, PICTURES, DEPTH = "numbers", "text", "pictures", "depth or other values of pixels"
SEQUENCES, OTHER = "sequences in each step", "something else"

# A tensor of numbers whose first two sides are this long is a picture of some kind: depth, the flow of pixels, a mask.
_PICTURE_SIDE = 64


@dataclasses.dataclass(frozen=True)
class Feature:
    """A feature of the steps.

    Attributes:
        keys: the names of the nested groups that it lies in, and its own.
        kind: one of the words above.
        dtype: by which TFDS gives it out; "" where features.json does not say.
        shape: of one step; None where features.json does not say, or leaves a side open.
        encoding: how the values of one step are stored: "" as numbers or texts of the Example, "bytes" or "zlib" as one
            byte string of raw or compressed elements, "image" as the file of a picture.
        length: of the sequence in each step; -1 where that differs, 0 where there is none.
    """

    keys: tuple[str, ...]
    kind: str
    dtype: str = ""
    shape: tuple[int, ...] | None = None
    encoding: str = ""
    length: int = 0

    @property
    def name(self) -> str:
        """The names joined as TFDS does it, below `steps`."""
        return "/".join(self.keys)

    @property
    def raw_shape(self) -> tuple[int, ...]:
        """(h, w, channels) of a picture whose pixels are stored without being encoded, else ()."""
        return self.shape if self.kind == PICTURES and self.encoding != "image" else ()

    @property
    def is_located(self) -> bool:
        """Whether it is pictures that can be read one by one."""
        return self.kind == PICTURES or (self.kind == DEPTH and self.encoding == "image")

    @property
    def is_packed(self) -> bool:
        """Whether each pixel is a number of the Example: too many to be read where they are not asked for."""
        return self.kind in (PICTURES, DEPTH) and not self.encoding

    @property
    def size(self) -> int:
        """How many numbers a step has; 0 where that is not known."""
        return 0 if self.shape is None else math.prod(self.shape)


def read_features(path: pathlib.Path) -> tuple[Feature, ...]:
    """The step features that a features.json describes.

    Raises:
        DataError: it is missing, damaged, or describes no steps.
    """
    try:
        with reading(path):
            described = json.loads(path.read_text())
    except ValueError as error:
        raise DataError(f"{path}: is damaged ({error}): download it again") from error
    try:
        steps = described["featuresDict"]["features"]["steps"]["sequence"]["feature"]
        return tuple(_walk(steps, ()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: does not describe an RLDS dataset with steps") from error


def _walk(node: Mapping[str, Any], keys: tuple[str, ...]) -> Iterator[Feature]:
    """The features below a node."""
    if "featuresDict" in node:
        for key, child in node["featuresDict"]["features"].items():
            yield from _walk(child, (*keys, key))
    elif "sequence" in node:
        length = int(node["sequence"].get("length", -1))
        for feature in _walk(node["sequence"]["feature"], keys):
            deeper = OTHER if feature.length or feature.kind not in (NUMBERS, TEXT) else SEQUENCES
            yield dataclasses.replace(feature, kind=deeper, length=length)
    else:
        yield _leaf(node, keys)


def _leaf(node: Mapping[str, Any], keys: tuple[str, ...]) -> Feature:
    if "image" in node:
        dtype = node["image"].get("dtype") or "uint8"
        return Feature(keys, PICTURES if dtype == "uint8" else DEPTH, dtype, _shape(node["image"]), "image")
    if "text" in node:
        return Feature(keys, TEXT, "string", ())
    if "classLabel" in node:
        return Feature(keys, NUMBERS, "int64", ())
    if "boundingBox" in node:
        return Feature(keys, NUMBERS, node["boundingBox"].get("dtype") or "float32", (4,))
    if "tensor" not in node:
        return Feature(keys, OTHER)
    tensor = node["tensor"]
    dtype, shape = tensor.get("dtype", ""), _shape(tensor)
    encoding = {"none": ""}.get(name := tensor.get("encoding", "").lower(), name)
    return Feature(keys, _kind_of_tensor(dtype, shape, encoding), dtype, shape, encoding)


def _kind_of_tensor(dtype: str, shape: tuple[int, ...] | None, encoding: str) -> str:
    if dtype == "string":
        return TEXT if not shape and not encoding else OTHER
    if encoding not in ("", "bytes", "zlib") or (encoding and (shape is None or not _is_known(dtype))):
        return OTHER
    if shape is None or len(shape) not in (2, 3):
        return NUMBERS
    if dtype == "uint8" and shape[2:] in ((1,), (3,)):
        return OTHER if encoding == "zlib" else PICTURES
    return DEPTH if min(shape[:2]) >= _PICTURE_SIDE else NUMBERS


def _is_known(dtype: str) -> bool:
    """Whether numpy has a dtype of numbers by this name."""
    try:
        return np.dtype(dtype).kind in "biuf"
    except TypeError:
        return False


def _shape(node: Mapping[str, Any]) -> tuple[int, ...] | None:
    if "shape" not in node:
        return None
    shape = tuple(int(side) for side in node["shape"].get("dimensions", ()))
    return None if any(side < 0 for side in shape) else shape
