"""Jobs of several processes, each with simulated devices of its own."""

import json
import os
import pathlib
import socket
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def start_job(script, processes, devices, timeout=120, codes=None, **options):
    """Runs a script of tests/training in several processes; returns what each printed to stderr.

    It gets `options` as JSON, with {"job": what `initialize` takes}; the processes end with `codes`, 0 if not given.
    """
    port = free_port()
    flags = [flag for flag in os.environ["XLA_FLAGS"].split() if "device_count" not in flag]
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "XLA_FLAGS": " ".join([*flags, f"--xla_force_host_platform_device_count={devices}"]),
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    }
    jobs = [
        subprocess.Popen(
            [
                sys.executable,
                ROOT / "tests" / "training" / script,
                json.dumps(options | {"job": [f"127.0.0.1:{port}", processes, process]}),
            ],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for process in range(processes)
    ]
    try:
        errors = [job.communicate(timeout=timeout)[1] for job in jobs]
    finally:
        for job in jobs:
            job.kill()
    assert [job.returncode for job in jobs] == list(codes or [0] * processes), "\n".join(errors)
    return errors
