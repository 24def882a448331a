"""Joins a dataset's trajectories with the episodes of a reasoning store, and says how much of the dataset that covers.

Trajectories and episodes are joined by "<file_path>#<episode_id>". For RLDS both are the dataset's own metadata; for
BridgeData's TFRecords the file path is the raw trajectory's folder relative to the raw root, and the episode id is 0.

A key alone is not trusted. Steps count those of the episode as the dataset stores it, whichever of them a trajectory
keeps, so an annotated episode fits one of T transitions if it has T + 1 steps, one per frame, or T, one per action.
Nothing else fits: T + 2 are the raw frames of the oldest rigs, whose conversion loses the first one, and each of their
steps would tell the frame before.
"""

import collections
import dataclasses
import itertools
import reprlib
import unicodedata
from collections.abc import Hashable, Sequence

import numpy as np

from jaxvla.errors import DataError
from jaxvla.reasoning.record import COMPONENTS
from jaxvla.reasoning.store import EpisodeFacts, ReasoningStore

LOW_COVERAGE = 0.5  # of the transitions; below it, most samples teach no reasoning
_EXAMPLES = 3


@dataclasses.dataclass(frozen=True)
class Mismatch:
    """Trajectories that are not the episode that their key names: how many, in what they differ, and one of them."""

    count: int
    difference: str
    example: str

    def __str__(self) -> str:
        return f"{self.count} {self.difference}, such as {self.example}"


@dataclasses.dataclass(frozen=True, eq=False)
class Join:
    """Which episode annotates each trajectory of a dataset.

    Attributes:
        path: of the store.
        episodes: int64 [n], the episode of each trajectory, -1 where it has none.
        num_transitions: of the dataset.
        annotated: int64 [1 + number of components], the transitions that are annotated, and those that have each of
            `COMPONENTS`.
        unmatched: examples of the dataset's keys that the store lacks.
        unused: examples of the store's keys that the dataset lacks.
        mismatches: the trajectories whose key the store has, and that it does not fit, by what they differ in.
    """

    path: str
    episodes: np.ndarray
    num_transitions: int
    annotated: np.ndarray
    unmatched: tuple[str, ...]
    unused: tuple[str, ...]
    mismatches: tuple[Mismatch, ...]

    @property
    def num_mismatched(self) -> int:
        """How many trajectories have a key of the store and do not fit its episode."""
        return sum(mismatch.count for mismatch in self.mismatches)

    @property
    def num_named(self) -> int:
        """How many trajectories have a key of the store, whether they fit or not."""
        return self.num_matched + self.num_mismatched

    @property
    def num_matched(self) -> int:
        """How many trajectories have an episode."""
        return int((self.episodes >= 0).sum())

    @property
    def coverage(self) -> float:
        """The share of the transitions that are annotated, 0 to 1."""
        return float(self.annotated[0] / self.num_transitions)

    @property
    def components(self) -> dict[str, float]:
        """By component that occurs: the share of the transitions that have it, 0 to 1."""
        return {
            name: float(count / self.num_transitions) for name, count in zip(COMPONENTS, self.annotated[1:]) if count
        }

    def describe(self) -> str:
        """Two lines for the start of a run: how much is annotated, and with what."""
        shares = ", ".join(f"{name} {share:.1%}" for name, share in self.components.items())
        return (
            f"reasoning    {self.num_matched} of {len(self.episodes)} trajectories, {self.annotated[0]} of "
            f"{self.num_transitions} transitions ({self.coverage:.1%}), {self.path}\n"
            f"             {shares or 'no component'}"
        )


