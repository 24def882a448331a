"""Notices that a step does not end, and says where every thread is."""

import collections
import contextlib
import faulthandler
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from types import TracebackType

import jax

from jaxvla.parallel.distributed import end_job
from jaxvla.training.config import WatchdogConfig

# Steps before there is a median to compare with.
_WARM_UP = 5
_REMEMBERED = 101


class Watchdog:
    """While the context is entered, a thread compares the time since the last step with the median of those before.

    Where it is too long, once for each such step, a line says so on stderr, with the index of the process, and the
    stacks of all Python threads follow. Then the process ends, and the others of its job with it, where the
    configuration says so.

    Args:
        config: see `WatchdogConfig`.
    """

    def __init__(self, config: WatchdogConfig) -> None:
        self._config = config
        self._seconds: collections.deque[float] = collections.deque(maxlen=_REMEMBERED)
        self._step, self._since, self._barked = 0, time.monotonic(), False
        self._started, self._pauses = False, 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="Watchdog", daemon=True)

    def beat(self, step: int) -> None:
        """The host is done with `step`; the device is a few steps behind at most."""
        now = time.monotonic()
        if self._started:
            self._seconds.append(now - self._since)
        self._step, self._since, self._barked, self._started = step, now, False, True

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Does not watch what is no step: compilation, validation, rollouts, saving."""
        self._pauses += 1
        try:
            yield
        finally:
            self._since, self._barked = time.monotonic(), False
            self._pauses -= 1

    def limit(self) -> float:
        """Seconds that a step may take; infinite where nothing is known yet, or nobody asks."""
        if not self._config.factor or len(self._seconds) < _WARM_UP:
            return float("inf")
        return max(self._config.factor * statistics.median(tuple(self._seconds)), self._config.at_least_s)

    def _watch(self) -> None:
        while not self._stop.wait(min(1.0, self._config.at_least_s / 4)):
            waited, limit = time.monotonic() - self._since, self.limit()
            if not self._pauses and not self._barked and waited > limit:
                self._barked = True
                self._bark(waited)

    def _bark(self, waited: float) -> None:
        usual = statistics.median(tuple(self._seconds))
        line = f"step {self._step + 1} has taken {waited:.1f} s, and steps take {usual:.3g} s (config.watchdog)"
        print(f"WARNING: process {jax.process_index()}: {line}; its threads:", file=sys.stderr, flush=True)
        faulthandler.dump_traceback(file=sys.__stderr__, all_threads=True)
        if self._config.end:
            end_job(f"error: {line}; resume from the last checkpoint")

    def __enter__(self) -> "Watchdog":
        if self._config.factor:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._config.factor:
            self._thread.join()
