"""The batch key `text` (see data/schema.py): what a batch's samples read, think and say, in static columns."""

import dataclasses
import itertools
from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

import numpy as np

from jaxvla.data.schema import TextSpec
from jaxvla.data.text.chat import left_pad
from jaxvla.errors import ConfigError, DataError
from jaxvla.reasoning.curriculum import Curriculum, Plan
from jaxvla.reasoning.prompt import BARE, SLOTS, WORDS, PromptBuilder
from jaxvla.reasoning.record import Reasoning

MODES = ("implicit", "explicit", "none")


@runtime_checkable
class ReasoningReader(Protocol):
    """Reads annotations at random; thread-safe. `store.ReasoningStore` is one."""

    def read(self, episodes: np.ndarray, steps: np.ndarray) -> list[Reasoning | None]:
        """What is known about step steps[i] of episode episodes[i]; None where that is nothing, or the episode -1."""


@dataclasses.dataclass(frozen=True, eq=False)
class SplitText:
    """The texts of one split's n trajectories. Picklable, and safe to read from several threads.

    Args:
        keys: names of the trajectories.
        language: the different instructions of each; empty where it is unlabelled.
        transitions: int64 [m, 2], the (trajectory, step) of each transition that can be drawn.
        episodes: int64 [n], the episode of each in `store`; -1 where it has none.
        store: the reasoning; None where no trajectory has any.

    Attributes:
        instructions: all instructions, end to end: the table that a batch's `language` points into.
    """

    keys: tuple[str, ...]
    language: tuple[tuple[str, ...], ...]
    transitions: np.ndarray
    episodes: np.ndarray
    store: ReasoningReader | None

    def __post_init__(self) -> None:
        object.__setattr__(self, "instructions", tuple(itertools.chain.from_iterable(self.language)))

    def read(self, trajectory: np.ndarray, step: np.ndarray) -> list[Reasoning | None]:
        """What is known about the transitions `step` int64 [b] of `trajectory` int64 [b]."""
        return [None] * len(step) if self.store is None else self.store.read(self.episodes[trajectory], step)

    def names(self, trajectory: np.ndarray, step: np.ndarray) -> Callable[[int], str]:
        """What an error calls sample i of transitions `step` int64 [b] of `trajectory` int64 [b]."""
        return lambda i: f"trajectory {self.keys[trajectory[i]]!r} step {step[i]}"