def join(
    store: ReasoningStore,
    keys: Sequence[str],
    lengths: np.ndarray,
    language: Sequence[Sequence[str]],
    places: Sequence[Hashable],
    stored: np.ndarray | None = None,
) -> Join:
    """Looks every trajectory up in the store, and compares what both sides know. Reads no annotation.

    A trajectory that shares its key, or has another number of steps or another instruction than the episode, has none:
    what it would be taught is true of something else. Instructions are compared by their letters and digits, and one of
    the trajectory's must be the episode's. Where an episode annotates more steps than its trajectory has transitions
    (the last frame's, for one), each count is taken as at most the number of transitions.

    Args:
        store: the annotations.
        keys: the key of each trajectory, as `TrajectorySource.keys`.
        lengths: int [n], the transitions of each.
        language: the instructions of each; empty where it is unlabelled.
        places: where each is stored. Trajectories at one place are one, which several groups include.
        stored: int [n], the steps of the stored episode of each; None where a trajectory keeps all, lengths + 1.
    """
    stored = np.asarray(lengths) + 1 if stored is None else stored
    named = store.find(keys)
    places_of = collections.defaultdict(set)
    for key, place in zip(keys, places, strict=True):
        places_of[key].add(place)
    episodes, found = named.copy(), collections.defaultdict(list)
    for i, (steps, texts) in enumerate(zip(np.asarray(stored).tolist(), language, strict=True)):
        if named[i] < 0:
            continue
        difference = _difference(store.facts(int(named[i])), steps - 1, texts, len(places_of[keys[i]]))
        if difference:
            episodes[i] = -1
            found[difference[0]].append(f"{keys[i]!r} ({difference[1]})")
    counts = np.minimum(store.episode_counts(episodes), np.asarray(lengths)[:, None])
    used = set(named.tolist())
    unmatched = (key for key, episode in zip(keys, named, strict=True) if episode < 0)
    unused = (store.key(episode) for episode in range(len(store)) if episode not in used)
    return Join(
        store.path,
        episodes,
        int(np.sum(lengths)),
        counts.sum(0),
        tuple(itertools.islice(unmatched, _EXAMPLES)),
        tuple(itertools.islice(unused, _EXAMPLES)),
        tuple(Mismatch(len(examples), difference, examples[0]) for difference, examples in found.items()),
    )


def _difference(facts: EpisodeFacts, length: int, texts: Sequence[str], sharing: int) -> tuple[str, str] | None:
    """In what a stored episode of `length` transitions, one of `sharing` with its key, differs from the annotated."""
    if sharing > 1:
        return "share their key", f"that of {sharing} trajectories"
    # Where annotations do not say how long the episode is, it is at least as long as what they annotate.
    if facts.num_steps not in (None, length, length + 1):
        return "have another number of steps", f"{facts.num_steps} annotated, {length + 1} frames"
    if facts.last_step > length:
        return "have another number of steps", f"annotated up to step {facts.last_step}, {length + 1} frames"
    told, known = _letters(facts.instruction), {letters for text in texts if (letters := _letters(text))}
    if told and known and told not in known:
        return (
            "have another instruction",
            f"{reprlib.repr(facts.instruction)} annotated, {reprlib.repr(texts[0])} in the data",
        )
    return None


def _letters(text: str) -> str:
    """The letters and digits of a text, in lower case."""
    return "".join(filter(str.isalnum, unicodedata.normalize("NFKC", text).casefold()))


def check(found: Join, max_mismatched: float, split: str) -> tuple[str, ...]:
    """Refuses a join that cannot be right.

    Args:
        found: the join.
        max_mismatched: the largest share, 0 to 1, of the trajectories with a key of the store that may not fit.
        split: "training" or "validation". Published annotations may leave out the validation split, but not the other.

    Returns:
        Warnings of one line each: trajectories do not fit, or less than half of the transitions are annotated.

    Raises:
        DataError: more trajectories than allowed do not fit; or no transition of the training split is annotated, which
            is nearly always a matter of keys that are written differently, so it shows those of both sides.
    """
    warnings = []
    differ = f"{found.num_mismatched} of the {found.num_named} {split} trajectories that {found.path} names " + (
        f"are not what it annotates: {'; '.join(map(str, found.mismatches))}"
    )
    if found.num_mismatched > max_mismatched * found.num_named:
        raise DataError(
            f"{differ}; make the store of the annotations that belong to this data, or raise "
            f"bridgedata_config.max_mismatched={max_mismatched:g} to train on these without reasoning"
        )
    if found.mismatches:
        warnings.append(f"warning: {differ}; they get no reasoning")
    keys = f"the data has keys such as {_examples(found.unmatched)}; the store {_examples(found.unused)}"
    if not found.annotated[0] and split == "training":
        raise DataError(
            f"{found.path} annotates none of the {len(found.episodes)} trajectories: "
            f"{differ if found.mismatches else keys}; "
            "make the store of the annotations that belong to this data, or convert the data from the same root"
        )
    if found.coverage < LOW_COVERAGE:
        warnings.append(f"warning: {found.path} annotates only {found.coverage:.1%} of the {split} transitions: {keys}")
    return tuple(warnings)


def _examples(keys: tuple[str, ...]) -> str:
    return ", ".join(map(repr, keys)) or "none that the other lacks"
