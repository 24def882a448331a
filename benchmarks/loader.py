"""How fast the loader is, and what memory it takes, beside the tf.data design of bridge_data_v2.

    python benchmarks/loader.py

Without --data_path it writes random BridgeData TFRecords of --size_mb to a temporary folder first. Every row of the
table is measured in a process of its own, so that peak memory (the resident set, Python and libraries included) is that
row's.
"""

import importlib.util
import json
import pathlib
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable

import grain
import numpy as np
from absl import flags

from jaxvla import cli
from jaxvla.data.dataset import DataConfig, Dataset, SourceConfig, open_dataset
from jaxvla.data.formats import bridge_tfrecord, tfrecord
from jaxvla.data.formats.indexing import open_indices
from jaxvla.data.loader import training_batches
from jaxvla.data.mixture import Mixture
from jaxvla.errors import DataError

FLAGS = flags.FLAGS
flags.DEFINE_string("data_path", "", "Folder of BridgeData TFRecords; empty to write random ones.")
flags.DEFINE_integer("size_mb", 600, "Size of the random TFRecords.", lower_bound=1)
flags.DEFINE_integer("image_size", 128, "Side of the random images in pixels.", lower_bound=8)
flags.DEFINE_integer("batch_size", 256, "Transitions per batch.", lower_bound=1)
flags.DEFINE_integer("num_threads", 2, "Reading threads of the loader.", lower_bound=1)
flags.DEFINE_integer("seconds", 5, "How long each repetition measures.", lower_bound=1)
flags.DEFINE_integer("repeats", 3, "Repetitions; the median is printed.", lower_bound=1)
flags.DEFINE_enum("measure", "", ["", "loader", "training", "tfdata", "tfdata_augment"], "One row; used internally.")

LABELS = {
    "loader": "jaxvla loader, host batches",
    "training": "jaxvla loader, gc_bc_tiny trains beside it",
    "tfdata": "tf.data as in bridge_data_v2",
    "tfdata_augment": "tf.data as in bridge_data_v2, augmentation on the host",
}


def write_random_tfrecords(root: pathlib.Path, size_mb: int, side: int) -> None:
    """BridgeData TFRecords of random content: trajectories of 38 transitions, 25 to a file."""
    rng = np.random.default_rng(0)
    steps = 38
    written = 0
    while written < size_mb * 1e6:
        path = root / f"task{written}" / "train" / "out.tfrecord"
        path.parent.mkdir(parents=True)
        with tfrecord.RecordWriter(path) as writer:
            for _ in range(25):
                images = rng.integers(0, 256, (steps + 1, side, side, 3), dtype=np.uint8)
                states = rng.standard_normal((steps + 1, 7)).astype(np.float32)
                features = {
                    "observations/images0": images[:-1],
                    "observations/state": states[:-1],
                    "next_observations/images0": images[1:],
                    "next_observations/state": states[1:],
                    "language": ["do something"],
                    "actions": rng.standard_normal((steps, 7)).astype(np.float32),
                    "terminals": np.zeros(steps, bool),
                    "truncates": np.arange(steps) == steps - 1,
                }
                writer.write(
                    tfrecord.encode_example({key: tfrecord.encode_tensor(value) for key, value in features.items()})
                )
        written += path.stat().st_size


def jaxvla_batches() -> tuple[Dataset, grain.DatasetIterator]:
    source = SourceConfig("bridge_tfrecord", FLAGS.data_path, include=(("**",),))
    dataset = open_dataset(source, DataConfig(num_threads=FLAGS.num_threads), "train")
    keys = ("observations", "goals", "actions", "action_pad_mask")
    return dataset, training_batches(Mixture.of(dataset), FLAGS.batch_size, 0, keys)


def rates(step: Callable[[], object], warm_up: int) -> list[float]:
    """Transitions per second of each repetition of calling `step`, which handles one batch."""
    for _ in range(warm_up):
        step()
    found = []
    for _ in range(FLAGS.repeats):
        start, count = time.perf_counter(), 0
        while time.perf_counter() - start < FLAGS.seconds:
            step()
            count += FLAGS.batch_size
        found.append(count / (time.perf_counter() - start))
    return found


def measure_loader() -> dict[str, object]:
    start = time.perf_counter()
    _, stream = jaxvla_batches()
    next(stream)
    first = time.perf_counter() - start
    return {"first batch s": first, "rates": rates(lambda: next(stream), 20)}


