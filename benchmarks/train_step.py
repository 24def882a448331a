"""How fast the training step of a plan runs here, beside what this device's own products of matrices reach.

    python experiments/plan.py --config train_config.py:ecot_tiny --mesh data=1 --output_path plan.json
    python benchmarks/train_step.py --plan plan.json

The plan holds the settings, so that this needs neither data nor weights nor the packages that read configs and data:
jax, flax, optax, numpy, absl-py and the tokenizer's do. --mesh, --batch_size, --remat and --attention change what was
planned; a plan is made on a CPU, and a GPU has a kernel for attention besides, --attention=cudnn.
Batches are random; they go through the feed of training, whose waiting is "data wait". FLOPs are those of the model
(jaxvla/models/flops.py) without what remat repeats; "of matmul" is their rate over that of square matrices of the
compute dtype in the same run, "of the peak" over the maker's figure. XLA's own count, where it gives one, takes a loop
for one pass of it.

With --torch an ecot step of the same sizes runs in the same process: the backbone of transformers with sdpa attention,
the same head and losses, torch.compile where --torch_compile, AdamW, bfloat16 by autocast with parameters in float32.
"""

import dataclasses
import functools
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxvla import cli
from jaxvla.config import from_mapping, local_path
from jaxvla.errors import ConfigError
from jaxvla.models.module import compute_dtype
from jaxvla.ops.attention import IMPLEMENTATIONS
from jaxvla.parallel import devices
from jaxvla.parallel.collectives import collectives
from jaxvla.parallel.feed import DeviceFeed
from jaxvla.parallel.mesh import AXES, make_mesh
from jaxvla.parallel.sharding import batch_sharding
from jaxvla.training.sketch import Robot, Sketch, sketch
from jaxvla.training.state import create_state
from jaxvla.training.throughput import num_tokens, step_flops

FLAGS = flags.FLAGS
flags.DEFINE_string("plan", "", "The JSON file that experiments/plan.py wrote.")
flags.DEFINE_list("mesh", [], "Sizes of data, fsdp and tensor, such as 1,8,1; the plan's where it is empty.")
flags.DEFINE_integer("batch_size", 0, "Rows of a global batch; the plan's where it is 0.", lower_bound=0)
flags.DEFINE_enum("remat", "", ["", "none", "dots", "block"], "Of all models; the plan's where it is empty.")
flags.DEFINE_enum(
    "attention", "", ["", *IMPLEMENTATIONS], "Of all models; the plan's where it is empty. GPUs have 'cudnn'."
)
flags.DEFINE_integer("steps", 10, "Steps that are timed, after two that are not.", lower_bound=1)
flags.DEFINE_bool("torch", False, "Time the ecot step in torch as well.")
flags.DEFINE_bool("torch_compile", True, "By torch.compile.")

MATMUL_SIDE = {"cpu": 2048, "gpu": 8192, "tpu": 8192}
WARM_UP = 2


