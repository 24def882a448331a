"""What compiling Qwen3-VL tells without running it: compile time by depth, and memory of training steps with LoRA.

    python benchmarks/compile_depth.py            seconds to trace and compile at 8 and at 32 layers
    python benchmarks/compile_depth.py --lora     memory of a step of AdamW: full fine-tuning beside LoRA

Parameters and batches are shapes alone, so a preset needs no more memory than its program. Samples show one image of
256 px. What XLA plans to allocate is that of this machine's backend; another plans otherwise.
"CPU s" are the seconds of all cores together, which depend less on what else the machine does.
"""

import dataclasses
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from absl import flags

from jaxvla import cli
from jaxvla.models.lora import LORA, LoraConfig, adapt, add_lora
from jaxvla.models.module import Params, bind, graph_of
from jaxvla.models.qwen3_vl.config import PRESETS, Qwen3VLConfig, preset
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.positions import num_patches
from jaxvla.models.qwen3_vl.weight_table import param_shapes
from jaxvla.models.stack import REMAT_POLICIES

FLAGS = flags.FLAGS
flags.DEFINE_enum("preset", "qwen3_vl_2b", list(PRESETS), "Sizes of the model.")
flags.DEFINE_enum(
    "dtype", "float32", ["float32", "bfloat16"], "Of computation and of frozen parameters; others are float32."
)
flags.DEFINE_integer("batch_size", 1, "Samples.", lower_bound=1)
flags.DEFINE_integer("length", 256, "Tokens of a sample, those of its image included.", lower_bound=66)
flags.DEFINE_list("depths", ["8", "32"], "Numbers of text layers.")
flags.DEFINE_integer("repeats", 3, "Compilations of each; medians are printed.", lower_bound=1)
flags.DEFINE_bool("lora", False, "Compare memory with LoRA instead of compile times by depth.")
flags.DEFINE_integer("rank", 16, "Of LoRA, on all projections of the text decoder.", lower_bound=1)

GRIDS = ((16, 16),)


def loss_of(config: Qwen3VLConfig) -> Callable[[Params, Mapping[str, jax.Array]], jax.Array]:
    graph = graph_of(lambda rngs: Qwen3VL(config, rngs))

    def loss(params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
        model: Qwen3VL = bind(graph, params)
        hidden_btd = model.forward(**batch, grids=GRIDS)
        losses_bt, _ = model.token_losses(hidden_btd[:, :-1], batch["tokens_bt"][:, 1:])
        return losses_bt.mean()

    return loss


def batch_shapes(config: Qwen3VLConfig) -> dict[str, jax.ShapeDtypeStruct]:
    patches = (FLAGS.batch_size, num_patches(GRIDS), config.vision.patch_dim)
    return {
        "tokens_bt": jax.ShapeDtypeStruct((FLAGS.batch_size, FLAGS.length), jnp.int32),
        "patches_bpf": jax.ShapeDtypeStruct(patches, jnp.float32),
    }


def compile_seconds(function: Callable, *inputs: Any) -> tuple[float, float]:
    """By the clock, and of all cores."""
    jax.clear_caches()
    start, start_busy = time.perf_counter(), time.process_time()
    jax.jit(function).lower(*inputs).compile()
    return time.perf_counter() - start, time.process_time() - start_busy


def compare_depths(config: Qwen3VLConfig) -> None:
    """Compilations take turns, so that what else the machine does meets all of them."""
    seconds = {}
    for _ in range(FLAGS.repeats):
        for depth in map(int, FLAGS.depths):
            deep = dataclasses.replace(config, text=dataclasses.replace(config.text, num_hidden_layers=depth))
            loss = loss_of(deep)
            for label, function in (("forward", loss), ("forward+backward", jax.value_and_grad(loss))):
                took = compile_seconds(function, param_shapes(deep), batch_shapes(deep))
                seconds.setdefault((label, depth), []).append(took)
                print(f"{label} of {depth} layers: {took[0]:.1f} s", flush=True)
    print(f"\n{'':<18} layers   median s   min..max     CPU s   of {FLAGS.depths[0]} layers")
    medians = {key: statistics.median(busy for _, busy in times) for key, times in seconds.items()}
    for (label, depth), times in seconds.items():
        clock = sorted(took for took, _ in times)
        spread = f"{clock[0]:.1f}..{clock[-1]:.1f}"
        busy = medians[label, depth]
        ratio = busy / medians[label, int(FLAGS.depths[0])]
        print(
            f"{label:<18} {depth:>6} {statistics.median(clock):>10.1f}   {spread:<12} {busy:>5.1f} {ratio:>11.2f}",
            flush=True,
        )


def training_step(loss: Callable) -> Callable:
    """(trained, moments, the rest of the loss's arguments) -> (trained, moments, loss)."""

    def step(trained: Params, moments: optax.OptState, *rest: Any) -> tuple[Params, optax.OptState, jax.Array]:
        value, gradients = jax.value_and_grad(loss)(trained, *rest)
        updates, moments = optax.adamw(1e-4).update(gradients, moments, trained)
        return optax.apply_updates(trained, updates), moments, value

    return step


def compare_lora(config: Qwen3VLConfig) -> None:
    lora_config = LoraConfig(rank=FLAGS.rank)
    everything, frozen = param_shapes(config), param_shapes(config, config.dtype)
    lora = jax.eval_shape(lambda key: add_lora(key, frozen, lora_config)[LORA], jax.random.key(0))
    print(f"{'trained':<10} remat   state GB   temporary GB   together GB   of everything", flush=True)
    for remat in REMAT_POLICIES:
        loss = loss_of(dataclasses.replace(config, remat=remat))

        def adapted(lora: Params, base: Params, batch: Mapping, loss: Callable = loss) -> jax.Array:
            return loss(adapt({**base, LORA: lora}, lora_config), batch)

        full = None
        for label, trained, rest, of_trained in (
            ("everything", everything, (), loss),
            ("adapters", lora, (frozen,), adapted),
        ):
            moments = jax.eval_shape(optax.adamw(1e-4).init, trained)
            step = jax.jit(training_step(of_trained), donate_argnums=(0, 1))
            plan = step.lower(trained, moments, *rest, batch_shapes(config)).compile().memory_analysis()
            # What is donated counts among the arguments and among the results.
            state = plan.argument_size_in_bytes + plan.output_size_in_bytes - plan.alias_size_in_bytes
            together = state + plan.temp_size_in_bytes
            full = full or together
            print(
                f"{label:<10} {remat:<6} {state / 1e9:>9.2f} {plan.temp_size_in_bytes / 1e9:>14.2f} "
                f"{together / 1e9:>13.2f} {together / full:>15.2f}",
                flush=True,
            )


def main(_: list[str]) -> None:
    jax.config.update("jax_enable_compilation_cache", False)
    config = dataclasses.replace(preset(FLAGS.preset), dtype=FLAGS.dtype)
    print(
        f"{FLAGS.preset}, {FLAGS.batch_size} x {FLAGS.length} tokens, {config.dtype}, {jax.devices()[0].device_kind}",
        flush=True,
    )
    if FLAGS.lora:
        compare_lora(config)
    else:
        compare_depths(config)


if __name__ == "__main__":
    cli.run(main)
