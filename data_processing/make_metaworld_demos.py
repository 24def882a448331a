"""Makes demonstrations of Meta-World's tasks by its scripted experts, as a LeRobotDataset 2.1 with reasoning.

    python data_processing/make_metaworld_demos.py --output_path data/metaworld/mt10 --tasks mt10 \\
        --num_trajectories 50 --image_size 64

Needs the extra `metaworld`. Every demonstration succeeds. In some of its steps something pushes the hand, or the expert
errs about where it is; these are marked as not to be taught, so that what is learned is how one recovers. What is seen,
thought and done at each step is written from the simulator's truth into OUTPUT_PATH/reasoning.sqlite, which training
reads. The camera has the name of the protocol's view, so that a policy is played in no other.

OUTPUT_PATH is there whole or not at all; an interrupted run goes on when the same command is given again, and the bytes
depend on what the flags say of the data alone.
"""

import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

import numpy as np
from absl import flags

from jaxvla import cli
from jaxvla.config import local_path
from jaxvla.data.conversion.lerobot.convert import Options, write_lerobot
from jaxvla.data.conversion.lerobot.episode import IMAGE, VIDEO, Episode, Episodes, make_episode
from jaxvla.data.conversion.workers import replacing, start_worker, writing
from jaxvla.data.formats.lerobot_meta import INFO
from jaxvla.data.skipping import UnusableError
from jaxvla.envs.metaworld.expert import demonstrate
from jaxvla.envs.metaworld.narration import Moment, narrate, observe
from jaxvla.envs.metaworld.protocols import PROTOCOLS, SUITES, check_tasks
from jaxvla.envs.metaworld.world import CONTROL_FREQUENCY, MetaWorld, check_installed
from jaxvla.errors import ConfigError, DataError
from jaxvla.reasoning.annotations import Tally, ecot_episodes
from jaxvla.reasoning.store import write_store

FLAGS = flags.FLAGS
flags.DEFINE_string("output_path", None, "Folder to write.", required=True)
flags.DEFINE_list("tasks", ["mt10"], f"Which to demonstrate: tasks, or one of the suites {', '.join(SUITES)}.")
flags.DEFINE_integer("num_trajectories", 50, "Demonstrations of each task.", lower_bound=1)
flags.DEFINE_integer("num_validation", 2, "More of each task, for validation.", lower_bound=0)
flags.DEFINE_integer("image_size", 224, "Pixels a side of the square pictures.", lower_bound=16)
flags.DEFINE_enum("protocol", "starvla", list(PROTOCOLS), "What the camera sees.")
flags.DEFINE_enum("pictures", None, [VIDEO, IMAGE], "H.264 or PNG; PNG below 128 pixels where it is not given.")
flags.DEFINE_integer("seed", 0, "What the whole dataset is drawn from.", lower_bound=0)
flags.DEFINE_float(
    "push_rate", 0.02, "The probability with which a push begins at a step.", lower_bound=0, upper_bound=1
)
flags.DEFINE_float("error_rate", 0.01, "The probability with which an error begins.", lower_bound=0, upper_bound=1)
flags.DEFINE_integer("num_workers", os.cpu_count(), "Processes that simulate.", lower_bound=1)

STATE_NAMES, ACTION_NAMES = ("x", "y", "z", "opening"), ("x", "y", "z", "closing")
# What is written first of a new dataset, and removed last.
ANNOTATIONS = "annotations"

# Episodes that wait for each worker, so that none idles while the last one is written.
AHEAD = 3
# Failed demonstrations after which an episode is given up.
ATTEMPTS = 20
# About what an episode has, for the size that is printed beforehand: steps, and bytes a pixel of PNG and of H.264.
STEPS, BYTES = 90, {IMAGE: 1.8, VIDEO: 0.038}


