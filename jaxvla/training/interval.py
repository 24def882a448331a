"""What happened since the last log, measured without waiting for the device at every step."""

import collections
import contextlib
import math
import time
from collections.abc import Iterator

import jax

from jaxvla.errors import TrainingError
from jaxvla.training.step import Metrics

# How far the host may run ahead of the device. Each step in flight keeps its batch in device memory.
_STEPS_IN_FLIGHT = 4


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
        self._metrics: list[tuple[int, Metrics]] = []
        self._seconds, self._waited_before, self._timed = 0.0, waited, 0
        self._since = time.perf_counter()

    def add(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of `step` (on device), and holds the host back if it is too far ahead."""
        self._metrics.append((step, metrics))
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
    def empty(self) -> bool:
        """Whether no step was added since the last log."""
        return not self._metrics

    def leave_out(self, waited: float) -> None:
        """Waits for the steps so far, most of whose time was compilation, and leaves them out of the rates.

        Args:
            waited: seconds that the feed has waited for data since the run started.
        """
        self._drain()
        kept = self._metrics
        self._reset(waited)
        self._metrics = kept

    def check_finite(self) -> None:
        """Raises TrainingError if a loss since the last log is not finite; waits for the device."""
        losses = jax.device_get([metrics["loss"] for _, metrics in self._metrics])
        for (step, _), loss in zip(self._metrics, losses):
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the loss is {float(loss)} at step {step}; nothing was saved since. Lower config.optimizer."
                    "learning_rate, set config.optimizer.clip_norm, or look at the data"
                )

    def fetch(self, waited: float) -> dict[str, float]:
        """Ends the interval: `training/*` averaged over its steps, `timer/*` per step. Waits for the device.

        There is no `timer/*` where all steps of the interval were left out.

        Args:
            waited: seconds that the feed has waited for data since the run started.

        Raises:
            TrainingError: a loss is not finite.
        """
        self._drain()
        seconds = self._seconds + time.perf_counter() - self._since
        self.check_finite()
        rows = jax.device_get([metrics for _, metrics in self._metrics])
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
