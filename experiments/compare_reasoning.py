"""Puts to the test whether thinking helps: one policy, trained with and without it, played in the same episodes.

    python experiments/compare_reasoning.py --config train_config.py:ecot_tiny \\
        --bridgedata_config data_config.py:sample_full --level full --output_path runs/comparison

    python experiments/compare_reasoning.py --config train_config.py:metaworld_ecot_tiny \\
        --bridgedata_config data_config.py:metaworld_mt10 --suite mt10 --output_path runs/metaworld_comparison

Backbone, data, steps, samples, head and horizon are those of the configs in all of it; any value is overridden as for
train.py. The same command goes on where it was stopped, and does nothing again that is there. What is trained:

    none      never any reasoning: an instruction, then actions
    words     words at every step; played without saying them (hybrid), and saying them first (explicit)
    latent    through the stages of config.curriculum to its last one; played in its slots
    pause     the same slots from the first step, which never were words

Writes OUTPUT_PATH/comparison.json, comparison.md and comparison.png, and below OUTPUT_PATH/VARIANT_seedK the run and a
report of each way in which it was played.
"""

import dataclasses
import json
import pathlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from jaxvla import cli
from jaxvla.config import leaves, local_path
from jaxvla.envs.comparison import Row, markdown
from jaxvla.envs.rollout import Result
from jaxvla.envs.worlds import Scenario, suite_named
from jaxvla.errors import ConfigError, TrainingError

ROOT = pathlib.Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
# As they were typed: parsing takes some of the words away.
GIVEN = tuple(sys.argv[1:])
QUICK = {"seeds": 1, "episodes": 50, "num_steps": 400}
FULL = {"seeds": 3, "episodes": 200, "num_steps": 0}
# Episodes in which one robot is alone, to see how long it waits.
ALONE = 3
# What is trained, and the name of each way to play it with its mode of inference.
VARIANTS = {
    "none": {"none": "none"},
    "words": {"hybrid": "none", "explicit": "explicit"},
    "latent": {"latent": "implicit"},
    "pause": {"pause": "implicit"},
}
BASE = "none"

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "How to train: FILE:PRESET, such as train_config.py:ecot_tiny.")
config_flags.DEFINE_config_file(
    "bridgedata_config", None, "What to train on: FILE:PRESET, such as data_config.py:sample."
)
flags.DEFINE_string("output_path", None, "The folder of the comparison.", required=True)
flags.DEFINE_list("variants", list(VARIANTS), "What to train.")
flags.DEFINE_integer("seeds", None, "Trainings of each variant: 3, with --quick 1.", lower_bound=1)
flags.DEFINE_integer("episodes", None, "For each training and way to play it: 200, with --quick 50.", lower_bound=1)
flags.DEFINE_integer(
    "num_steps",
    None,
    "Steps of a training; schedules and intervals are stretched with them. Those of the config, with --quick 400.",
    lower_bound=1,
)
flags.DEFINE_string("env", None, "The world; config.rollout.world where it is not given, or the tabletop.")
flags.DEFINE_string("level", None, "Of the world; config.rollout.level where it is not given.")
flags.DEFINE_string("suite", "", "Tasks of the world that are played in turn, such as mt10; else the scenes draw them.")
flags.DEFINE_integer("parallel", 10, "Episodes that are played side by side.", lower_bound=1)
flags.DEFINE_integer("max_steps", 0, "Steps after which an episode has failed; 0 for the world's.", lower_bound=0)
flags.DEFINE_bool("quick", False, "One seed, few steps and episodes.")
flags.DEFINE_bool("dry_run", False, "Only print the commands that are left to run.")


def main(_: list[str]) -> None:
    settings, source_settings = cli.read_configs("ecot_tiny", "sample_full")
    sizes = {name: FLAGS[name].value or usual for name, usual in (QUICK if FLAGS.quick else FULL).items()}
    check(settings)
    if sizes["num_steps"]:
        settings = stretched(settings, sizes["num_steps"])
    output = local_path(FLAGS.output_path, "--output_path").absolute()
    scenario = chosen_scenario(settings["rollout"])  # says what is wrong with it before anything is trained
    if not FLAGS.dry_run:
        played = {"env": scenario.world, "level": scenario.level, "suite": FLAGS.suite}
        keep(output, {"config": settings, "bridgedata_config": source_settings, **played})
    runs = [Run(output, name, seed, settings) for seed in range(sizes["seeds"]) for name in FLAGS.variants]
    games = [game for run in runs for game in run.games(scenario, sizes["episodes"])]
    jobs = [*runs, *games]
    for number, job in enumerate(jobs, 1):
        if job.done:
            continue
        command = [sys.executable, str(ROOT / "experiments" / job.script), *job.flags()]
        if FLAGS.dry_run:
            print(shlex.join(command))
            continue
        print(f"\n{number} of {len(jobs)}: {job}", flush=True)
        execute(command, str(job))
        if not job.done:
            raise TrainingError(f"{job} stopped before its end; the same command goes on from there")
    if not FLAGS.dry_run:
        conclude(output, games)


