"""Runs a trained policy in closed loop in an embedded world, and counts successes.

    python experiments/eval.py --checkpoint runs/ecot_20260101_120000 --modes implicit,explicit,none
    python experiments/eval.py --checkpoint runs/gc_bc_20260101_120000 --output_path report.json --videos 4
    python experiments/eval.py --checkpoint runs/metaworld --env metaworld --suite mt50 --output_path mt50.json

A policy that is conditioned on language gets the instruction; one conditioned on goals gets the last frame of the
scripted expert's demonstration of the same episode. The episodes depend on --seed and --task alone, so that policies
can be compared on the same ones; --parallel of them are played side by side, which changes the time that it takes and
nothing else. With --parallel=1, ms/decision is the time that one robot waits.

A policy is played as its checkpoint says. What flags, or the world, make of it otherwise is printed and reported. With
--output_path an evaluation that was killed goes on when the same command is given again.

In metaworld --level is the protocol, whose episodes, steps and seed are played where the flags name none; beside the
report comes a Markdown table by task and difficulty.

    python experiments/eval.py --checkpoint runs/ecot_20260101_120000 --output_path report.json \\
        --chunking naive,ensembled,realtime --latency 0,1,2,4

plays it as if a decision took so many control steps, while the world goes on; before an episode's first decision it
stands still. Success and jumps by latency are printed, and drawn beside the report.
"""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import tqdm
from absl import flags

from jaxvla import cli
from jaxvla.envs import pacing
from jaxvla.envs.evaluation import Films, Tally, episodes, table
from jaxvla.envs.film import SUFFIX, SUFFIXES, check_films
from jaxvla.envs.journal import Journal
from jaxvla.envs.metaworld import scores
from jaxvla.envs.metaworld.protocols import PROTOCOLS, suite_named
from jaxvla.envs.rollout import Pace, Result, WorldSpec, check_fit, rollouts
from jaxvla.envs.tabletop import CAMERA_SIZE
from jaxvla.envs.worlds import WORLDS, Scenario
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
flags.DEFINE_string(
    "level", "", "Of the tabletop, how much there is to tell apart: one, few, full; of metaworld, the protocol."
)
flags.DEFINE_string("suite", "", "Of metaworld: mt10, mt50, easy, medium, hard or very_hard, in place of a task.")
flags.DEFINE_string("task", "", "A task of the world; drawn for each episode where it is not given.")
flags.DEFINE_integer("episodes", None, "Episodes for each mode; 100, or the protocol's, if not given.", lower_bound=1)
flags.DEFINE_integer("seed", None, "What episodes are drawn from, not those of demonstrations; 0, or the protocol's.")
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
flags.DEFINE_list(
    "chunking",
    [],
    "How chunks follow one another: naive, ensembled (by --ensemble, 0.01 where nothing says another), realtime (by "
    "guidance), prefix (in real time, from given actions), both; some of them to compare; as the checkpoint says where "
    "it is not given.",
)
flags.DEFINE_integer(
    "least_delay",
    None,
    "In real time, actions of the chunk before with which a chunk begins at least, whatever the latency; the "
    "checkpoint's where it is not given.",
    lower_bound=0,
)
flags.DEFINE_list("latency", ["0"], "Control steps that a decision takes, one number or several to compare.")
flags.DEFINE_integer(
    "image_size",
    None,
    "Pixels a side of what the cameras see; the size of the frames of training where it is not given.",
    lower_bound=16,
)
flags.DEFINE_integer("max_steps", 0, "Steps after which an episode has failed; 0 for the world's.", lower_bound=0)
flags.DEFINE_string("output_path", "", "A JSON file for the report.")
flags.DEFINE_integer("videos", 0, "Films of the first so many episodes of each mode, beside the report.", lower_bound=0)
flags.DEFINE_enum("video_format", SUFFIX[1:], [suffix[1:] for suffix in SUFFIXES], "Of the films.")