@dataclasses.dataclass(frozen=True, eq=False)
class TextBatches:
    """Makes the texts of batches; a `data.loader.TextSource`. Picklable, and safe to call from several threads.

    Args:
        builder: words the prompts.
        curriculum: decides on slots and words, by the number of the batch.
        split: whose texts.
        specs: the sizes at each stage, from `lengths.text_specs`.
    """

    builder: PromptBuilder
    curriculum: Curriculum
    split: SplitText
    specs: tuple[TextSpec, ...]

    def at_stage(self, stage: int) -> "TextBatches":
        """The same at one stage, whatever the number of the batch, with nothing drawn at random: for validation."""
        return dataclasses.replace(self, curriculum=self.curriculum.at_stage(stage))

    def __call__(
        self,
        batch_index: int,
        trajectory: np.ndarray,
        step: np.ndarray,
        instruction: np.ndarray,
        uniforms: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """The texts of b samples, as data/schema.py describes them.

        A label stands at the end of thinking, at the words, and at the end of the turn where all words stand before
        it: a model that was shown none, or not all of them, must not learn to stop there.

        Args:
            batch_index: the updates made before this batch.
            trajectory: int64 [b].
            step: int64 [b], transitions of these trajectories.
            instruction: int [b], entries of `split.instructions`; -1 where the trajectory is unlabelled.
            uniforms: float64 [b, m], random numbers in [0, 1), at least `curriculum.num_uniforms` for each sample.

        Raises:
            DataError: a trajectory without an instruction, a text that cannot be encoded, or, with
                on_overflow="error", one that is too long.
        """
        stage = self.curriculum.stage_at(batch_index)
        reads = self.curriculum.reads_reasoning(stage)
        reasonings = self.split.read(trajectory, step) if reads else [None] * len(step)
        plans = [self.curriculum.plan(known, stage, row) for known, row in zip(reasonings, uniforms)]
        texts = [self.split.instructions[i] if i >= 0 else "" for i in instruction.tolist()]
        return _lay_out(self.builder, plans, texts, self.specs[stage], self.split.names(trajectory, step))


def inference_text(
    builder: PromptBuilder, curriculum: Curriculum, instructions: Sequence[str], mode: str, stage: int, spec: TextSpec
) -> dict[str, np.ndarray]:
    """The texts with which a policy begins to act: those of a training batch, without labels.

    Args:
        builder: words the prompts.
        curriculum: of training.
        instructions: b texts.
        mode: "implicit" thinks in the slots of `stage`, and says nothing; "explicit" ends where the words are to be
            generated, with no slots and an empty suffix; "none" acts without any reasoning.
        stage: the slots of "implicit".
        spec: of any stage; its prefix_length counts, as the slots and the suffix follow from the mode.

    Raises:
        ConfigError: an unknown mode, or "implicit" at the stage without slots.
        DataError: an instruction is empty, cannot be encoded or, with on_overflow="error", is too long.
    """
    if mode not in MODES:
        raise ConfigError(f"no inference mode {mode!r}; there are {', '.join(MODES)}")
    if mode == "implicit" and stage == 0:
        raise ConfigError("mode implicit needs a stage with slots, and stage 0 has none: use mode explicit")
    num_slots = curriculum.num_slots(stage) if mode == "implicit" else 0
    plan = Plan({"implicit": stage, "explicit": 0, "none": -1}[mode], num_slots, ())
    suffix_length = len(builder.suffixes([()], [num_slots > 0], str)[0])
    sizes = TextSpec(spec.prefix_length, num_slots, suffix_length)
    text = _lay_out(builder, [plan] * len(instructions), instructions, sizes, lambda i: f"instruction {i}")
    del text["labels"]
    if mode == "explicit":
        text["suffix"], text["suffix_stop"] = text["suffix"][:, :0], np.zeros_like(text["suffix_stop"])
    return text


def _lay_out(
    builder: PromptBuilder,
    plans: Sequence[Plan],
    instructions: Sequence[str],
    spec: TextSpec,
    name: Callable[[int], str],
) -> dict[str, np.ndarray]:
    has_slots = [plan.num_slots > 0 for plan in plans]
    kinds = [BARE if plan.stage < 0 else SLOTS if plan.num_slots else WORDS for plan in plans]
    prefixes = builder.prefixes(instructions, kinds, name)
    suffixes = builder.suffixes([plan.words for plan in plans], has_slots, name)
    cut_prefix = _over(prefixes, "prefix", spec.prefix_length, builder.config.on_overflow, name)
    cut_suffix = _over(suffixes, "suffix", spec.suffix_length, builder.config.on_overflow, name)
    for i in np.flatnonzero(cut_prefix):
        prefixes[i] = builder.cut_prefix(prefixes[i], kinds[i], spec.prefix_length)
    for i in np.flatnonzero(cut_suffix):
        suffixes[i] = builder.cut_suffix(suffixes[i], spec.suffix_length)
    prefix, is_text = left_pad(prefixes, builder.pad_id, spec.prefix_length)
    columns, stop = np.arange(spec.suffix_length), np.array([len(row) for row in suffixes], np.int32)
    suffix = np.full((len(plans), spec.suffix_length), builder.pad_id, np.int32)
    suffix[columns < stop[:, None]] = np.concatenate(suffixes)
    whole_words = np.array([bool(plan.words) for plan in plans]) & ~cut_suffix
    # Where the turn ends after whole words, its first token is learned; the line break after it never is.
    learned = stop - len(builder.end_of_turn) + whole_words
    num_slots = np.array([plan.num_slots for plan in plans])
    return {
        "prefix": prefix,
        "prefix_start": np.argmax(is_text, axis=1).astype(np.int32),
        "slots": np.arange(spec.num_slots) < num_slots[:, None],
        "suffix": suffix,
        "suffix_stop": stop,
        "labels": columns < learned[:, None],
        "stage": np.array([plan.stage for plan in plans], np.int32),
        "truncated": cut_prefix | cut_suffix,
    }


def _over(
    rows: Sequence[np.ndarray], part: str, limit: int, on_overflow: str, name: Callable[[int], str]
) -> np.ndarray:
    """Which of n rows have more tokens than `limit`: bool [n]; an error where that is not allowed."""
    over = np.array([len(row) > limit for row in rows])
    if over.any() and on_overflow == "error":
        first = int(over.argmax())
        raise too_long(name(first), part, len(rows[first]), limit)
    return over


def too_long(name: str, part: str, length: int, limit: int) -> DataError:
    """The error for the "prefix" or "suffix" of a sample that has more tokens than columns."""
    return DataError(
        f"{name}: the {part} has {length} tokens, over the limit of {limit}: raise config.prompt.max_{part}_length, "
        "or set config.prompt.on_overflow=truncate"
    )
