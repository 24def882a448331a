"""Joins a dataset's trajectories with the episodes of a reasoning store, and says how much of the dataset that covers.

Trajectories and episodes are joined by "<file_path>#<episode_id>". For RLDS both are the dataset's own metadata; for
BridgeData's TFRecords the file path is the raw trajectory's folder relative to the raw root, and the episode id is 0.
Steps count the frames of the dataset's trajectory, which begins one frame later than the raw one on the oldest rigs.
"""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from jaxvla.errors import DataError
from jaxvla.reasoning.record import COMPONENTS
from jaxvla.reasoning.store import ReasoningStore

LOW_COVERAGE = 0.5  # of the transitions; below it, most samples teach no reasoning
_EXAMPLES = 3


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
    """

    path: str
    episodes: np.ndarray
    num_transitions: int
    annotated: np.ndarray
    unmatched: tuple[str, ...]
    unused: tuple[str, ...]

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


def join(store: ReasoningStore, keys: Sequence[str], lengths: np.ndarray) -> Join:
    """Looks every trajectory up in the store. Reads counts only, no annotation.

    Where an episode annotates more steps than its trajectory has transitions (the last frame's, for one), each count is
    taken as at most the number of transitions.

    Args:
        store: the annotations.
        keys: the key of each trajectory, as `TrajectorySource.keys`.
        lengths: int [n], the transitions of each.
    """
    episodes = store.find(keys)
    counts = np.minimum(store.episode_counts(episodes), np.asarray(lengths)[:, None])
    used = set(episodes.tolist())
    unmatched = (key for key, episode in zip(keys, episodes, strict=True) if episode < 0)
    unused = (store.key(episode) for episode in range(len(store)) if episode not in used)
    return Join(
        store.path,
        episodes,
        int(np.sum(lengths)),
        counts.sum(0),
        tuple(itertools.islice(unmatched, _EXAMPLES)),
        tuple(itertools.islice(unused, _EXAMPLES)),
    )


def check(found: Join) -> str | None:
    """Refuses a join that gives nothing, which is nearly always one of keys that are written differently.

    Returns:
        A warning of one line where less than half of the transitions are annotated, else None.

    Raises:
        DataError: no transition is annotated; shows keys of both sides.
    """
    keys = f"the data has keys such as {_examples(found.unmatched)}; the store {_examples(found.unused)}"
    if not found.annotated[0]:
        raise DataError(
            f"{found.path} annotates none of the {len(found.episodes)} trajectories: {keys}; "
            "make the store of the annotations that belong to this data, or convert the data from the same root"
        )
    if found.coverage < LOW_COVERAGE:
        return f"warning: {found.path} annotates only {found.coverage:.1%} of the transitions: {keys}"
    return None


def _examples(keys: tuple[str, ...]) -> str:
    return ", ".join(map(repr, keys)) or "none that the other lacks"
