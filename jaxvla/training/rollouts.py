"""Closed loop during training: the served parameters play episodes now and then. Process 0 plays."""

import math
import time
from collections.abc import Callable
from typing import Protocol, runtime_checkable

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxvla.models.module import Params
from jaxvla.parallel.sharding import gather
from jaxvla.training.config import SUCCESS, RolloutConfig


@runtime_checkable
class Played(Protocol):
    """What the episodes of a rollout came to; its text is short enough for a line."""

    def metrics(self) -> dict[str, float]:
        """Numbers to log, among them "success", the share of the episodes."""


# Called after every episode: successes, episodes played, episodes to play in all. Whether to go on.
Report = Callable[[int, int, int], bool]

# Plays with parameters on one device, after so many steps; None where the report ended it.
Play = Callable[[Params, int, Report], Played | None]


class Rollouts:
    """When to play, and how it went.

    Args:
        config: see `RolloutConfig`.
        play: called on process 0 alone; None for no rollouts.

    Attributes:
        last: the last whole rollout; None before it, and on other processes than 0.
        step: of the last whole rollout.
        metrics: of it; on other processes than 0 its success alone.
    """

    def __init__(self, config: RolloutConfig, play: Play | None) -> None:
        self._interval, self._play = config.interval, play
        self.last: Played | None = None
        self.step, self.metrics = -1, dict[str, float]()
        self._started, self._spent = time.perf_counter(), 0.0

    def due(self, step: int, last: bool) -> bool:
        """Whether one belongs behind this step, which may be the last."""
        return self._play is not None and (last or step % self._interval == 0)

    def play(self, params: Params, step: int, report: Report) -> dict[str, float]:
        """One rollout: a collective, which all processes call.

        Args:
            params: the parameters to play with, sharded in any way.
            step: after which they are.
            report: hears of every episode, and may end the rollout.

        Returns:
            What to log; nothing where the rollout was ended.
        """
        start = time.perf_counter()
        whole = gather(params)
        played = None if whole is None else self._play(whole, step, report)
        found = {} if played is None else played.metrics()
        if jax.process_count() > 1:
            # By their success all processes must rank their checkpoints alike.
            success = multihost_utils.broadcast_one_to_all(np.float32(found.get(SUCCESS, math.nan)))
            found |= {SUCCESS: float(success)}
        seconds = time.perf_counter() - start
        self._spent += seconds
        if math.isnan(found.get(SUCCESS, math.nan)):
            return {}
        self.last, self.step, self.metrics = played, step, found
        share = self._spent / (time.perf_counter() - self._started)
        timers = {"timer/rollout_s": seconds, "timer/rollout_share": share}
        return {f"rollout/{name}": value for name, value in found.items()} | timers