def measure_training() -> dict[str, object]:
    """The loader's share of a real run: the time the step waits for its batch says whether the loader keeps up."""
    import jax
    import optax

    from jaxvla.agents import make_agent
    from jaxvla.parallel.feed import DeviceFeed
    from jaxvla.parallel.mesh import MeshConfig, make_mesh
    from jaxvla.parallel.sharding import batch_sharding

    dataset, stream = jaxvla_batches()
    agent = make_agent("gc_bc", {"encoder": {"name": "resnetv1-tiny"}}, dataset.spec)
    optimizer = optax.adam(1e-3)
    params = agent.init(jax.random.key(0))
    state = (params, optimizer.init(params))

    @jax.jit
    def train(state: tuple, batch: dict, rng: jax.Array) -> tuple:
        gradient = jax.grad(lambda params: agent.loss(params, batch, rng)[0])(state[0])
        updates, opt_state = optimizer.update(gradient, state[1])
        return optax.apply_updates(state[0], updates), opt_state

    with DeviceFeed(stream, batch_sharding(make_mesh(MeshConfig()))) as feed:

        def step() -> None:
            nonlocal state
            state = jax.block_until_ready(train(state, next(feed), jax.random.key(1)))

        step()
        start, waited = time.perf_counter(), feed.waited
        found = rates(step, 2)
        share = (feed.waited - waited) / (time.perf_counter() - start)
    return {"rates": found, "waiting %": 100 * share}


def measure_tfdata(augment: bool) -> dict[str, object]:
    import tfdata_design

    paths = bridge_tfrecord.find_files(pathlib.Path(FLAGS.data_path), ("**",), (), "train")
    start = time.perf_counter()
    stream = tfdata_design.batches(paths, FLAGS.batch_size, FLAGS.image_size, augment)
    next(stream)
    return {"first batch s": time.perf_counter() - start, "rates": rates(lambda: next(stream), 5)}


def measure(name: str) -> None:
    rows = {
        "loader": measure_loader,
        "training": measure_training,
        "tfdata": lambda: measure_tfdata(False),
        "tfdata_augment": lambda: measure_tfdata(True),
    }
    found = rows[name]()
    print(json.dumps(found | {"peak MB": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3}))


def in_a_process_of_its_own(name: str, data_path: str) -> dict:
    arguments = [
        f"--{key}={FLAGS[key].value}" for key in ("image_size", "batch_size", "num_threads", "seconds", "repeats")
    ]
    command = [sys.executable, __file__, f"--measure={name}", f"--data_path={data_path}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise DataError(f"measuring {name} failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def build_index(data_path: str) -> None:
    paths = bridge_tfrecord.find_files(pathlib.Path(data_path), ("**",), (), "train")
    size = sum(pathlib.Path(path).stat().st_size for path in paths)
    start = time.perf_counter()
    indices = [bridge_tfrecord.build_index(path) for path in paths]
    seconds = time.perf_counter() - start
    transitions = sum(int(index.lengths.sum()) for index in indices)
    print(f"{len(paths)} files, {size / 1e6:.0f} MB, {transitions} transitions; index built in {seconds:.2f} s")
    open_indices(paths, bridge_tfrecord.build_index)


def main(_: list[str]) -> None:
    if FLAGS.measure:
        return measure(FLAGS.measure)
    with tempfile.TemporaryDirectory() as folder:
        data_path = FLAGS.data_path or folder
        if not FLAGS.data_path:
            print(f"writing {FLAGS.size_mb} MB of random TFRecords")
            write_random_tfrecords(pathlib.Path(folder), FLAGS.size_mb, FLAGS.image_size)
        build_index(data_path)
        print(f"\n{'batch ' + str(FLAGS.batch_size):<56} transitions/s    min..max         first batch   peak memory")
        has_tensorflow = importlib.util.find_spec("tensorflow") is not None
        for name, label in LABELS.items():
            if name.startswith("tfdata") and not has_tensorflow:
                print(f"{label:<56} tensorflow is not installed: pip install -e '.[tf]'")
                continue
            row = in_a_process_of_its_own(name, data_path)
            found = row["rates"]
            first = f"{row['first batch s']:8.2f} s" if "first batch s" in row else f"waiting {row['waiting %']:.1f} %"
            spread = f"{min(found):.0f}..{max(found):.0f}"
            print(
                f"{label:<56} {statistics.median(found):>13.0f}    {spread:<16} {first:>11}   {row['peak MB']:>8.0f} MB"
            )


if __name__ == "__main__":
    cli.run(main)
