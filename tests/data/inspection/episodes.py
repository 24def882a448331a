"""Small datasets of a robot that does as it is told, and ways to break an episode of it."""

import pathlib
from collections.abc import Mapping

import numpy as np
from data import bridge_files

STEPS, SIZE = 40, 16


def episode(number: int, steps: int = STEPS) -> dict[str, object]:
    """Features of one record: actions that are what the states do, a gripper that closes, two cameras that see it."""
    rng = np.random.default_rng(number)
    states = np.cumsum(rng.normal(0, 0.02, (steps + 1, 7)), axis=0).astype(np.float32)
    states[:, 6] = np.arange(steps + 1) % 20 < 10
    actions = np.diff(states, axis=0) + rng.normal(0, 0.002, (steps, 7)).astype(np.float32)
    actions[:, 6] = states[1:, 6]
    record = {"language": ["put it there", f"task {number % 3}"], "actions": actions, "path": [f"raw/{number}"]}
    record |= parts("state", states)
    for k in range(2):
        record |= parts(f"images{k}", rng.integers(0, 256, (steps + 1, SIZE, SIZE, 3), dtype=np.uint8))
    return record


def parts(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """What is observed before the steps and after them."""
    return {f"observations/{name}": values[:-1], f"next_observations/{name}": values[1:]}


def whole(record: Mapping[str, object], name: str) -> np.ndarray:
    """A copy of `parts` in one piece."""
    return np.concatenate([record[f"observations/{name}"], record[f"next_observations/{name}"][-1:]])


def write(root: pathlib.Path, train: list[dict], val: list[dict] | None = None) -> pathlib.Path:
    """A dataset of one task."""
    for split, records in {"train": train, "val": val or [episode(100)]}.items():
        bridge_files.write(root / "task" / split / "out.tfrecord", records)
    return root