@dataclasses.dataclass(frozen=True)
class Recipe:
    """What follows from the flags; the bytes of a dataset depend on nothing else."""

    tasks: tuple[str, ...]
    train: int
    val: int
    image_size: int
    protocol: str
    seed: int
    push_rate: float
    error_rate: float

    @property
    def total(self) -> int:
        """All episodes."""
        return len(self.tasks) * (self.train + self.val)

    def task(self, number: int) -> str:
        """That of an episode: all take turns."""
        return self.tasks[number % len(self.tasks)]


@dataclasses.dataclass(frozen=True, eq=False)
class Shown:
    """A demonstration of n steps.

    Attributes:
        seed: of its scene.
        frames: uint8 [n, side, side, 3].
        states, actions: float32 [n, 4].
        taught: bool [n].
        annotations: JSON of ECoT's layout.
    """

    seed: int
    frames: np.ndarray
    states: np.ndarray
    actions: np.ndarray
    taught: np.ndarray
    annotations: str


_WORLD: dict[Recipe, MetaWorld] = {}  # that of a worker


def show(recipe: Recipe, number: int) -> Shown | None:
    """The first demonstration of an episode that succeeds; None where there is none in `ATTEMPTS`."""
    world = _WORLD.setdefault(recipe, MetaWorld(PROTOCOLS[recipe.protocol], recipe.image_size))
    rates = {"push_rate": recipe.push_rate, "error_rate": recipe.error_rate}
    for attempt in range(ATTEMPTS):
        seed = int(np.random.SeedSequence([recipe.seed, number, attempt]).generate_state(1)[0])
        frames: list[np.ndarray] = []
        states: list[np.ndarray] = []
        moments: list[Moment] = []
        for observation, decision in demonstrate(world, seed, recipe.task(number), **rates):
            frames.append(observation[world.protocol.view])
            states.append(observation["proprio"])
            moments.append(observe(world, decision))
        decisions = [moment.decision for moment in moments[:-1]]
        if world.done and len(decisions) > 1:
            told = json.dumps(narrate(recipe.task(number), moments, str(number)))
            actions, taught = [d.action for d in decisions], [d.taught for d in decisions]
            tables = np.stack(states[:-1]), np.stack(actions), np.array(taught)
            return Shown(seed, np.stack(frames[:-1]), *tables, told)
    return None


class Studio:
    """Gives episodes one by one, and has the next ones simulated meanwhile.

    Args:
        recipe: of the dataset.
        folder: where what is thought in each episode is written, before the episode is.
        num_workers: processes.
    """

    def __init__(self, recipe: Recipe, folder: pathlib.Path, num_workers: int) -> None:
        self._recipe, self._folder, self._ahead = recipe, folder, AHEAD * num_workers
        self._pool = ProcessPoolExecutor(num_workers, get_context("spawn"), start_worker)
        self._coming: dict[int, Future[Shown | None]] = {}

    def read(self, number: int) -> Episode:
        """The episode of a number; see `Episodes.read`."""
        for n in range(number, min(number + self._ahead, self._recipe.total)):
            if n not in self._coming:
                self._coming[n] = self._pool.submit(show, self._recipe, n)
        try:
            shown = self._coming.pop(number).result()
        except BrokenProcessPool:
            raise DataError("a worker process was killed, perhaps for lack of memory: lower --num_workers") from None
        task = self._recipe.task(number)
        if shown is None:
            raise UnusableError(f"the expert failed {ATTEMPTS} times", f"episode {number}, {task}")
        path = self._folder / f"{number:06d}.json"
        with replacing(path, path.with_suffix(".part")) as partial:
            partial.write_text(shown.annotations)
        side = self._recipe.image_size
        view = PROTOCOLS[self._recipe.protocol].view
        language = json.loads(shown.annotations)["metadata"]["language_instruction"]
        return make_episode(
            f"episode {number}, {task}, seed {shown.seed}",
            shown.states,
            shown.actions,
            [language] * len(shown.actions),
            {view: ((side, side), lambda: iter(shown.frames))},
            (STATE_NAMES, ACTION_NAMES),
            taught=shown.taught,
        )

    def close(self) -> None:
        """Ends the workers."""
        self._pool.shutdown(cancel_futures=True)


