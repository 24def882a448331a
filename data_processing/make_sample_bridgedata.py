"""Makes a sample dataset in BridgeData V2's raw layout, of scripted demonstrations in the embedded tabletop.

    python data_processing/make_sample_bridgedata.py --output_path data/sample/raw

Writes <output_path>/<task>/<date>/raw/traj_group{K}/traj{N}/ with obs_dict.pkl, policy_out.pkl, agent_data.pkl,
lang.txt, images0/ and images1/, as the collector of BridgeData does. The bytes depend on what the flags say of the data
alone. agent_data.pkl holds the level, and the arguments with which `jaxvla.envs.expert.demonstrate` gives
the same episode again. With --annotations_path it also writes what is seen, thought and done at each step, as one JSON
file in ECoT's layout, where the file path of a trajectory is its folder relative to <output_path>.
"""

import contextlib
import dataclasses
import datetime
import itertools
import json
import math
import os
import pathlib
import pickle
import secrets
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TextIO

import numpy as np
import tqdm
from absl import flags

from jaxvla import cli
from jaxvla.data.conversion.workers import completed, replacing
from jaxvla.envs import geometry, recording
from jaxvla.envs.expert import Decision, demonstrate
from jaxvla.envs.narration import Moment, narrate, observe
from jaxvla.envs.rendering import CAMERAS
from jaxvla.envs.scene import LEVELS
from jaxvla.envs.tabletop import CAMERA_SIZE, STATE_HIGH, STATE_LOW, TabletopEnv
from jaxvla.envs.tasks import ALL_TASKS
from jaxvla.errors import ConfigError, DataError

