"""Runs a trained policy in closed loop in an embedded world, and counts successes.

    python experiments/eval.py --checkpoint runs/ecot_20260101_120000 --modes implicit,explicit,none
    python experiments/eval.py --checkpoint runs/gc_bc_20260101_120000 --output_path report.json --videos 4

A policy that is conditioned on language gets the instruction; one conditioned on goals gets the last frame of the
scripted expert's demonstration of the same episode. The episodes depend on --seed and --task alone, so that policies
can be compared on the same ones; --parallel of them are played side by side, which changes the time that it takes and
nothing else. With --parallel=1, ms/decision is the time that one robot waits.

A policy is played as its checkpoint says. What flags, or the world, make of it otherwise is printed and reported.
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import tqdm
from absl import flags

from jaxvla import cli
from jaxvla.envs.evaluation import Films, Tally, episodes, table
from jaxvla.envs.film import SUFFIX, SUFFIXES, check_films
from jaxvla.envs.rollout import Result, WorldSpec, check_fit, rollouts
from jaxvla.envs.tabletop import CAMERA_SIZE
from jaxvla.envs.worlds import MAX_STEPS, WORLDS, Scenario
from jaxvla.errors import ConfigError

if TYPE_CHECKING:
    from jaxvla.assets import Assets
    from jaxvla.contract import Contract, Deviation, Execution
    from jaxvla.serving.policy import Policy

FLAGS = flags.FLAGS
flags.DEFINE_string(
    "checkpoint", None, "A run folder, one of its checkpoints, an export, or a LeRobot policy.", required=True
)
flags.DEFINE_integer("step", None, "Which checkpoint of a run folder; the latest where it is not given.")
flags.DEFINE_string("dataset", None, "In whose units to act; needed where the policy was trained on several datasets.")
flags.DEFINE_list("modes", [], "How to reason: implicit, explicit, none; the configuration's where it is not given.")
flags.DEFINE_enum("env", "tabletop", list(WORLDS), "The world.")
flags.DEFINE_string("level", "full", "How much there is to tell apart in a scene of the tabletop: one, few, full.")
flags.DEFINE_string("task", "", "A task of the world; drawn for each episode where it is not given.")
flags.DEFINE_integer("episodes", 100, "Episodes for each mode.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "What the episodes are drawn from; other numbers than those of demonstrations.")
flags.DEFINE_integer("parallel", 8, "Episodes that are played side by side.", lower_bound=1)
flags.DEFINE_float("temperature", 0.0, "Of the actions that are drawn; 0 for the most likely ones.", lower_bound=0)
flags.DEFINE_integer(
    "execute_steps",
    None,
    "Actions of a chunk to play before the next decision, 0 for all; the checkpoint's where it is not given.",
    lower_bound=0,
)
flags.DEFINE_string(
    "ensemble",
    None,
    "Temporal ensembling, which decides at every step: by how much a prediction weighs less than the one before it, "
    "such as 0.01, or none; the checkpoint's where it is not given.",
)
flags.DEFINE_integer(
    "image_size",
    None,
    "Pixels a side of what the cameras see; the size of the frames of training where it is not given.",
    lower_bound=16,
)
flags.DEFINE_integer("max_steps", MAX_STEPS, "Steps after which an episode has failed.", lower_bound=1)
flags.DEFINE_string("output_path", "", "A JSON file for the report.")
flags.DEFINE_integer("videos", 0, "Films of the first so many episodes of each mode, beside the report.", lower_bound=0)
flags.DEFINE_enum("video_format", SUFFIX[1:], [suffix[1:] for suffix in SUFFIXES], "Of the films.")

_SETTINGS = (
    "dataset",
    "env",
    "level",
    "task",
    "episodes",
    "seed",
    "parallel",
    "temperature",
    "max_steps",
)


def main(_: list[str]) -> None:
    if FLAGS.videos and not FLAGS.output_path:
        raise ConfigError("--videos needs --output_path: films are written beside the report")
    output = cli.output_path(FLAGS.output_path) if FLAGS.output_path else None
    if FLAGS.videos:
        check_films(video_folder(), f".{FLAGS.video_format}")
    tasks = (FLAGS.task,) if FLAGS.task else ()
    scenario = Scenario(FLAGS.env, FLAGS.level, tasks, FLAGS.image_size or CAMERA_SIZE, FLAGS.max_steps)
    spec = scenario.make().spec
    from jaxvla.serving.policy import load_policy
    from jaxvla.serving.stored import open_stored

    stored = open_stored(FLAGS.checkpoint, FLAGS.step, FLAGS.dataset)
    checkpoint, play = stored.path, terms(stored.assets.of(FLAGS.dataset), spec)
    scenario = dataclasses.replace(scenario, image_size=play.image_size)
    results = {}
    for mode in FLAGS.modes or [None]:
        robots = min(FLAGS.parallel, FLAGS.episodes)
        policy = load_policy(checkpoint, None, mode, robots, FLAGS.temperature, play.execution, FLAGS.dataset)
        check_fit(FLAGS.env, spec, policy.needed, policy.spec.proprio_dim, policy.spec.action_dim)
        if not results:
            print(play)
        name = mode or "policy"
        print(f"{name}: compiled in {policy.warm_up():.1f} s", flush=True)
        results[name] = evaluate(policy, scenario, name)
    print(table({mode: Tally.of(own) for mode, own in results.items()}))
    if output:
        output.write_text(json.dumps(report(checkpoint, play, results), indent=1))
        print(f"report       {output}")


@dataclasses.dataclass(frozen=True, eq=False)
class Terms:
    """How a policy is played: as its checkpoint says, but for what flags and the world make otherwise."""

    contract: "Contract"
    execution: "Execution"
    image_size: int
    deviations: tuple["Deviation", ...]

    def __str__(self) -> str:
        return "\n".join([f"contract     {self.contract}", *(f"deviation    {each}" for each in self.deviations)])


def terms(assets: "Assets", spec: WorldSpec) -> Terms:
    """The terms on which a checkpoint is played in a world."""
    contract, execution = assets.contract(), assets.execution
    if FLAGS.ensemble is not None:
        ensemble = None if FLAGS.ensemble == "none" else _number("ensemble", FLAGS.ensemble)
        steps = execution.execute_steps if ensemble is None else 1
        execution = dataclasses.replace(execution, execute_steps=steps, ensemble=ensemble)
    if FLAGS.execute_steps is not None:
        execution = dataclasses.replace(execution, execute_steps=FLAGS.execute_steps)
    cameras = [name for name in contract.cameras if name in spec.cameras]
    known = [size for name in cameras if (size := contract.cameras[name].stored_size)]
    side = FLAGS.image_size or max((side for size in known for side in size), default=CAMERA_SIZE)
    sizes = dict.fromkeys(cameras, (side, side))
    return Terms(contract, execution, side, contract.deviations(execution, sizes, spec.control_frequency))


def _number(flag: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise ConfigError(f"--{flag} must be a number or none, not {value!r}") from error


def evaluate(policy: "Policy", scenario: Scenario, mode: str) -> list[Result]:
    """Plays all episodes in one mode and films the first ones; results by number."""
    worlds = [scenario.make() for _ in range(policy.robots)]
    films = Films(policy.needed, FLAGS.videos, f".{FLAGS.video_format}")
    watch = films.watch if FLAGS.videos else None
    results, successes = [], 0
    chosen = episodes(scenario, FLAGS.episodes, bool(policy.needed["goals"]), FLAGS.seed)
    played = rollouts(policy, worlds, chosen, watch)
    with tqdm.tqdm(played, mode, FLAGS.episodes, leave=False, unit="episode") as progress:
        for result in progress:
            results.append(result)
            successes += result.success
            progress.set_postfix_str(f"{successes}/{len(results)} successes", refresh=False)
            if result.number < FLAGS.videos:
                films.save(result, video_folder(), mode)
    return sorted(results, key=lambda result: result.number)


def video_folder() -> pathlib.Path:
    """Where films go: report.json has report_videos beside it."""
    path = pathlib.Path(FLAGS.output_path)
    return path.with_name(f"{path.stem}_videos")


def report(checkpoint: pathlib.Path, play: Terms, results: Mapping[str, list[Result]]) -> dict[str, Any]:
    """What was run and how it went, as JSON values."""
    steps = play.execution.steps(play.contract.action_horizon)
    used = {"execute_steps": steps, "ensemble": play.execution.ensemble, "image_size": play.image_size}
    return {
        "checkpoint": str(checkpoint),
        "settings": {name: FLAGS[name].value for name in _SETTINGS} | used,
        "contract": play.contract.to_json(),
        "deviations": [dataclasses.asdict(deviation) for deviation in play.deviations],
        "summary": {mode: Tally.of(own).to_json() for mode, own in results.items()},
        "episodes": {mode: [dataclasses.asdict(result) for result in own] for mode, own in results.items()},
    }


if __name__ == "__main__":
    cli.run(main)
