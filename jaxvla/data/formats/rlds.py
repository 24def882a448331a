"""RLDS datasets in the TFRecord format of TFDS, read without TensorFlow: one episode per record, images encoded.

TFDS flattens the steps of an episode: a feature `steps/<key>` holds the values of all steps end to end. Integers and
booleans are stored as int64, all floats as float32, strings and encoded images as bytes.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvla.data.files import reading
from jaxvla.data.formats import tfrecord
from jaxvla.data.formats.index import ANY_TEXT, MIN_TRANSITIONS, NO_TEXT, Frames, Index, IndexBuilder
from jaxvla.data.formats.tfrecord import FeatureSpan
from jaxvla.data.skipping import UnusableError
from jaxvla.errors import DataError

_FLAGS = ("is_first", "is_last", "is_terminal")  # one of each step, by the RLDS specification
_NUMBERS, _TEXT, _IMAGE, _OTHER = "numbers", "text", "pictures", "something else"


@dataclasses.dataclass(frozen=True)
class StepKeys:
    """The names of a dataset's step features, below `steps`; image features are found by their type.

    `vector` is that of the language. A dataset without it, or without `language`, is read all the same.
    """

    action: str = "action"
    proprio: str = "observation/state"
    language: str = "language_instruction"
    vector: str = "language_embedding"


@dataclasses.dataclass(frozen=True)
class RLDSFormat:
    """Builds the indices of one dataset's files.

    An episode of N steps has N - 1 transitions: the action of its last step leads nowhere.

    Attributes:
        keys: of the features; `language` and `vector` are empty where the dataset has none.
        cameras: the image features, by their names below `steps`.
        texts: the text features likewise.
    """

    keys: StepKeys
    cameras: tuple[str, ...]
    texts: tuple[str, ...]

    @classmethod
    def of(cls, folder: pathlib.Path, keys: StepKeys) -> "RLDSFormat":
        """Reads features.json of the dataset version `folder`.

        Raises:
            DataError: no such file, or its steps lack a feature of `keys`, or have it of another type; the vector, and
                the language by its usual name, may be missing.
        """
        path = folder / "features.json"
        try:
            with reading(path):
                features = json.loads(path.read_text())
            kinds = _flatten(features["featuresDict"]["features"]["steps"]["sequence"]["feature"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: does not describe an RLDS dataset with steps") from error
        names = {
            kind: tuple(sorted(n for n, own in kinds.items() if own == kind)) for kind in (_NUMBERS, _TEXT, _IMAGE)
        }
        wanted = [("action_key", keys.action, _NUMBERS), ("proprio_key", keys.proprio, _NUMBERS)]
        if keys.language != StepKeys.language:
            wanted.append(("language_key", keys.language, _TEXT))
        for option, name, kind in wanted:
            if kinds.get(name) != kind:
                raise DataError(
                    f"{path}: steps have {_what(name, kinds)}; {kind} are {', '.join(names[kind]) or 'nowhere'}: set "
                    f"bridgedata_config.{option} to one of these"
                )
        language = keys.language if kinds.get(keys.language) == _TEXT else ""
        vector = keys.vector if kinds.get(keys.vector) == _NUMBERS else ""
        found = dataclasses.replace(keys, language=language, vector=vector)
        return cls(found, names[_IMAGE], names[_TEXT])

    def camera(self, name: str, option: str, where: str) -> str:
        """The image feature that `name` means: one below `steps`, or else below `steps/observation`.

        Raises:
            DataError: there is none; names the dataset (`where`), those that there are, and the `option` that chooses.
        """
        found = next((camera for camera in (name, f"observation/{name}") if camera in self.cameras), None)
        if found is None:
            there = ", ".join(self.cameras) or "no pictures at all"
            raise DataError(
                f"{where}: no camera {name!r}, the steps have {there}: set bridgedata_config.cameras.{option}"
            )
        return found

    def unlabelled(self) -> str:
        """Why no step has an instruction; empty where the dataset has a feature for them."""
        if self.keys.language:
            return ""
        there = ", ".join(self.texts) or "nowhere"
        return (
            f"steps have no text {StepKeys.language!r}, texts are {there}: bridgedata_config.language_key chooses one"
        )

    def build_index(self, path: str) -> Index:
        """Indexes one shard; episodes that cannot be used are left out and counted.

        Raises:
            DataError: the file is damaged; names path and byte position.
        """
        builder = IndexBuilder()
        with open(path, "rb") as file:
            read = tfrecord.file_reader(file.fileno())
            for number, record in enumerate(tfrecord.scan_records(file.fileno(), path)):
                where = f"{path}: record {number}"
                episode = _Episode(read, tfrecord.parse_example(read, record, path), where)
                with builder.trajectory():
                    self._add(builder, episode, episode.key(f"{pathlib.Path(path).name}#{number}"), where)
        return builder.build()

    def _add(self, builder: IndexBuilder, episode: "_Episode", key: str, where: str) -> None:
        steps = episode.num_steps((self.keys.language, *self.cameras))
        if not steps:
            raise UnusableError(f"fewer than {MIN_TRANSITIONS} transitions", f"{where}: no steps")
        language, texts, first = episode.language(self.keys.language, steps)
        vectors = episode.numbers(self.keys.vector, steps)[first] if self.keys.vector else None
        builder.add(
            where,
            key,
            episode.numbers(self.keys.action, steps)[:-1],
            episode.numbers(self.keys.proprio, steps),
            language,
            texts,
            {camera: episode.pictures(camera) for camera in self.cameras},
            vectors,
        )


class _Episode:
    """The features of one record."""

    def __init__(self, read: tfrecord.Read, features: dict[str, FeatureSpan], where: str) -> None:
        self._features = features
        self._read = read
        self._where = where

    def num_steps(self, others: tuple[str, ...]) -> int:
        """How many steps there are: by their flags, or by the `others`, of which each step has one value."""
        for key in (*_FLAGS, *others):
            feature = self._features.get(f"steps/{key}")
            if feature is not None and feature.kind == ("int64" if key in _FLAGS else "bytes"):
                return len(feature.values)
        raise UnusableError(
            f"no feature says how many steps there are, such as steps/{_FLAGS[0]}", f"{self._where}: {self._there()}"
        )

    def numbers(self, key: str, steps: int) -> np.ndarray:
        """Values [steps, d] of a feature of numbers."""
        flat = self._values(f"steps/{key}", ("float", "int64"))
        if len(flat) % steps:
            raise UnusableError("lengths disagree", f"{self._where}: {len(flat)} values of {key!r} for {steps} steps")
        return flat.reshape(steps, -1)

    def language(self, key: str, steps: int) -> tuple[tuple[str, ...], np.ndarray, list[int]]:
        """The different texts, which of them each transition has (see `Index`), and the first step that has each."""
        if not key:
            return (), np.full(steps - 1, NO_TEXT), []
        texts = self._texts(f"steps/{key}")
        if len(texts) != steps:
            raise UnusableError("lengths disagree", f"{self._where}: {len(texts)} values of {key!r} for {steps} steps")
        texts = texts[:-1]
        first = {text: texts.index(text) for text in dict.fromkeys(texts) if text}
        numbers = {text: number for number, text in enumerate(first)} | {"": NO_TEXT}
        own = np.array([numbers[text] for text in texts], np.int32)
        return (
            tuple(first),
            np.full_like(own, ANY_TEXT) if len(first) == 1 and not own.any() else own,
            [*first.values()],
        )

    def pictures(self, camera: str) -> Frames | str:
        """Where the encoded images of a camera lie, or what is wrong with them."""
        feature = self._features.get(f"steps/{camera}")
        if feature is None or feature.kind != "bytes":
            return "no pictures" if feature is None else f"{feature.kind} values"
        table = np.array(feature.values, np.int64).reshape(-1, 2)
        return Frames(table[:, 0], table[:, 1], ())

    def key(self, otherwise: str) -> str:
        """<file_path>#<episode_id>, as far as the dataset has them."""
        path = self._name("episode_metadata/file_path")
        episode = self._name("episode_metadata/episode_id") or self._name("episode_id")
        return "#".join(part for part in (path, episode) if part) or otherwise

    def _name(self, key: str) -> str:
        feature = self._features.get(key)
        if feature is None or not len(feature.values):
            return ""
        return self._texts(key)[0] if feature.kind == "bytes" else str(feature.values[0])

    def _texts(self, key: str) -> list[str]:
        spans = self._values(key, ("bytes",))
        return [self._read(span.offset, span.length).decode(errors="replace").strip() for span in spans]

    def _values(self, key: str, kinds: tuple[str, ...]) -> Any:
        feature = self._features.get(key)
        if feature is None:
            raise UnusableError(f"no feature {key!r}", f"{self._where}: {self._there()}")
        if feature.kind not in kinds:
            raise UnusableError(f"{key!r} is {feature.kind} values, not {' or '.join(kinds)}", self._where)
        return feature.values

    def _there(self) -> str:
        return f"it has {', '.join(sorted(self._features)) or 'nothing'}; does features.json belong to it?"


def _what(name: str, kinds: Mapping[str, str]) -> str:
    """What the steps have by a name."""
    group = [key for key in kinds if key.startswith(f"{name}/")]
    if name in kinds:
        return f"{kinds[name]} at {name!r}"
    return f"a group of features {name!r} ({', '.join(group)})" if group else f"no feature {name!r}"


def _flatten(feature: Mapping[str, Any], name: str = "") -> dict[str, str]:
    """Step feature names, joined by "/", and what they hold, from a node of features.json."""
    if "featuresDict" in feature:
        children = feature["featuresDict"]["features"].items()
        return {k: v for key, child in children for k, v in _flatten(child, f"{name}/{key}".strip("/")).items()}
    return {name: _kind(feature)}


def _kind(feature: Mapping[str, Any]) -> str:
    if "image" in feature:
        return _IMAGE
    if "text" in feature:
        return _TEXT
    tensor = feature.get("tensor")
    # With an encoding, the numbers of a step are one byte string.
    if tensor is None or tensor.get("encoding", "none").lower() not in ("", "none"):
        return _OTHER
    return _TEXT if tensor.get("dtype") == "string" else _NUMBERS
