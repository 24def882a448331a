"""What sharing the context's keys between repeated draws saves: forward and backward pass of the action head.

    python benchmarks/action_head.py

Both variants train the same head on the same draws. "shared" is how the head trains: keys and values of the context are
projected once per cross-attention layer. "tiled" gives every draw its own copy of the context, as LaRA-VLA and starVLA
do. The two take turns, so that what else the machine does meets both. FLOPs are XLA's count for the program before
optimization with layers written out, since the body of a loop would count once.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
from absl import flags

from jaxvla import cli
from jaxvla.models.action_head.config import SIZES, ActionHeadConfig
from jaxvla.models.action_head.flow_matching import noised
from jaxvla.models.action_head.head import ActionHead
from jaxvla.models.module import Params, bind, graph_of, init_params

FLAGS = flags.FLAGS
flags.DEFINE_enum("size", "dit_b", list(SIZES), "Of the transformer.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "In which the head computes.")
flags.DEFINE_integer("draws", 8, "Draws of noise per sample (repeated_diffusion_steps).", lower_bound=1)
flags.DEFINE_integer("batch_size", 2, "Samples.", lower_bound=1)
flags.DEFINE_integer("context_length", 256, "Tokens of the context.", lower_bound=1)
flags.DEFINE_integer("context_dim", 2048, "Width of the context.", lower_bound=1)
flags.DEFINE_integer("repeats", 5, "Measured steps of each variant; the median is printed.", lower_bound=1)

HORIZON, ACTION_DIM = 16, 7


def step_of(config: ActionHeadConfig, copies: int) -> Callable[..., tuple[jax.Array, tuple[Params, jax.Array]]]:
    """The loss and its gradients by parameters and context, of a context that is repeated `copies` times."""
    graph = graph_of(lambda rngs: ActionHead(config, FLAGS.context_dim, HORIZON, ACTION_DIM, 0, rngs))

    def loss(params: Params, context: jax.Array, actions: jax.Array, rng: jax.Array) -> jax.Array:
        head = bind(graph, params)
        draw_rng, dropout_rng = jax.random.split(rng)
        rows = jnp.repeat(actions, FLAGS.draws, axis=0)
        point, bucket, velocity = noised(config, draw_rng, rows)
        tiled = jnp.repeat(context, copies, axis=0)
        keys = head.dit.context(tiled, jnp.ones(tiled.shape[:2], bool))
        return ((head.predict(point, bucket, keys, rng=dropout_rng) - velocity) ** 2).mean()

    return jax.value_and_grad(loss, (0, 1))


def main(_: list[str]) -> None:
    config = ActionHeadConfig(size=FLAGS.size, dtype=FLAGS.dtype, repeated_diffusion_steps=FLAGS.draws)
    params = jax.jit(
        lambda rng: init_params(lambda rngs: ActionHead(config, FLAGS.context_dim, HORIZON, ACTION_DIM, 0, rngs), rng)
    )(jax.random.key(0))
    context_rng, action_rng, rng = jax.random.split(jax.random.key(1), 3)
    context = jax.random.normal(context_rng, (FLAGS.batch_size, FLAGS.context_length, FLAGS.context_dim), config.dtype)
    actions = jax.random.normal(action_rng, (FLAGS.batch_size, HORIZON, ACTION_DIM))
    inputs = (params, context, actions, rng)

    variants = {"shared": 1, "tiled": FLAGS.draws}
    steps, flops, temporary = {}, {}, {}
    for name, copies in variants.items():
        written_out = dataclasses.replace(config, scan_layers=False)
        flops[name] = jax.jit(step_of(written_out, copies)).lower(*inputs).cost_analysis()["flops"]
        steps[name] = jax.jit(step_of(config, copies)).lower(*inputs).compile()
        temporary[name] = steps[name].memory_analysis().temp_size_in_bytes

    losses = {name: float(step(*inputs)[0]) for name, step in steps.items()}
    seconds = {name: [] for name in variants}
    for _ in range(FLAGS.repeats):
        for name, step in steps.items():
            start = time.perf_counter()
            jax.block_until_ready(step(*inputs))
            seconds[name].append(time.perf_counter() - start)

    print("variant   seconds   min..max        GFLOP   temporary GB   loss")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    for name, times in seconds.items():
        print(
            f"{name:<9} {medians[name]:>7.3f}   {min(times):.3f}..{max(times):.3f} {flops[name] / 1e9:>9.1f} "
            f"{temporary[name] / 1e9:>14.2f}   {losses[name]:.6f}"
        )
    print(
        f"shared / tiled: {medians['shared'] / medians['tiled']:.3f} of the time, "
        f"{flops['shared'] / flops['tiled']:.3f} of the FLOPs ({jax.devices()[0].device_kind})"
    )


if __name__ == "__main__":
    cli.run(main)
