"""Takes the first steps of a preset on several meshes of simulated devices, and says how far their losses are apart.

    python tools/mesh_equality.py --config train_config.py:ecot_tiny --bridgedata_config data_config.py:sample

The data, the settings and the step are those of training. Every case starts from the parameters of config.seed and is
held against one device. A case is the sizes of data, fsdp and tensor, and, behind an @, over how many processes their
devices are spread: 2x2x2@4 is four processes of two devices each.
"""

import dataclasses
import json
import math
import multiprocessing
import os
import pathlib
import re
import tempfile
import time

from absl import flags
from local_job import ROOT, environment, free_port
from ml_collections import config_flags

from jaxvla import cli
from jaxvla.errors import ConfigError, TrainingError

CASES = ("8x1x1", "2x4x1", "2x2x2", "1x2x4", "1x2x2@2", "2x2x2@4")
# Devices wait for each other, and more of them than cores may wait for long: XLA would abort after 40 s.
PATIENCE = (
    "--xla_cpu_collective_call_warn_stuck_timeout_seconds=600",
    "--xla_cpu_collective_call_terminate_timeout_seconds=1800",
    "--xla_cpu_collective_timeout_seconds=1800",
)
# Processes are forks of one that has imported everything, which is most of the time that a start takes.
_PROCESSES = multiprocessing.get_context("forkserver")
_PRELOADED = ["jaxvla.training.job", "jaxvla.training.preparing"]

FLAGS = flags.FLAGS


@dataclasses.dataclass(frozen=True)
class Case:
    """A mesh, and over how many processes its devices are spread.

    Attributes:
        sizes: of the axes data, fsdp and tensor.
        processes: each has the same number of devices.
    """

    sizes: tuple[int, int, int]
    processes: int = 1

    @classmethod
    def read(cls, text: str) -> "Case":
        """Of its name.

        Raises:
            ConfigError: it is none, or the processes do not divide the devices.
        """
        match = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)x([1-9]\d*)(?:@([1-9]\d*))?", text)
        if match is None:
            raise ConfigError(f"--cases: {text!r} is not like 2x4x1 or 2x2x2@4")
        *sizes, processes = (int(number or 1) for number in match.groups())
        if math.prod(sizes) % processes:
            raise ConfigError(f"--cases: {text}: {math.prod(sizes)} devices do not divide over {processes} processes")
        return cls(tuple(sizes), processes)

    def __str__(self) -> str:
        name = " x ".join(map(str, self.sizes))
        return name if self.processes == 1 else f"{name}, {self.processes} processes"


def take_steps(case: Case, job: tuple, configs: tuple[dict, dict], count: int, path: str) -> None:
    """The work of one process of a case: some steps of a run; the first process writes their losses to `path`.

    Args:
        case: whose mesh.
        job: coordinator, number of processes and number of this one, as `initialize` takes them; () for a job of one.
        configs: plain settings of the training and of the data.
        count: of steps.
        path: of a JSON file.
    """
    os.dup2(2, 1)  # Gloo prints who is connected, which is no row of the table
    devices = math.prod(case.sizes) // case.processes
    given = [flag for flag in environment()["XLA_FLAGS"].split() if "device_count" not in flag]
    own = [f"--xla_force_host_platform_device_count={devices}", *PATIENCE]
    os.environ.update(environment() | {"XLA_FLAGS": " ".join([*given, *own])})

    import jax

    from jaxvla.parallel import compilation, distributed
    from jaxvla.parallel.feed import DeviceFeed, process_rows
    from jaxvla.parallel.mesh import make_mesh
    from jaxvla.parallel.sharding import batch_sharding
    from jaxvla.training.job import open_job
    from jaxvla.training.preparing import prepare

    compilation.make_room()
    compilation.keep_programs()
    distributed.initialize(*job)
    with distributed.together():
        opened = open_job(*configs)
        mesh = make_mesh(opened.config.mesh)
        sharding = batch_sharding(mesh)
        batches = opened.training_batches(process_rows(sharding, opened.config.batch_size))
        state, step, _ = prepare(opened.config, opened.agent, mesh, batches, opened.assets, (), opened.pretrained)
        losses = []
        with DeviceFeed(batches, sharding) as feed:
            for _ in range(count):
                state, metrics = step(state, next(feed))
                losses.append(float(metrics["loss"]))
        batches.close()
        if jax.process_index() == 0:
            pathlib.Path(path).write_text(json.dumps(losses))


def losses_of(case: Case, configs: tuple[dict, dict], count: int, path: pathlib.Path) -> list[float]:
    """The losses of the first steps on a mesh, in processes of their own.

    Raises:
        TrainingError: one of them failed; it has said why.
    """
    settings = configs[0] | {"mesh": dict(zip(("data", "fsdp", "tensor"), case.sizes)), "resume_path": ""}
    address = f"127.0.0.1:{free_port()}"
    jobs = []
    for process in range(case.processes):
        job = (address, case.processes, process) if case.processes > 1 else ()
        given = (case, job, (settings, configs[1]), count, str(path))
        jobs.append(_PROCESSES.Process(target=take_steps, args=given))
    try:
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()
    finally:
        for job in jobs:
            job.kill()
            job.join()
    if codes := [job.exitcode for job in jobs if job.exitcode]:
        raise TrainingError(f"{case}: the processes ended with {codes}; what they said stands above")
    return json.loads(path.read_text())


def main(_: list[str]) -> None:
    configs = cli.read_configs("ecot_tiny", "sample")
    cases = [Case.read(text) for text in FLAGS.cases]
    os.environ.update(environment())
    _PROCESSES.set_forkserver_preload(_PRELOADED)
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder) / "losses.json"
        alone = losses_of(Case((1, 1, 1)), configs, FLAGS.steps, path)
        print(f"one device: losses {' '.join(f'{loss:.6g}' for loss in alone)}", flush=True)
        differing = []
        for case in cases:
            begun = time.monotonic()
            found = losses_of(case, configs, FLAGS.steps, path)
            away, step = furthest(found, alone)
            seconds = time.monotonic() - begun
            print(f"{case!s:<24} {away:.1e} at most, at step {step}  ({seconds:.0f} s)", flush=True)
            differing += [] if away <= FLAGS.tolerance else [str(case)]
    if differing:
        raise TrainingError(f"losses differ by more than {FLAGS.tolerance:g} on {'; '.join(differing)}")


def furthest(found: list[float], alone: list[float]) -> tuple[float, int]:
    """The largest difference relative to the other loss, infinite where one is not finite, and at which step."""
    away = [abs(x / y - 1) if math.isfinite(x) and math.isfinite(y) and y else math.inf for x, y in zip(found, alone)]
    return max((difference, step) for step, difference in enumerate(away, 1))


def define_flags() -> None:
    """Not at the top: the processes of a case import this file, too."""
    config_flags.DEFINE_config_file("config", None, "How to train, as for train.py; config.mesh is not read.")
    config_flags.DEFINE_config_file("bridgedata_config", None, "What to train on, as for train.py.")
    flags.DEFINE_list("cases", list(CASES), "Sizes of the mesh, and @ how many processes, such as 8x1x1,2x2x2@4.")
    flags.DEFINE_integer("steps", 20, "How many.", lower_bound=1)
    flags.DEFINE_float("tolerance", 1e-4, "An error where losses are further apart, relative to them.", lower_bound=0)


if __name__ == "__main__":
    define_flags()
    cli.run(main, ("config", "bridgedata_config"), str(ROOT / "configs"))
