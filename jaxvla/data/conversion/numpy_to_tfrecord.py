"""`<input>/<task folder>/(train|val)/out.npy` to `<output>/<task folder>/(train|val)/out.tfrecord`.

The format of an out.npy forces a worker to hold one whole file in memory.
"""

import dataclasses
import itertools
import os
import pathlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from tqdm import tqdm

from jaxvla.data import untrusted
from jaxvla.data.conversion import tfrecord_format
from jaxvla.data.conversion.discovery import SPLITS, find_numpy
from jaxvla.data.conversion.report import Report, UnusableError
from jaxvla.data.conversion.workers import completed, replacing, writing
from jaxvla.errors import DataError


@dataclasses.dataclass(frozen=True)
class _Job:
    """One file: where it lies and where its conversion goes."""

    source: pathlib.Path
    target: pathlib.Path

    @property
    def partial(self) -> pathlib.Path:
        return self.target.with_name(".partial.tfrecord")


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What became of a job: trajectories written, and (reason, detail) of those that were not."""

    job: _Job
    written: int
    skipped: list[tuple[str, str]]


def convert_numpy(
    input_path: pathlib.Path, output_path: pathlib.Path, *, depth: int, overwrite: bool, num_workers: int
) -> Report:
    """Converts every out.npy below `input_path` whose output is not there yet.

    Args:
        input_path: the numpy tree, as `convert_raw` or bridge_data_v2 wrote it.
        output_path: the root of the output tree; made where absent.
        depth: see `discovery`.
        overwrite: also replace outputs that are there, and remove those whose out.npy is gone.
        num_workers: processes; each holds one out.npy in memory.

    Raises:
        DataError: nothing to convert is found, or an output cannot be written.
    """
    report = Report()
    jobs = []
    for kept, folder in find_numpy(input_path, depth).items():
        todo = list(_jobs(folder, output_path / kept, overwrite, report))
        report.tasks_there += not todo
        jobs += todo
    jobs.sort(key=lambda job: job.source.stat().st_size, reverse=True)  # the longest first, so that all end together
    converted = set()
    outcomes = completed(_convert, jobs, num_workers)
    for outcome in tqdm(outcomes, desc="numpy to TFRecord", total=len(jobs), unit="file", disable=None):
        for reason, detail in outcome.skipped:
            report.skipped[reason].append(detail)
        if outcome.written:
            converted.add(outcome.job.target.parents[1])
            report.converted[outcome.job.target.parent.name] += outcome.written
            report.bytes_written += os.path.getsize(outcome.job.target)
    report.tasks = len(converted)
    return report


def _jobs(folder: pathlib.Path, target: pathlib.Path, overwrite: bool, report: Report) -> Iterator[_Job]:
    for split in SPLITS:
        job = _Job(folder / split / "out.npy", target / split / "out.tfrecord")
        with writing(job.target):
            job.partial.unlink(missing_ok=True)
            if overwrite and not job.source.exists():
                job.target.unlink(missing_ok=True)
        if not job.source.exists():
            continue
        if overwrite or not job.target.exists():
            yield job
        elif job.target.stat().st_mtime < job.source.stat().st_mtime:
            report.notes.append(f"already there, but older than its out.npy (--overwrite converts again): {job.target}")


def _convert(job: _Job) -> _Outcome:
    try:
        trajectories = untrusted.load_object_npy(job.source)
    except DataError as error:
        return _Outcome(job, 0, [("damaged or refused out.npy", str(error))])
    if trajectories.dtype != np.dtype(object) or trajectories.ndim != 1:
        return _Outcome(job, 0, [("out.npy holds no trajectories", f"{job.source}: {trajectories.dtype} array")])
    skipped: list[tuple[str, str]] = []
    usable = _usable(trajectories, str(job.source), skipped)
    first = next(usable, None)
    if first is None:
        return _Outcome(job, 0, skipped)
    with replacing(job.target, job.partial) as partial:
        written = tfrecord_format.write_trajectories(partial, itertools.chain([first], usable))
    return _Outcome(job, written, skipped)


def _usable(trajectories: np.ndarray, where: str, skipped: list[tuple[str, str]]) -> Iterator[dict[str, Any]]:
    for i, trajectory in enumerate(trajectories):
        trajectories[i] = None  # frees its frames as soon as they are written
        try:
            yield tfrecord_format.trajectory_features(trajectory, f"{where}: trajectory {i}")
        except UnusableError as error:
            skipped.append((error.reason, error.detail))
