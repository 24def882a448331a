"""What a training step of a preset needs: parameters, memory, and with --steps time. One row.

    python benchmarks/presets.py --config train_config.py:smolvla
    python benchmarks/presets.py --config train_config.py:act_tiny --steps 20

Batches are random, of a robot with --dims values of state and action and --cameras cameras of the preset's size, else
of --stored_size. Parameters, optimizer state and batch are shapes alone unless steps are taken, so a preset needs no
more memory here than its compilation. "temporary" is what XLA plans to allocate besides, on this machine's devices;
others plan otherwise. Any setting can be changed, such as --config.batch_size=1. The first step is not timed. The
seconds of all cores together depend less on what else the machine does.
"""

import pathlib
import statistics
import time
from typing import Any

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from jaxvla import cli
from jaxvla.parallel.mesh import make_mesh
from jaxvla.parallel.sharding import batch_sharding
from jaxvla.training.sketch import Robot, sketch
from jaxvla.training.state import create_state

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "How to train: FILE:PRESET.")
flags.DEFINE_integer("cameras", 2, "Of the robot.", lower_bound=1)
flags.DEFINE_list("stored_size", ["480", "640"], "Height and width of pictures that the preset leaves as they are.")
flags.DEFINE_integer("dims", 6, "Values of state and action.", lower_bound=1)
flags.DEFINE_integer("steps", 0, "Training steps that are timed; the median is printed.", lower_bound=0)


def in_bytes(tree: Any) -> int:
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def main(_: list[str]) -> None:
    robot = Robot(FLAGS.cameras, FLAGS.dims, tuple(map(int, FLAGS.stored_size)))
    run_of = sketch(FLAGS.config.to_dict(), robot)
    config, agent, optimizer = run_of.config, run_of.agent, run_of.optimizer
    mesh = make_mesh(config.mesh)
    state = run_of.state(mesh)
    step = run_of.step(state, mesh)
    batch = agent.spec.fake_batch(config.batch_size, agent.batch_keys, np.random.default_rng(0))
    start = time.perf_counter()
    compiled = step.lower(state, batch).compile()
    compile_seconds = time.perf_counter() - start
    trained, _frozen = optimizer.split(state.params)
    count, of_trained = (sum(x.size for x in jax.tree.leaves(part)) for part in (state.params, trained))
    temporary = compiled.memory_analysis().temp_size_in_bytes
    print(f"{config.agent}, batch {config.batch_size}, {mesh.devices.size} x {mesh.devices.flat[0].device_kind}")
    held, of_params = in_bytes(state), in_bytes(state.params)
    print(f"parameters   {count / 1e6:.2f} M, {of_trained / 1e6:.2f} M trained")
    print(
        f"state        {held / 1e9:.3f} GB: parameters {of_params / 1e9:.3f}, optimizer {(held - of_params) / 1e9:.3f}"
    )
    print(f"batch        {in_bytes(batch) / 1e9:.3f} GB")
    print(f"temporary    {temporary / 1e9:.3f} GB")
    print(f"compilation  {compile_seconds:.1f} s", flush=True)
    if FLAGS.steps:
        run(compiled, create_state(agent, optimizer, config.seed, mesh, ema=config.ema_decay > 0), batch, mesh)


def run(compiled: Any, state: Any, batch: Any, mesh: jax.sharding.Mesh) -> None:
    """Takes a first step and those that are timed."""
    batch = jax.device_put(batch, batch_sharding(mesh))
    seconds, busy = [], []
    for _ in range(1 + FLAGS.steps):
        start, start_busy = time.perf_counter(), time.process_time()
        state, metrics = jax.block_until_ready(compiled(state, batch))
        seconds.append(time.perf_counter() - start)
        busy.append(time.process_time() - start_busy)
    timed = sorted(seconds[1:])
    print(f"step         {statistics.median(timed):.3f} s (median of {len(timed)}, {timed[0]:.3f} to {timed[-1]:.3f})")
    print(f"             {statistics.median(busy[1:]):.3f} s of all cores together")
    print(f"loss         {float(metrics['loss']):.4f} after {len(seconds)} steps")


if __name__ == "__main__":
    cli.run(main, ("config",), str(CONFIGS))
