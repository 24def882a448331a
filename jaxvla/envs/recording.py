"""Cameras as their recordings show them.

Demonstrations are kept as JPEGs, which change the pixels of a small picture by up to a hundred of 255. A policy that is
evaluated looks through the same JPEG, so that it sees what it would have been trained on.
"""

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from jaxvla.envs.rollout import Observation, World, WorldSpec

QUALITY = 95


def encode(pixels: np.ndarray) -> bytes:
    """The JPEG of uint8 [h, w, 3] that a recording keeps."""
    data = io.BytesIO()
    Image.fromarray(pixels).save(data, "JPEG", quality=QUALITY)
    return data.getvalue()


def recorded(observation: Observation) -> dict[str, np.ndarray]:
    """An observation with every image as its JPEG shows it."""
    return {name: _through_jpeg(value) if value.ndim == 3 else value for name, value in observation.items()}


class Recorded:
    """A world whose cameras are seen through their recording.

    Args:
        world: the one that is played in.
    """

    def __init__(self, world: World) -> None:
        self._world = world

    @property
    def spec(self) -> WorldSpec:
        """As that of the world."""
        return self._world.spec

    def reset(self, *, seed: int, task: str | None = None) -> tuple[Observation, dict[str, Any]]:
        """As that of the world."""
        observation, facts = self._world.reset(seed=seed, task=task)
        return recorded(observation), facts

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, Mapping[str, Any]]:
        """As that of the world."""
        observation, *rest = self._world.step(action)
        return recorded(observation), *rest


def _through_jpeg(pixels: np.ndarray) -> np.ndarray:
    with Image.open(io.BytesIO(encode(pixels))) as image:
        return np.asarray(image)
