"""The data that docs/data.md speaks of: Open X-Embodiment, data like one of its datasets, and some of its own kind."""

import pathlib

import numpy as np
from data import rlds_episodes
from data.oxe.episodes import NATURAL
from data.oxe.files import write

from jaxvla.reasoning.record import Episode, Reasoning
from jaxvla.reasoning.store import write_store

COUNT, STEPS = 8, 6
MOVEMENT = {"action/world_vector": 3, "action/rotation_delta": 3, "action/gripper_closedness_action": 1}
# The width of each feature of numbers; 0 for texts.
STRUCTURES = {
    "bridge_orig": {"action": 7, "observation/state": 7, "language_instruction": 0},
    "viola": MOVEMENT | {"observation/joint_states": 7, "observation/gripper_states": 1, f"observation/{NATURAL}": 0},
    "fractal20220817_data": MOVEMENT
    | {"observation/base_pose_tool_reached": 7, "observation/gripper_closed": 1, f"observation/{NATURAL}": 0},
    "libero_10_no_noops": {"action": 7, "observation/state": 8, "language_instruction": 0},
}


def episodes(name: str) -> list[dict]:
    """Random ones, whose grippers are between 0 and 1."""
    rng, found = np.random.default_rng(len(name)), []
    for _ in range(COUNT):
        episode: dict = {}
        for path, width in STRUCTURES[name].items():
            *group, key = path.split("/")
            node = episode.setdefault(group[0], {}) if group else episode
            told = np.array([b"take the cup"] * STEPS, object)
            node[key] = rng.uniform(0, 1, (STEPS, width)).astype(np.float32) if width else told
        found.append(episode)
    return found


def make(data: pathlib.Path) -> None:
    """Writes all of it below the folder `data`."""
    for name in STRUCTURES:
        folder = write(data / "oxe", name, episodes(name))
        if name == "bridge_orig":
            annotated = {step: Reasoning(move="move up") for step in range(STEPS)}
            told = [Episode(f"/raw/{i}#{i}", annotated, STEPS, "take the cup") for i in range(COUNT)]
            write_store(folder / "reasoning.sqlite", told, {})
    (data / "oxe" / "libero_10_no_noops").rename(data / "like_libero")
    rlds_episodes.write_dataset(data / "my_base" / "1.0.0", {"train": [[_base(i) for i in range(COUNT)]]}, _BASE)


_BASE = {
    "action/velocity": {"dtype": "float32", "shape": {"dimensions": ["2"]}},
    "action/width": {"dtype": "float32", "shape": {}},
    "observation/pose": {"dtype": "float32", "shape": {"dimensions": ["3"]}},
    "observation/front": "image",
    "task": "text",
}


def _base(number: int) -> dict:
    """An episode of a base, which stands still at its first step."""
    rng = np.random.default_rng(number)
    velocity = rng.uniform(0.1, 1, (STEPS, 2)).astype(np.float32)
    velocity[0] = 0
    return {
        "steps/action/velocity": velocity,
        "steps/action/width": np.array([0.08, 0.08, 0, 0, 0.08, 0], np.float32),
        "steps/observation/pose": rng.uniform(-1, 1, (STEPS, 3)).astype(np.float32),
        "steps/observation/front": [rlds_episodes.picture(number, t) for t in range(STEPS)],
        "steps/task": ["drive"] * STEPS,
        "steps/is_first": np.arange(STEPS) == 0,
    }
