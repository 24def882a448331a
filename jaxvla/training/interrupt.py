"""Ctrl-C, SIGTERM, and the signals by which schedulers warn: save first, then stop."""

import os
import signal
import socket
import sys
import threading
from types import TracebackType

import jax
import numpy as np
from jax.experimental import multihost_utils

# Kubernetes and TPU machines that are taken away send SIGTERM; Slurm what its --signal says, such as USR1.
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


class Interrupt:
    """While the context is entered, the first SIGINT, SIGTERM, SIGUSR1 or SIGUSR2 is a request to save and stop.

    The loop asks for it. A SIGINT after that ends the process at once, with exit code 130. A thread waits for the
    signals, so the second one works during a compilation too, when no Python code of the main thread runs. Enter it in
    the main thread.
    """

    def __init__(self) -> None:
        self._requested = threading.Event()

    @property
    def requested(self) -> bool:
        """Whether this process was asked to stop."""
        return self._requested.is_set()

    def agreed(self) -> bool:
        """Whether any process was asked to stop. A collective: all processes call it, at the same step."""
        if jax.process_count() == 1:
            return self.requested
        return bool(multihost_utils.process_allgather(np.array(self.requested)).any())

    def _watch(self) -> None:
        while number := self._read.recv(1):
            if number[0] not in _SIGNALS:
                continue
            if not self.requested:
                self._requested.set()
                message = "stopping after this step, with a checkpoint (Ctrl-C again to abort at once)"
                print(f"\n{signal.Signals(number[0]).name}: {message}", file=sys.stderr, flush=True)
            elif number[0] == signal.SIGINT:
                os._exit(130)

    def __enter__(self) -> "Interrupt":
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        # Python writes the number of a signal into this socket only if the signal has a Python handler.
        self._handlers = {number: signal.signal(number, lambda *_: None) for number in _SIGNALS}
        self._wakeup = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._watch, name="Interrupt", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._wakeup)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._write.close()
        self._thread.join()
        self._read.close()
