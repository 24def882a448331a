"""What a checkpoint folder holds, and how to read it.

    <run>/checkpoints/<step>/
        params/            the agent's parameters (Orbax)
        train/             optimizer state, step and random key (Orbax)
        data/data.json     the position of the data iterator of every process
        assets/assets.json what a robot, or a later run, needs beside the parameters (`Assets`)
        manifest.json      size and checksum of every file of these (`jaxvla.manifest`)

A folder of this name is complete: it is written under another name and renamed when all of it is on disk. Serving
reads params and assets only, and nothing outside the folder. What is read is held against the manifest before; a
checkpoint of an earlier version has none, and is read as it is.
"""

import contextlib
import functools
import gc
import inspect
import json
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

import jaxvla
from jaxvla.assets import Assets
from jaxvla.config import local_path
from jaxvla.errors import CheckpointError, ConfigError
from jaxvla.manifest import changed, has_manifest
from jaxvla.parallel.sharding import path_string

ARRAY_ITEMS = ("params", "train")
JSON_ITEMS = ("data", "assets")
FOLDER = "checkpoints"
# Of the run folder: what was measured, a line of JSON for each event, and what was asked for.
METRICS_FILE, CONFIG_FILE = "metrics.jsonl", "config.json"


def is_run_folder(path: str | pathlib.Path) -> bool:
    """Whether `path` is the folder of a run, not of one checkpoint.

    Raises:
        CheckpointError: the folder cannot be read.
    """
    folder = local_path(path) / FOLDER
    try:
        return folder.is_dir()
    except OSError as error:
        raise CheckpointError(f"{folder} cannot be read: {error.strerror}") from error


def saved_steps(run: pathlib.Path) -> list[int]:
    """The steps of the complete checkpoints of a run folder, ascending."""
    return sorted(int(path.name) for path in (run / FOLDER).glob("*") if path.name.isdigit())


def find_checkpoint(
    path: str | pathlib.Path, step: int | None = None, items: Sequence[str] = ARRAY_ITEMS + JSON_ITEMS
) -> pathlib.Path:
    """The folder of one checkpoint.

    Args:
        path: a run folder, or the folder of one of its checkpoints.
        step: which checkpoint of a run folder; None for the latest.
        items: what it must hold.

    Raises:
        CheckpointError: there is none, it is incomplete, or its folder cannot be read.
    """
    path = local_path(path).absolute()
    try:
        return _find(path, step, items)
    except OSError as error:
        raise CheckpointError(f"{error.filename or path} cannot be read: {error.strerror}") from error


def _find(path: pathlib.Path, step: int | None, items: Sequence[str]) -> pathlib.Path:
    if is_run_folder(path):
        steps = saved_steps(path)
        if not steps:
            os.listdir(path / FOLDER)  # raises where the folder cannot be read, in which a glob finds nothing
            raise CheckpointError(f"{path / FOLDER} holds no complete checkpoint: train longer than save_interval")
        if step is not None and step not in steps:
            raise CheckpointError(f"{path / FOLDER} has no step {step}; there are {', '.join(map(str, steps))}")
        path = path / FOLDER / str(steps[-1] if step is None else step)
    elif step is not None and path.name != str(step):
        raise CheckpointError(f"{path} is no run folder, so step {step} cannot be chosen in it")
    missing = [item for item in items if not (path / item).is_dir()]
    if len(missing) == len(items) and not (path.parent.name == FOLDER and path.exists()):
        raise CheckpointError(
            f"{path} is no checkpoint: looked in it for {FOLDER}/STEP (a run folder) and for {', '.join(items)} "
            "(the folder of one checkpoint)"
        )
    if missing or not path.name.isdigit():
        lacks = f"it lacks {', '.join(missing)}" if missing else "its writing was interrupted"
        raise CheckpointError(f"checkpoint {path} is incomplete: {lacks}; {_instead(path, items)}")
    return path


