"""What is kept of an episode on a robot: its film and its log, each written whole or not at all."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvla.envs.film import SUFFIX, Frame, save_film
from jaxvla.errors import RobotError


@dataclasses.dataclass(eq=False)
class Recording:
    """The steps of an episode so far.

    Attributes:
        title: what is to be done, below each picture.
        goals: views beside each picture.
    """

    title: str
    goals: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    frames: list[Frame] = dataclasses.field(default_factory=list)
    steps: list[dict[str, Any]] = dataclasses.field(default_factory=list)

    def see(self, observation: Mapping[str, np.ndarray], said: str = "") -> None:
        """Adds a picture."""
        views = {name: value for name, value in observation.items() if value.ndim == 3}
        goals = {f"goal {name}": value for name, value in self.goals.items() if value.ndim == 3}
        self.frames.append(Frame(views | goals, (f"{len(self.frames)}: {self.title}", said)))

    def act(self, state: np.ndarray, wanted: np.ndarray, played: np.ndarray, **times: float) -> None:
        """Adds a step to the log.

        Args:
            state: of the robot [7] when it was decided.
            wanted: what the policy gave [7].
            played: what the robot was told [7].
            times: of the step, s.
        """
        numbers = {"state": state, "wanted": wanted, "played": played}
        self.steps.append({name: np.round(value, 6).tolist() for name, value in numbers.items()} | times)

    def save(
        self, folder: pathlib.Path, name: str, facts: Mapping[str, Any], success: bool | None, frequency: float
    ) -> list[pathlib.Path]:
        """Writes FOLDER/NAME.json and, where anything was seen, FOLDER/NAME.mp4; gives their paths.

        Args:
            folder: is made.
            name: of the episode.
            facts: of it, JSON values.
            success: how it ended; None where nobody judged.
            frequency: of the film, time steps per second.

        Raises:
            RobotError: they cannot be written.
            ConfigError: the film cannot.
        """
        log, film = folder / f"{name}.json", folder / f"{name}{SUFFIX}"
        written = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self.frames:
                part = film.with_name(f".part_{film.name}")
                try:
                    save_film(part, self.frames, success, frequency)
                    os.replace(part, film)
                finally:
                    part.unlink(missing_ok=True)
                written.append(film)
            part = log.with_name(f".part_{log.name}")
            part.write_text(json.dumps({**facts, "success": success, "steps": self.steps}, indent=1))
            os.replace(part, log)
        except OSError as error:
            raise RobotError(f"{error.filename or folder} cannot be written: {error.strerror}") from error
        return [*written, log]
