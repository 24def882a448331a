"""RLDS datasets as TFDS writes them, read without TensorFlow: one episode per record, images encoded or raw.

The files are TFRecords or array_record files (records.py), which features.json describes (rlds_features.py).
"""

import dataclasses
import hashlib
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from jaxvla.data.formats import tfrecord
from jaxvla.data.formats.index import MIN_TRANSITIONS, Frames, Index, IndexBuilder
from jaxvla.data.formats.records import open_records
from jaxvla.data.formats.rlds_episode import Episode
from jaxvla.data.formats.rlds_features import DEPTH, NUMBERS, PICTURES, TEXT, Feature, read_features
from jaxvla.data.formats.standard import Standardize, Standardized, annotations
from jaxvla.data.skipping import UnusableError
from jaxvla.errors import DataError


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
    """Builds the indices of one dataset's files. Picklable where its standardization is.

    An episode of N steps has N - 1 transitions: the action of its last step leads nowhere.

    Attributes:
        keys: of the features; `language` and `vector` are empty where the dataset has none.
        features: of the steps, all that there are.
        standardize: makes actions, states and instructions of whole trajectories; None to take them by `keys`.
    """

    keys: StepKeys
    features: tuple[Feature, ...]
    standardize: Standardize | None = None

    @classmethod
    def of(cls, folder: pathlib.Path, keys: StepKeys, standardize: Standardize | None = None) -> "RLDSFormat":
        """Reads features.json of the dataset version `folder`.

        With a standardization, `keys` but the vector's are not looked at.

        Raises:
            DataError: no such file, or its steps lack a feature of `keys`, or have it of another type; the vector, and
                the language by its usual name, may be missing.
        """
        path = folder / "features.json"
        features = read_features(path)
        by_name = {feature.name: feature for feature in features}
        vector = keys.vector if keys.vector in by_name and by_name[keys.vector].kind == NUMBERS else ""
        if standardize is not None:
            return cls(dataclasses.replace(keys, language="", vector=vector), features, standardize)
        wanted = [("action_key", keys.action, NUMBERS), ("proprio_key", keys.proprio, NUMBERS)]
        if keys.language != StepKeys.language:
            wanted.append(("language_key", keys.language, TEXT))
        for option, name, kind in wanted:
            if name not in by_name or by_name[name].kind != kind:
                there = ", ".join(sorted(feature.name for feature in features if feature.kind == kind)) or "nowhere"
                raise DataError(
                    f"{path}: steps have {_what(name, by_name)}; {kind} are {there}: set bridgedata_config.{option} "
                    "to one of these"
                )
        language = keys.language if keys.language in by_name and by_name[keys.language].kind == TEXT else ""
        return cls(dataclasses.replace(keys, language=language, vector=vector), features)

    @property
    def cameras(self) -> tuple[str, ...]:
        """The features that are pictures."""
        return self._names(PICTURES)

    @property
    def variant(self) -> str:
        """What the indices of a standardization are called, to lie beside those without it."""
        name = self.standardize.name if self.standardize else ""
        return hashlib.sha256(name.encode()).hexdigest()[:8] if name else ""

    def camera(self, name: str, option: str, where: str) -> str:
        """The image feature that `name` means: one below `steps`, or else below `steps/observation`.

        Raises:
            DataError: there is none; names the dataset (`where`), those that there are, and the `option` that chooses.
        """
        names = (name, f"observation/{name}")
        found = next((camera for camera in names if camera in self.cameras), None)
        if found is None:
            there = ", ".join(self.cameras) or "no pictures at all"
            there = f"the steps have {there}: set bridgedata_config.cameras.{option}"
            if any(known in self._names(DEPTH) for known in names):
                raise DataError(f"{where}: {name!r} holds {DEPTH}, which is no camera, {there}")
            raise DataError(f"{where}: no camera {name!r}, {there}")
        return found

    def notes(self) -> tuple[str, ...]:
        """A line that says why no step has an instruction, where the dataset has no feature for them."""
        if self.keys.language or self.standardize:
            return ()
        there = ", ".join(self._names(TEXT)) or "nowhere"
        why = f"steps have no text {StepKeys.language!r}, texts are {there}"
        return (f"language     {why}: bridgedata_config.language_key chooses one",)

    def build_index(self, path: str) -> Index:
        """Indexes one shard; episodes that cannot be used are left out and counted.

        Raises:
            DataError: the file is damaged; names path and byte position.
        """
        builder = IndexBuilder()
        for number, (episode, where) in enumerate(self.episodes(path)):
            with builder.trajectory():
                self._add(builder, episode, episode.key(f"{pathlib.Path(path).name}#{number}"), where)
        return builder.build()

    def episodes(self, path: str) -> Iterator[tuple[Episode, str]]:
        """The episodes of one shard, in order, and what messages call each.

        Raises:
            DataError: the file is damaged; names path and byte position.
        """
        file = open_records(path)
        packed = {f"steps/{feature.name}" for feature in self.features if feature.is_packed}
        for number, record in enumerate(file.spans()):
            where = f"{path}: record {number}"
            read = file.whole(record)
            yield Episode(read, tfrecord.parse_example(read, record, path, packed), where), where

    def trajectory(self, episode: Episode) -> dict[str, Any]:
        """All that the steps of an episode hold but pictures; see `Episode.trajectory`.

        Raises:
            UnusableError: nothing says how many steps there are, or a feature has not as many values.
        """
        return episode.trajectory(self.features, self._num_steps(episode))

    def _add(self, builder: IndexBuilder, episode: Episode, key: str, where: str) -> None:
        steps = self._num_steps(episode)
        if not steps:
            raise UnusableError(f"fewer than {MIN_TRANSITIONS} transitions", f"{where}: no steps")
        rows = self._rows(episode, steps, where)
        language, texts, first = annotations(rows.texts[:-1])
        vector = self._feature(self.keys.vector)
        frames = {feature.name: episode.pictures(feature) for feature in self.features if feature.is_located}
        if len(rows.steps) != steps:
            frames = {name: _choose(found, rows.steps, steps) for name, found in frames.items()}
        builder.add(
            where,
            key,
            rows.actions,
            rows.proprio,
            language,
            texts,
            frames,
            episode.numbers(vector, steps)[rows.steps[first]] if vector else None,
            rows.taught,
            (rows.steps, steps),
        )

    def _rows(self, episode: Episode, steps: int, where: str) -> Standardized:
        """Actions, states and texts: standardized, or as the dataset has them."""
        if self.standardize:
            return self.standardize(episode.trajectory(self.features, steps), steps, where)
        action, proprio, language = map(self._feature, (self.keys.action, self.keys.proprio, self.keys.language))
        texts = episode.texts(language, steps) if language else [""] * steps
        return Standardized(
            episode.numbers(action, steps)[:-1],
            episode.numbers(proprio, steps),
            texts,
            np.arange(steps),
            np.ones(steps - 1, bool),
        )

    def _num_steps(self, episode: Episode) -> int:
        """By the texts, else the pictures, else the numbers, where there are no flags."""
        chosen = [feature for feature in self.features if feature.name == self.keys.language]
        return episode.num_steps(chosen + [f for kind in (PICTURES, NUMBERS) for f in self.features if f.kind == kind])

    def _feature(self, name: str) -> Feature | None:
        return next((feature for feature in self.features if feature.name == name), None) if name else None

    def _names(self, kind: str) -> tuple[str, ...]:
        return tuple(sorted(feature.name for feature in self.features if feature.kind == kind))


def _choose(found: Frames | str, chosen: np.ndarray, steps: int) -> Frames | str:
    """The frames of some of the steps."""
    if isinstance(found, str):
        return found
    if len(found.offsets) != steps:
        return f"{len(found.offsets)} pictures for {steps} steps"
    return found.select(chosen)


def _what(name: str, features: Mapping[str, Feature]) -> str:
    """What the steps have by a name."""
    group = [key for key in features if key.startswith(f"{name}/")]
    if name in features:
        return f"{features[name].kind} at {name!r}"
    return f"a group of features {name!r} ({', '.join(group)})" if group else f"no feature {name!r}"
