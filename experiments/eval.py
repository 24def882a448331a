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

With --server in place of --checkpoint it is the policy of a server (experiments/serve.py) that plays.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import tqdm
from absl import flags

from jaxvla import cli
from jaxvla.envs.evaluation import Filming, Player, evaluate
from jaxvla.envs.film import SUFFIX, SUFFIXES, check_films
from jaxvla.envs.journal import Journal
from jaxvla.envs.pacing import Paced
from jaxvla.envs.reporting import conclude
from jaxvla.envs.rollout import Pace, Result, WorldSpec, check_fit
from jaxvla.envs.tabletop import CAMERA_SIZE
from jaxvla.envs.worlds import WORLDS, Scenario, suite_named
from jaxvla.errors import ConfigError
from jaxvla.robots.driving import Server

if TYPE_CHECKING:
    from jaxvla.serving.sources import Source
    from jaxvla.serving.terms import Terms

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", "", "A run folder, one of its checkpoints, an export, or a LeRobot policy.")
flags.DEFINE_string("server", "", "HOST:PORT of a policy server, or HOST:PORT/NAME, in place of --checkpoint.")
flags.DEFINE_string("token_file", "", "Of the server: a file that holds its token.")
flags.DEFINE_string("certificate", "", "Of the server: the PEM file of its certificate, where it speaks TLS.")
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
flags.DEFINE_enum("quantize", "", ["", "int8", "int4"], "Bits to hold kernels in; as they are where it is empty.")
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

HOW = ("chunking", "latency", "least_delay")
SETTINGS = ("dataset", "env", "suite", "task", "parallel", "temperature", "quantize", *HOW)
# With these a server is started, or it does as its checkpoint says.
OF_THE_SERVER = ("step", "dataset", "modes", "temperature", "quantize", "execute_steps", "ensemble", *HOW)


def main(_: list[str]) -> None:
    if FLAGS.videos and not FLAGS.output_path:
        raise ConfigError("--videos needs --output_path: films are written beside the report")
    output = cli.output_path(FLAGS.output_path) if FLAGS.output_path else None
    if films := chosen_films():
        check_films(films.folder, films.suffix)
    scenario = chosen_scenario()
    spec = scenario.make().spec
    source = chosen_source(spec)
    from jaxvla.serving.terms import check_latencies

    plays = source.plays
    waits = check_latencies(FLAGS.latency, plays[0].contract.action_horizon)
    scenario = dataclasses.replace(scenario, image_size=plays[0].image_size)
    settings = settings_of(scenario, plays)
    stamp = {**source.stamp} | {name: value for name, value in settings.items() if name != "parallel"}
    journal = Journal(output and output.with_name(f".{output.name}.episodes"), stamp)
    rows: dict[str, Paced] = {}
    for mode, terms in itertools.product(FLAGS.modes or [None], plays):
        policy = source.make(mode, terms, min(FLAGS.parallel, settings["episodes"]))
        check_fit(FLAGS.env, spec, policy.needed, policy.contract.proprio_dim, policy.contract.action_dim)
        if not rows:
            print("\n".join([*scenario.terms(settings), str(terms)]))
        way = " ".join(word for word in (mode, terms.chunking) if word) or "policy"
        print(f"{way}: compiled in {policy.warm_up():.1f} s", flush=True)
        for latency in waits:
            name = f"{way} {latency}" if len(waits) > 1 else way
            pace = Pace(terms.plan, latency, terms.unit_d)
            rows[name] = Paced(way, latency, play(policy, scenario, pace, name, settings, journal))
    timed = bool(FLAGS.chunking) or any(row.latency for row in rows.values())
    conclude(rows, scenario, {**source.to_json(), "settings": settings}, output, str(plays[0]), timed)
    journal.close()


def chosen_films() -> Filming | None:
    """What is filmed, beside the report: report.json has report_videos."""
    if not FLAGS.videos:
        return None
    path = pathlib.Path(FLAGS.output_path)
    return Filming(path.with_name(f"{path.stem}_videos"), FLAGS.videos, f".{FLAGS.video_format}")


def chosen_source(spec: WorldSpec) -> "Source":
    """Where the policy comes from."""
    from jaxvla.serving import sources
    from jaxvla.serving.terms import Wishes

    place = sources.Place(spec.cameras, spec.control_frequency, CAMERA_SIZE)
    wishes = Wishes(FLAGS.execute_steps, FLAGS.ensemble, FLAGS.image_size or 0, FLAGS.least_delay)
    if FLAGS.server:
        given = [name for name in ("checkpoint", *OF_THE_SERVER) if FLAGS[name].present]
        if given:
            raise ConfigError(f"--{given[0]} does not go with --server: leave it out, or start the server with it")
        return sources.served(place, wishes, Server(FLAGS.server, FLAGS.token_file, FLAGS.certificate).connect)
    if not FLAGS.checkpoint:
        raise ConfigError("give --checkpoint, what is to be played, or --server, where it is served")
    folder = FLAGS.checkpoint, FLAGS.step, FLAGS.dataset, FLAGS.temperature, FLAGS.quantize
    return sources.stored(place, wishes, FLAGS.chunking, *folder)


def chosen_scenario() -> Scenario:
    """What is played, but for the size of the pictures, which the checkpoint may say."""
    if FLAGS.suite and FLAGS.task:
        raise ConfigError("--suite takes the place of --task: leave one of them out")
    tasks = suite_named(FLAGS.env, FLAGS.suite) if FLAGS.suite else (FLAGS.task,) if FLAGS.task else ()
    return Scenario(FLAGS.env, FLAGS.level, tasks, FLAGS.image_size or CAMERA_SIZE, FLAGS.max_steps)


def settings_of(scenario: Scenario, plays: "Sequence[Terms]") -> dict[str, Any]:
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
    return {name: FLAGS[name].value for name in SETTINGS} | decided


def play(
    policy: Player, scenario: Scenario, pace: Pace, name: str, settings: Mapping[str, Any], journal: Journal
) -> list[Result]:
    """Plays all episodes in one way but those that were; results by number."""
    known, count = journal.results(name), settings["episodes"]
    left = [number for number in range(count) if number not in known]
    playing = evaluate(policy, scenario, left, settings["seed"], pace, chosen_films(), name)
    with tqdm.tqdm(playing, name, count, initial=len(known), leave=False, unit="episode") as progress:
        for result in progress:
            journal.add(name, result)
            known[result.number] = result
            successes = sum(own.success for own in known.values())
            progress.set_postfix_str(f"{successes}/{len(known)} successes", refresh=False)
    return [known[number] for number in range(count)]


if __name__ == "__main__":
    cli.run(main)
