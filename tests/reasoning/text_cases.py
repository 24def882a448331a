"""Small reasonings, a store in memory, and a tokenizer that knows the thinking tokens."""

import dataclasses

import numpy as np

from jaxvla.data.text.tokenizer import TINY, load_tokenizer
from jaxvla.reasoning.prompt import THINKING_TOKENS
from jaxvla.reasoning.record import Reasoning

FULL = Reasoning(
    task="Put the pot on the cloth.",
    plan="Reach the pot. Grasp it. Move it.",
    visible_objects=(("pot", (12, 30, 96, 120)), ("green cloth", (130, 40, 200, 99))),
    subtask_reason="the pot is not held yet",
    subtask="reach the pot",
    move_reason="the pot is to the left",
    move="move left, close gripper",
    gripper_positions=((101, 60), (99, 61), (97, 61), (95, 62), (95, 62)),
)
FULL_WORDS = (
    "TASK: Put the pot on the cloth.",
    "PLAN: Reach the pot. Grasp it. Move it.",
    "VISIBLE OBJECTS: pot [12, 30, 96, 120], green cloth [130, 40, 200, 99]",
    "SUBTASK REASONING: the pot is not held yet",
    "SUBTASK: reach the pot",
    "MOVE REASONING: the pot is to the left",
    "MOVE: move left, close gripper",
    "GRIPPER POSITION: [101, 60, 99, 61, 97, 61, 95, 62, 95, 62]",
)
LARA_FULL = Reasoning(
    subtask="grasp the bowl",
    boxes=((0.5, 0.43359375, 0.60546875, 0.56640625),),
    reason="globally the gripper should progress towards the left, locally it is moving up.",
)
LARA_WORDS = (
    "Subtask: grasp the bowl.",
    "BBox: [0.5000 0.4336 0.6055 0.5664].",
    "Reasoning: globally the gripper should progress towards the left, locally it is moving up.",
)


@dataclasses.dataclass(frozen=True)
class MemoryStore:
    """Reasonings by (episode, step)."""

    steps: dict[tuple[int, int], Reasoning]

    def read(self, episodes: np.ndarray, steps: np.ndarray) -> list[Reasoning | None]:
        return [self.steps.get(place) for place in zip(episodes.tolist(), steps.tolist())]


def thinking_tokenizer(folder=TINY):
    return load_tokenizer(folder).with_added_tokens(THINKING_TOKENS)