def _instead(folder: pathlib.Path, items: Sequence[str] | None = None) -> str:
    """What to use in place of a damaged checkpoint: another step of its run, whose files look whole.

    `items` are those that it must have; None for those that the damaged one has.
    """
    items = items or [item for item in ARRAY_ITEMS + JSON_ITEMS if (folder / item).is_dir()]
    steps = saved_steps(folder.parents[1]) if folder.parent.name == FOLDER else []
    others = [step for step in steps if str(step) != folder.name]
    whole = next((step for step in reversed(others) if not fault(folder.with_name(str(step)), items)), None)
    if whole is not None:
        return f"whole is step {whole}: use {folder.with_name(str(whole))}"
    return f"{folder.parent} has no other step that is whole: copy it again from where it was made, or train anew"


def fault(folder: pathlib.Path, items: Sequence[str], share: tuple[int, int] = (0, 1)) -> str:
    """The file of a checkpoint folder that is damaged, and how; "" where none is.

    Every byte is held against the manifest. Of a checkpoint that has none, it is what can be seen without reading
    arrays.

    Args:
        folder: of one checkpoint.
        items: whose files are looked at.
        share: of them, see `jaxvla.manifest.changed`.
    """
    if has_manifest(folder):
        return changed(folder, items, share)
    return next((reason for reason in (_at_first_sight(folder, item) for item in items) if reason), "")


def _at_first_sight(folder: pathlib.Path, item: str) -> str:
    path = folder / item / ("_METADATA" if item in ARRAY_ITEMS else f"{item}.json")
    try:
        json.loads(path.read_text())
        empty = [file.name for file in sorted(path.parent.rglob("*")) if file.is_file() and not file.stat().st_size]
    except OSError as error:
        return f"{item}/{path.name}: {error.strerror}"
    except ValueError as error:
        return f"{item}/{path.name}: {first_line(error)}"
    return f"{item}/{empty[0]} is empty" if empty else ""


def check_whole(folder: pathlib.Path, items: Sequence[str]) -> None:
    """Holds what is about to be read against the manifest, if there is one.

    Raises:
        CheckpointError: a file is not as it was written; names it, and the step to use instead.
    """
    if has_manifest(folder) and (reason := changed(folder, items)):
        raise faulty(folder, reason)


def faulty(folder: pathlib.Path, reason: str) -> CheckpointError:
    """The error of a checkpoint folder with a fault, see `fault`, and the step that can be used."""
    return CheckpointError(f"{folder}/{reason}; {_instead(folder)}")


def read_json(folder: pathlib.Path, item: str) -> Any:
    """The JSON item `item` of a checkpoint folder.

    Raises:
        CheckpointError: missing or damaged.
    """
    check_whole(folder, (item,))
    path = folder / item / f"{item}.json"
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise damaged(folder, f"{item}/{path.name}", error.strerror) from error
    except (ValueError, RecursionError) as error:
        raise damaged(folder, f"{item}/{path.name}", first_line(error)) from error


def damaged(folder: pathlib.Path, what: str, reason: str) -> CheckpointError:
    """The error of a checkpoint folder in which `what` cannot be used, with the step that can be."""
    return CheckpointError(f"{folder / what} cannot be read ({reason}); {_instead(folder)}")


def read_assets(folder: pathlib.Path) -> Assets:
    """The assets of a checkpoint folder.

    Raises:
        CheckpointError: missing, damaged, or of another version of jaxvla.
    """

    unreadable = functools.partial(damaged, folder, "assets/assets.json")
    return parse_assets(read_json(folder, "assets"), folder / "assets", unreadable)


def parse_assets(values: Any, where: pathlib.Path, unusable: Callable[[str], CheckpointError]) -> Assets:
    """The assets that JSON values are.

    Args:
        values: from `Assets.to_json`.
        where: what held them, for errors.
        unusable: the error of damaged ones, by what is wrong.

    Raises:
        CheckpointError: that, or one that says that they are of another version of jaxvla.
    """
    if not isinstance(values, dict):
        raise unusable(f"it is a {type(values).__name__}, no mapping")
    try:
        assets = Assets.from_json(values)
        _check_widths(assets)
        return assets
    except (AttributeError, LookupError, TypeError, ValueError, ConfigError) as error:
        version = values.get("version", "unknown")
        if version == jaxvla.__version__:
            raise unusable(first_line(error)) from error
        raise CheckpointError(
            f"{where} was written by jaxvla {version} and does not fit {jaxvla.__version__} ({error})"
        ) from error


