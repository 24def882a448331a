"""The loader at the scale of Open X-Embodiment: memory and start by the size of a mixture, and decoding beside tf.data.

    python benchmarks/rlds.py                                        # all; 2 GB of disk, minutes
    python benchmarks/rlds.py --parts=decoding --rounds=5 --seconds=20

Memory: mixtures of several RLDS datasets of small pictures, of each number of --frames. A process builds the indices,
another one then starts, takes --batches batches and says what it is made of, by /proc:

    anonymous   its own memory: heap, arrays and batches
    file        pages of mapped files: libraries, and what it maps of the indices
    peak        the most that both were together, since it began (VmHWM)
    PSS         the sum over it and its workers, pages that several share divided among them; of building the most

Decoding: JPEG frames, shuffled, decoded and resized to --policy_size, by this loader and by tf.data as dlimp does it,
in processes that take turns; the ratios are those of the medians of their rounds. Where other jobs keep the cores
busy, the time of a core that a frame costs says more than the rate.
"""

import importlib.util
import json
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

import rlds_shards
from absl import flags

from jaxvla import cli
from jaxvla.data.dataset import DataConfig
from jaxvla.data.loader import training_batches
from jaxvla.data.mixture import Mixture, open_mixture
from jaxvla.data.mixture_config import MixtureConfig
from jaxvla.data.source_config import SourceConfig
from jaxvla.errors import DataError

FLAGS = flags.FLAGS
flags.DEFINE_multi_enum("parts", ["memory", "decoding"], ["memory", "decoding"], "What is measured.")
flags.DEFINE_multi_integer("frames", [1_000_000, 10_000_000], "Of each mixture whose memory is measured.")
flags.DEFINE_integer("datasets", 5, "Of a mixture.", lower_bound=1)
flags.DEFINE_integer("batches", 300, "That are drawn before memory is measured.", lower_bound=1)
flags.DEFINE_integer("batch_size", 256, "Transitions per batch.", lower_bound=1)
flags.DEFINE_integer("num_threads", 2, "Reading threads of the loader.", lower_bound=1)
flags.DEFINE_string("data_path", "", "RLDS version folder of JPEG frames to decode; empty to write random ones.")
flags.DEFINE_string("camera", "image_0", "Its camera, below observation/.")
flags.DEFINE_integer("jpeg_size", 256, "Side of the random frames in pixels.", lower_bound=32)
flags.DEFINE_integer("jpeg_frames", 20_000, "How many random frames there are.", lower_bound=1)
flags.DEFINE_integer("policy_size", 224, "Side to which frames are decoded, in pixels.", lower_bound=8)
flags.DEFINE_integer("shuffle_buffer", 10_000, "Of tf.data, in frames.", lower_bound=1)
flags.DEFINE_integer("rounds", 3, "Of decoding; the median is printed.", lower_bound=1)
flags.DEFINE_integer("seconds", 10, "How long each round measures.", lower_bound=1)
flags.DEFINE_string("folder", "", "Where the datasets are written, and removed; empty for the system's.")
flags.DEFINE_enum("measure", "", ["", "build", "start", "loader", "tfdata"], "One process; used internally.")

_SIDE, _STEPS, _EPISODES = 16, 200, 50  # of small pictures, of steps of an episode, of episodes of a shard
_COLUMNS = ("anonymous MB", "file MB", "peak MB", "PSS MB")


def mixture_of(root: pathlib.Path, image_size: tuple[int, ...], camera: str) -> Mixture:
    """The training split of all version folders <root>/<name>/1.0.0, or of `root` where it is one."""
    folders = [root] if (root / "features.json").exists() else sorted(root.glob("*/1.0.0"))
    sources = {folder.parent.name: SourceConfig("rlds", str(folder), cameras={"images0": camera}) for folder in folders}
    config = MixtureConfig(sources, dict.fromkeys(sources, 1.0), "size")
    data = DataConfig(relabel_actions=False, image_size=image_size, num_threads=FLAGS.num_threads)
    return open_mixture(config, data, "train")


def own_memory() -> dict[str, float]:
    """Of this process now, in MB; see the module docstring."""
    status = dict(line.split(":", 1) for line in pathlib.Path("/proc/self/status").read_text().splitlines())
    keys = {"anonymous MB": "RssAnon", "file MB": "RssFile", "peak MB": "VmHWM"}
    return {name: int(status[key].split()[0]) / 1024 for name, key in keys.items()} | {"PSS MB": pss(os.getpid())}


def pss(pid: int) -> float:
    """Of a process and all below it, in MB; what has ended meanwhile counts nothing."""
    try:
        lines = pathlib.Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0.0
    own = next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024
    return own + sum(pss(int(child)) for child in children)


def measure_build(root: pathlib.Path) -> dict[str, float]:
    start = time.perf_counter()
    mixture = mixture_of(root, (), "image_0")
    return {"seconds": time.perf_counter() - start, "transitions": mixture.num_transitions} | own_memory()


def measure_start(root: pathlib.Path) -> dict[str, float]:
    """From the configuration to the first batch, then what the process is made of."""
    start = time.perf_counter()
    mixture = mixture_of(root, (), "image_0")
    opened = time.perf_counter() - start
    keys = ("observations", "goals", "actions", "action_pad_mask", "language")
    stream = training_batches(mixture, FLAGS.batch_size, 0, keys)
    next(stream)
    first = time.perf_counter() - start
    for _ in range(FLAGS.batches):
        next(stream)
    return {"opened s": opened, "first batch s": first} | own_memory()