def chosen_scenario(rollout: Mapping[str, Any]) -> Scenario:
    """What all of them play: by the flags, or else as trainings do."""
    world = FLAGS.env or rollout["world"] or "tabletop"
    tasks = suite_named(world, FLAGS.suite) if FLAGS.suite else ()
    return Scenario(world, FLAGS.level or rollout["level"], tasks, max_steps=FLAGS.max_steps)


def check(settings: Mapping[str, Any]) -> None:
    """Raises ConfigError where there is nothing to compare."""
    unknown = [name for name in FLAGS.variants if name not in VARIANTS]
    if unknown or not FLAGS.variants:
        raise ConfigError(f"--variants must be some of {', '.join(VARIANTS)}, not {', '.join(unknown) or 'nothing'}")
    if "curriculum" not in settings:
        raise ConfigError(f"{settings['agent']} does not reason: give a preset that does, such as ecot_tiny")
    if not settings["curriculum"]["schedule"][-1][1]:
        raise ConfigError("config.curriculum.schedule must end at a stage with slots: the latent variant needs them")


def stretched(settings: Mapping[str, Any], num_steps: int) -> dict[str, Any]:
    """The settings of a run of another length: everything that counts steps keeps its share of it."""
    factor = num_steps / settings["num_steps"]

    def scale(count: int) -> int:
        return max(1, round(factor * count)) if count else 0

    schedule: list[tuple[int, int]] = []
    for step, stage in settings["curriculum"]["schedule"]:
        schedule.append((max(scale(step), schedule[-1][0] + 1) if schedule else 0, stage))
    optimizer = settings["optimizer"]
    own = {name: scale(optimizer[name]) for name in ("warmup_steps", "decay_steps")}
    intervals = {name: scale(settings[name]) for name in ("eval_interval", "save_interval")}
    curriculum = {**settings["curriculum"], "schedule": tuple(schedule)}
    return {
        **settings,
        **intervals,
        "num_steps": num_steps,
        "optimizer": {**optimizer, **own},
        "curriculum": curriculum,
    }


def keep(output: pathlib.Path, values: Mapping[str, Any]) -> None:
    """Writes what is compared; an error where the folder holds a comparison of something else."""
    path, own = output / "settings.json", json.loads(json.dumps(values))
    if path.exists():
        before, now = (leaves(each) for each in (json.loads(path.read_text()), own))
        for key in sorted({*before, *now}):
            if before.get(key) != now.get(key):
                raise ConfigError(
                    f"{output} compares with {key}={before.get(key)}, not {now.get(key)}: give another --output_path"
                )
        return
    output.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(own, indent=1))


@dataclasses.dataclass(frozen=True)
class Run:
    """One training: of a variant, from a seed."""

    output: pathlib.Path
    variant: str
    seed: int
    settings: Mapping[str, Any]
    script = "train.py"

    def __str__(self) -> str:
        return f"train {self.variant}, seed {self.seed}"

    @property
    def folder(self) -> pathlib.Path:
        """Holds the run folder and the reports."""
        return self.output / f"{self.variant}_seed{self.seed}"

    def latest(self) -> tuple[int, pathlib.Path]:
        """The last step that is saved and the run folder; 0 where there is none, and a pattern of its name."""
        from jaxvla.checkpoint import saved_steps

        found = [
            (max(saved_steps(run), default=0), run) for run in self.folder.glob(f"{self.variant}_*") if run.is_dir()
        ]
        return max(found, default=(0, self.folder / f"{self.variant}_*"))

    @property
    def done(self) -> bool:
        """Whether its last checkpoint is there."""
        return self.latest()[0] == self.settings["num_steps"]

    def flags(self) -> list[str]:
        """Of train.py."""
        step, run = self.latest()
        last = self.settings["curriculum"]["schedule"][-1][1]
        curriculum = {
            "none": {"reasoning_dropout": 1.0, "schedule": ((0, 0),)},
            "words": {"schedule": ((0, 0),)},
            "latent": {"schedule": self.settings["curriculum"]["schedule"]},
            "pause": {"schedule": ((0, last),), "uniform_stage_probability": 0.0},
        }[self.variant]
        own = {name: self.settings[name] for name in ("num_steps", "eval_interval", "save_interval")}
        own |= {f"optimizer.{name}": self.settings["optimizer"][name] for name in ("warmup_steps", "decay_steps")}
        own |= {f"curriculum.{name}": value for name, value in curriculum.items()}
        own |= {"agent_kwargs.inference": next(iter(VARIANTS[self.variant].values()))}
        # It is played when it is done, in more episodes and as often as there are ways.
        own |= {"rollout.world": "", "seed": self.settings["seed"] + self.seed, "save_dir": self.folder}
        own |= {"resume_path": run if step else ""}
        overrides = (f"--config.{name}={value}" for name, value in own.items())
        return [*cli.config_words(GIVEN, ("config", "bridgedata_config")), *overrides, f"--name={self.variant}"]

    def games(self, scenario: Scenario, episodes: int) -> list["Game"]:
        """All ways to play it; with the first seed also for one robot alone."""
        made = [Game(self, row, scenario, episodes, FLAGS.parallel) for row in VARIANTS[self.variant]]
        alone = {"episodes": ALONE, "parallel": 1, "alone": True}
        return made + [dataclasses.replace(game, **alone) for game in made if not self.seed]