FLAGS = flags.FLAGS
flags.DEFINE_string("output_path", None, "Folder to write.", required=True)
flags.DEFINE_integer("num_trajectories", 400, "Successful demonstrations to write.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "What the whole dataset is drawn from.", lower_bound=0)
flags.DEFINE_integer("image_size", CAMERA_SIZE, "Pixels a side of the square JPEGs.", lower_bound=16)
flags.DEFINE_multi_enum(
    "level",
    ["full"],
    list(LEVELS),
    "How much there is to tell apart in a scene; given several times, the tasks of each as often.",
)
flags.DEFINE_list("tasks", [], "Which to demonstrate, each as often; those that the levels draw from if empty.")
flags.DEFINE_bool("anywhere", True, "Begin with the gripper anywhere above the table, not near one pose.")
flags.DEFINE_float(
    "push_rate",
    0.04,
    "The probability with which something pushes the gripper off its way at a step; only what follows is taught.",
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_float(
    "miss_rate",
    0.25,
    "The probability with which a demonstration's first grasp misses; only how it is mended is taught.",
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_integer("num_workers", os.cpu_count(), "Processes.", lower_bound=1)
flags.DEFINE_string("annotations_path", "", "JSON file to write the reasoning of all trajectories to; none if empty.")
flags.DEFINE_bool("overwrite", False, "Replace a dataset that this script wrote before, and the annotations.")

COLLECTED_BY = "make_sample_bridgedata.py"
# images0 and images1 under the topics of BridgeData's fixed camera and of one of its movable ones.
CAMERA_TOPICS = ["/D435/color/image_raw", "/blue/image_raw"]

# Dates from here on are free of the one-step camera delay of BridgeData's older rigs.
FIRST_DATE = datetime.datetime(2022, 1, 3, tzinfo=datetime.UTC)
TRAJECTORIES_PER_FOLDER, TRAJECTORIES_PER_GROUP = 25, 1000
STEP_SECONDS, TRAJECTORY_SECONDS = 0.2, 30

# Steps after which a demonstration has failed; pushes and misses make some longer than an evaluation's episodes.
MAX_STEPS = 100


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What all demonstrations of a dataset have in common; see the flags."""

    seed: int
    image_size: int = CAMERA_SIZE
    level: str = "full"
    anywhere: bool = False
    push_rate: float = 0.0
    miss_rate: float = 0.0
    annotate: bool = False


@dataclasses.dataclass(frozen=True)
class Job:
    """One trajectory to write: the `number`-th of the dated folder, the `index`-th of the dataset."""

    root: pathlib.Path
    task: str
    date: datetime.datetime
    number: int
    index: int
    recipe: Recipe

    @property
    def dated_folder(self) -> pathlib.Path:
        """<root>/<task>/<date>."""
        return self.root / self.task / self.date.strftime("%Y-%m-%d_%H-%M-%S")

    @property
    def folder(self) -> pathlib.Path:
        """The folder of the trajectory."""
        group = self.number // TRAJECTORIES_PER_GROUP
        return self.dated_folder / "raw" / f"traj_group{group}" / f"traj{self.number}"


@dataclasses.dataclass(frozen=True)
class Written:
    """What came of a job; `annotations` is its member of the JSON file, "" where none were asked for."""

    steps: int
    failures: int
    bytes: int
    annotations: str


def plan(root: pathlib.Path, num_trajectories: int, recipe: Recipe, tasks: Sequence[tuple[str, str]]) -> list[Job]:
    """Shares the trajectories among the (level, task) pairs, and those of a pair among two dated folders or more."""
    rng = np.random.default_rng(recipe.seed)
    jobs, dates = [], dict.fromkeys((task for _, task in tasks), FIRST_DATE)
    for k, (level, task) in enumerate(tasks):
        own = dataclasses.replace(recipe, level=level)
        indices = range(k, num_trajectories, len(tasks))
        folders = max(math.ceil(len(indices) / TRAJECTORIES_PER_FOLDER), min(2, len(indices)))
        for members in np.array_split(indices, folders) if folders else ():
            dates[task] += datetime.timedelta(days=int(rng.integers(1, 15)), seconds=int(rng.integers(60_000)))
            jobs.extend(Job(root, task, dates[task], n, int(i), own) for n, i in enumerate(members))
    return jobs


def chosen_tasks(levels: Sequence[str], named: Sequence[str]) -> list[tuple[str, str]]:
    """The (level, task) pairs to demonstrate: the tasks named, or all that the levels draw from.

    Raises:
        ConfigError: a level has no such task, or a task or a level is named twice.
    """
    if len(set(levels)) < len(levels):
        raise ConfigError(f"--level must be given different levels, not {' and '.join(levels)}")
    for level in levels:
        known = LEVELS[level].all_tasks
        if set(named) - set(known) or len(set(named)) < len(named):
            raise ConfigError(
                f"--tasks must be different ones of {', '.join(known)} on level {level}, not {','.join(named)}"
            )
    return [(level, task) for level in levels for task in named or LEVELS[level].tasks]


def write_trajectory(job: Job) -> Written:
    """Writes the first successful demonstration among those that the job's seed gives."""
    recipe = job.recipe
    env = TabletopEnv(recipe.image_size, max_steps=MAX_STEPS, level=recipe.level)
    how = {name: getattr(recipe, name) for name in ("anywhere", "push_rate", "miss_rate")}
    for attempt in itertools.count():
        seed = int(np.random.SeedSequence([recipe.seed, job.index, attempt]).generate_state(1)[0])
        frames, desired_states, moments = [], [], []
        for observation, decision in demonstrate(env, seed, job.task, **how):
            frames.append(observation)
            desired_states.append(env.desired_state.copy())
            moments.append(observe(env, decision))
        if env.success():
            break
    start = job.date.timestamp() + job.number * TRAJECTORY_SECONDS
    states = np.stack([moment.state for moment in moments])
    decisions = [moment.decision for moment in moments[:-1]]
    job.folder.mkdir(parents=True)
    _pickle(job.folder / "obs_dict.pkl", observation_dict(states, np.stack(desired_states), start))
    _pickle(job.folder / "policy_out.pkl", [policy_out(d, state) for d, state in zip(decisions, desired_states[1:])])
    _pickle(job.folder / "agent_data.pkl", agent_data(job, seed, len(decisions)))
    (job.folder / "lang.txt").write_text("\n".join([*env.task.instructions[:2], "confidence: 1"]) + "\n")
    for camera in CAMERAS:
        (job.folder / camera).mkdir()
        for t, frame in enumerate(frames):
            (job.folder / camera / f"im_{t}.jpg").write_bytes(recording.encode(frame[camera]))
    size = sum(file.stat().st_size for file in job.folder.rglob("*") if file.is_file())
    return Written(len(decisions), attempt, size, _annotations(job, env, moments) if recipe.annotate else "")


def _annotations(job: Job, env: TabletopEnv, moments: Sequence[Moment]) -> str:
    """`"<file path>": {"0": {...}}`."""
    path = job.folder.relative_to(job.root).as_posix()
    return f"{json.dumps(path)}: {json.dumps({'0': narrate(env, moments, path)})}"


def observation_dict(states: np.ndarray, desired_states: np.ndarray, start: float) -> dict[str, Any]:
    """obs_dict.pkl from states [T + 1, 7]; `start` is the time of the first frame in seconds since 1970."""
    count = len(states)
    bounded = [0, 1, 2, 5, 6]
    return {
        "full_state": states,
        "state": states.copy(),
        "desired_state": desired_states,
        "eef_transform": np.stack([transform(state) for state in states]),
        "low_bound": np.tile(STATE_LOW[bounded], (count, 1)),
        "high_bound": np.tile(STATE_HIGH[bounded], (count, 1)),
        "env_done": [False] * count,
        "time_stamp": [start + STEP_SECONDS * t for t in range(count)],
    }


def policy_out(decision: Decision, desired_state: np.ndarray) -> dict[str, Any]:
    """One entry of policy_out.pkl: the action [7], and as transforms its change and the pose that it asks for.

    One that is not to be imitated says so, see `jaxvla.data.conversion.raw`.
    """
    action = decision.action.astype(np.float64)
    delta = np.eye(4)
    delta[:3, :3] = geometry.rotation(*action[3:6])
    delta[:3, 3] = action[:3]
    return {
        "actions": action,
        "new_robot_transform": transform(desired_state),
        "delta_robot_transform": delta,
        "policy_type": "TabletopExpert",
        **({} if decision.taught else {"taught": False}),
    }


def agent_data(job: Job, seed: int, num_steps: int) -> dict[str, Any]:
    """agent_data.pkl; camera_info gives each camera's intrinsics [3, 3] and its pose in the robot's axes."""
    cameras = [
        {
            "width": job.recipe.image_size,
            "height": job.recipe.image_size,
            "K": camera.intrinsics(job.recipe.image_size),
            "position": np.array(camera.position),
            "axes": camera.axes.copy(),
        }
        for camera in CAMERAS.values()
    ]
    return {
        "traj_ok": True,
        "camera_info": cameras,
        "depth_camera_info": [],
        "term_t": num_steps - 1,
        "level": job.recipe.level,
        "demonstration": {
            "seed": seed,
            "task": job.task,
            "anywhere": job.recipe.anywhere,
            "push_rate": job.recipe.push_rate,
            "miss_rate": job.recipe.miss_rate,
        },
    }


def transform(state: np.ndarray) -> np.ndarray:
    """The gripper's pose [4, 4] in the robot's base, from a state whose first six are x, y, z, roll, pitch, yaw."""
    pose = np.eye(4)
    pose[:3, :3] = geometry.rotation(*state[3:6]) @ geometry.DEFAULT_ROTATION
    pose[:3, 3] = state[:3]
    return pose


def write_session(folder: pathlib.Path, task: str) -> None:
    """collection_metadata.json and config.json of a dated folder."""
    metadata = {"collected_by": COLLECTED_BY, "environment": "jaxvla.envs.tabletop", "task": task}
    config = {"agent": {"env": ["TabletopEnv", {"camera_topics": CAMERA_TOPICS}]}}
    for name, content in (("collection_metadata.json", metadata), ("config.json", config)):
        (folder / name).write_text(json.dumps(content, indent=1) + "\n")


def check_output(path: pathlib.Path, overwrite: bool) -> None:
    """Refuses a path that must not be replaced.

    Raises:
        DataError: it exists and `overwrite` is off, or it holds anything that this script did not write.
    """
    if not os.path.lexists(path):
        return
    if not overwrite:
        raise DataError(f"{path} exists: pass --overwrite to replace it, or another --output_path")
    if not path.is_dir() or not all(_is_own(entry) for entry in path.iterdir()):
        raise DataError(
            f"{path} holds things that {COLLECTED_BY} did not write, so --overwrite spares it: remove it yourself"
        )


def _is_own(task_folder: pathlib.Path) -> bool:
    if task_folder.name not in ALL_TASKS or not task_folder.is_dir():
        return False
    metadata = [dated / "collection_metadata.json" for dated in task_folder.iterdir()]
    return all(file.is_file() and f'"{COLLECTED_BY}"' in file.read_text(errors="replace") for file in metadata)


def check_annotations(path: pathlib.Path | None, output: pathlib.Path, overwrite: bool) -> None:
    """Refuses a file that must not be replaced, or that would lie among the data.

    Raises:
        DataError: it exists and `overwrite` is off, it is a folder, or lies below `output`.
    """
    if path is None:
        return
    if path.is_dir() or path.is_relative_to(output):
        raise DataError(f"{path} is a folder or lies in {output}: give another file as --annotations_path")
    if path.exists() and not overwrite:
        raise DataError(f"{path} exists: pass --overwrite to replace it, or another --annotations_path")


@contextlib.contextmanager
def annotations_file(path: pathlib.Path | None) -> Iterator[TextIO | None]:
    """An open file that stands at `path` once all is written to it; None where there is no path."""
    if path is None:
        yield None
        return
    with replacing(path, path.with_name(f".{path.name}.partial")) as partial, open(partial, "w") as file:
        yield file


def write_members(results: Iterable[Written], file: TextIO | None) -> Iterator[Written]:
    """Passes the results on and writes their annotations to the file, if there is one, as one JSON object."""
    for number, written in enumerate(results):
        if file:
            file.write(("{" if number == 0 else ",") + "\n" + written.annotations)
        yield dataclasses.replace(written, annotations="")
    if file:
        file.write("\n}\n")


def publish(partial: pathlib.Path, path: pathlib.Path) -> None:
    """Puts the finished folder in its place; what stood there goes only once the new one stands."""
    if not path.exists():
        partial.rename(path)
        return
    old = path.with_name(f".{path.name}.old-{secrets.token_hex(4)}")
    path.rename(old)
    partial.rename(path)
    shutil.rmtree(old)


def _pickle(path: pathlib.Path, value: Any) -> None:
    path.write_bytes(pickle.dumps(value, protocol=4))


def _write_numbered(numbered: tuple[int, Job]) -> tuple[int, Written]:
    return numbered[0], write_trajectory(numbered[1])


def _run(jobs: Sequence[Job], num_workers: int) -> Iterator[Written]:
    """Results in the order of the jobs: a seed gives the same annotations file with any number of workers."""
    waiting, expected = {}, 0
    for number, written in completed(_write_numbered, enumerate(jobs), num_workers):
        waiting[number] = written
        while expected in waiting:
            yield waiting.pop(expected)
            expected += 1


def main(_: Sequence[str]) -> None:
    output = pathlib.Path(FLAGS.output_path).resolve()
    annotations = pathlib.Path(FLAGS.annotations_path).resolve() if FLAGS.annotations_path else None
    check_output(output, FLAGS.overwrite)
    check_annotations(annotations, output, FLAGS.overwrite)
    started = time.monotonic()
    partial = output.with_name(f".{output.name}.partial-{secrets.token_hex(4)}")
    how = {name: FLAGS[name].value for name in ("image_size", "anywhere", "push_rate", "miss_rate")}
    recipe = Recipe(FLAGS.seed, annotate=bool(annotations), **how)
    jobs = plan(partial, FLAGS.num_trajectories, recipe, chosen_tasks(FLAGS.level, FLAGS.tasks))
    try:
        run = _run(jobs, min(FLAGS.num_workers, len(jobs)))
        with annotations_file(annotations) as file, contextlib.closing(run):
            partial.mkdir(parents=True)
            written = list(tqdm.tqdm(write_members(run, file), total=len(jobs), unit="traj"))
            for folder, task in sorted({(job.dated_folder, job.task) for job in jobs}):
                write_session(folder, task)
            publish(partial, output)
    except OSError as error:
        raise DataError(f"cannot write {error.filename or output}: {error.strerror}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    steps, failures, size = (sum(getattr(w, name) for w in written) for name in ("steps", "failures", "bytes"))
    print(
        f"wrote {len(written)} trajectories ({steps} steps, {failures} failed demonstrations discarded, "
        f"{size / 1e6:.1f} MB) to {output} in {time.monotonic() - started:.1f} s"
    )
    if annotations:
        print(f"wrote their annotations ({annotations.stat().st_size / 1e6:.1f} MB) to {annotations}")


if __name__ == "__main__":
    cli.run(main)