def store_annotations(output: pathlib.Path, folder: pathlib.Path) -> None:
    """Makes the store of what is thought, beside the dataset; of episodes in their order there."""
    files = sorted(folder.glob("*.json"))
    joined = folder / "joined"
    with writing(joined), open(joined, "w") as file:
        for number, path in enumerate(files):
            file.write(f'{"," if number else "{"}\n"{number}": {{"0": {path.read_text()}}}')
        file.write("\n}\n")
    tally = Tally()
    write_store(output / "reasoning.sqlite", ecot_episodes(joined, tally, lambda count: None), {"format": "ecot"})
    if tally.faults:
        raise DataError(f"{joined}: {dict(tally.faults)}")
    shutil.rmtree(folder)


def chosen_tasks(names: Sequence[str]) -> tuple[str, ...]:
    """Tasks by their names, or those of a suite.

    Raises:
        ConfigError: there are no such tasks, or one is there twice.
    """
    if len(names) == 1 and names[0] in SUITES:
        return SUITES[names[0]]
    if not names:
        raise ConfigError(f"--tasks must name tasks, or one of the suites {', '.join(SUITES)}")
    check_tasks(names)
    return tuple(names)


def main(_: Sequence[str]) -> None:
    check_installed()
    output = local_path(FLAGS.output_path, "--output_path").absolute()
    recipe = Recipe(
        chosen_tasks(FLAGS.tasks),
        FLAGS.num_trajectories,
        FLAGS.num_validation,
        FLAGS.image_size,
        FLAGS.protocol,
        FLAGS.seed,
        FLAGS.push_rate,
        FLAGS.error_rate,
    )
    if recipe.image_size % 2:
        raise ConfigError(f"--image_size must be even, not {recipe.image_size}")
    pictures = FLAGS.pictures or (IMAGE if recipe.image_size < 128 else VIDEO)
    folder = output.with_name(f"{output.name}.{ANNOTATIONS}")
    begin(folder, recipe, pictures, output)
    steps = recipe.total * STEPS
    size = steps * recipe.image_size**2 * BYTES[pictures]
    print(f"to make      {recipe.total} episodes, about {steps} frames and {size / 1e6:.0f} MB", flush=True)
    start = time.monotonic()
    if not output.exists():
        studio = Studio(recipe, folder, min(FLAGS.num_workers, recipe.total))
        counts = len(recipe.tasks) * recipe.train, len(recipe.tasks) * recipe.val
        splits = [(name, count) for name, count in zip(("train", "val"), counts) if count]
        episodes = Episodes(repr(recipe), CONTROL_FREQUENCY, "sawyer", splits, studio.read)
        try:
            print("\n".join(write_lerobot(episodes, output, Options("v2.1", pictures=pictures))))
        finally:
            studio.close()
    store_annotations(output, folder)
    size = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    print(f"written      {size / 1e6:.0f} MB in {time.monotonic() - start:.0f} s, with reasoning.sqlite")


def begin(folder: pathlib.Path, recipe: Recipe, pictures: str, output: pathlib.Path) -> None:
    """Makes the folder of annotations, or goes on in that of the same recipe.

    Raises:
        DataError: the dataset is there already, or another recipe was begun.
    """
    told = json.dumps(dataclasses.asdict(recipe) | {"pictures": pictures}, indent=1)
    stamp = folder / "recipe"
    if output.exists() and not (stamp.exists() and (output / INFO).exists()):
        raise DataError(f"{output} exists: remove it, or give another --output_path")
    if stamp.exists() and stamp.read_text() != told:
        raise DataError(
            f"{folder} was begun with other flags: give those, or remove it and {output}.partial, or give another path"
        )
    with replacing(stamp, stamp.with_suffix(".part")) as partial:
        partial.write_text(told)


if __name__ == "__main__":
    cli.run(main)
