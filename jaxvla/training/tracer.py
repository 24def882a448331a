"""A trace of some steps, by jax's profiler."""

import pathlib
from types import TracebackType

import jax

from jaxvla.training.config import ProfileConfig
from jaxvla.training.step import Metrics

# Of the run folder; TensorBoard's profile plugin, XProf and Perfetto read what lies below it.
FOLDER = "profile"


class Tracer:
    """Traces the steps that the configuration names; a context manager, which ends a trace that still runs.

    Args:
        config: see `ProfileConfig`.
        run: the run folder.
        start: the step that training goes on from.
    """

    def __init__(self, config: ProfileConfig, run: pathlib.Path, start: int) -> None:
        self._folder = run / FOLDER
        self._first = start + config.start if config.start else 0
        self._last = self._first + config.steps - 1
        self._tracing = False

    def before(self, step: int) -> None:
        """Before `step` is taken."""
        if step == self._first and self._first:
            jax.profiler.start_trace(self._folder)
            self._tracing = True

    def after(self, step: int, metrics: Metrics) -> str:
        """After `step` was taken, whose metrics may still be computed; where the trace is, if that was the last one."""
        if not self._tracing or step < self._last:
            return ""
        jax.block_until_ready(metrics)
        self._end()
        return f"steps {self._first} to {self._last} are traced in {self._folder}"

    def _end(self) -> None:
        jax.profiler.stop_trace()
        self._tracing = False

    def __enter__(self) -> "Tracer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._tracing:
            self._end()
