"""What latent thinking costs: in training, in the action head behind it, and in a policy's decisions.

    python benchmarks/latent.py
    python benchmarks/latent.py --parts=slots --remat=block

Part "slots" is training by the number of slots; "head" and "latency" run action_head.py and policy_latency.py as they
are without flags.

Compiles forward and backward pass of a text model with random parameters, under a loss on words and on all hidden
states, and asks XLA what memory it needs beside parameters and gradients. Beside the loop of `latent_thinking.think`
stands the same computation written out slot by slot, whose backward pass keeps what every slot computed. Where both are
measured, their losses must agree.
"""

import pathlib
import subprocess
import sys
import time
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from jaxvla import cli
from jaxvla.errors import ConfigError
from jaxvla.models.latent_thinking import think
from jaxvla.models.module import Params, bind, graph_of, init_params
from jaxvla.models.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.stack import REMAT_POLICIES

FLAGS = flags.FLAGS
flags.DEFINE_integer("layers", 8, "Layers of the text decoder.", lower_bound=1)
flags.DEFINE_integer("width", 256, "Width of the text decoder, a multiple of 64.", lower_bound=64)
flags.DEFINE_integer("prefix", 160, "Tokens of the prefix.", lower_bound=1)
flags.DEFINE_integer("suffix", 32, "Tokens of the suffix.", lower_bound=1)
flags.DEFINE_integer("batch_size", 4, "Samples.", lower_bound=1)
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")
flags.DEFINE_enum("remat", "none", REMAT_POLICIES, "What a pass through the layers keeps for its backward pass.")

flags.DEFINE_multi_enum("parts", ["slots", "head", "latency"], ["slots", "head", "latency"], "What to measure.")

SCRIPTS = {"head": "action_head.py", "latency": "policy_latency.py"}
LOOP = (1, 2, 4, 8, 16)
WRITTEN_OUT = (1, 8)

# What (model, text) gives: hidden states of all columns, and those that predict the suffix.
Thinking = Callable[[Qwen3VL, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array]]


def looped(model: Qwen3VL, text: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    thought = think(model, text)
    return thought.hidden_btd, thought.predictors_bsd


def written_out(model: Qwen3VL, text: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """The same for samples that are not padded and use all slots."""
    output, layout = model.decode_tokens(text["prefix"], keep_keys=True)
    hidden, past = [output.hidden_btd], (output.keys,)
    x_btd = output.hidden_btd[:, -1:]
    num_slots = text["slots"].shape[1]
    for first in range(num_slots + 1):
        x_btd = x_btd if first < num_slots else model.embed(text["suffix"])
        positions_bt = layout.next_position_b[:, None] + first + jnp.arange(x_btd.shape[1])
        output = model.text(x_btd, jnp.broadcast_to(positions_bt, (3, *positions_bt.shape)), past=past, keep_keys=True)
        x_btd, past = output.hidden_btd, (*past, output.keys)
        hidden.append(x_btd)
    hidden_btd = jnp.concatenate(hidden, axis=1)
    before = hidden_btd.shape[1] - text["suffix"].shape[1] - 1
    return hidden_btd, model.text.norm(hidden_btd[:, before:-1])


def model_config() -> Qwen3VLConfig:
    heads = FLAGS.width // 64
    text = TextConfig(
        vocab_size=4096,
        hidden_size=FLAGS.width,
        intermediate_size=3 * FLAGS.width,
        num_hidden_layers=FLAGS.layers,
        num_attention_heads=heads,
        num_key_value_heads=max(heads // 2, 1),
        head_dim=64,
        mrope_section=(12, 10, 10),
    )
    vision = VisionConfig(1, 64, 64, 1, FLAGS.width, deepstack_visual_indexes=())
    return Qwen3VLConfig(text, vision, 0, 1, 2, 3, dtype=FLAGS.dtype, remat=FLAGS.remat)


def random_text(slots: int) -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    b = FLAGS.batch_size
    return {
        "prefix": jnp.asarray(rng.integers(4, 4096, (b, FLAGS.prefix)), jnp.int32),
        "prefix_start": jnp.zeros(b, jnp.int32),
        "slots": jnp.ones((b, slots), bool),
        "suffix": jnp.asarray(rng.integers(4, 4096, (b, FLAGS.suffix)), jnp.int32),
        "suffix_stop": jnp.full(b, FLAGS.suffix, jnp.int32),
    }


def measure(thinking: Thinking, slots: int, params: Params) -> tuple[float, int, float]:
    """Loss, bytes of temporary memory, processor seconds to trace and compile, of which other load adds least."""
    graph = graph_of(lambda rngs: Qwen3VL(model_config(), rngs))

    def loss(params: Params, text: Mapping[str, jax.Array]) -> jax.Array:
        model = bind(graph, params)
        hidden_btd, predictors_bsd = thinking(model, text)
        losses_bs, _ = model.token_losses(predictors_bsd, text["suffix"])
        return losses_bs.mean() + jnp.square(model.text.norm(hidden_btd).astype(jnp.float32)).mean()

    text = random_text(slots)
    start = time.process_time()
    compiled = jax.jit(jax.value_and_grad(loss)).lower(params, text).compile()
    seconds = time.process_time() - start
    value, _ = compiled(params, text)
    return float(value), compiled.memory_analysis().temp_size_in_bytes, seconds


def main(_: list[str]) -> None:
    if FLAGS.width % 64:
        raise ConfigError(f"--width={FLAGS.width} is not a multiple of 64")
    if "slots" in FLAGS.parts:
        measure_slots()
    for part in [part for part in SCRIPTS if part in FLAGS.parts]:
        print(f"\n{SCRIPTS[part]}", flush=True)
        subprocess.run([sys.executable, str(pathlib.Path(__file__).with_name(SCRIPTS[part]))], check=True)


def measure_slots() -> None:
    """Prints the table of part "slots"."""
    jax.config.update("jax_enable_compilation_cache", False)
    params = init_params(lambda rngs: Qwen3VL(model_config(), rngs), jax.random.key(0))
    print(
        f"{FLAGS.layers} layers of width {FLAGS.width}, prefix {FLAGS.prefix}, suffix {FLAGS.suffix}, "
        f"batch {FLAGS.batch_size}, {FLAGS.dtype}, remat {FLAGS.remat}, on {jax.devices()[0].device_kind}"
    )
    print("variant       slots   temporary MB   of 1 slot   compile CPU s   of 1 slot      loss", flush=True)
    losses = {}
    for label, thinking, counts in (("loop", looped, LOOP), ("written out", written_out, WRITTEN_OUT)):
        for slots in counts:
            value, size, seconds = measure(thinking, slots, params)
            if slots == counts[0]:
                first_size, first_seconds = size, seconds
            print(
                f"{label:<12} {slots:>6} {size / 1e6:>14.1f} {size / first_size:>11.2f} "
                f"{seconds:>15.1f} {seconds / first_seconds:>11.2f} {value:>9.5f}"
            )
            np.testing.assert_allclose(value, losses.setdefault(slots, value), rtol=1e-3)


if __name__ == "__main__":
    cli.run(main)