_SETTINGS = ("dataset", "env", "suite", "task", "parallel", "temperature", "chunking", "latency", "least_delay")
CHUNKINGS = ("naive", "ensembled", "realtime", "prefix", "both")
# Of those that are real-time chunking, by what.
_CONTINUED = {"realtime": "guidance", "prefix": "prefix", "both": "both"}
# ACT's.
USUAL_ENSEMBLE = 0.01


def main(_: list[str]) -> None:
    if FLAGS.videos and not FLAGS.output_path:
        raise ConfigError("--videos needs --output_path: films are written beside the report")
    output = cli.output_path(FLAGS.output_path) if FLAGS.output_path else None
    if FLAGS.videos:
        check_films(video_folder(), f".{FLAGS.video_format}")
    scenario = chosen_scenario()
    spec = scenario.make().spec
    from jaxvla.serving.policy import load_policy
    from jaxvla.serving.stored import open_stored

    stored = open_stored(FLAGS.checkpoint, FLAGS.step, FLAGS.dataset)
    checkpoint, assets = stored.path, stored.assets.of(FLAGS.dataset)
    if not {*FLAGS.chunking} <= {*CHUNKINGS} or len({*FLAGS.chunking}) < len(FLAGS.chunking):
        raise ConfigError(f"--chunking must be some of {', '.join(CHUNKINGS)}, not {', '.join(FLAGS.chunking)}")
    plays = [terms(assets, spec, chunking) for chunking in FLAGS.chunking or [""]]
    waits = latencies(assets.spec.action_horizon)
    scenario = dataclasses.replace(scenario, image_size=plays[0].image_size)
    settings = settings_of(scenario, plays)
    stamp = {"checkpoint": str(checkpoint)} | {k: v for k, v in settings.items() if k != "parallel"}
    journal = Journal(output and output.with_name(f".{output.name}.episodes"), stamp)
    rows: dict[str, pacing.Paced] = {}
    modes = FLAGS.modes or [None]
    for mode, play in itertools.product(modes, plays):
        robots = min(FLAGS.parallel, settings["episodes"])
        policy = load_policy(checkpoint, None, mode, robots, FLAGS.temperature, play.whole, FLAGS.dataset)
        check_fit(FLAGS.env, spec, policy.needed, policy.spec.proprio_dim, policy.spec.action_dim)
        if mode == modes[0]:
            print("\n".join([*protocol_lines(scenario, settings), str(play)]))
        way = " ".join(word for word in (mode, play.chunking) if word) or "policy"
        print(f"{way}: compiled in {policy.warm_up():.1f} s", flush=True)
        for latency in waits:
            name = f"{way} {latency}" if len(waits) > 1 else way
            rows[name] = pacing.Paced(
                way, latency, evaluate(policy, scenario, play.pace(latency), name, settings, journal)
            )
    conclude(rows, report(checkpoint, plays, settings, rows), output, scenario, str(plays[0]))
    journal.close()


def conclude(
    rows: Mapping[str, pacing.Paced], found: dict[str, Any], output: pathlib.Path | None, scenario: Scenario, said: str
) -> None:
    """Prints tables, writes the report, and draws success by latency where that was asked for; `said` are the terms."""
    tallies = {name: Tally.of(row.results) for name, row in rows.items()}
    timed = FLAGS.chunking or any(row.latency for row in rows.values())
    if timed:
        print(pacing.markdown(list(rows.values())), end="")
    else:
        print(table(tallies))
    if output and scenario.world == "metaworld":
        protocol, lines = PROTOCOLS[scenario.level], protocol_lines(scenario, found["settings"])
        page = scores.markdown(tallies, protocol, "\n".join([f"checkpoint   {found['checkpoint']}", *lines, said]))
        output.with_suffix(".md").write_text(page)
        print(page)
        found["metaworld"] = {name: scores.to_json(tally, protocol) for name, tally in tallies.items()}
        found["metaworld"]["terms"] = lines
    if output:
        output.write_text(json.dumps(found, indent=1))
        print(f"report       {output}")
    if output and timed:
        pacing.plot(list(rows.values()), output.with_suffix(".png"))
        print(f"plot         {output.with_suffix('.png')}")


