"""From which checkpoint a run goes on: the latest one whose files are as they were written."""

import os
import pathlib
import sys

import jax

from jaxvla.checkpoint import (
    ARRAY_ITEMS,
    FOLDER,
    JSON_ITEMS,
    fault,
    faulty,
    find_checkpoint,
    is_run_folder,
    saved_steps,
)
from jaxvla.config import local_path
from jaxvla.errors import CheckpointError
from jaxvla.manifest import MANIFEST, has_manifest
from jaxvla.training.checkpointer import gather

# Of the run folder: checkpoints that cannot be used, out of the way of those of the same steps that will be written.
DAMAGED = "damaged"
_ITEMS = ARRAY_ITEMS + JSON_ITEMS


def candidates(path: str) -> list[pathlib.Path]:
    """The checkpoints that `config.resume_path` can mean, the one to be preferred first.

    Args:
        path: a run folder, for all of its checkpoints; or the folder of one, for that one alone.

    Raises:
        CheckpointError: there is none, or the folder cannot be read.
    """
    if is_run_folder(path):
        run = local_path(path).absolute()
        if steps := saved_steps(run):
            return [run / FOLDER / str(step) for step in reversed(steps)]
    return [find_checkpoint(path)]


def whole_checkpoint(path: str) -> pathlib.Path:
    """The first of the `candidates` that is whole, every byte of it read. All processes call it, and share the reading.

    Of a run folder, later checkpoints that are damaged are moved to RUN/damaged, and named on stderr: the run will save
    at their steps again.

    Raises:
        CheckpointError: none is whole; or a damaged one cannot be moved.
    """
    # Of the first process: a shared disk may show others a checkpoint a little later, and all must try the same ones.
    own = [str(folder) for folder in candidates(path)] if jax.process_index() == 0 else []
    found = [pathlib.Path(folder) for folder in gather({"": own})[0][""]]
    faults: list[str] = []
    for folder in found:
        if reason := _fault(folder):
            faults.append(reason)
            continue
        _set_aside(found, faults, folder)
        if not has_manifest(folder):
            _say(f"checkpoint {folder} was not verified: it is of a version that wrote no manifest")
        return folder
    if len(found) == 1:
        raise faulty(found[0], faults[0])
    raise CheckpointError(
        f"none of the {len(found)} checkpoints in {found[0].parent} is whole; of the latest, {faults[0]}: copy one "
        "again from where there is a copy, or train anew"
    )


def _fault(folder: pathlib.Path) -> str:
    """What is damaged in a checkpoint, the same on every process, of which each reads a share."""
    ranked = has_manifest(folder) and (folder / "metrics").is_dir()  # one without metrics is one that is not ranked
    items = (*_ITEMS, "metrics") if ranked else _ITEMS
    seen = {MANIFEST: has_manifest(folder), "metrics": ranked}
    said = gather({"seen": seen, "fault": fault(folder, items, (jax.process_index(), jax.process_count()))})
    for number, answer in enumerate(said):
        lacking = [name for name in seen if any(other["seen"][name] for other in said) and not answer["seen"][name]]
        if reason := answer["fault"] or (f"{lacking[0]} is missing" if lacking else ""):
            return f"{reason} (says process {number})" if len(said) > 1 else reason
    return ""


def _set_aside(found: list[pathlib.Path], faults: list[str], whole: pathlib.Path) -> None:
    """Moves the damaged ones out of the way, of which there is one for each of `faults`."""
    failure = ""
    for folder, reason in zip(found, faults) if jax.process_index() == 0 else ():
        try:
            target = _free_name(folder.parents[1] / DAMAGED / folder.name)
            target.parent.mkdir(exist_ok=True)
            folder.rename(target)
        except OSError as error:
            failure = f"{folder} is damaged ({reason}) and cannot be moved to {target}: {error.strerror}"
            break
        moved = f"moved to {target}; going on from step {whole.name}"
        _say(f"WARNING: checkpoint {folder} is damaged: {reason}: {moved}")
    if faults and (failure := gather({"": failure})[0][""]):
        raise CheckpointError(f"{failure}; move it away, then resume")


def _free_name(path: pathlib.Path) -> pathlib.Path:
    names = [path, *(path.with_name(f"{path.name}_{number}") for number in range(1, 1000))]
    return next(name for name in names if not os.path.lexists(name))


def _say(line: str) -> None:
    if jax.process_index() == 0:
        print(line, file=sys.stderr, flush=True)
