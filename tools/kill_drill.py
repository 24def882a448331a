"""Kills a training of several processes again and again, and looks whether it ever notices.

    python tools/kill_drill.py --kills 100 --output_path drill --config train_config.py:gc_bc_tiny \
        --bridgedata_config data_config.py:sample

First a run that nothing happens to. Then the same run, started by the same command after every kill, until it is
complete; and again, until there were enough kills. SIGKILL or SIGTERM goes to one process or to all of them, while they
start, between any two steps, or while a checkpoint is written. After a kill all processes must end by themselves. What
a run logged, and the bytes of all batches that it read, must be those of the run that nothing happened to, bit for bit.

The settings of the presets are overridden by DEFAULTS below, and these by flags. Processes run on CPUs. The same
command goes on with a drill that was interrupted; the run that it was in begins anew.
"""

import collections
import contextlib
import dataclasses
import json
import multiprocessing
import os
import pathlib
import random
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess

from absl import flags
from local_job import ROOT, environment, free_port
from ml_collections import config_flags
from recorded_train import work

from jaxvla import cli
from jaxvla.errors import ConfigError, TrainingError

# A short run that saves all the time, and of which every step is in the log.
DEFAULTS = {
    "num_steps": 24,
    "log_interval": 1,
    "save_interval": 3,
    "eval_interval": 12,
    "eval_batches": 1,
    "batch_size": 8,
    "rollout.world": "",
}
INTERRUPTED = 75
# Seconds that processes wait for each other at a start; and those beyond that and the heartbeat after which processes
# that still run are said to hang.
START, GRACE = 60, 60
# Processes are forks of one that has imported everything, which is most of the time that a start takes.
_PROCESSES = multiprocessing.get_context("forkserver")
_PRELOADED = ["recorded_train", "jaxvla.training.job", "jaxvla.training.loop", "jaxvla.serving.policy"]

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Kill:
    """What is done to a life of a run.

    Attributes:
        signal: SIGKILL or SIGTERM.
        targets: the processes that get it.
        moment: "start", "step" or "save".
        delay: seconds after that moment.
    """

    signal: signal.Signals
    targets: tuple[int, ...]
    moment: str
    delay: float

    @classmethod
    def draw(cls, rng: random.Random, processes: int) -> "Kill":
        """One at random, more than half of them amid steps or saves."""
        everybody = tuple(range(processes))
        targets = everybody if rng.random() < 0.2 else (rng.choice(everybody),)
        number = signal.SIGKILL if rng.random() < 0.6 else signal.SIGTERM
        moment = rng.choices(("start", "step", "save"), (1, 4, 4))[0]
        delay = round(rng.uniform(0, {"start": 12.0, "step": 0.6, "save": 0.15}[moment]), 3)
        return cls(number, targets, moment, delay)