def _check_widths(assets: Assets) -> None:
    """Raises ValueError where statistics do not have the dimensions of batches, or of several datasets have more."""
    wanted = {"actions": assets.spec.action_dim, "proprio": assets.spec.proprio_dim}
    for name, dataset in assets.datasets.items():
        for field, width in wanted.items():
            if len(getattr(dataset.statistics, field).mean) > width:
                raise ValueError(f"datasets.{name}.statistics.{field} has more dimensions than batches, {width}")
    if assets.datasets:
        return
    for field, width in wanted.items():
        for name, values in getattr(assets.statistics, field).to_json().items():
            if np.shape(values) != (width,):
                raise ValueError(f"statistics.{field}.{name} has shape {np.shape(values)}, batches have {width}")


def restore(folder: pathlib.Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Reads array items straight onto their devices.

    Args:
        folder: of one checkpoint.
        abstract: item name to a pytree of `jax.ShapeDtypeStruct`s that carry the shardings wanted, which need not be
            those of the run that saved.

    Raises:
        CheckpointError: an array is missing, unexpected, of another shape, or cannot be read.
    """
    return {item: _restore(folder, item, tree) for item, tree in abstract.items()}


def _restore(folder: pathlib.Path, item: str, tree: Any) -> Any:
    handler, path = ocp.StandardCheckpointHandler(), folder / item
    with _quiet_orbax():
        try:
            _check_tree(path, handler.metadata(path), tree)
            return handler.restore(path, args=ocp.args.StandardRestore(tree))
        except (CheckpointError, MemoryError, jax.errors.JaxRuntimeError):
            raise
        except Exception as error:  # of any kind: Orbax raises this very class, and its libraries what damage makes
            seen, reason = fault(folder, (item,)), _innermost(error).replace(f"{folder}/", "")
        gc.collect()  # the tasks that are left unfinished, while nobody listens to what they say as they go
    raise faulty(folder, seen) if seen else damaged(folder, item, reason)


def _innermost(error: BaseException) -> str:
    """What the first cause of an error says, without the settings that TensorStore adds to it."""
    while error.__cause__ is not None:
        error = error.__cause__
    return first_line(error).split(" [tensorstore_spec=")[0]


@contextlib.contextmanager
def _quiet_orbax() -> Iterator[None]:
    """Without the tracebacks that Orbax logs beside the error that it raises."""
    _drop_orphans()
    loggers = [logging.getLogger(name) for name in ("absl", "asyncio")]
    for logger in loggers:
        logger.addFilter(not_from_orbax)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeFilter(not_from_orbax)


@functools.cache
def _drop_orphans() -> None:
    """From now on nothing is printed of tasks that Orbax left unfinished, and of reads that end when nobody waits."""

    def hook(unraisable: Any) -> None:
        task, error = unraisable.object, unraisable.exc_value
        left = inspect.iscoroutine(task) and "/orbax/" in task.cr_code.co_filename
        late = isinstance(error, RuntimeError) and str(error) == "Event loop is closed"
        if not (left or late):
            before(unraisable)

    before, sys.unraisablehook = sys.unraisablehook, hook


def not_from_orbax(record: logging.LogRecord) -> bool:
    """Drops what Orbax and its tasks log: several tracebacks for one failure, which one CheckpointError reports."""
    return "/orbax/" not in record.pathname and record.name != "asyncio"


def _check_tree(where: pathlib.Path, saved: Any, wanted: Any) -> None:
    saved_shapes, wanted_shapes = _shapes(saved), _shapes(wanted)
    for path in sorted(saved_shapes.keys() | wanted_shapes.keys()):
        if saved_shapes.get(path) != wanted_shapes.get(path):
            have, want = saved_shapes.get(path, "no such array"), wanted_shapes.get(path, "no such array")
            raise CheckpointError(f"{where} does not fit the agent: {path} is {have} there, {want} here")


def _shapes(tree: Any) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_string(path): f"{jax.numpy.dtype(leaf.dtype).name}{list(leaf.shape)}" for path, leaf in leaves}


def first_line(error: BaseException) -> str:
    """What an error says, short enough for a line of ours."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
