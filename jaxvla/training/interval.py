"""What happened since the last log, measured without waiting for the device at every step."""

import collections
import contextlib
import dataclasses
import math
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from jaxvla.training.step import Metrics

# How far the host may run ahead of the device. Each step in flight keeps its batch in device memory.
_STEPS_IN_FLIGHT = 4
# The metrics by which a step is judged, and what an error calls them.
_JUDGED = {"loss": "the loss", "grad_norm": "the gradient's norm"}


@dataclasses.dataclass(frozen=True)
class BadStep:
    """A step whose loss or gradient is not finite.

    Attributes:
        step: its number.
        what: "the loss" or "the gradient's norm".
        value: of it.
        position: of the data iterator before its batch.
    """

    step: int
    what: str
    value: float
    position: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.what} is {self.value} at step {self.step}"


@dataclasses.dataclass(frozen=True)
class _Taken:
    step: int
    metrics: Metrics
    position: dict[str, Any]


class Interval:
    """Gathers the metrics and the time of the steps between two logs.

    Metrics stay on the device until `fetch`. The clock runs while training runs, and stands during `paused`.

    Args:
        batch_size: rows of a global batch.
    """

    def __init__(self, batch_size: int) -> None:
        self._batch_size = batch_size
        self._in_flight: collections.deque[jax.Array] = collections.deque()
        self._since = time.perf_counter()
        self._reset(0.0)

    def _reset(self, waited: float) -> None:
        self._steps: list[_Taken] = []
        self._seconds, self._waited_before, self._timed, self._judged = 0.0, waited, 0, 0
        self._since = time.perf_counter()

    def add(self, step: int, metrics: Metrics, position: dict[str, Any]) -> None:
        """Takes the metrics of `step` (on device), and holds the host back if it is too far ahead.

        Args:
            step: its number.
            metrics: of the training step.
            position: of the data iterator before its batch.
        """
        self._steps.append(_Taken(step, metrics, position))
        self._newest = metrics
        self._timed += 1
        self._in_flight.append(metrics["loss"])
        if len(self._in_flight) > _STEPS_IN_FLIGHT:
            self._in_flight.popleft().block_until_ready()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock, after the steps in flight have ended, so that other work is not counted as training."""
        self._drain()
        self._seconds += time.perf_counter() - self._since
        try:
            yield
        finally:
            self._since = time.perf_counter()

    @property
    def newest(self) -> Metrics:
        """The metrics of the step that was added last, on the device."""
        return self._newest

    @property
    def empty(self) -> bool:
        """Whether no step was added since the last log."""
        return not self._steps

    def leave_out(self, waited: float) -> None:
        """Waits for the steps so far, most of whose time was compilation, and leaves them out of the rates.

        Args:
            waited: seconds that the feed has waited for data since the run started.
        """
        self._drain()
        kept, judged = self._steps, self._judged
        self._reset(waited)
        self._steps, self._judged = kept, judged

    def bad_steps(self) -> list[BadStep]:
        """Of the steps that were not asked for before, those with a loss or a gradient that is not finite, in order.

        Waits for the device.
        """
        taken = self._steps[self._judged :]
        self._judged = len(self._steps)
        rows = jax.device_get([{name: each.metrics[name] for name in _JUDGED} for each in taken])
        faults = [(each, row, _fault(row)) for each, row in zip(taken, rows)]
        return [BadStep(each.step, _JUDGED[n], float(row[n]), each.position) for each, row, n in faults if n]

    def forget(self, step: int) -> None:
        """Leaves the metrics of `step` and later ones out of the averages."""
        self._steps = [taken for taken in self._steps if taken.step < step]
        self._judged = len(self._steps)

    def fetch(self, waited: float) -> dict[str, float]:
        """Ends the interval: `training/*` averaged over its steps, `timer/*` per step. Waits for the device.

        Steps whose loss or gradient is not finite are in no average. There is no `training/*` where all are such steps,
        and no `timer/*` where all steps of the interval were left out.

        Args:
            waited: seconds that the feed has waited for data since the run started.
        """
        self._drain()
        seconds = self._seconds + time.perf_counter() - self._since
        rows = [row for row in jax.device_get([taken.metrics for taken in self._steps]) if not _fault(row)]
        values = {}
        if rows:
            values = {f"training/{name}": math.fsum(float(row[name]) for row in rows) / len(rows) for name in rows[0]}
            values["training/learning_rate"] = float(rows[-1]["learning_rate"])
        if self._timed:
            values["timer/step_ms"] = 1000 * seconds / self._timed
            values["timer/data_wait_ms"] = 1000 * (waited - self._waited_before) / self._timed
            values["timer/samples_per_s"] = self._batch_size * self._timed / seconds
        self._reset(waited)
        return values

    def _drain(self) -> None:
        jax.block_until_ready(list(self._in_flight))
        self._in_flight.clear()


def _fault(row: Mapping[str, Any]) -> str:
    """The name of the first metric of a step that must be finite and is not; empty where there is none."""
    return next((name for name in _JUDGED if not math.isfinite(row[name])), "")
