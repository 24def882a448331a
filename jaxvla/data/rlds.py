"""RLDS datasets in the TFRecord format of TFDS, read without TensorFlow: one episode per record, images encoded.

TFDS flattens the steps of an episode: a feature `steps/<key>` holds the values of all steps end to end.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvla.data import tfrecord
from jaxvla.data.index import Frames, Index, IndexBuilder
from jaxvla.data.tfrecord import FeatureSpan
from jaxvla.errors import DataError


@dataclasses.dataclass(frozen=True)
class StepKeys:
    """The names of a dataset's step features; image features are found by their type.

    `vector` is that of the language, which not all datasets have.
    """

    action: str = "action"
    proprio: str = "observation/state"
    language: str = "language_instruction"
    vector: str = "language_embedding"


@dataclasses.dataclass(frozen=True)
class RLDSFormat:
    """Builds the indices of one dataset's files.

    An episode of N steps has N - 1 transitions: the action of its last step leads nowhere. Images are named without
    their `observation/` prefix.
    """

    keys: StepKeys
    cameras: tuple[str, ...]
    has_vectors: bool

    @classmethod
    def of(cls, folder: pathlib.Path, keys: StepKeys) -> "RLDSFormat":
        """Reads features.json of the dataset version `folder`.

        Raises:
            DataError: no such file, or it does not name steps with the features `keys`; only the vector may be missing.
        """
        path = folder / "features.json"
        try:
            features = json.loads(path.read_text())
            steps = features["featuresDict"]["features"]["steps"]["sequence"]["feature"]
        except OSError as error:
            raise DataError(
                f"{path}: cannot be read ({error.strerror}): the data path of an RLDS dataset is its version folder, "
                "such as bridge_dataset/1.0.0"
            ) from error
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{path}: does not describe an RLDS dataset with steps") from error
        kinds = _flatten(steps)
        for name in (keys.action, keys.proprio, keys.language):
            if name not in kinds:
                raise DataError(f"{path}: steps have no feature {name!r}, they have {', '.join(sorted(kinds))}")
        images = (name.removeprefix("observation/") for name, kind in kinds.items() if kind == "image")
        return cls(keys, tuple(sorted(images)), keys.vector in kinds)

    def build_index(self, path: str) -> Index:
        """Indexes one shard.

        Raises:
            DataError: the file is damaged, or lacks a feature; names path, record and key.
        """
        builder = IndexBuilder(path)
        with open(path, "rb") as file:
            read = tfrecord.file_reader(file.fileno())
            for number, record in enumerate(tfrecord.scan_records(file.fileno(), path)):
                episode = _Episode(read, tfrecord.parse_example(read, record, path), f"{path}: record {number}")
                states = episode.floats(self.keys.proprio)
                images = {camera: episode.values(f"steps/observation/{camera}", "bytes") for camera in self.cameras}
                language = episode.language(self.keys.language)
                builder.add(
                    episode.floats(self.keys.action, len(states))[:-1],
                    states,
                    tuple(language),
                    episode.key(number),
                    {camera: _encoded(spans) for camera, spans in images.items()},
                    episode.floats(self.keys.vector)[[*language.values()]] if self.has_vectors else None,
                )
        return builder.build()


class _Episode:
    """The features of one record."""

    def __init__(self, read: tfrecord.Read, features: dict[str, FeatureSpan], where: str) -> None:
        self._features = features
        self._read = read
        self._where = where

    def values(self, key: str, kind: str) -> Any:
        feature = self._features.get(key)
        if feature is None or feature.kind != kind:
            found = "nothing" if feature is None else f"{feature.kind} values"
            raise DataError(
                f"{self._where} has {found} at {key!r}, not {kind} values; does features.json belong to it?"
            )
        return feature.values

    def floats(self, key: str, steps: int | None = None) -> np.ndarray:
        flat = self.values(f"steps/{key}", "float")
        steps = steps or len(self.values("steps/is_first", "int64"))
        if not steps or len(flat) % steps:
            raise DataError(f"{self._where}: {len(flat)} values of {key!r} do not divide among {steps} steps")
        return flat.reshape(steps, -1)

    def text(self, key: str) -> list[str]:
        spans = self.values(key, "bytes")
        return [self._read(span.offset, span.length).decode(errors="replace").strip() for span in spans]

    def language(self, key: str) -> dict[str, int]:
        """The different annotations, and the first step that has each."""
        texts = self.text(f"steps/{key}")
        return {text: texts.index(text) for text in texts if text}

    def key(self, number: int) -> str:
        parts = []
        if "episode_metadata/file_path" in self._features:
            parts += self.text("episode_metadata/file_path")
        if "episode_metadata/episode_id" in self._features:
            parts += [str(int(self.values("episode_metadata/episode_id", "int64")[0]))]
        return "#".join(parts) or str(number)


def _encoded(spans: list[tfrecord.Span]) -> Frames:
    table = np.array(spans, np.int64).reshape(-1, 2)
    return Frames(table[:, 0], table[:, 1], ())


def _flatten(feature: Mapping[str, Any], name: str = "") -> dict[str, str]:
    """Step feature names, joined by "/", and their kinds, from a node of features.json."""
    if "featuresDict" in feature:
        children = feature["featuresDict"]["features"].items()
        return {k: v for key, child in children for k, v in _flatten(child, f"{name}/{key}".strip("/")).items()}
    return {name: next((kind for kind in ("image", "tensor", "text") if kind in feature), "other")}


def find_files(folder: pathlib.Path, split: str) -> list[str]:
    """The shards of one split of the dataset version `folder`, sorted.

    Raises:
        DataError: the folder is missing or holds no such shards.
    """
    if not folder.is_dir():
        raise DataError(
            f"no data folder {folder}: set the data path to an RLDS version folder, as bridge_dataset/1.0.0"
        )
    files = sorted(os.fspath(path) for path in folder.glob(f"*-{split}.tfrecord-?????-of-?????"))
    if not files:
        present = sorted({path.name.split(".tfrecord-")[0].rpartition("-")[2] for path in folder.glob("*.tfrecord-*")})
        raise DataError(
            f"{folder} has no {split} split, it has {', '.join(present) or 'no TFRecords'}: download it again"
        )
    expected = int(files[0].rpartition("-of-")[2])
    if len(files) != expected:
        raise DataError(f"{folder} has {len(files)} of {expected} {split} shards: download the missing ones")
    return files