def latencies(action_horizon: int) -> list[int]:
    """Those of --latency; chunks must last until the next one is there."""
    found = []
    for word in FLAGS.latency:
        if not word.strip().isdecimal():
            raise ConfigError(f"--latency must be control steps, such as 2, or 0,1,2, not {','.join(FLAGS.latency)!r}")
        found.append(int(word))
        if 2 * found[-1] > action_horizon:
            raise ConfigError(
                f"--latency={found[-1]} does not go with chunks of {action_horizon} actions: {found[-1]} of them are "
                f"past when one is there, and the rest ends before the next one; {action_horizon // 2} is the most"
            )
    if not found or len({*found}) < len(found):
        raise ConfigError(f"--latency must be different numbers of control steps, not {','.join(FLAGS.latency)!r}")
    return found


def chosen_scenario() -> Scenario:
    """What is played, but for the size of the pictures, which the checkpoint may say."""
    if FLAGS.suite and (FLAGS.env != "metaworld" or FLAGS.task):
        raise ConfigError("--suite is of --env metaworld, and takes the place of --task: leave one of them out")
    tasks = suite_named(FLAGS.suite) if FLAGS.suite else (FLAGS.task,) if FLAGS.task else ()
    return Scenario(FLAGS.env, FLAGS.level, tasks, FLAGS.image_size or CAMERA_SIZE, FLAGS.max_steps)


def settings_of(scenario: Scenario, plays: Sequence["Terms"]) -> dict[str, Any]:
    """All that was decided, by flags, the world and the checkpoint."""
    episodes, seed = scenario.usual
    decided = {
        "level": scenario.level,
        "episodes": FLAGS.episodes or episodes,
        "seed": seed if FLAGS.seed is None else FLAGS.seed,
        "max_steps": scenario.max_steps,
        "image_size": plays[0].image_size,
    }
    if len(plays) == 1:
        execution, horizon = plays[0].execution, plays[0].contract.action_horizon
        decided |= {"execute_steps": execution.steps(horizon), "ensemble": execution.ensemble}
    return {name: FLAGS[name].value for name in _SETTINGS} | decided


def protocol_lines(scenario: Scenario, settings: Mapping[str, Any]) -> list[str]:
    """Which published protocol is played, and what is done otherwise."""
    if scenario.world != "metaworld":
        return []
    protocol = PROTOCOLS[scenario.level]
    said = {
        "episodes": scenario.usual[0],
        "seed": protocol.seed,
        "max_steps": protocol.max_steps,
        "image_size": protocol.image_size,
    }
    others = [name for name, usual in said.items() if settings[name] != usual]
    lines = [f"deviation    {name} {settings[name]}, the protocol says {said[name]}" for name in others]
    return [f"protocol     {protocol}", *lines]


@dataclasses.dataclass(frozen=True, eq=False)
class Terms:
    """How a policy is played: as its checkpoint says, but for what flags and the world make otherwise.

    Attributes:
        chunking: one of --chunking; empty for the checkpoint's.
        unit_d: what jumps of actions are measured in: their standard deviations in the training data.
    """

    chunking: str
    contract: "Contract"
    execution: "Execution"
    image_size: int
    deviations: tuple["Deviation", ...]
    unit_d: np.ndarray

    @property
    def whole(self) -> "Execution":
        """What the policy does: it gives whole chunks, and what is played of them is the world's part."""
        return dataclasses.replace(self.execution, execute_steps=0, ensemble=None)

    def pace(self, latency: int) -> Pace:
        """The world's part."""
        from jaxvla.serving.execution import plan_of

        return Pace(plan_of(self.execution, self.contract.action_horizon), latency, self.unit_d)

    def __str__(self) -> str:
        return "\n".join([f"contract     {self.contract}", *(f"deviation    {each}" for each in self.deviations)])


