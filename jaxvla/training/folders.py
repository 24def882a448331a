"""Where a run writes to."""

import os
import pathlib
import shutil
import tempfile
import time

import jax
import numpy as np
from jax.experimental import multihost_utils

from jaxvla.checkpoint import first_line, is_run_folder, saved_steps
from jaxvla.config import local_path
from jaxvla.errors import CheckpointError, ConfigError
from jaxvla.training.checkpointer import gather
from jaxvla.training.config import TrainConfig
from jaxvla.training.resuming import candidates, whole_checkpoint


def begun(save_dir: str, name: str, num_steps: int) -> tuple[str, int]:
    """What there is of the run `save_dir/name`, the same on all processes.

    Args:
        save_dir: where its folder is.
        name: of the run.
        num_steps: with a checkpoint of which it is complete. That one is read whole first, since nobody would notice
            later that it is damaged; see `whole_checkpoint`.

    Returns:
        Its folder and the step of its latest checkpoint; "" and 0 where it has none, or is not there.

    Raises:
        ConfigError: the run has no name.
        CheckpointError: it would be complete, and none of its checkpoints is whole.
    """
    if not name:
        raise ConfigError("a run that goes on by its name needs one: give --name")
    run = local_path(save_dir).absolute() / name
    # One process says what there is: a shared disk may show it to others a little later.
    steps = gather({"steps": saved_steps(run)})[0]["steps"]
    if not steps:
        return "", 0
    return str(run), steps[-1] if steps[-1] < num_steps else int(whole_checkpoint(str(run)).name)


def run_folder(config: TrainConfig, name: str = "", fixed: bool = False) -> pathlib.Path:
    """The folder that a run writes to: the one that it resumes, else a new one, `save_dir/<name>_<date>_<time>` (UTC).

    Args:
        config: gives `resume_path` and `save_dir`.
        name: of the run; the agent's where it is empty.
        fixed: the folder is `save_dir/name`, which may be there.

    Raises:
        CheckpointError: there is nothing to resume, or the folder cannot be made.
    """
    if config.resume_path:
        checkpoint = candidates(config.resume_path)[0]
        if is_run_folder(config.resume_path):
            return checkpoint.parents[1]
    root = local_path(config.save_dir).absolute()
    if fixed:
        try:
            (root / name).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise CheckpointError(f"cannot make the run folder {root / name}: {first_line(error)}") from error
        return root / name
    started, copy = int(time.time()), 0
    if jax.process_index() == 0:
        while not _make_folder(_run_name(root, name or config.agent, started, copy)):
            copy += 1
    if jax.process_count() > 1:
        started, copy = multihost_utils.broadcast_one_to_all(np.array([started, copy], np.uint32)).tolist()
    return _run_name(root, name or config.agent, started, copy)


def check_paths(config: TrainConfig) -> None:
    """Says at once, before data is opened, that there is nothing to resume or no place for the run folder.

    Raises:
        CheckpointError: the one or the other, or a place whose folders cannot be renamed.
    """
    if config.resume_path:
        candidates(config.resume_path)
    root = local_path(config.save_dir).absolute()
    there = next(folder for folder in (root, *root.parents) if os.path.lexists(folder))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "is no folder that can be written"
        raise CheckpointError(f"cannot make a run folder in {root}: {there} {reason}; set config.save_dir to one")
    _check_renaming(there)


def _check_renaming(root: pathlib.Path) -> None:
    """Raises CheckpointError where folders keep their names, as in mounted buckets: no checkpoint would be complete."""
    try:
        folder = pathlib.Path(tempfile.mkdtemp(prefix=".renaming_", dir=root))
    except OSError as error:
        raise CheckpointError(f"cannot make a folder in {root}: {error.strerror}; see config.save_dir") from error
    renamed = folder.with_name(f"{folder.name}_done")
    try:
        (folder / "file").touch()
        folder.rename(renamed)
    except OSError as error:
        raise CheckpointError(
            f"folders in {root} cannot be renamed ({error.strerror}), and a checkpoint is complete by that: set "
            "config.save_dir to a disk, or to a bucket that is mounted with folders of its own (docs/pods.md)"
        ) from error
    finally:
        for left in (folder, renamed):
            shutil.rmtree(left, ignore_errors=True)


def _run_name(root: pathlib.Path, name: str, started: int, copy: int) -> pathlib.Path:
    stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime(started))
    return root / (f"{name}_{stamp}" + (f"_{copy}" if copy else ""))


def _make_folder(path: pathlib.Path) -> bool:
    """Makes `path`; False if another run has it already."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise CheckpointError(f"cannot make the run folder {path}: {first_line(error)}") from error
    return True
