"""A job that runs as several processes: its start, and its end when one of them fails."""

import contextlib
import os
import socket
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from typing import Any

import jax
from jax._src import distributed  # the key-value store of a job has no public door

from jaxvla.errors import ConfigError, JaxvlaError

HEARTBEAT_SECONDS = 100
START_SECONDS = 300
# How long processes that are done wait for the others: the first one still draws what was learned.
_SHUTDOWN_SECONDS = 900
# Of the job's key-value store: why it ends. The first process to fail says it.
_ENDED = "jaxvla/ended"
# Below it, how often each process was heard of.
_ALIVE, _DONE = "jaxvla/alive/", "done"
_SECONDS_BETWEEN_LOOKS = 1.0
# What the runtimes say when a collective, or the coordinator, lost a process.
_LOST = ("closed by peer", "reset by peer", "Socket closed", "coordination service", "Connect timeout", "heartbeat")


def initialize(
    coordinator: str = "",
    num_processes: int | None = None,
    process_id: int | None = None,
    heartbeat_seconds: int = HEARTBEAT_SECONDS,
    start_seconds: int = START_SECONDS,
) -> None:
    """Connects this process to the others of its job. Call it once, in a main, before anything asks jax for devices.

    Args:
        coordinator: "" for a job of one process (nothing is done); "auto" where the launcher is one that jax knows
            (Slurm, Open MPI, Kubernetes, Cloud TPU); else HOST:PORT of process 0, with the two other arguments.
        num_processes: how many processes the job has.
        process_id: the index of this one, from 0.
        heartbeat_seconds: a process that was not heard of for so long counts as dead, and jax ends all others.
        start_seconds: how long processes wait for each other.

    Raises:
        ConfigError: the arguments contradict each other, no launcher was recognised, or process 0 does not answer.
    """
    explicit = coordinator not in ("", "auto")
    if explicit != (num_processes is not None) or explicit != (process_id is not None):
        raise ConfigError(
            "coordinator HOST:PORT, num_processes and process_id go together: give all three, "
            f"not {coordinator!r}, {num_processes}, {process_id}"
        )
    if explicit and not 0 <= process_id < num_processes:
        raise ConfigError(f"process_id must be 0 to {num_processes - 1}, not {process_id}")
    for name, value in (("heartbeat_seconds", heartbeat_seconds), ("start_seconds", start_seconds)):
        if value < 1:
            raise ConfigError(f"{name} must be at least 1, not {value}")
    if not coordinator:
        return
    given = (coordinator, num_processes, process_id) if explicit else ()
    if explicit and process_id:
        _wait_for(coordinator, start_seconds)
    try:
        jax.distributed.initialize(
            *given,
            heartbeat_timeout_seconds=heartbeat_seconds,
            initialization_timeout=start_seconds,
            shutdown_timeout_seconds=_SHUTDOWN_SECONDS,
        )
    except ValueError as error:
        if explicit:
            raise
        raise ConfigError(
            "coordinator=auto found no launcher that jax knows (Slurm, Open MPI, Kubernetes, Cloud TPU): "
            "give HOST:PORT, num_processes and process_id"
        ) from error


def _wait_for(coordinator: str, seconds: int) -> None:
    """Until somebody listens at HOST:PORT: jax would abort where nobody comes."""
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal():
        raise ConfigError(f"coordinator must be HOST:PORT of process 0, or auto, not {coordinator!r}")
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with contextlib.suppress(OSError), socket.create_connection((host, int(port)), timeout=5):
            return
        time.sleep(0.2)
    raise ConfigError(f"process 0 does not answer at {coordinator} since {seconds} s: see its output, or the address")


