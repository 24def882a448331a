"""A short run of the linear agent; as a script, in a process of its own: linear_run.py '{"run": FOLDER, ...}'."""

import json
import os
import pathlib
import signal
import sys
import time

import jax
from jax.sharding import PartitionSpec
from training.linear_agent import LinearAgent
from training.positional_batches import SPEC, PositionalBatches, make_assets, validation
from training.reach import make_play

from jaxvla import manifest
from jaxvla.checkpoint import saved_steps
from jaxvla.config import from_mapping
from jaxvla.errors import DataError
from jaxvla.parallel.distributed import initialize, together
from jaxvla.parallel.feed import process_rows
from jaxvla.parallel.mesh import make_mesh
from jaxvla.parallel.sharding import batch_sharding
from jaxvla.training.config import TrainConfig
from jaxvla.training.loop import train

VALUES = {
    "agent": "linear",
    "agent_kwargs": {},
    "batch_size": 16,
    "num_steps": 60,
    "log_interval": 10,
    "eval_interval": 20,
    "save_interval": 30,
    "seed": 5,
    "augment": {"order": ("brightness", "random_flip_left_right")},
    "optimizer": {"learning_rate": 3e-2, "warmup_steps": 5, "decay_steps": 100},
}
RULES = (("head/kernel$", PartitionSpec("fsdp")),)


ROLLOUT = {"world": "reach", "episodes": 40, "last_episodes": 40, "interval": 10, "parallel": 8}


def train_linear(
    run,
    batches=PositionalBatches,
    rules=RULES,
    sizes=(16, 16, 5),
    interrupt=None,
    drawn=None,
    agent=None,
    stages=(),
    **changes,
):
    """Trains with the settings of `VALUES`, changed.

    `batches` is called with this process's rows; `interrupt` with step and number of each episode that was played.
    """
    values = VALUES | changes
    config = from_mapping(TrainConfig, values)
    mesh = make_mesh(config.mesh)
    rows = process_rows(batch_sharding(mesh), config.batch_size)
    return train(
        config,
        agent or LinearAgent(SPEC),
        mesh,
        batches(rows),
        lambda step: validation(sizes, rows),
        make_assets(**values),
        pathlib.Path(run),
        rules,
        play=make_play(config, interrupt or (lambda step, played: None)) if config.rollout.world else None,
        drawn=drawn or (lambda start, stop: {}),
        stages=stages,
    )


def metrics_of(run, name):
    """Step to value of one name in metrics.jsonl; each step once."""
    rows = [json.loads(line) for line in (pathlib.Path(run) / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if name in row]
    assert len(set(steps)) == len(steps)
    return {row["step"]: row[name] for row in rows if name in row}


def killed_at(run, position):
    """Batches that kill the process at `position`, as soon as a checkpoint is whole."""

    class Batches(PositionalBatches):
        def __next__(self):
            if self.position == position:
                while not saved_steps(pathlib.Path(run)):
                    time.sleep(0.01)
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__next__()

    return Batches


def signalled_at(position, number):
    """Batches that send the process a signal at `position`."""

    class Batches(PositionalBatches):
        def __next__(self):
            if self.position == position:
                os.kill(os.getpid(), number)
            return super().__next__()

    return Batches


def failing_at(position, how):
    """Batches that are damaged at `position`, or never come."""

    class Batches(PositionalBatches):
        def __next__(self):
            if self.position == position:
                if how == "hang":
                    time.sleep(600)
                raise DataError("out.tfrecord: record 3 is damaged")
            return super().__next__()

    return Batches


def hide(name):
    """From now on no file of this name in a checkpoint can be read; what is hidden from one process, others may see."""
    compare = manifest._compare

    def refused(path, listed, size, crc32c):
        return f"{listed}: Permission denied" if name in listed else compare(path, listed, size, crc32c)

    manifest._compare = refused


if __name__ == "__main__":
    options = json.loads(sys.argv[1])
    if "job" in options:
        initialize(*options.pop("job"))
    if "stop" in options:
        process, at = options.pop("stop")
        options["batches"] = signalled_at(at, signal.SIGTERM) if jax.process_index() == process else PositionalBatches
    if "hidden" in options:
        process, name = options.pop("hidden")
        if jax.process_index() == process:
            hide(name)
    if "kill_at" in options:
        options["batches"] = killed_at(options["run"], options.pop("kill_at"))
    if "fail" in options:
        process, *how = options.pop("fail")
        options["batches"] = failing_at(*how) if jax.process_index() == process else PositionalBatches
    with together():
        train_linear(**options)