def frames_per_second(batches: Iterator[object]) -> dict[str, float]:
    for _ in range(4):
        next(batches)
    start, cpu, count = time.perf_counter(), time.process_time(), 0
    while time.perf_counter() - start < FLAGS.seconds:
        next(batches)
        count += FLAGS.batch_size
    rate = count / (time.perf_counter() - start)
    return {"frames/s": rate, "core ms": (time.process_time() - cpu) / count * 1e3}


def measure_loader(root: pathlib.Path) -> dict[str, float]:
    mixture = mixture_of(root, (FLAGS.policy_size, FLAGS.policy_size), FLAGS.camera)
    return frames_per_second(training_batches(mixture, FLAGS.batch_size, 0, ("observations", "actions")))


def measure_tfdata(root: pathlib.Path) -> dict[str, float]:
    import rlds_tfdata

    size = (FLAGS.policy_size, FLAGS.policy_size)
    files = rlds_shards.files(root)
    return frames_per_second(
        rlds_tfdata.batches(files, f"observation/{FLAGS.camera}", size, FLAGS.batch_size, FLAGS.shuffle_buffer)
    )


MEASURES: dict[str, Callable[[pathlib.Path], dict[str, float]]] = {
    "build": measure_build,
    "start": measure_start,
    "loader": measure_loader,
    "tfdata": measure_tfdata,
}


def in_a_process_of_its_own(name: str, root: pathlib.Path) -> tuple[dict[str, float], float]:
    """What it measures, and the most PSS of it and its workers in MB."""
    names = ("batches", "batch_size", "num_threads", "camera", "policy_size", "shuffle_buffer", "seconds")
    given = [f"--{key}={FLAGS[key].value}" for key in names]
    command = [sys.executable, __file__, f"--measure={name}", f"--folder={root}", *given]
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors)
        most = 0.0
        while process.poll() is None:
            most = max(most, pss(process.pid))
            time.sleep(0.2)
        out.seek(0)
        errors.seek(0)
        if process.returncode:
            raise DataError(f"measuring {name} failed: {(errors.read().strip().splitlines() or ['no message'])[-1]}")
        return json.loads(out.read().strip().splitlines()[-1]), most


def compare_memory(folder: pathlib.Path) -> None:
    print(f"{'mixture':<44}{'seconds':>9}" + "".join(f"{name:>14}" for name in _COLUMNS))
    for frames in FLAGS.frames:
        root = folder / f"frames{frames}"
        for number in range(FLAGS.datasets):
            own = root / f"set{number}" / "1.0.0"
            rlds_shards.write_dataset(own, frames // FLAGS.datasets, rlds_shards.png(_SIDE), _STEPS, _EPISODES)
        built, most = in_a_process_of_its_own("build", root)
        started, _ = in_a_process_of_its_own("start", root)
        name = f"{built['transitions'] / 1e6:.2f} M transitions, {FLAGS.datasets} datasets"
        print_row(f"{name}, built", built["seconds"], built | {"PSS MB": most})
        print_row("  started again, to the first batch", started["first batch s"], started)
        shutil.rmtree(root)


def print_row(name: str, seconds: float, row: dict[str, float]) -> None:
    print(f"{name:<44}{seconds:>9.2f}" + "".join(f"{row[column]:>14.0f}" for column in _COLUMNS), flush=True)


def compare_decoding(folder: pathlib.Path) -> None:
    root = pathlib.Path(FLAGS.data_path)
    if not FLAGS.data_path:
        root = folder / "jpegs" / "1.0.0"
        encode = rlds_shards.jpeg(FLAGS.jpeg_size, FLAGS.jpeg_size)
        rlds_shards.write_dataset(root, FLAGS.jpeg_frames, encode, 50, 20)
    mixture_of(root, (), FLAGS.camera)  # builds the index
    names = ["loader", "tfdata"] if importlib.util.find_spec("tensorflow") else ["loader"]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(FLAGS.rounds):
        for name in names:
            found[name].append(in_a_process_of_its_own(name, root)[0])
    rates = {name: [row["frames/s"] for row in rows] for name, rows in found.items()}
    costs = {name: statistics.median(row["core ms"] for row in rows) for name, rows in found.items()}
    labels = {"loader": "this loader", "tfdata": "tf.data as dlimp"}
    title = f"JPEG to {FLAGS.policy_size} px, batch {FLAGS.batch_size}"
    print(f"\n{title:<44}{'frames/s':>9}    {'min..max':<14}core ms a frame")
    for name in names:
        spread = f"{min(rates[name]):.0f}..{max(rates[name]):.0f}"
        print(f"{labels[name]:<44}{statistics.median(rates[name]):>9.0f}    {spread:<14}{costs[name]:>15.2f}")
    if len(names) < 2:
        return print("tensorflow is not installed: pip install -e '.[tf]'")
    ratio = statistics.median(rates["loader"]) / statistics.median(rates["tfdata"])
    print(f"{'ratio of the medians':<44}{ratio:>9.2f}{'':<18}{costs['tfdata'] / costs['loader']:>15.2f}")


def main(_: list[str]) -> None:
    if FLAGS.measure:
        return print(json.dumps(MEASURES[FLAGS.measure](pathlib.Path(FLAGS.folder))))
    with tempfile.TemporaryDirectory(dir=FLAGS.folder or None) as folder:
        for part, compare in {"memory": compare_memory, "decoding": compare_decoding}.items():
            if part in FLAGS.parts:
                compare(pathlib.Path(folder))


if __name__ == "__main__":
    cli.run(main)
