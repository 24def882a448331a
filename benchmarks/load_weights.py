"""How fast Qwen3-VL weights load, and how much anonymous host memory that takes at its peak.

    python benchmarks/load_weights.py

Writes a random checkpoint of about --size_gb for each stored dtype to a temporary folder, then loads it, each time in a
process of its own, onto one and onto eight simulated CPU devices (every large parameter sharded over all of them). On
the CPU the loaded parameters are host memory themselves, so a peak of 1.00 x their size would be perfect. The peak is
RssAnon, sampled every millisecond, of the whole process: Python and JAX are in it, file pages are not.
"""

import dataclasses
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from absl import flags

from jaxvla import cli
from jaxvla.errors import WeightsError
from jaxvla.models.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig, from_hf, to_hf
from jaxvla.models.qwen3_vl.weight_table import weight_table
from jaxvla.models.safetensors_io import HostTensor, write_checkpoint

FLAGS = flags.FLAGS
flags.DEFINE_float("size_gb", 1.0, "Size of the random checkpoint.", lower_bound=0.2)
flags.DEFINE_string("measure", "", "Folder whose loading is measured in this process; used internally.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Of the parameters; used internally.")

# Stored dtype, dtype of the parameters.
CASES = (("float32", "float32"), ("bfloat16", "bfloat16"), ("bfloat16", "float32"))
DEVICES = (1, 8)


def config_of(size_gb: float, itemsize: int) -> Qwen3VLConfig:
    """A model in the proportions of the published ones, with as many text layers as `size_gb` holds."""
    text = TextConfig(32768, 1024, 4096, 3, 16, 4, head_dim=64, mrope_section=(12, 10, 10))
    vision = VisionConfig(8, 768, 3072, 12, 1024, deepstack_visual_indexes=(1, 3, 5))
    config = Qwen3VLConfig(text, vision, 0, 1, 2, 3)
    three, four = (num_params(with_layers(config, layers)) for layers in (3, 4))
    return with_layers(config, max(3, round(3 + (size_gb * 1e9 / itemsize - three) / (four - three))))


def with_layers(config: Qwen3VLConfig, layers: int) -> Qwen3VLConfig:
    return dataclasses.replace(config, text=dataclasses.replace(config.text, num_hidden_layers=layers))


def num_params(config: Qwen3VLConfig) -> int:
    return sum(math.prod(weight.shape) for weight in weight_table(config))


def write_random_checkpoint(folder: pathlib.Path, size_gb: float, dtype: np.dtype) -> None:
    """Written tensor by tensor, so that this process stays small."""
    rng = np.random.default_rng(0)
    config = config_of(size_gb, dtype.itemsize)
    tensors = {
        name: HostTensor(
            weight.hf_shape, dtype, lambda shape=weight.hf_shape: rng.standard_normal(shape, np.float32).astype(dtype)
        )
        for weight in weight_table(config)
        for name in weight.hf_names
    }
    folder.mkdir()
    write_checkpoint(folder, tensors, max_shard_bytes=5 * 10**9)
    (folder / "config.json").write_text(json.dumps(to_hf(config)))


def anonymous_bytes() -> int:
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split("RssAnon:")[1].split()[0])


def measure(folder: str, dtype: str) -> None:
    import jax

    from jaxvla.models.qwen3_vl.weight_table import param_shapes
    from jaxvla.models.qwen3_vl.weights import load_hf, read_hf_config
    from jaxvla.parallel.mesh import MeshConfig, make_mesh
    from jaxvla.parallel.sharding import tree_shardings

    config = from_hf(read_hf_config(folder))
    mesh = make_mesh(MeshConfig(data=1, fsdp=-1))
    shardings = tree_shardings(param_shapes(config, dtype), mesh) if len(jax.devices()) > 1 else None
    before = peak = anonymous_bytes()
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.001):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    params = load_hf(folder, config, shardings, dtype)
    seconds = time.perf_counter() - start
    done.set()
    watcher.join()
    after = anonymous_bytes()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    print(json.dumps({"size": size, "before": before, "peak": max(peak, after), "after": after, "seconds": seconds}))


def in_a_process_of_its_own(folder: pathlib.Path, dtype: str, devices: int) -> dict[str, float]:
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, __file__, f"--measure={folder}", f"--dtype={dtype}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise WeightsError(f"measuring failed: {(done.stderr.strip().splitlines() or ['no message'])[-1]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def main(_: list[str]) -> None:
    if FLAGS.measure:
        return measure(FLAGS.measure, FLAGS.dtype)
    print("stored     loaded     devices   file GB   loaded GB   before GB   peak GB   peak / loaded   seconds")
    for stored in sorted({stored for stored, _ in CASES}):
        with tempfile.TemporaryDirectory() as parent:
            folder = pathlib.Path(parent, "weights")
            write_random_checkpoint(folder, FLAGS.size_gb, np.dtype(stored))
            file_size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
            for loaded in (loaded for case, loaded in CASES if case == stored):
                for devices in DEVICES:
                    row = in_a_process_of_its_own(folder, loaded, devices)
                    print(
                        f"{stored:<10} {loaded:<10} {devices:>7} {file_size / 1e9:>9.2f} {row['size'] / 1e9:>11.2f} "
                        f"{row['before'] / 1e9:>11.2f} {row['peak'] / 1e9:>9.2f} {row['peak'] / row['size']:>15.2f} "
                        f"{row['seconds']:>9.1f}"
                    )


if __name__ == "__main__":
    cli.run(main)
