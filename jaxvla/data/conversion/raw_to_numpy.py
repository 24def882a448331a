"""Raw BridgeData V2 to `<output>/<task folder>/(train|val)/out.npy`.

Workers take one trajectory at a time and write it as a part file into `<task folder>/.partial`; when a task folder's
trajectories are through, they are split and their parts joined. So memory holds one trajectory per worker, whatever the
size of a task folder, and an out.npy is whole or absent. Of the two files train/out.npy comes last: where it is, the
task folder is done.
"""

import collections
import contextlib
import dataclasses
import hashlib
import itertools
import os
import pathlib
import shutil
from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np
from tqdm import tqdm

from jaxvla.data.conversion import numpy_format
from jaxvla.data.conversion.discovery import PARTIAL, Ignored, RawTree, find_raw
from jaxvla.data.conversion.raw import LATENCY_FIXED, read_trajectory
from jaxvla.data.conversion.report import Report
from jaxvla.data.conversion.workers import alone_in, completed, writing
from jaxvla.data.skipping import UnusableError
from jaxvla.data.transforms import images
from jaxvla.errors import ConfigError, DataError

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class _Job:
    """One trajectory: where it lies, also below the raw root; the task folder that it goes to, its number there, its
    session; how to read it.
    """

    source: pathlib.Path
    path: str
    target: pathlib.Path
    number: int
    session: str
    im_size: int
    latency_shift: bool
    cameras: tuple[str, ...]

    @property
    def part(self) -> pathlib.Path:
        return self.target / PARTIAL / f"{self.number}.pkl"


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What became of a job: whether its part is written, and the counts of it.

    `enlarged` is the (height, width) of a camera whose frames are smaller than those stored; () where there is none.
    """

    job: _Job
    written: bool
    report: Report
    enlarged: tuple[int, ...] = ()


def convert_raw(
    input_path: pathlib.Path,
    output_path: pathlib.Path,
    *,
    depth: int,
    train_proportion: float,
    im_size: int,
    cameras: Sequence[str],
    seed: int,
    overwrite: bool,
    num_workers: int,
) -> Report:
    """Converts every task folder below `input_path` whose output is not there yet.

    Args:
        input_path: the raw tree.
        output_path: the root of the output tree; made where absent.
        depth: see `discovery`.
        train_proportion: share of each dated folder's usable trajectories that go to the training split, in (0, 1].
        im_size: height and width of the stored frames.
        cameras: those to convert; trajectories that lack one are skipped. Empty: all that each trajectory has.
        seed: of the split, which depends on nothing but it, the dated folders' names and which trajectories are usable.
        overwrite: also replace outputs that are there.
        num_workers: processes.

    Raises:
        ConfigError: a train_proportion outside (0, 1].
        DataError: nothing to convert is found, an output cannot be written, or another conversion writes there.
    """
    if not 0 < train_proportion <= 1:
        raise ConfigError(f"train_proportion must be above 0 and at most 1, not {train_proportion}")
    tree = find_raw(input_path, depth)
    report = Report(notes=list(tree.notes))
    report.ignore(tree.ignored)
    enlarged: list[tuple[int, ...]] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(alone_in(output_path))
        jobs = _plan(tree, output_path, im_size, tuple(cameras), overwrite, report)
        remaining = {target: len(part) for target, part in jobs.items()}
        usable: dict[pathlib.Path, list[_Job]] = {target: [] for target in jobs}
        for target in jobs:
            stack.callback(_remove_parts, target)
        outcomes = completed(_convert, itertools.chain.from_iterable(jobs.values()), num_workers)
        stack.enter_context(contextlib.closing(outcomes))
        total = sum(remaining.values())
        for outcome in tqdm(outcomes, desc="raw to numpy", total=total, unit="trajectory", disable=None):
            target = outcome.job.target
            report.add(outcome.report)
            if outcome.written:
                usable[target].append(outcome.job)
                enlarged += [outcome.enlarged] * bool(outcome.enlarged)
            remaining[target] -= 1
            if not remaining[target]:
                _finish(target, usable.pop(target), train_proportion, seed, report)
    report.notes += _note_enlarged(enlarged, im_size)
    return report


def _note_enlarged(sizes: Sequence[tuple[int, ...]], im_size: int) -> list[str]:
    """A note on trajectories whose frames, of these sizes (height, width), are smaller than those stored."""
    if not sizes:
        return []
    smallest = min(sizes, key=min)
    return [
        f"{len(sizes)} trajectories have frames of less than {im_size} pixels a side, such as "
        f"{images.size_text(smallest)}: enlarged, which adds no detail; convert with --im_size {min(smallest)}"
    ]


def _plan(
    tree: RawTree,
    output_path: pathlib.Path,
    im_size: int,
    cameras: tuple[str, ...],
    overwrite: bool,
    report: Report,
) -> dict[pathlib.Path, list[_Job]]:
    """The jobs of every task folder that is to be done, by its output folder."""
    plan = {}
    for kept, folders in tree.tasks.items():
        target = output_path / kept
        _remove_parts(target)
        jobs: list[_Job] = []
        for folder in folders:
            ignored: Ignored = collections.defaultdict(list)
            sources = folder.trajectories(ignored)
            if not sources:
                ignored["dated folder without raw/traj_group*/traj*"].append(folder.path)
            report.ignore(ignored)
            session = f"{folder.path.parent.name}/{folder.path.name}"
            shift = folder.date < LATENCY_FIXED
            for source in sources:
                # A name that is not UTF-8 cannot be a key of annotations, and must not break the files.
                path = os.fsencode(source.relative_to(tree.root).as_posix()).decode(errors="replace")
                jobs.append(_Job(source, path, target, len(jobs), session, im_size, shift, cameras))
        if (target / "train" / "out.npy").exists() and not overwrite:
            report.tasks_there += 1
            report.there += len(jobs)
        elif jobs:
            plan[target] = jobs
    shifted = sum(job.latency_shift for jobs in plan.values() for job in jobs)
    if shifted:
        report.notes.append(
            f"{shifted} trajectories are from before {LATENCY_FIXED:%Y-%m-%d}, when cameras lagged by one step: their "
            "first frame and last action are left out"
        )
    return plan


def _convert(job: _Job) -> _Outcome:
    report = Report()
    try:
        trajectory = read_trajectory(job.source, job.im_size, job.latency_shift, job.cameras)
    except UnusableError as error:
        report.skip(error)
    except DataError as error:
        report.skip(UnusableError("cannot be read", str(error)))
    except OSError as error:
        report.skip(UnusableError("cannot be read", f"{error.filename or job.source}: {error.strerror}"))
    if report.skipped:
        return _Outcome(job, False, report)
    with writing(job.part):
        job.part.parent.mkdir(parents=True, exist_ok=True)
        numpy_format.write_part(job.part, numpy_format.to_numpy_format(trajectory, job.path))
    report.count(trajectory.frames, trajectory.language, trajectory.taught, trajectory.unread)
    stored = (job.im_size, job.im_size)
    small = [size for size in trajectory.sizes.values() if images.enlarges(size, stored)]
    return _Outcome(job, True, report, min(small, key=min, default=()))


def _finish(target: pathlib.Path, jobs: Sequence[_Job], train_proportion: float, seed: int, report: Report) -> None:
    """Splits the usable trajectories of one task folder and writes its files."""
    if not jobs:
        report.notes.append(f"no usable trajectory, nothing written: {target}")
        return
    sessions = collections.defaultdict(list)
    for job in sorted(jobs, key=lambda job: job.number):
        sessions[job.session].append(job.part)
    train, val = split_sessions(sessions, train_proportion, seed)
    split = {"val": val, "train": train}
    with writing(target):
        for name, parts in split.items():
            if parts:
                numpy_format.join_parts(parts, target / PARTIAL / name)
        # While train/out.npy is absent the task folder counts as not done: it goes first and comes last.
        for name in ("train", "val"):
            (target / name / "out.npy").unlink(missing_ok=True)
        for name, parts in split.items():
            if parts:
                path = target / name / "out.npy"
                path.parent.mkdir(exist_ok=True)
                os.replace(target / PARTIAL / name, path)
                report.bytes_written += path.stat().st_size
                report.converted[name] += len(parts)
    _remove_parts(target)
    if not val:
        report.notes.append(f"no val/out.npy, all usable trajectories ({len(train)}) are in train: {target}")
    report.tasks += 1


def _remove_parts(target: pathlib.Path) -> None:
    shutil.rmtree(target / PARTIAL, ignore_errors=True)


def split_sessions(sessions: Mapping[str, Sequence[T]], train_proportion: float, seed: int) -> tuple[list[T], list[T]]:
    """Splits each session's items at random, int(n * train_proportion) of them for training; both keep their order.

    A session's draw depends on `seed` and its name alone. Where one side would stay empty over all sessions, an item of
    the other moves there: the first of val, or the last of train (unless train_proportion is 1). A single item is for
    training.
    """
    train, val = [], []
    for name, items in sessions.items():
        digest = hashlib.sha256(os.fsencode(name)).digest()
        rng = np.random.default_rng([seed, int.from_bytes(digest[:8], "little")])
        chosen = set(rng.permutation(len(items))[: int(len(items) * train_proportion)].tolist())
        for i, item in enumerate(items):
            (train if i in chosen else val).append(item)
    if not train:
        train.append(val.pop(0))
    elif not val and len(train) > 1 and train_proportion < 1:
        val.append(train.pop())
    return train, val
