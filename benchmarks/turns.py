"""Measuring several things in turns, so that whatever else the machine does hits all of them alike."""

import dataclasses
import math
import os
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any


@dataclasses.dataclass
class Pass:
    """What is measured.

    Attributes:
        run: does it once, and returns when it is done.
        tokens: that one run reads, or in decode writes.
        flops: of one run.
        reading: bytes of weights and keys that one run has to read; 0 where that does not bound it.
        held: bytes of its parameters; None where nothing tells.
        temporary: bytes beside arguments and results; None where nothing tells.
        compile_seconds: to trace and compile; None for eager code.
        seconds: of one run, by round.
    """

    label: str
    run: Callable[[], Any]
    tokens: int = 0
    flops: float = 0.0
    reading: int = 0
    held: int | None = None
    temporary: int | None = None
    compile_seconds: float | None = None
    seconds: list[float] = dataclasses.field(default_factory=list)

    @property
    def median(self) -> float:
        """Seconds of one run."""
        return statistics.median(self.seconds)


def say(*words: object) -> None:
    """Prints at once."""
    print(*words, flush=True)


def measure(passes: Sequence[Pass], rounds: int, least_seconds: float) -> None:
    """Fills in the seconds of all passes, which take turns.

    Args:
        passes: run twice each before anything counts.
        rounds: of measuring every pass.
        least_seconds: between two looks at the clock.
    """
    repeats = []
    for one in passes:
        one.run()
        start = time.perf_counter()
        one.run()
        repeats.append(math.ceil(least_seconds / (time.perf_counter() - start)))
    for turn in range(rounds):
        for one, times in zip(passes, repeats):
            start = time.perf_counter()
            for _ in range(times):
                one.run()
            one.seconds.append((time.perf_counter() - start) / times)
        say(f"round {turn + 1} of {rounds}, load {os.getloadavg()[0]:.1f}")
