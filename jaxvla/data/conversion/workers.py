"""Runs a function over many jobs on all cores, and writes files that are either whole or not there."""

import contextlib
import os
import pathlib
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TypeVar

from jaxvla.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")

_AHEAD = 4  # jobs that wait per worker, so that none idles while the caller handles a result


def completed(function: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int) -> Iterator[Result]:
    """Yields `function(job)` of every job, as they complete; with one worker, in this process and in order.

    `function` and the jobs must be picklable. Jobs are taken from the iterable only as workers become free.

    Raises:
        DataError: a worker was killed, as the system does when the memory is exhausted.
    """
    if num_workers == 1:
        yield from map(function, jobs)
        return
    # Spawned, not forked: a fork of a process with threads (a progress bar has one) can hang.
    context = get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, _ignore_interrupt) as pool:
        pending: set[Future[Result]] = set()
        try:
            for job in jobs:
                pending.add(pool.submit(function, job))
                if len(pending) >= _AHEAD * num_workers:
                    done, pending = wait(pending, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in done)
            while pending:
                done, pending = wait(pending, return_when=FIRST_COMPLETED)
                yield from (future.result() for future in done)
        except BrokenProcessPool:
            raise DataError("a worker process was killed, perhaps for lack of memory: lower --num_workers") from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Makes a failure to write at `path` (no space, no permission, a file in the way) a DataError of one line."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{error.filename or path}: cannot be written: {error.strerror}") from None


@contextlib.contextmanager
def replacing(path: pathlib.Path, partial: pathlib.Path) -> Iterator[pathlib.Path]:
    """Gives `partial` to write to and, when that succeeded, moves it to `path`, whose folder is made.

    Raises:
        DataError: either cannot be written.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            yield partial
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def _ignore_interrupt() -> None:
    """Leaves the handling of ctrl-C to the parent process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