class RandomBatches:
    """Endless host batches: one that was drawn once, copied for every step."""

    def __init__(self, run: Sketch, rows: int) -> None:
        self._batch = run.agent.spec.fake_batch(rows, run.agent.batch_keys, np.random.default_rng(0))

    def __next__(self) -> dict[str, Any]:
        return jax.tree.map(np.copy, self._batch)

    def get_state(self) -> dict[str, Any]:
        """There is but one place."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """There is but one place."""


@dataclasses.dataclass(frozen=True)
class Timed:
    """Seconds of each step, and of waiting for its batch."""

    seconds: list[float]
    waited: float = 0.0

    @property
    def median(self) -> float:
        """Seconds of one step."""
        return statistics.median(self.seconds)


def read_plan(path: str) -> tuple[dict[str, Any], Robot]:
    """Settings and robot of a plan, with the flags of this script.

    Raises:
        ConfigError: no such file, or no plan.
    """
    try:
        values = json.loads(local_path(path, "--plan").read_text())
        settings, robot = values["settings"], from_mapping(Robot, values["robot"], "robot")
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"--plan must be the JSON file of experiments/plan.py, not {path!r}: {error}") from error
    if FLAGS.mesh:
        settings["mesh"] = dict(zip(AXES, map(int, cli.numbers(FLAGS.mesh, 3, "--mesh"))))
    settings["batch_size"] = FLAGS.batch_size or settings["batch_size"]
    for name in ("remat", "attention"):
        if value := FLAGS[name].value:
            _set_all(settings, name, value)
    return settings, robot


def _set_all(settings: dict[str, Any], name: str, value: Any) -> None:
    for key, part in settings.items():
        if key == name:
            settings[key] = value
        elif isinstance(part, dict):
            _set_all(part, name, value)


def dtype_of(settings: dict[str, Any]) -> str:
    """The compute dtype of the largest model."""
    kwargs = settings["agent_kwargs"]
    return settings.get("backbone", kwargs.get("model", kwargs)).get("dtype", "float32")


def timed(step: Callable[[], Any]) -> list[float]:
    """Seconds of the steps after the first ones, each to its end."""
    seconds = []
    for _ in range(WARM_UP + FLAGS.steps):
        start = time.perf_counter()
        jax.block_until_ready(step())
        seconds.append(time.perf_counter() - start)
    return seconds[WARM_UP:]


def matmul_rate(dtype: str) -> float:
    """FLOP/s of a product of square matrices on one device."""
    side = MATMUL_SIDE[jax.default_backend()]
    a, b = jax.random.normal(jax.random.key(0), (2, side, side), compute_dtype(dtype))
    product = jax.jit(functools.partial(jnp.matmul, preferred_element_type=a.dtype))
    return 2.0 * side**3 / statistics.median(timed(lambda: product(a, b)))


def run_steps(run: Sketch, mesh: jax.sharding.Mesh, compiled: Any) -> Timed:
    """Steps of training, from the feed to the metrics."""
    config = run.config
    state = create_state(run.agent, run.optimizer, config.seed, mesh, ema=config.ema_decay > 0)
    with DeviceFeed(RandomBatches(run, config.batch_size), batch_sharding(mesh)) as feed:
        waits = []

        def step() -> Any:
            nonlocal state
            before = feed.waited
            batch = next(feed)
            waits.append(feed.waited - before)
            state, metrics = compiled(state, batch)
            return metrics["loss"]

        seconds = timed(step)
    return Timed(seconds, statistics.median(waits[WARM_UP:]))


def report(run: Sketch, label: str, times: Timed, flops: float, peaks: dict[str, float], count: int) -> None:
    """One row."""
    rows, tokens = run.config.batch_size, num_tokens(run.batch(run.config.batch_size))
    rate = flops / times.median
    shares = "".join(f"{rate / (peak * count):>13.3f}" for peak in peaks.values())
    print(
        f"{label:<8}{1000 * times.median:>11.1f}{1000 * min(times.seconds):>10.1f}{1000 * max(times.seconds):>10.1f}"
        f"{rows / times.median:>12.2f}{tokens / times.median:>12.0f}{rate / 1e9:>12.1f}{shares}"
        f"{1000 * times.waited:>12.2f}",
        flush=True,
    )


def main(_: list[str]) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    settings, robot = read_plan(FLAGS.plan)
    run = sketch(settings, robot)
    mesh = make_mesh(run.config.mesh)
    state, batch = run.state(mesh), run.batch(run.config.batch_size)
    kind, count = mesh.devices.flat[0].device_kind, mesh.devices.size
    known = devices.of_kind(kind)
    start = time.perf_counter()
    compiled = run.step(state, mesh).trace(state, batch).lower().compile()
    seconds, sizes = time.perf_counter() - start, compiled.memory_analysis()
    flops = step_flops(run.agent, run.optimizer, state.params, batch)
    of_xla = compiled.cost_analysis().get("flops", float("nan"))
    dtype = dtype_of(settings)
    print(f"{run.config.agent}, batch {run.config.batch_size}, {count} x {kind}, {dict(mesh.shape)}, {dtype}")
    print(f"compiled     in {seconds:.1f} s; temporary memory {sizes.temp_size_in_bytes / 1e9:.3f} GB a device")
    print(f"FLOPs        {flops:.4g} of the model, {of_xla:.4g} a device by XLA's cost analysis")
    for row in collectives(compiled.as_text(), mesh.shape, 8 if known is None else known.domain):
        print(f"collectives  {row.kind} over {','.join(row.axes)}: {row.count} arrays, {row.wire / 1e9:.4f} GB sent")
    peaks = {"of matmul": matmul_rate(dtype)} | ({} if known is None else {"of the peak": known.peak_flops})
    print(f"matmul       {peaks['of matmul'] / 1e9:.1f} GFLOP/s; load {os.getloadavg()[0]:.1f}")
    heads = "".join(f"{name:>13}" for name in peaks)
    print(
        f"\n{'':<8}{'step ms':>11}{'min':>10}{'max':>10}{'samples/s':>12}{'tokens/s':>12}{'GFLOP/s':>12}{heads}"
        f"{'data wait ms':>13}",
        flush=True,
    )
    ours = run_steps(run, mesh, compiled)
    report(run, "jaxvla", ours, flops, peaks, count)
    if FLAGS.torch:
        from train_step_torch import torch_step

        theirs = Timed(timed(torch_step(run, FLAGS.torch_compile)))
        report(run, "torch", theirs, flops, peaks, 1)
        print(f"jaxvla makes {theirs.median / ours.median / count:.2f} of the samples/s of torch, a device")


if __name__ == "__main__":
    # Two frameworks share the memory of a GPU; jax would take three quarters of it at once.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    cli.run(main)
