"""`<input>/<task folder>/(train|val)/out.npy` to `<output>/<task folder>/(train|val)/out.tfrecord`.

The format of an out.npy forces a worker to hold one whole file in memory.
"""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np
from tqdm import tqdm

from jaxvla.data.conversion import numpy_format, tfrecord_format
from jaxvla.data.conversion.discovery import SPLITS, find_numpy
from jaxvla.data.conversion.report import Report
from jaxvla.data.conversion.tfrecord_format import CheckedTrajectory
from jaxvla.data.conversion.workers import alone_in, completed, replacing, writing
from jaxvla.data.formats import untrusted
from jaxvla.data.skipping import UnusableError
from jaxvla.errors import DataError


@dataclasses.dataclass(frozen=True)
class _Job:
    """One file: where it lies and where its conversion goes."""

    source: pathlib.Path
    target: pathlib.Path
    cameras: tuple[str, ...]

    @property
    def partial(self) -> pathlib.Path:
        return self.target.with_name(".partial.tfrecord")


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What became of a job: the counts of it."""

    job: _Job
    report: Report


def convert_numpy(
    input_path: pathlib.Path,
    output_path: pathlib.Path,
    *,
    depth: int,
    cameras: Sequence[str],
    overwrite: bool,
    num_workers: int,
) -> Report:
    """Converts every out.npy below `input_path` whose output is not there yet.

    Args:
        input_path: the numpy tree, as `convert_raw` or bridge_data_v2 wrote it.
        output_path: the root of the output tree; made where absent.
        depth: see `discovery`.
        cameras: those to write; trajectories that lack one are skipped. Empty: images0, without which a trajectory is
            skipped, and the others that all trajectories of a file have.
        overwrite: also replace outputs that are there, and remove those whose out.npy is gone.
        num_workers: processes; each holds one out.npy in memory.

    Raises:
        DataError: nothing to convert is found, an output cannot be written, or another conversion writes there.
    """
    tree = find_numpy(input_path, depth)
    report = Report()
    report.ignore(tree.ignored)
    with alone_in(output_path):
        jobs = []
        for kept, folder in tree.tasks.items():
            todo = list(_jobs(folder, output_path / kept, tuple(cameras), overwrite, report))
            report.tasks_there += not todo
            jobs += todo
        report.tasks = _run(jobs, num_workers, report)
    return report


def _run(jobs: list[_Job], num_workers: int, report: Report) -> int:
    """Adds the counts of all jobs to `report`; gives the number of task folders of which something was written."""
    jobs.sort(key=lambda job: job.source.stat().st_size, reverse=True)  # the longest first, so that all end together
    converted = set()
    outcomes = completed(_convert, jobs, num_workers)
    for outcome in tqdm(outcomes, desc="numpy to TFRecord", total=len(jobs), unit="file", disable=None):
        report.add(outcome.report)
        if outcome.report.bytes_written:
            converted.add(outcome.job.target.parents[1])
    return len(converted)


def _jobs(
    folder: pathlib.Path, target: pathlib.Path, cameras: tuple[str, ...], overwrite: bool, report: Report
) -> Iterator[_Job]:
    if not (folder / "train" / "out.npy").exists():
        report.notes.append(f"no train/out.npy, only val: {folder}")
    for split in SPLITS:
        job = _Job(folder / split / "out.npy", target / split / "out.tfrecord", cameras)
        with writing(job.target):
            job.partial.unlink(missing_ok=True)
            if overwrite and not job.source.exists():
                job.target.unlink(missing_ok=True)
        if not job.source.exists():
            continue
        if overwrite or not job.target.exists():
            yield job
            continue
        report.there += numpy_format.count_trajectories(job.source)
        if job.target.stat().st_mtime < job.source.stat().st_mtime:
            report.notes.append(f"already there, but older than its out.npy (--overwrite converts again): {job.target}")


def _convert(job: _Job) -> _Outcome:
    report = Report()
    try:
        trajectories = untrusted.load_object_npy(job.source)
        if trajectories.dtype != np.dtype(object) or trajectories.ndim != 1:
            raise UnusableError("out.npy holds no trajectories", f"{job.source}: {trajectories.dtype} array")
    except UnusableError as error:
        report.skip(error)
        return _Outcome(job, report)
    except DataError as error:
        lost = max(numpy_format.count_trajectories(job.source), 1)
        report.skip(UnusableError("damaged or refused out.npy", str(error)), lost)
        return _Outcome(job, report)
    usable = _usable(trajectories, job, report)
    if usable:
        report.converted[job.target.parent.name] = len(usable)
        with replacing(job.target, job.partial) as partial:
            tfrecord_format.write_trajectories(partial, _with_common_cameras(usable, report))
        report.bytes_written = os.path.getsize(job.target)
    return _Outcome(job, report)


def _usable(trajectories: np.ndarray, job: _Job, report: Report) -> collections.deque[CheckedTrajectory]:
    usable: collections.deque[CheckedTrajectory] = collections.deque()
    sizes: dict[str, tuple[int, ...]] = {}
    for i, trajectory in enumerate(trajectories):
        trajectories[i] = None  # so that its frames are freed as soon as they are written
        try:
            checked = tfrecord_format.check_trajectory(trajectory, f"{job.source}: trajectory {i}", job.cameras)
            for camera, size in checked.sizes.items():
                if sizes.get(camera, size) != size:
                    detail = f"{checked.where}: {camera} has {list(size)}, those before it {list(sizes[camera])}"
                    raise UnusableError("frames of another size than the file's first", detail)
        except UnusableError as error:
            report.skip(error)
        else:
            sizes = checked.sizes | sizes
            usable.append(checked)
    return usable


def _with_common_cameras(
    usable: collections.deque[CheckedTrajectory], report: Report
) -> Iterator[dict[str, np.ndarray | list[str]]]:
    """Empties `usable`: the features of each with the cameras that all have, for an index has no gaps."""
    common = set.intersection(*(set(checked.frames) for checked in usable))
    while usable:
        checked = usable.popleft()
        lacking = [camera for camera in checked.frames if camera not in common]
        unread = {f"{camera}, which other trajectories of the file lack": checked.where for camera in lacking}
        cameras = [camera for camera in checked.frames if camera in common]
        report.count(cameras, checked.language, checked.taught, checked.unread | unread)
        yield checked.features(cameras)
