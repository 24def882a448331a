"""How long a decision of a reasoning policy takes: in latent slots, in words, and without, by the same weights.

    python benchmarks/policy_latency.py --words=64

Weights are random, and no token ends the words early, so that exactly `--words` of them are generated. Decisions in the
three modes take turns. A warm-up decision of each is left out; what is timed begins with arrays on the host and ends
with actions on the host.
"""

import dataclasses
import time

import jax
import numpy as np
from absl import flags
from tqdm import tqdm

from jaxvla import cli
from jaxvla.agents import make_agent
from jaxvla.agents.ecot import ECoT
from jaxvla.data.schema import BatchSpec, TextSpec
from jaxvla.models.qwen3_vl.config import preset

FLAGS = flags.FLAGS
flags.DEFINE_string("preset", "tiny", "Size of the backbone; its layers and width may be changed below.")
flags.DEFINE_integer("layers", 0, "Layers of the text decoder; 0 for the preset's.", lower_bound=0)
flags.DEFINE_enum("head", "dit_b", ["dit_tiny", "dit_b", "dit_l"], "Size of the action head.")
flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")
flags.DEFINE_integer("image_size", 224, "Pixels a side of the one image, a multiple of 32.", lower_bound=32)
flags.DEFINE_integer("prefix", 128, "Tokens of the prefix, image included.", lower_bound=1)
flags.DEFINE_integer("slots", 8, "Latent slots of mode implicit.", lower_bound=1)
flags.DEFINE_integer("words", 64, "Tokens that mode explicit generates.", lower_bound=1)
flags.DEFINE_integer("horizon", 16, "Actions of a chunk.", lower_bound=1)
flags.DEFINE_integer("rounds", 11, "Timed decisions of each mode.", lower_bound=1)

# No token has this id, so that words never end early.
_NEVER = -1


def main(_: list[str]) -> None:
    backbone = preset(FLAGS.preset)
    layers = FLAGS.layers or backbone.text.num_hidden_layers
    text = dataclasses.replace(backbone.text, num_hidden_layers=layers)
    backbone = dataclasses.replace(backbone, text=text, dtype=FLAGS.dtype)
    agents = {mode: _agent(backbone, mode) for mode in ("implicit", "explicit", "none")}
    params = jax.jit(agents["none"].init)(jax.random.key(0))
    decide = {
        mode: jax.jit(lambda params, inputs, own=agent: own.sample_actions(params, *inputs).actions_bad)
        for mode, agent in agents.items()
    }
    inputs = {mode: _inputs(agent) for mode, agent in agents.items()}
    compile_s, times = {}, {mode: [] for mode in agents}
    for mode in agents:
        start = time.perf_counter()
        jax.device_get(decide[mode](params, inputs[mode]))
        compile_s[mode] = time.perf_counter() - start
    for _round in tqdm(range(FLAGS.rounds), "deciding", leave=False):
        for mode in agents:
            start = time.perf_counter()
            jax.device_get(decide[mode](params, inputs[mode]))
            times[mode].append(1000 * (time.perf_counter() - start))
    print(f"{jax.devices()[0].device_kind}, {FLAGS.preset} with {layers} layers, {FLAGS.head}, {FLAGS.dtype}")
    print(f"{'mode':<34}{'median ms':>11}{'min..max':>18}{'of explicit':>13}{'first call s':>14}")
    said = {"implicit": f"{FLAGS.slots} slots", "explicit": f"{FLAGS.words} words", "none": "no reasoning"}
    for mode, row in times.items():
        share = np.median(row) / np.median(times["explicit"])
        spread = f"{min(row):.1f}..{max(row):.1f}"
        print(
            f"{mode + ': ' + said[mode]:<34}{np.median(row):>11.1f}{spread:>18}{share:>13.2f}{compile_s[mode]:>14.1f}"
        )


def _agent(backbone: object, mode: str) -> ECoT:
    sizes = TextSpec(FLAGS.prefix, FLAGS.slots if mode == "implicit" else 0, 1 if mode == "implicit" else 0)
    spec = BatchSpec(("images0",), (FLAGS.image_size,) * 2, 7, 7, action_horizon=FLAGS.horizon, text=sizes)
    kwargs = {
        "backbone": dataclasses.asdict(backbone),
        "action_head": {"size": FLAGS.head, "dtype": FLAGS.dtype},
        "stop_token": _NEVER,
        "pad_token": 0,
        "inference": mode,
        "max_new_tokens": FLAGS.words,
    }
    return make_agent("ecot", kwargs, spec)


def _inputs(agent: ECoT) -> tuple[dict, dict]:
    """One observation and its text, with as many image tokens as the image has."""
    made = agent.spec.fake_batch(1, ("observations", "text"), np.random.default_rng(0))
    ((rows, columns),) = agent.grids
    merge = agent.config.backbone.vision.spatial_merge_size
    made["text"]["prefix"][:, 1 : 1 + rows * columns // merge**2] = agent.config.backbone.image_token_id
    return made["observations"], {"text": made["text"]}


if __name__ == "__main__":
    cli.run(main)