def terms(assets: "Assets", spec: WorldSpec, chunking: str = "") -> Terms:
    """The terms on which a checkpoint is played in a world, in one of the ways of --chunking."""
    contract, execution = assets.contract(), played(assets.execution, chunking)
    cameras = [name for name in contract.cameras if name in spec.cameras]
    known = [size for name in cameras if (size := contract.cameras[name].stored_size)]
    side = FLAGS.image_size or max((side for size in known for side in size), default=CAMERA_SIZE)
    sizes = dict.fromkeys(cameras, (side, side))
    deviations = contract.deviations(execution, sizes, spec.control_frequency)
    std_d = assets.statistics.actions.std
    return Terms(chunking, contract, execution, side, deviations, np.where(std_d > 0, std_d, 1))


def played(execution: "Execution", chunking: str) -> "Execution":
    """What a checkpoint says of how it is played, but for the flags."""
    ensemble, realtime = execution.ensemble, execution.realtime
    if FLAGS.ensemble is not None:
        ensemble = None if FLAGS.ensemble == "none" else _number("ensemble", FLAGS.ensemble)
    if chunking:
        by = _CONTINUED.get(chunking, realtime.by)
        realtime = dataclasses.replace(realtime, enabled=chunking in _CONTINUED, by=by)
        ensemble = (USUAL_ENSEMBLE if ensemble is None else ensemble) if chunking == "ensembled" else None
    if FLAGS.least_delay is not None:
        if not (realtime.enabled or {*FLAGS.chunking} & {*_CONTINUED}):
            raise ConfigError("--least_delay is for chunks in real time: add --chunking realtime, prefix or both")
        realtime = dataclasses.replace(realtime, least_delay=FLAGS.least_delay)
    steps = execution.execute_steps
    if FLAGS.execute_steps is not None and (chunking != "ensembled" or len(FLAGS.chunking) == 1):
        steps = FLAGS.execute_steps
    elif ensemble is not None:
        steps = 1
    return dataclasses.replace(execution, execute_steps=steps, ensemble=ensemble, realtime=realtime)


def _number(flag: str, value: str) -> float:
    try:
        return float(value)
    except ValueError as error:
        raise ConfigError(f"--{flag} must be a number or none, not {value!r}") from error


def evaluate(
    policy: "Policy", scenario: Scenario, pace: Pace, name: str, settings: Mapping[str, Any], journal: Journal
) -> list[Result]:
    """Plays all episodes in one way but those that were, and films the first ones; results by number."""
    worlds = [scenario.make() for _ in range(policy.robots)]
    films = Films(policy.needed, FLAGS.videos, worlds[0].spec.control_frequency, f".{FLAGS.video_format}")
    watch = films.watch if FLAGS.videos else None
    results, count = journal.results(name), settings["episodes"]
    left = [number for number in range(count) if number not in results]
    chosen = episodes(scenario, left, bool(policy.needed["goals"]), settings["seed"])
    playing = rollouts(policy, worlds, chosen, watch, pace)
    with tqdm.tqdm(playing, name, count, initial=len(results), leave=False, unit="episode") as progress:
        for result in progress:
            if result.number < FLAGS.videos:
                films.save(result, video_folder(), name.replace(" ", "_"))
            journal.add(name, result)
            results[result.number] = result
            successes = sum(own.success for own in results.values())
            progress.set_postfix_str(f"{successes}/{len(results)} successes", refresh=False)
    return [results[number] for number in range(count)]


def video_folder() -> pathlib.Path:
    """Where films go: report.json has report_videos beside it."""
    path = pathlib.Path(FLAGS.output_path)
    return path.with_name(f"{path.stem}_videos")


def report(
    checkpoint: pathlib.Path, plays: Sequence[Terms], settings: Mapping[str, Any], rows: Mapping[str, pacing.Paced]
) -> dict[str, Any]:
    """What was run and how it went, as JSON values."""
    return {
        "checkpoint": str(checkpoint),
        "settings": dict(settings),
        "contract": plays[0].contract.to_json(),
        "executions": {play.chunking or "checkpoint": dataclasses.asdict(play.execution) for play in plays},
        "deviations": [dataclasses.asdict(deviation) for play in plays for deviation in play.deviations],
        "summary": {name: row.to_json() for name, row in rows.items()},
        "episodes": {name: [dataclasses.asdict(result) for result in row.results] for name, row in rows.items()},
    }


if __name__ == "__main__":
    cli.run(main)
