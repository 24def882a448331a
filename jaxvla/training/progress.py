"""What the person who started the run sees on stderr: a bar on a terminal, else one plain line per log."""

import datetime
import sys
import time
from collections.abc import Mapping
from types import TracebackType

import jax
from tqdm import tqdm

_SHOWN = {
    "training/loss": "loss {:.4g}",
    "timer/step_ms": "{:.1f} ms/step",
    "timer/data_wait_ms": "data wait {:.1f} ms",
    "timer/samples_per_s": "{:.0f} samples/s",
}

# Seconds between two lines about a rollout that goes on.
_PATIENCE = 10


class Progress:
    """Shows a run's progress; a context manager. Silent on other processes than 0.

    Args:
        start: the step that the run starts or goes on from.
        total: the step that it ends at.
    """

    def __init__(self, start: int, total: int) -> None:
        self._total = total
        self._quiet = jax.process_index() != 0
        terminal = sys.stderr.isatty() and not self._quiet
        self._said = 0.0
        self._bar = tqdm(initial=start, total=total, unit="step", dynamic_ncols=True) if terminal else None

    def advance(self) -> None:
        """One step is on its way to the device."""
        if self._bar is not None:
            self._bar.update()

    def training(self, step: int, values: Mapping[str, float]) -> None:
        """Shows what `Interval.fetch` gave: loss, step time, time waited for data, throughput, and the time left."""
        shown = "  ".join(form.format(values[name]) for name, form in _SHOWN.items() if name in values)
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
            return
        seconds_left = (self._total - step) * values.get("timer/step_ms", 0) / 1000
        left = f"  {datetime.timedelta(seconds=round(seconds_left))} left" if seconds_left else ""
        self.say(f"step {step}/{self._total}  {shown}{left}")

    def rollout(self, successes: int, played: int, episodes: int) -> None:
        """Shows how far a rollout has come: on the bar, else by a line now and then where it takes long."""
        shown = f"rollout: {successes} of {played} episodes succeeded, {episodes - played} to play"
        if self._bar is not None:
            self._bar.set_postfix_str(shown)
        elif played == 1:
            self._said = time.monotonic()
        elif time.monotonic() - self._said > _PATIENCE and played < episodes:
            self._said = time.monotonic()
            self.say(shown)

    def say(self, line: str) -> None:
        """Prints a line, above the bar if there is one."""
        if self._bar is not None:
            self._bar.write(line, file=sys.stderr)
        elif not self._quiet:
            print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()
