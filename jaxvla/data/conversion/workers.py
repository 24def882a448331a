"""Runs a function over many jobs on all cores, and writes files that are either whole or not there."""

import contextlib
import fcntl
import multiprocessing
import os
import pathlib
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import connection, get_context
from typing import TypeVar

from jaxvla.errors import DataError

Job = TypeVar("Job")
Result = TypeVar("Result")

_AHEAD = 4  # jobs that wait per worker, so that none idles while the caller handles a result


def completed(
    function: Callable[[Job], Result], jobs: Iterable[Job], num_workers: int, mend: str = "lower --num_workers"
) -> Iterator[Result]:
    """Yields `function(job)` of every job, as they complete; with one worker, in this process and in order.

    `function` and the jobs must be picklable. Jobs are taken from the iterable only as workers become free. `mend` says
    what is to be done where they took too much memory.

    Raises:
        DataError: a worker was killed, as the system does when the memory is exhausted.
    """
    if num_workers == 1:
        yield from map(function, jobs)
        return
    # Spawned, not forked: a fork of a process with threads (a progress bar has one) can hang.
    context = get_context("spawn")
    with ProcessPoolExecutor(num_workers, context, start_worker) as pool:
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
            raise DataError(f"a worker process was killed, perhaps for lack of memory: {mend}") from None
        finally:
            pool.shutdown(cancel_futures=True)


@contextlib.contextmanager
def writing(path: pathlib.Path) -> Iterator[None]:
    """Makes a failure to write at `path` (no space, no permission, a file in the way) a DataError of one line."""
    try:
        yield
    except OSError as error:
        in_the_way = isinstance(error, FileExistsError | NotADirectoryError)
        reason = "a file is in the way" if in_the_way else error.strerror
        raise DataError(f"{error.filename or path}: cannot be written: {reason}") from None


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


@contextlib.contextmanager
def alone_in(folder: pathlib.Path) -> Iterator[None]:
    """Makes `folder` and keeps other conversions from writing into it meanwhile. The lock ends with the process.

    Raises:
        DataError: the folder cannot be made, or another process holds it.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(
                f"another conversion writes into {folder}: wait for its end, or give another --output_path"
            ) from None
        except OSError:
            pass  # network file systems may have no locks; who writes there takes care himself
        yield
    finally:
        os.close(descriptor)


def start_worker() -> None:
    """In a process of a pool: leaves the handling of ctrl-C to the parent process, and ends with it however it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)
