"""What a policy that follows instructions is told: texts or vectors, encoded as in training."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvla.agents.agent import Agent
from jaxvla.agents.language import Language, language_from_json
from jaxvla.assets import Assets
from jaxvla.data.schema import InstructionSpec
from jaxvla.errors import PolicyError

# Robots are told the same again at every step, and a text may cost a pass through a language model.
_REMEMBERED = 1024


@dataclasses.dataclass(frozen=True, eq=False)
class Instructions:
    """Tasks of n robots to the batch key `instruction`."""

    language: Language
    spec: InstructionSpec

    def __post_init__(self) -> None:
        remember = functools.lru_cache(_REMEMBERED)
        object.__setattr__(self, "_encoded", remember(lambda text: self.language.encode([text])[0]))

    @classmethod
    def of(cls, agent: Agent, assets: Assets, step: int) -> "Instructions | None":
        """The instructions of a checkpoint; None for an agent that follows none."""
        if "instruction" not in agent.batch_keys:
            return None
        return cls(language_from_json(assets.language), assets.spec.instruction)

    def task(self, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch of n instructions, one for each task {"language": str, or the vector of one}.

        Raises:
            PolicyError: a task without an instruction, or with a vector of another kind than in training.
            DataError: a text is empty, or cannot be encoded.
            CheckpointError, WeightsError: the weights that encode texts are not where they were.
        """
        return {"instruction": np.stack([self._row(task) for task in tasks])}

    def blank(self, count: int) -> dict[str, Any]:
        """A batch of `count` instructions that stands for any other of its shapes."""
        return {"instruction": np.tile(self.spec.unlabelled(), (count, 1))}

    def _row(self, task: Mapping[str, Any]) -> np.ndarray:
        given = task.get("language")
        if isinstance(given, str) and given.strip():
            return self._encoded(given)
        takes_vectors = not self.spec.vocab_size
        if takes_vectors and isinstance(given, np.ndarray):
            if given.shape == (self.spec.length,) and given.dtype.kind == "f" and np.isfinite(given).all():
                return given.astype(np.float32)
            found = f"{given.dtype}{list(given.shape)}"
        else:
            found = repr(given) if isinstance(given, str) else type(given).__name__
        vector = f", or its vector, finite float32[{self.spec.length}]" if takes_vectors else ""
        raise PolicyError(f"task['language'] is {found}; expected an instruction such as 'pick up the cup'{vector}")
