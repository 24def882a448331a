"""What a policy that reads text is told: instructions as tokens, and what it answers as words."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvla.agents.agent import Agent
from jaxvla.assets import Assets
from jaxvla.errors import PolicyError
from jaxvla.reasoning.texts import Wording

# Stands for an instruction where only shapes count.
_BLANK_INSTRUCTION = "move"


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """Tasks of n robots to the batch key `text`.

    Attributes:
        wording: that of training.
        mode: how the policy reasons, one of `jaxvla.reasoning.batch.MODES`.
        stage: of the curriculum, that of the last update before the checkpoint.
    """

    wording: Wording
    mode: str
    stage: int

    @classmethod
    def of(cls, agent: Agent, assets: Assets, step: int) -> "Prompts | None":
        """The prompts of a checkpoint of `step`; None for an agent that reads no text."""
        if "text" not in agent.batch_keys:
            return None
        wording = Wording.from_json(assets.text)
        return cls(wording, agent.config.inference, wording.stage_after(step))

    def task(self, tasks: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """A batch of n texts, one for each task {"language": str}.

        Raises:
            PolicyError: a task without an instruction.
            DataError: an instruction is empty, too long, or holds a control sign.
            ConfigError: "implicit" at the stage without slots.
        """
        return {"text": self.wording.inference([_instruction(task) for task in tasks], self.mode, self.stage)}

    def blank(self, count: int) -> dict[str, Any]:
        """A batch of `count` texts that stands for any other of its shapes."""
        return self.task([{"language": _BLANK_INSTRUCTION}] * count)

    def words(self, tokens_nm: np.ndarray) -> tuple[str, ...]:
        """Generated tokens int [n, m] as words, without control signs."""
        decode = self.wording.builder.tokenizer.decode
        return tuple(decode(tokens_m, skip_special_tokens=True).strip() for tokens_m in tokens_nm)


def _instruction(task: Mapping[str, Any]) -> str:
    if not isinstance(task.get("language"), str):
        held = ", ".join(f"{name!r} ({type(value).__name__})" for name, value in task.items()) or "nothing"
        raise PolicyError(f"the task holds {held}; expected 'language', an instruction such as 'pick up the cup'")
    return task["language"]
