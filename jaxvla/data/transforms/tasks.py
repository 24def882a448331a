"""Task augmentation: what a sample is asked to do, told in other words, or not told at all."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from jaxvla.errors import ConfigError

# Random numbers that the augmentation of a sample takes: what is dropped, whether it is told otherwise, and how.
TASK_UNIFORMS = 3


@dataclasses.dataclass(frozen=True)
class TaskConfig:
    """How tasks are augmented in training; the keys of config.data.tasks. The zeros switch it off.

    Octo's `delete_and_rephrase` is rephrase=0.5, and drop_language and drop_goal that sum to 1.

    Attributes:
        drop_language: share of the samples that have no instruction.
        drop_goal: share that have no goal: it is black, and its state is 0. No sample loses both.
        rephrase: share of the samples whose instruction is drawn anew from it and its paraphrases.
        paraphrases: the file that they are in, see `jaxvla.data.text.paraphrases`.

    Raises:
        ConfigError: what is no share, shares that sum to more than 1, or paraphrases that are not used.
    """

    drop_language: float = 0.0
    drop_goal: float = 0.0
    rephrase: float = 0.0
    paraphrases: str = ""

    def __post_init__(self) -> None:
        where = "config.data.tasks"
        for name in ("drop_language", "drop_goal", "rephrase"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{where}.{name} must lie in [0, 1], not {getattr(self, name)}")
        if self.drop_language + self.drop_goal > 1:
            raise ConfigError(
                f"{where}.drop_language={self.drop_language} and drop_goal={self.drop_goal} are shares of the same "
                "samples: they must sum to 1 at most"
            )
        if (self.rephrase > 0) != bool(self.paraphrases):
            raise ConfigError(
                f"{where}.rephrase={self.rephrase} and paraphrases={self.paraphrases!r} need each other: set both"
            )

    @property
    def active(self) -> bool:
        """Whether it changes any sample."""
        return self.drop_language + self.drop_goal + self.rephrase > 0

    def check(self, keys: Sequence[str]) -> None:
        """Raises ConfigError for what would have no effect on an agent of these batch keys, or what it cannot take."""
        where = "config.data.tasks"
        told = {"instruction", "text"}.intersection(keys)
        for name, wanted in (("drop_language", bool(told)), ("rephrase", bool(told)), ("drop_goal", "goals" in keys)):
            if getattr(self, name) and not wanted:
                what = "goals" if name == "drop_goal" else "instructions"
                raise ConfigError(f"{where}.{name}={getattr(self, name)} has no effect: the agent takes no {what}")
        if self.drop_language and "text" in keys:
            raise ConfigError(
                f"{where}.drop_language={self.drop_language}: an agent that reads prompts needs an instruction in "
                "each: set it to 0"
            )

    def drops_language(self, uniforms: np.ndarray) -> np.ndarray:
        """Which samples have no instruction: bool [n], of uniforms [n, TASK_UNIFORMS]."""
        return uniforms[:, 0] < self.drop_language

    def drops_goal(self, uniforms: np.ndarray) -> np.ndarray:
        """Which samples have no goal: bool [n], others than those without an instruction."""
        return uniforms[:, 0] >= 1 - self.drop_goal


@dataclasses.dataclass(frozen=True, eq=False)
class Rephrasings:
    """Where the paraphrases of each of n texts stand in the table of all texts.

    Attributes:
        first: int64 [n], the first one.
        count: int64 [n], how many; 0 for texts without.
    """

    first: np.ndarray
    count: np.ndarray

    def draw(self, text: np.ndarray, share: float, uniforms: np.ndarray) -> np.ndarray:
        """The texts int [b], of which about `share` are drawn anew from themselves and their paraphrases.

        Args:
            text: numbers in the table; -1 for none.
            share: 0 to 1.
            uniforms: [b, 2], in [0, 1).
        """
        count = np.where(text < 0, 0, self.count[text])
        drawn = np.floor(uniforms[:, 1] * (count + 1)).astype(np.int64)
        told = np.where(drawn == 0, text, self.first[text] + drawn - 1)
        return np.where((uniforms[:, 0] < share) & (count > 0), told, text).astype(text.dtype)


def add_paraphrases(
    language: Sequence[tuple[str, ...]], paraphrases: Mapping[str, tuple[str, ...]]
) -> tuple[tuple[tuple[str, ...], ...], Rephrasings]:
    """The texts of each trajectory with all paraphrases of each of them behind, and where these stand end to end."""
    added, first, count, start = [], [], [], 0
    for texts in language:
        others = [paraphrases.get(text, ()) for text in texts]
        end = start + len(texts)
        for own in others:
            first.append(end)
            count.append(len(own))
            end += len(own)
        first += [0] * (end - start - len(texts))
        count += [0] * (end - start - len(texts))
        added.append((*texts, *(text for own in others for text in own)))
        start = end
    return tuple(added), Rephrasings(np.array(first, np.int64), np.array(count, np.int64))