@dataclasses.dataclass(frozen=True)
class Game:
    """The episodes of one training, played in one way; `row` names it. `alone` is for the time of a decision only."""

    run: Run
    row: str
    scenario: Scenario
    episodes: int
    parallel: int
    alone: bool = False
    script = "eval.py"

    def __str__(self) -> str:
        how = "one robot alone" if self.alone else f"{self.parallel} side by side"
        return f"play {self.row}, seed {self.run.seed}, {self.episodes} episodes, {how}"

    @property
    def path(self) -> pathlib.Path:
        """Of the report."""
        return self.run.folder / f"{self.row}{'_alone' if self.alone else ''}.json"

    def report(self) -> dict[str, Any] | None:
        """What was played; None where it was not yet, or not to its end, or not these episodes."""
        step, run = self.run.latest()
        try:
            found = json.loads(self.path.read_text())
        except (FileNotFoundError, json.JSONDecodeError):
            return None
        asked = self.settings() | {"episodes": self.episodes, "seed": self.run.seed}
        same = asked.items() <= found["settings"].items()
        return found if same and found["checkpoint"] == str(run / "checkpoints" / str(step)) else None

    @property
    def done(self) -> bool:
        """Whether its report is there."""
        return self.run.done and self.report() is not None

    def flags(self) -> list[str]:
        """Of eval.py."""
        own = {"checkpoint": self.run.latest()[1], "modes": VARIANTS[self.run.variant][self.row]} | self.settings()
        own |= {"episodes": self.episodes, "seed": self.run.seed, "parallel": self.parallel, "output_path": self.path}
        return [f"--{name}={value}" for name, value in own.items()]

    def settings(self) -> dict[str, Any]:
        """What is played, as flags of eval.py and as its report has it."""
        own = self.scenario
        return {"env": own.world, "level": own.level, "suite": FLAGS.suite, "max_steps": own.max_steps}

    def results(self) -> list[Result]:
        """Of its episodes."""
        (episodes,) = self.report()["episodes"].values()
        return [Result.of(each) for each in episodes]


def execute(command: Sequence[str], name: str) -> None:
    """Runs a command to its end. What asks this process to stop lets the command save first."""
    process = subprocess.Popen(command)

    def stop(*_: object) -> None:
        process.terminate()
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if code:
        raise TrainingError(f"{name} ended with exit code {code}, see above; the same command goes on from there")


def conclude(output: pathlib.Path, games: Sequence[Game]) -> None:
    """Writes and prints what came of it all."""
    from jaxvla.training.plots import plot_comparison

    rows = {row: make_row([game for game in games if game.row == row]) for row in dict.fromkeys(g.row for g in games)}
    base = rows.get(BASE)
    values = {name: row.to_json(None if name == BASE else base) for name, row in rows.items()}
    (output / "comparison.json").write_text(json.dumps(values, indent=1))
    (output / "comparison.md").write_text(markdown(rows, BASE))
    shares = {name: (row["success_rate"], row["interval_95"]) for name, row in values.items()}
    plot_comparison(shares, {name: list(row.rates.values()) for name, row in rows.items()}, output / "comparison.png")
    print(f"\n{markdown(rows, BASE)}\ncomparison   {output / 'comparison.md'}")


def make_row(games: Sequence[Game]) -> Row:
    """Of one way to play, the games of all seeds."""
    from jaxvla.checkpoint import find_checkpoint, read_assets
    from jaxvla.reasoning.texts import Wording

    results = {game.run.seed: game.results() for game in games if not game.alone}
    alone = [result for game in games if game.alone for result in game.results()]
    step, run = games[0].run.latest()
    wording = Wording.from_json(read_assets(find_checkpoint(run, step)).text)
    said = [words for own in results.values() for result in own for words in result.words]
    decisions = sum(result.decisions for own in results.values() for result in own)
    tokens = sum(len(wording.builder.tokenizer.encode(words)) for words in said) / decisions
    thinks = VARIANTS[games[0].run.variant][games[0].row] == "implicit"
    slots = wording.curriculum.num_slots(wording.curriculum.last_stage) if thinks else 0
    waits = sorted(result.milliseconds for result in alone)
    return Row(results, waits[len(waits) // 2] if waits else float("nan"), tokens, slots)


if __name__ == "__main__":
    cli.run(main, ("config", "bridgedata_config"), str(CONFIGS))
