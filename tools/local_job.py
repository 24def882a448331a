"""Jobs of several processes on this machine's CPUs, for the tools beside this file."""

import os
import pathlib
import socket

ROOT = pathlib.Path(__file__).resolve().parents[1]


def free_port() -> int:
    """A port at which nobody listens."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def environment() -> dict[str, str]:
    """That of processes which share a few cores of one machine."""
    own = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false"}
    return own | os.environ | {"PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