@contextlib.contextmanager
def together(heartbeat_seconds: int = HEARTBEAT_SECONDS) -> Iterator[None]:
    """Inside, the processes of a job end together: where one fails, all do, each with one message that names the first.

    A process that fails says why, with its index, tells the others, and is gone at once: it does not wait for processes
    that wait for it. One that was killed says nothing; the first process notices that it was not heard of, and tells
    which. jax would notice a little later, and abort. Errors of a job of one process pass through.

    Args:
        heartbeat_seconds: as for `initialize`.
    """
    if distributed.global_state.client is None:
        yield
        return
    done = threading.Event()
    listener = threading.Thread(target=_listen, args=(done, heartbeat_seconds), name="together", daemon=True)
    listener.start()
    try:
        yield
    except JaxvlaError as error:
        end_job(f"error: {error}")
    except SystemExit as error:
        end_job("terminated", error.code if isinstance(error.code, int) else 1)
    except KeyboardInterrupt:
        end_job("interrupted", 130)
    except BaseException as error:
        if is_lost(error):
            _say_who_is_lost()
            end_job(f"error: another process of the job is gone, its own output may say why ({_line(error)})")
        traceback.print_exc()
        end_job(f"error: {_line(error)}")
    finally:
        done.set()
    listener.join()
    jax.distributed.shutdown()  # waits for the others


def end_job(message: str, code: int = 1) -> None:
    """Ends this process at once with `code`, after a line with its index; the others of the job follow."""
    client = distributed.global_state.client
    if client is not None:
        message = f"process {jax.process_index()}: {message}"
        with contextlib.suppress(Exception):  # another process was first, or the coordinator is gone
            client.key_value_set(_ENDED, f"{jax.process_index()} {message}")
            if jax.process_index() == 0:
                time.sleep(2 * _SECONDS_BETWEEN_LOOKS)  # what it said goes with it
    _leave(message, code)


def is_lost(error: BaseException) -> bool:
    """Whether an error means that another process of the job is gone."""
    return not isinstance(error, JaxvlaError) and any(sign in str(error) for sign in _LOST)


def _say_who_is_lost() -> None:
    """Ends this process if it becomes known soon who is gone; else returns."""
    for _ in range(30):
        _follow(_said(distributed.global_state.client), jax.process_index())
        time.sleep(_SECONDS_BETWEEN_LOOKS / 10)


def _follow(said: str | None, own: int) -> None:
    """Ends this process if another one has ended; `said` is of `_said`."""
    if said is None:
        _leave(f"process {own}: error: process 0, which coordinates the job, is gone", 1)
    first, _, message = said.partition(" ")
    if first and int(first) != own:
        _leave(f"process {own}: ending, since {message}", 1)


def _listen(done: threading.Event, heartbeat_seconds: int) -> None:
    """Ends this process when another one has said that it ends, or is gone, whatever the main thread waits for."""
    client, own = distributed.global_state.client, jax.process_index()
    heard: dict[str, tuple[str, float]] = {}
    beats = 0
    while not done.wait(_SECONDS_BETWEEN_LOOKS):
        _follow(_said(client), own)
        beats += 1
        with contextlib.suppress(jax.errors.JaxRuntimeError):  # the next look says that the coordinator is gone
            client.key_value_set(f"{_ALIVE}{own}", str(beats), allow_overwrite=True)
            for silent in _silent(client, heard, 0.6 * heartbeat_seconds) if own == 0 else ():
                end_job(f"error: process {silent} was not heard of for {0.6 * heartbeat_seconds:.0f} s")
    with contextlib.suppress(jax.errors.JaxRuntimeError):
        client.key_value_set(f"{_ALIVE}{own}", _DONE, allow_overwrite=True)


def _silent(client: Any, heard: dict[str, tuple[str, float]], limit: float) -> list[str]:
    """The processes whose number of beats has not changed for `limit` seconds; `heard` is what was heard before."""
    now = time.monotonic()
    for key, beats in client.key_value_dir_get(_ALIVE):
        if key not in heard or heard[key][0] != beats:
            heard[key] = beats, now
    late = (key for key, (beats, since) in heard.items() if beats != _DONE and now - since > limit)
    return [key.rsplit("/", 1)[-1] for key in late]


def _said(client: Any) -> str | None:
    """Who ended, and what it said; empty while nobody has, None where the coordinator is gone."""
    try:
        return client.key_value_try_get(_ENDED)
    except jax.errors.JaxRuntimeError as error:
        return "" if "NOT_FOUND" in str(error) else None


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _leave(message: str, code: int) -> None:
    print(message, file=sys.stderr)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):  # a reader that is gone must not keep this process here
            stream.flush()
    os._exit(code)