@dataclasses.dataclass
class Drill:
    """The runs of a drill, all below one folder."""

    folder: pathlib.Path
    words: list[str]
    processes: int
    heartbeat: int

    @contextlib.contextmanager
    def life(self, name: str) -> Iterator[list[BaseProcess]]:
        """The processes of a run, begun or gone on with; what still runs at the end is killed."""
        record = self.folder / "records" / name
        record.mkdir(parents=True, exist_ok=True)
        words = [*self.words, f"--config.save_dir={self.folder}", f"--name={name}", "--resume"]
        words += [f"--interrupted_code={INTERRUPTED}", f"--heartbeat_seconds={self.heartbeat}"]
        words += [f"--start_seconds={START}"]
        words += [f"--coordinator=127.0.0.1:{free_port()}", f"--num_processes={self.processes}"]
        jobs = []
        for process in range(self.processes):
            own = (str(record), process, [*words, f"--process_id={process}"], environment())
            jobs.append(_PROCESSES.Process(target=work, args=own))
        try:
            for job in jobs:
                job.start()
            yield jobs
        finally:
            for job in jobs:
                job.kill()
                job.join()

    def undisturbed(self, name: str) -> None:
        """Lets a run come to its end."""
        with self.life(name) as jobs:
            for job in jobs:
                job.join()
            codes = [job.exitcode for job in jobs]
        if any(codes):
            raise TrainingError(f"a run that nobody killed ended with {codes}: see {self.folder / 'records' / name}")

    def disturbed(self, name: str, kill: Kill) -> dict:
        """One life with a kill, unless the run was complete before."""
        begun = time.monotonic()
        with self.life(name) as jobs:
            self._wait_for(name, kill, jobs)
            ended = [job.exitcode is not None for job in jobs]
            for target in kill.targets if not any(ended) else ():
                os.kill(jobs[target].pid, kill.signal)
            struck, latest = time.monotonic(), time.monotonic() + self.heartbeat + START + GRACE
            while time.monotonic() < latest and any(job.exitcode is None for job in jobs):
                time.sleep(0.02)
            codes = [job.exitcode for job in jobs]
        return {
            "run": name,
            **{key: str(value) for key, value in dataclasses.asdict(kill).items()},
            "killed": not any(ended),
            "complete": codes == [0] * self.processes,
            "hung": None in codes,
            "codes": codes,
            "seconds_to_kill": round(struck - begun, 2),
            "seconds_to_end": round(time.monotonic() - struck, 2),
            "steps_saved": saved(self.folder / name),
        }

    def _wait_for(self, name: str, kill: Kill, jobs: Sequence[BaseProcess]) -> None:
        """Until the moment of a kill, or until a process has ended."""
        log, checkpoints = self.folder / name / "metrics.jsonl", self.folder / name / "checkpoints"
        before, left = size(log), set(checkpoints.glob("*"))
        while kill.moment != "start" and all(job.exitcode is None for job in jobs):
            if kill.moment == "step" and size(log) > before:
                break
            if kill.moment == "save" and any("tmp" in path.name for path in set(checkpoints.glob("*")) - left):
                break
            time.sleep(0.005)
        until = time.monotonic() + kill.delay
        while time.monotonic() < until and all(job.exitcode is None for job in jobs):
            time.sleep(0.005)

    def losses(self, name: str) -> dict[int, str]:
        """What a run logged of each step, as text, so that equal is equal to the last bit."""
        rows = [json.loads(line) for line in (self.folder / name / "metrics.jsonl").read_text().splitlines()]
        logged = [(row["step"], repr(row["training/loss"])) for row in rows if "training/loss" in row]
        twice = [step for step, count in collections.Counter(step for step, _ in logged).items() if count > 1]
        if twice:
            raise TrainingError(f"{name} logged steps {twice} twice")
        return dict(logged)

    def batches(self, name: str, process: int) -> dict[str, int]:
        """Position to checksum of the batches that a process read, in all its lives."""
        found: dict[str, int] = {}
        for line in (self.folder / "records" / name / f"process{process}.jsonl").read_text().splitlines():
            with contextlib.suppress(ValueError):  # a line that a kill cut off
                position, value = json.loads(line)
                if found.setdefault(json.dumps(position), value) != value:
                    raise TrainingError(f"{name}: process {process} read other rows at {position} than before")
        return found

    def differences(self, name: str, whole: str) -> list[str]:
        """What a run did otherwise than another one."""
        own, other = self.losses(name), self.losses(whole)
        steps = [step for step in own | other if own.get(step) != other.get(step)]
        found = [f"loss of step {step}: {own.get(step)}, not {other.get(step)}" for step in steps]
        for process in range(self.processes):
            own, other = self.batches(name, process), self.batches(whole, process)
            # Ahead of a step, each life may have read further than the other.
            both = own.keys() & other.keys()
            unlike = [position for position in both if own[position] != other[position]]
            found += [f"process {process}, batch at {position}: other rows" for position in unlike]
            found += [f"process {process} did not read all batches"] if len(both) < len(self.losses(whole)) else []
        return found


def size(path: pathlib.Path) -> int:
    return path.stat().st_size if path.exists() else 0


def saved(run: pathlib.Path) -> list[int]:
    return sorted(int(path.name) for path in run.glob("checkpoints/*") if path.name.isdigit())


@dataclasses.dataclass
class Report:
    """What came out so far: report.json, written after each run, by which the same command goes on.

    Attributes:
        words: the flags of the runs.
        lives: of all runs, see `Drill.disturbed`.
        failures: what must not be.
        seconds: that it took.
    """

    words: list[str]
    lives: list[dict] = dataclasses.field(default_factory=list)
    failures: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def begun(cls, folder: pathlib.Path, words: list[str]) -> "Report":
        """That of a folder; a new one where there is none.

        Raises:
            ConfigError: the folder is there and holds no report, or one of other flags.
        """
        if not folder.exists():
            return cls(words)
        path = folder / "report.json"
        if not path.exists():
            raise ConfigError(
                f"--output_path: {folder} is there and has no report.json; give another one, or remove it"
            )
        report = cls(**json.loads(path.read_text()))
        if report.words != words:
            raise ConfigError(f"--output_path: {folder} is of other flags, {' '.join(report.words)}; give another one")
        return report

    def write(self, folder: pathlib.Path) -> None:
        """Under another name, and renamed when it is whole."""
        unfinished = folder / "report.unfinished"
        unfinished.write_text(json.dumps(dataclasses.asdict(self), indent=1))
        unfinished.replace(folder / "report.json")

    @property
    def kills(self) -> int:
        """How many there were."""
        return sum(life["killed"] for life in self.lives)

    @property
    def runs(self) -> int:
        """How many came to their end."""
        return len({life["run"] for life in self.lives})


