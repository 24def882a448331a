"""A policy of the tabletop with random weights, and the server of it as people start it."""

import contextlib
import os
import pathlib
import signal
import subprocess
import sys

import numpy as np
from serving.policies import GC_BC, save

from jaxvla.data.schema import BatchSpec
from jaxvla.data.transforms.normalization import FieldStatistics, Statistics

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIZE = 16


def checkpoint(run):
    """gc_bc of both cameras and the proprio, chunks of two actions and a history of two observations."""
    rng = np.random.default_rng(3)
    # Of the size of demonstrated actions.
    actions = rng.normal([0, 0, 0, 0, 0, 0, 0.5], [0.02, 0.02, 0.02, 0, 0, 0.1, 1], (50, 7))
    statistics = Statistics(FieldStatistics.of(actions), FieldStatistics.of(rng.normal(size=(50, 7))), 50, 5)
    spec = BatchSpec(("images0",), (SIZE, SIZE), proprio_dim=7, action_dim=7, obs_horizon=2, action_horizon=2)
    said = {"stored_sizes": {"images0": (SIZE, SIZE)}, "control_frequency": 5.0}
    save(run, "gc_bc", GC_BC | {"use_proprio": True}, spec, values=(-0.6, 0.6), statistics=statistics, **said)
    return run


@contextlib.contextmanager
def serve(*flags):
    """Its address, once it can be reached; it ends by SIGTERM, and must end well."""
    command = [sys.executable, "experiments/serve.py", "--robots", "2", *map(str, flags)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    lines = []
    try:
        for line in process.stdout:
            lines.append(line)
            if line.startswith("serving at "):
                break
        else:
            raise AssertionError(f"the server ended with {process.wait()}: {lines}")
        yield line.removeprefix("serving at ").strip()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert process.stdout.read() == "ended\n"
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
