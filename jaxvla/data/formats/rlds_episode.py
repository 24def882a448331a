"""One record of an RLDS dataset: the values of its steps, by their features.

TFDS flattens the steps of an episode: a feature `steps/<name>` holds the values of all steps end to end. Integers and
booleans are stored as int64, all floats as float32, strings and encoded images as bytes. A sequence within each step is
two features: `<name>/ragged_flat_values`, and `<name>/ragged_row_lengths_0`, how many of these each step has.
"""

import zlib
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from jaxvla.data.formats import tfrecord
from jaxvla.data.formats.index import Frames
from jaxvla.data.formats.protobuf import Span
from jaxvla.data.formats.rlds_features import DEPTH, NUMBERS, PICTURES, SEQUENCES, Feature
from jaxvla.data.formats.tfrecord import FeatureSpan
from jaxvla.data.skipping import UnusableError

FLAGS = ("is_first", "is_last", "is_terminal")  # one of each step, by the RLDS specification
_LISTED = ("float", "int64")


class Episode:
    """The features of one record.

    Args:
        read: from the file.
        features: those of the record, of which the packed ones are spans.
        where: the file and the record, for messages.
    """

    def __init__(self, read: tfrecord.Read, features: dict[str, FeatureSpan], where: str) -> None:
        self._features = features
        self._read = read
        self._where = where

    def num_steps(self, features: Iterable[Feature]) -> int:
        """How many steps there are: by their flags, or by one of the `features` that says it.

        Raises:
            UnusableError: nothing does.
        """
        for flag in FLAGS:
            found = self._features.get(f"steps/{flag}")
            if found is not None and found.kind == "int64":
                return len(found.values)
        for feature in features:
            found = self._features.get(f"steps/{feature.name}")
            if found is None or feature.is_packed:
                continue
            if found.kind == "bytes":
                return len(found.values)
            if feature.size and len(found.values) % feature.size == 0:
                return len(found.values) // feature.size
        raise UnusableError(
            f"no feature says how many steps there are, such as steps/{FLAGS[0]}", f"{self._where}: {self._there()}"
        )

    def numbers(self, feature: Feature, steps: int) -> np.ndarray:
        """Values [steps, d] of a feature of numbers."""
        if feature.encoding:
            return self._decoded(feature, steps).reshape(steps, -1)
        flat = self._values(f"steps/{feature.name}", _LISTED)
        if len(flat) % steps:
            raise self._disagree(len(flat), feature, steps)
        return flat.reshape(steps, -1)

    def texts(self, feature: Feature, steps: int) -> list[str]:
        """The text of each step, without the blanks around it."""
        texts = self._texts(f"steps/{feature.name}")
        if len(texts) != steps:
            raise self._disagree(len(texts), feature, steps)
        return texts

    def trajectory(self, features: Iterable[Feature], steps: int) -> dict[str, Any]:
        """The values of all features but those of pixels, in the dataset's own groups and by its own names.

        Numbers are [steps, ...] of the dtype that TFDS gives out. Texts and other strings are object arrays of bytes,
        as TensorFlow has them. Sequences within steps are object arrays [steps] of arrays, or [steps, length, ...]
        where all have one length by features.json; those of sequences are left out.

        Raises:
            UnusableError: a feature is missing, or has not as many values as there are steps.
        """
        trajectory: dict[str, Any] = {}
        for feature in features:
            is_strings = feature.dtype == "string" and not feature.encoding and not feature.length
            if feature.kind in (PICTURES, DEPTH) or not (is_strings or feature.kind in (NUMBERS, SEQUENCES)):
                continue
            *groups, last = feature.keys
            node = trajectory
            for group in groups:
                node = node.setdefault(group, {})
            node[last] = self._sequences(feature, steps) if feature.kind == SEQUENCES else self._all(feature, steps)
        return trajectory

    def pictures(self, feature: Feature) -> Frames | str:
        """Where the images of a camera lie, or what is wrong with them."""
        found = self._features.get(f"steps/{feature.name}")
        if found is None:
            return "no pictures"
        if found.kind != ("int64" if feature.is_packed else "bytes"):
            return f"{found.kind} values"
        if feature.is_packed:
            return self._packed_pictures(found.values, feature.raw_shape)
        table = np.array(found.values, np.int64).reshape(-1, 2)
        if feature.raw_shape and (table[:, 1] != feature.size).any():
            return f"pictures of other sizes than {list(feature.raw_shape)}"
        return Frames(table[:, 0], table[:, 1], feature.raw_shape)

    def key(self, otherwise: str) -> str:
        """<file_path>#<episode_id>, as far as the dataset has them."""
        path = self._name("episode_metadata/file_path")
        episode = self._name("episode_metadata/episode_id") or self._name("episode_id")
        return "#".join(part for part in (path, episode) if part) or otherwise

    def _packed_pictures(self, spans: Sequence[Span], shape: tuple[int, ...]) -> Frames | str:
        """Where each picture lies whose pixels are integers of the Example, of one or two bytes each."""
        if len(spans) != 1:
            return "pixels that are not one list"
        data = np.frombuffer(self._read(*spans[0]), np.uint8)
        size = int(np.prod(shape))
        ends = np.flatnonzero(data < 0x80) + 1
        if len(data) != spans[0].length or len(ends) % size:
            return f"{len(ends)} pixels, which are no pictures of {list(shape)}"
        ends = ends[size - 1 :: size]
        sizes = np.diff(ends, prepend=0)
        return Frames(spans[0].offset + ends - sizes, sizes, shape)

    def _all(self, feature: Feature, steps: int) -> np.ndarray:
        """Values [steps, ...] of a feature that is no sequence."""
        if feature.encoding:
            return self._decoded(feature, steps)
        return self._shaped(feature, self._flat(f"steps/{feature.name}", feature), steps)

    def _sequences(self, feature: Feature, steps: int) -> np.ndarray:
        name = f"steps/{feature.name}"
        lengths = self._values(f"{name}/ragged_row_lengths_0", ("int64",))
        rows = self._shaped(feature, self._flat(f"{name}/ragged_flat_values", feature), int(lengths.sum()))
        if len(lengths) != steps:
            raise self._disagree(len(lengths), feature, steps)
        if feature.length > 0 and (lengths == feature.length).all():
            return rows.reshape(steps, feature.length, *rows.shape[1:])
        parts = np.empty(steps, object)
        for step, end in enumerate(np.cumsum(lengths)):  # numpy would make one array of parts of one length
            parts[step] = rows[end - lengths[step] : end]
        return parts

    def _flat(self, name: str, feature: Feature) -> np.ndarray:
        """All values of a feature end to end, of its dtype."""
        if feature.dtype != "string":
            return self._values(name, _LISTED).astype(feature.dtype or np.float32)
        spans = self._values(name, ("bytes",))
        flat = np.empty(len(spans), object)
        flat[:] = [self._read(*span) for span in spans]
        return flat

    def _shaped(self, feature: Feature, flat: np.ndarray, rows: int) -> np.ndarray:
        if len(flat) != rows * feature.size if feature.size else rows and len(flat) % rows:
            raise self._disagree(len(flat), feature, rows)
        return flat.reshape(rows, *(feature.shape if feature.size else (-1,) * bool(rows)))

    def _decoded(self, feature: Feature, steps: int) -> np.ndarray:
        """Values [steps, *shape] that are stored as one byte string of each step."""
        spans = self._values(f"steps/{feature.name}", ("bytes",))
        if len(spans) != steps:
            raise self._disagree(len(spans), feature, steps)
        dtype = np.dtype(feature.dtype).newbyteorder("<")
        try:
            raw = [self._read(*span) for span in spans]
            raw = [zlib.decompress(data) for data in raw] if feature.encoding == "zlib" else raw
            rows = [np.frombuffer(data, dtype).reshape(feature.shape) for data in raw]
        except (ValueError, zlib.error) as error:
            raise UnusableError(f"{feature.name!r} cannot be decoded", f"{self._where}: {error}") from error
        return np.stack(rows) if rows else np.empty((0, *feature.shape), dtype)

    def _name(self, key: str) -> str:
        feature = self._features.get(key)
        if feature is None or not len(feature.values):
            return ""
        return self._texts(key)[0] if feature.kind == "bytes" else str(feature.values[0])

    def _texts(self, key: str) -> list[str]:
        return [self._read(*span).decode(errors="replace").strip() for span in self._values(key, ("bytes",))]

    def _values(self, key: str, kinds: tuple[str, ...]) -> Any:
        feature = self._features.get(key)
        if feature is None:
            raise UnusableError(f"no feature {key!r}", f"{self._where}: {self._there()}")
        if feature.kind not in kinds:
            raise UnusableError(f"{key!r} is {feature.kind} values, not {' or '.join(kinds)}", self._where)
        return feature.values

    def _there(self) -> str:
        return f"it has {', '.join(sorted(self._features)) or 'nothing'}; does features.json belong to it?"

    def _disagree(self, count: int, feature: Feature, steps: int) -> UnusableError:
        return UnusableError("lengths disagree", f"{self._where}: {count} values of {feature.name!r} for {steps} steps")
