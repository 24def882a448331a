"""experiments/train.py for tools/kill_drill.py: it leaves a line for every batch that it reads."""

import json
import os
import pathlib
import runpy
import sys
import zlib
from typing import Any
from unittest import mock

ROOT = pathlib.Path(__file__).resolve().parents[1]


class Recorded:
    """Batches as they are; a line for each, before anybody gets it."""

    def __init__(self, batches: Any, path: pathlib.Path) -> None:
        self._batches, self._file = batches, path.open("a")
        self.get_state, self.set_state, self.close = batches.get_state, batches.set_state, batches.close

    def __next__(self) -> Any:
        position = self._batches.get_state()
        batch = next(self._batches)
        self._file.write(json.dumps([position, checksum(batch)]) + "\n")
        self._file.flush()
        return batch


def checksum(batch: Any) -> int:
    """Of all bytes of a host batch: those of its samples, in their order."""
    import jax
    import numpy as np

    value = 0
    for x in jax.tree.leaves(batch):
        value = zlib.crc32(np.ascontiguousarray(x), value)
    return value


def work(record: str, process: int, words: list[str], environment: dict[str, str]) -> None:
    """Runs experiments/train.py in this process.

    Args:
        record: the folder for process<i>.jsonl, a line [position, checksum] for each batch, and for output<i>.txt.
        process: its number.
        words: the flags.
        environment: variables.
    """
    folder = pathlib.Path(record)
    os.environ.update(environment)
    with open(folder / f"output{process}.txt", "ab") as output:
        for stream in (1, 2):
            os.dup2(output.fileno(), stream)
    sys.argv[:] = [str(ROOT / "experiments" / "train.py"), *words]

    import jax

    from jaxvla.training.job import Job

    if "JAX_COMPILATION_CACHE_DIR" in environment:  # jax may have been imported before
        jax.config.update("jax_compilation_cache_dir", environment["JAX_COMPILATION_CACHE_DIR"])
    made = Job.training_batches

    def recorded(job: Job, rows: slice = slice(None)) -> Recorded:
        return Recorded(made(job, rows), folder / f"process{process}.jsonl")

    with mock.patch.object(Job, "training_batches", recorded):
        runpy.run_path(sys.argv[0], run_name="__main__")
