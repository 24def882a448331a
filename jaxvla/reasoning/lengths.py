"""How long the texts of a dataset are: one scan, kept beside the data, gives the static sizes of batches."""

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from tqdm import tqdm

from jaxvla.config import from_mapping
from jaxvla.data.formats import sidecar
from jaxvla.data.schema import TextSpec
from jaxvla.reasoning.batch import SplitText, too_long
from jaxvla.reasoning.curriculum import Curriculum
from jaxvla.reasoning.prompt import BARE, SLOTS, WORDS, PromptBuilder

_VERSION = 2
_CHUNK = 2048
_MULTIPLE = 8


@dataclasses.dataclass(frozen=True)
class Longest:
    """The most tokens that a part of a sample has, and whose part that is."""

    length: int
    name: str


@dataclasses.dataclass(frozen=True)
class TextLengths:
    """The longest prefix of a split, and its longest suffix at each stage from 0 on."""

    prefix: Longest
    suffixes: tuple[Longest, ...]

    def dumps(self) -> bytes:
        """As JSON."""
        return json.dumps(dataclasses.asdict(self)).encode()

    @classmethod
    def loads(cls, content: bytes) -> "TextLengths":
        """The inverse of `dumps`.

        Raises:
            ConfigError, ValueError: it is garbled.
        """
        return from_mapping(cls, json.loads(content), "lengths")


def open_lengths(
    split: SplitText,
    builder: PromptBuilder,
    curriculum: Curriculum,
    paths: Iterable[str | os.PathLike],
    folder: pathlib.Path,
) -> TextLengths:
    """The lengths of a split's texts: read from where they were kept, or measured and kept.

    Args:
        split: whose texts.
        builder: words the prompts.
        curriculum: its components and how they read; not its schedule.
        paths: the files that the texts come from: of the dataset, and the store.
        folder: the dataset's; the lengths lie in it, or in the user's cache where it is read-only.

    Raises:
        DataError: as `measure`.
    """
    backend = hashlib.sha256(builder.tokenizer.backend.to_str().encode()).hexdigest()
    tables = (np.ascontiguousarray(table, np.int64).tobytes() for table in (split.transitions, split.episodes))
    texts = json.dumps([split.keys, split.language]).encode()  # splits of the same files may differ in these alone
    rows = [hashlib.sha256(row).hexdigest() for row in (*tables, texts)]
    prompt, config = builder.config, curriculum.config
    settings = (
        (prompt.base_prompt, prompt.lower_case_instruction, builder.image_tokens),
        (config.component_set, curriculum.components, config.slots_for_missing),
    )
    name = sidecar.fingerprint(paths, _VERSION, backend, rows, settings)
    return sidecar.kept(
        folder / f"text_lengths-{name}.json",
        TextLengths.loads,
        lambda: measure(split, builder, curriculum),
        TextLengths.dumps,
    )


def measure(split: SplitText, builder: PromptBuilder, curriculum: Curriculum) -> TextLengths:
    """Encodes the instructions of every trajectory that is drawn from, and the words of every such step, once.

    A component has as many tokens alone as in a text, so the lengths at all stages are sums of the same numbers.

    Raises:
        DataError: a trajectory without an instruction, or a text that cannot be encoded.
    """
    prefix = _measure_prefixes(split, builder)
    end = len(builder.end_of_turn)
    best = np.full(1 + len(curriculum.components), end + 1)
    best[0] = end
    names = [""] * len(best)
    trajectory, step = split.transitions.T
    starts = range(0, len(step) if split.store is not None else 0, _CHUNK)
    for start in tqdm(starts, "measuring texts", unit_scale=_CHUNK, unit="step", delay=1.0, leave=False):
        rows = slice(start, start + _CHUNK)
        found = _suffix_lengths(split, builder, curriculum, trajectory[rows], step[rows])
        longest = found.argmax(axis=0)
        for stage, i in enumerate(longest.tolist()):
            if found[i, stage] > best[stage]:
                best[stage] = found[i, stage]
                names[stage] = split.names(trajectory[rows], step[rows])(i)
    return TextLengths(prefix, tuple(Longest(int(length), name) for length, name in zip(best, names)))


