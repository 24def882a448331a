"""All that words a run: opened once for training, kept in every checkpoint, read again by what acts."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxvla.config import from_mapping
from jaxvla.data.dataset import Dataset
from jaxvla.data.formats.index import NO_TEXT
from jaxvla.data.mixture import Mixture
from jaxvla.data.schema import TextSpec
from jaxvla.data.source import TrajectorySource
from jaxvla.data.text.tokenizer import Tokenizer, tokenizer_from_files
from jaxvla.errors import DataError
from jaxvla.reasoning.batch import SplitText, TextBatches, inference_text
from jaxvla.reasoning.curriculum import Curriculum, CurriculumConfig
from jaxvla.reasoning.join import Join, check, join
from jaxvla.reasoning.lengths import open_lengths, text_specs
from jaxvla.reasoning.prompt import PromptBuilder, PromptConfig
from jaxvla.reasoning.store import JoinedStores, ReasoningStore


@dataclasses.dataclass(frozen=True, eq=False)
class Wording:
    """How instructions become tokens, at every stage; what a checkpoint keeps.

    Attributes:
        builder: words the prompts.
        curriculum: the stages.
        specs: the sizes of batches at each stage.
    """

    builder: PromptBuilder
    curriculum: Curriculum
    specs: tuple[TextSpec, ...]

    def spec_at(self, step: int) -> TextSpec:
        """The sizes of the batch that is trained on after `step` updates."""
        return self.specs[self.curriculum.stage_at(step)]

    def stage_after(self, step: int) -> int:
        """The stage of the last of `step` updates; where none was made, that of the first."""
        return self.curriculum.stage_at(max(step - 1, 0))

    def inference(self, instructions: Sequence[str], mode: str, stage: int) -> dict[str, np.ndarray]:
        """The texts with which a policy begins to act, see `batch.inference_text`."""
        return inference_text(self.builder, self.curriculum, instructions, mode, stage, self.specs[0])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values, the tokenizer's files among them."""
        return {
            "prompt": dataclasses.asdict(self.builder.config),
            "image_tokens": list(self.builder.image_tokens),
            "curriculum": dataclasses.asdict(self.curriculum.config),
            "specs": [dataclasses.asdict(spec) for spec in self.specs],
            "tokenizer": self.builder.tokenizer.files(),
        }

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Wording":
        """The inverse of `to_json`."""
        builder = PromptBuilder(
            tokenizer_from_files(values["tokenizer"]),
            from_mapping(PromptConfig, values["prompt"], "config.prompt"),
            tuple(values["image_tokens"]),
        )
        curriculum = Curriculum(from_mapping(CurriculumConfig, values["curriculum"], "config.curriculum"))
        return cls(builder, curriculum, tuple(TextSpec(**spec) for spec in values["specs"]))


@dataclasses.dataclass(frozen=True, eq=False)
class Texts:
    """The texts of a run.

    Attributes:
        wording: how they are worded.
        training, validation: make the texts of batches.
        report: lines that say how much of the data has reasoning.
    """

    wording: Wording
    training: TextBatches
    validation: TextBatches
    report: tuple[str, ...]


class StoreChoice(NamedTuple):
    """The reasoning of one dataset.

    Attributes:
        path: of the store; empty for data without any.
        max_mismatched: see `join.check`.
    """

    path: str
    max_mismatched: float


def open_texts(
    tokenizer: Tokenizer,
    prompt: PromptConfig,
    curriculum: CurriculumConfig,
    image_tokens: Sequence[int],
    training: Mixture,
    validation: Mixture,
    choices: Sequence[StoreChoice],
) -> Texts:
    """Joins both splits with their reasoning and measures their texts, or reads what an earlier start measured.

    Args:
        tokenizer: with the thinking tokens.
        prompt, curriculum: see there.
        image_tokens: how many tokens the image of each camera takes.
        training, validation: the splits.
        choices: the reasoning of each dataset.

    Raises:
        DataError: there is no such store, it has nothing on the training split, too much of it belongs to other data,
            or a text does not fit.
    """
    builder, stages = PromptBuilder(tokenizer, prompt, tuple(image_tokens)), Curriculum(curriculum)
    stores = [ReasoningStore(choice.path) if choice.path else None for choice in choices]
    report: list[str] = []
    splits, lengths = [], []
    for name, mixture in (("training", training), ("validation", validation)):
        parts = [_split_text(dataset, store, name) for dataset, store in zip(mixture.datasets, stores)]
        for dataset, choice, (_, found) in zip(mixture.names, choices, parts):
            label = "" if len(parts) == 1 else f"  [{dataset}]"
            if found is not None:
                of_validation = f"             {found.coverage:.1%} of the validation transitions"
                report.append((found.describe() if mixture is training else of_validation) + label)
                report += [line + label for line in check(found, choice.max_mismatched, name)]
        split = _joined(mixture, [part for part, _ in parts], stores)
        paths = [*mixture.paths, *(choice.path for choice in choices if choice.path)]
        lengths.append(open_lengths(split, builder, stages, paths, pathlib.Path(mixture.paths[0]).parent))
        splits.append(split)
    specs = text_specs(lengths, builder, stages)
    batches = (TextBatches(builder, stages, split, specs) for split in splits)
    return Texts(Wording(builder, stages, specs), *batches, tuple(report))


def _split_text(dataset: Dataset, store: ReasoningStore | None, name: str) -> tuple[SplitText, Join | None]:
    source = dataset.source
    trajectory, _ = source.locate(dataset.drawable)
    step = source.stored_steps(dataset.drawable)
    unlabelled = np.unique(trajectory[source.texts[dataset.drawable] == NO_TEXT])
    if unlabelled.size:
        raise DataError(
            f"{unlabelled.size} {name} trajectories have steps without an instruction, such as "
            f"{source.keys[unlabelled[0]]!r}: set config.data.skip_unlabeled=True"
        )
    keys, language = tuple(source.keys), tuple(source.language)
    found = None
    if store is not None:
        found = join(store, keys, source.lengths, language, _places(source), source.stored)
    episodes = np.full(len(source), -1) if found is None else found.episodes
    return SplitText(keys, language, np.stack([trajectory, step], 1), episodes, store), found


def _joined(mixture: Mixture, parts: Sequence[SplitText], stores: Sequence[ReasoningStore | None]) -> SplitText:
    """The texts of all datasets, end to end."""
    if len(parts) == 1:
        return parts[0]
    present = [store for store in stores if store is not None]
    joined = JoinedStores(present) if present else None
    starts = iter(joined.starts.tolist() if joined else ())
    firsts = [0 if store is None else next(starts) for store in stores]
    shifts = (np.array([start, 0]) for start in mixture.trajectory_starts.tolist())
    transitions = (part.transitions + shift for part, shift in zip(parts, shifts))
    episodes = (np.where(part.episodes < 0, -1, part.episodes + first) for part, first in zip(parts, firsts))
    return SplitText(
        tuple(key for part in parts for key in part.keys),
        tuple(texts for part in parts for texts in part.language),
        np.concatenate(list(transitions)),
        np.concatenate(list(episodes)),
        joined,
    )


def _places(source: TrajectorySource) -> list[tuple[str, int]]:
    """The file of each trajectory and its number there, the same for a file that several groups include."""
    files = [os.path.realpath(path) for path in source.paths]
    numbers = np.arange(len(source)) - np.searchsorted(source.file_of, source.file_of)
    return [(files[file], number) for file, number in zip(source.file_of.tolist(), numbers.tolist())]