def main(_: list[str]) -> None:
    folder = pathlib.Path(FLAGS.output_path).absolute()
    cli.read_configs("gc_bc_tiny", "sample")
    words = [f"--config.{key}={value}" for key, value in DEFAULTS.items()]
    given = cli.config_words(sys.argv[1:], ("config", "bridgedata_config"))
    drill = Drill(folder, merged(words, given), FLAGS.processes, FLAGS.heartbeat_seconds)
    report, begun = Report.begun(folder, drill.words), time.monotonic()
    os.environ.update(environment())
    _PROCESSES.set_forkserver_preload(_PRELOADED)
    if not folder.exists():
        drill.undisturbed("whole")
        report.write(folder)
    while report.kills < FLAGS.kills and (not FLAGS.minutes or time.monotonic() - begun < 60 * FLAGS.minutes):
        before = time.monotonic()
        drill_one(drill, report, FLAGS.kills)
        report.seconds += time.monotonic() - before
        report.write(folder)
    conclude(report)


def drill_one(drill: Drill, report: Report, kills: int) -> None:
    """One more run with kills, up to so many in all, to its end; the report has its lives after that."""
    number, lives = report.runs + 1, []
    name, rng = f"drilled{number}", random.Random(f"{FLAGS.seed} {number}")
    for left in (drill.folder / name, drill.folder / "records" / name):  # of a drill that was interrupted
        shutil.rmtree(left, ignore_errors=True)
    complete, struck = False, report.kills
    while not complete and struck < kills:
        life = drill.disturbed(name, Kill.draw(rng, drill.processes))
        lives.append(life)
        if not (life["killed"] or life["complete"]):
            report.failures.append(f"{name} ended by itself, with {life['codes']}")
            report.write(drill.folder)
            raise TrainingError(f"{report.failures[-1]}: see {drill.folder / 'records' / name}")
        complete, struck = life["complete"], struck + life["killed"]
        report.failures += [f"{name}, after kill {struck}: processes still ran"] if life["hung"] else []
        print(f"kill {struck:<4} {told(life)}", flush=True)
    if not complete:
        drill.undisturbed(name)
    report.failures += [f"{name}: {difference}" for difference in drill.differences(name, "whole")]
    report.lives += lives
    shutil.rmtree(drill.folder / name / "checkpoints")


def merged(defaults: list[str], given: list[str]) -> list[str]:
    """The flags of a run: the defaults that are not given, and what is."""
    named = {word.partition("=")[0] for word in given}
    return given + [word for word in defaults if word.partition("=")[0] not in named]


def told(life: dict) -> str:
    """A life in a line."""
    if not life["killed"]:
        return f"{life['run']}: none, the processes ended with {life['codes']} before"
    what = f"{life['signal']} to {life['targets']} at {life['moment']} + {life['delay']} s"
    return f"{life['run']}: {what}; codes {life['codes']} after {life['seconds_to_end']} s; saved {life['steps_saved']}"


def conclude(report: Report) -> None:
    """Prints what came out, and raises TrainingError where something did."""
    struck = [life for life in report.lives if life["killed"]]
    for moment in ("start", "step", "save"):
        of_it = collections.Counter(life["signal"] for life in struck if life["moment"] == moment)
        print(f"at {moment:<6} {dict(of_it)}")
    slowest = max((life["seconds_to_end"] for life in struck), default=0.0)
    took = f"{report.kills} kills of {report.runs} runs in {report.seconds / 60:.1f} min"
    print(f"{took}; all processes ended within {slowest:.1f} s")
    if report.failures:
        raise TrainingError(f"{len(report.failures)} failures, such as {report.failures[0]}")
    print("losses and batches are those of the run that nothing happened to, bit for bit")


def define_flags() -> None:
    """Not at the top: the processes of a run import this file, too, and have the flags of train.py."""
    config_flags.DEFINE_config_file("config", None, "How to train, as for train.py.")
    config_flags.DEFINE_config_file("bridgedata_config", None, "What to train on, as for train.py.")
    flags.DEFINE_integer("kills", 100, "How many.", lower_bound=1)
    flags.DEFINE_integer("processes", 2, "Of the run.", lower_bound=1)
    flags.DEFINE_string(
        "output_path", "drill", "For the runs and report.json; one of a drill that was interrupted goes on."
    )
    flags.DEFINE_integer("seed", 0, "Of who is killed, how, and when.")
    flags.DEFINE_integer("heartbeat_seconds", 10, "See train.py.", lower_bound=1)
    flags.DEFINE_float("minutes", 0, "Begins no other run after so many; 0 for no limit.", lower_bound=0)


if __name__ == "__main__":
    define_flags()
    cli.run(main, ("config", "bridgedata_config"), str(ROOT / "configs"))