def text_specs(lengths: Sequence[TextLengths], builder: PromptBuilder, curriculum: Curriculum) -> tuple[TextSpec, ...]:
    """The sizes at every stage that hold the texts of all splits, as far as the configured limits allow.

    The prefix has the same columns at all stages. Where nothing ever reasons, there are no slots, and the suffix holds
    the end of the turn alone.

    Args:
        lengths: of each split.
        builder: whose configuration has the limits.
        curriculum: whose stages.

    Raises:
        DataError: with on_overflow="error", a text that is over its limit at a stage of the schedule.
    """
    config = builder.config
    prefix = max((split.prefix for split in lengths), key=lambda longest: longest.length)
    stages = range(1 + len(curriculum.components))
    if curriculum.reasons:
        suffixes = [max((split.suffixes[i] for split in lengths), key=lambda longest: longest.length) for i in stages]
        slots = [curriculum.num_slots(stage) for stage in stages]
    else:
        suffixes = [Longest(len(builder.end_of_turn), "")] * len(stages)
        slots = [0] * len(stages)
    if config.on_overflow == "error":
        scheduled = {own for stage in curriculum.stages for own in curriculum.sample_stages(stage)}
        _check_limit("prefix", prefix, config.max_prefix_length)
        for stage in scheduled:
            _check_limit("suffix", suffixes[stage], config.max_suffix_length)
    return tuple(
        TextSpec(
            _columns(prefix.length, config.max_prefix_length),
            slots[stage],
            _columns(max(suffixes[own].length for own in curriculum.sample_stages(stage)), config.max_suffix_length),
        )
        for stage in stages
    )


def _measure_prefixes(split: SplitText, builder: PromptBuilder) -> Longest:
    used = np.unique(split.transitions[:, 0])[::-1].tolist()
    # An unlabelled trajectory is refused as one with an empty instruction.
    owner = {text: split.keys[i] for i in used for text in split.language[i] or ("",)}
    texts, best = list(owner), Longest(0, "")
    for start in range(0, len(texts), _CHUNK):
        part = texts[start : start + _CHUNK]
        names = [f"trajectory {owner[text]!r}" for text in part]
        for kind in (BARE, WORDS, SLOTS):
            rows = builder.prefixes(part, [kind] * len(part), names.__getitem__)
            best = max(best, *map(Longest, map(len, rows), names), key=lambda longest: longest.length)
    return best


def _suffix_lengths(
    split: SplitText, builder: PromptBuilder, curriculum: Curriculum, trajectory: np.ndarray, step: np.ndarray
) -> np.ndarray:
    """Tokens of the suffix of n samples at each stage: int64 [n, number of components + 1]."""
    reasonings, name = split.read(trajectory, step), split.names(trajectory, step)

    def count(stage: int) -> np.ndarray:
        """Tokens of all components from each one on."""
        words = [curriculum.words(known, stage) for known in reasonings]
        places = [(i, curriculum.components.index(component)) for i, parts in enumerate(words) for component in parts]
        texts = [text for parts in words for text in parts.values()]
        rows = builder.encoder.encode(texts, lambda k: name(places[k][0]))
        counts = np.zeros((len(words), len(curriculum.components) + 1), np.int64)
        for place, row in zip(places, rows):
            counts[place] = len(row)
        return np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]

    # From stage 1 on a sample's components are the same, and only move from words to slots.
    first, end = count(0), len(builder.end_of_turn)
    if curriculum.config.slots_for_missing:
        later, has_slots = first, np.ones((len(reasonings), len(curriculum.components)), bool)
    else:
        later = count(1)
        has_slots = later[:, 1:] < later[:, :1]
    return np.concatenate([first[:, :1] + end, np.where(has_slots, later[:, 1:] + 1, 0) + end], axis=1)


def _check_limit(part: str, longest: Longest, limit: int) -> None:
    if 0 < limit < longest.length:
        raise too_long(longest.name, part, longest.length, limit)


def _columns(length: int, limit: int) -> int:
    rounded = -(-length // _MULTIPLE) * _MULTIPLE
    return min(rounded, limit) if limit else rounded
