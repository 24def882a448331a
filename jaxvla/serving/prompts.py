"""What a policy that reads text is told: an instruction as tokens, and what it answers as words."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvla.agents.agent import Agent
from jaxvla.checkpoint import Assets
from jaxvla.errors import PolicyError
from jaxvla.reasoning.texts import Wording

# Stands for an instruction where only shapes count.
BLANK_INSTRUCTION = "move"


@dataclasses.dataclass(frozen=True, eq=False)
class Prompts:
    """Instructions to the texts of a task.

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
        return cls(wording, agent.config.inference, wording.curriculum.stage_at(max(step - 1, 0)))

    def task(self, instruction: str) -> dict[str, Any]:
        """A batch of one text, under the batch key `text`.

        Raises:
            DataError: the instruction is empty, too long, or holds a control sign.
            ConfigError: "implicit" at the stage without slots.
        """
        return {"text": self.wording.inference([instruction], self.mode, self.stage)}

    def instruction(self, task: Mapping[str, Any]) -> str:
        """The instruction of a task as a robot gives it, {"language": str}.

        Raises:
            PolicyError: there is none.
        """
        if not isinstance(task.get("language"), str):
            held = ", ".join(f"{name!r} ({type(value).__name__})" for name, value in task.items()) or "nothing"
            raise PolicyError(f"the task holds {held}; expected 'language', an instruction such as 'pick up the cup'")
        return task["language"]

    def words(self, tokens_m: np.ndarray | None) -> str:
        """Generated tokens as words, without control signs; empty where nothing was generated."""
        if tokens_m is None:
            return ""
        return self.wording.builder.tokenizer.decode(tokens_m, skip_special_tokens=True).strip()
