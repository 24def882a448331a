"""What becomes of steps whose loss or gradient is not finite: `config.on_nan`."""

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from flax import traverse_util

from jaxvla.checkpoint import first_line, saved_steps
from jaxvla.errors import TrainingError
from jaxvla.parallel.feed import DeviceFeed
from jaxvla.training.checkpointer import Checkpointer, gather, restore_state
from jaxvla.training.config import TrainConfig
from jaxvla.training.interval import BadStep
from jaxvla.training.resuming import whole_checkpoint
from jaxvla.training.state import TrainState

# Of the run folder: the batches of bad steps, this process's rows of each.
BAD_BATCHES = "bad_batches"


class Guard:
    """Counts bad steps, keeps their batches, and finds the state to go on from.

    All processes of a job see the same losses, so they call the same methods with the same steps.

    Args:
        config: says what becomes of bad steps.
        run: the run folder.
        abstract: shapes and shardings of the state.

    Attributes:
        count: of bad steps so far, since the run was started or resumed.
    """

    def __init__(self, config: TrainConfig, run: pathlib.Path, abstract: TrainState) -> None:
        self._config, self._run, self._abstract = config, run, abstract
        self.count = 0

    def note(self, bad: BadStep, feed: DeviceFeed) -> str:
        """Keeps the batch of a bad step.

        Returns:
            A line that says what is bad, what becomes of it, and where the batch is.

        Raises:
            TrainingError: bad steps end the run, or there were too many.
        """
        self.count += 1
        on_nan, most = self._config.on_nan, self._config.max_bad_steps
        kept = self._keep(bad, feed.read_again(bad.position))
        mend = "Lower config.optimizer.learning_rate, set config.optimizer.clip_norm, or look at the data"
        if on_nan == "raise":
            raise TrainingError(
                f"{bad}; nothing was saved since. {mend}: {kept}. config.on_nan=skip or roll_back goes on without it"
            )
        done = "its update was left out" if on_nan == "skip" else "rolling back"
        if self.count > most:
            raise TrainingError(f"{bad}, after {most} such steps (config.max_bad_steps). {mend}: {kept}")
        return f"WARNING: {bad}: {done} ({self.count} of at most {most}); {kept}"

    def roll_back(self, step: int, checkpointer: Checkpointer) -> tuple[TrainState, str]:
        """The state of the latest checkpoint, as that after `step`.

        Returns:
            It, and the name of the checkpoint.

        Raises:
            TrainingError: there is none yet.
            CheckpointError: none is whole.
        """
        checkpointer.wait()
        # One process says whether there are any: a shared disk may show them to others a little later.
        own = gather({"": bool(saved_steps(self._run))})[0][""]
        path = str(self._run) if own else self._config.resume_path
        if not path:
            raise TrainingError(
                "config.on_nan=roll_back found no checkpoint to go back to: lower config.save_interval, or let skip "
                "leave such steps out"
            )
        folder = whole_checkpoint(path)
        state = restore_state(folder, self._abstract)
        place = state.step.sharding
        number = jax.make_array_from_callback((), place, lambda _: np.asarray(step, np.int32))
        return dataclasses.replace(state, step=number), folder.name

    def _keep(self, bad: BadStep, batch: Mapping[str, Any]) -> str:
        """Writes this process's rows of a batch, and says where they are."""
        path = self._run / BAD_BATCHES / f"step{bad.step}_process{jax.process_index()}.npz"
        unfinished = path.with_suffix(".unfinished")
        try:
            path.parent.mkdir(exist_ok=True)
            with open(unfinished, "wb") as file:
                np.savez(file, **traverse_util.flatten_dict(dict(batch), sep="/"))
            os.replace(unfinished, path)
        except OSError as error:
            return f"its batch could not be written to {path} ({first_line(error)})"
        return f"its batch is in {path}"
