"""A very small ecot agent and batches for it, with ragged texts."""

import dataclasses
import functools

import jax
import numpy as np

from jaxvla.agents import make_agent
from jaxvla.data.schema import BatchSpec, TextSpec
from jaxvla.models.qwen3_vl.config import preset

TINY = preset("tiny")
BACKBONE = dataclasses.replace(
    TINY,
    text=dataclasses.replace(TINY.text, num_hidden_layers=2, vocab_size=1008),
    vision=dataclasses.replace(TINY.vision, depth=2, deepstack_visual_indexes=(0,)),
)
HEAD = {
    "size": "dit_tiny",
    "num_layers": 2,
    "num_future_tokens": 2,
    "output_dim": 16,
    "hidden_size": 16,
    "repeated_diffusion_steps": 2,
    "dropout": 0.0,
}
STOP, PAD = 979, 978
SPEC = BatchSpec(("images0",), (32, 32), 3, 2, action_horizon=3, text=TextSpec(10, 2, 6))
# What a text holds of the image: one token for 32 x 32 pixels.
IMAGE = (BACKBONE.vision_start_token_id, BACKBONE.image_token_id, BACKBONE.vision_end_token_id)


quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def agent_kwargs():
    return {"backbone": dataclasses.asdict(BACKBONE), "action_head": HEAD, "stop_token": STOP, "pad_token": PAD}


@functools.cache
def agent(**changes):
    return make_agent("ecot", agent_kwargs() | changes, SPEC)


@functools.cache
def params():
    return quick_jit(agent().init)(jax.random.key(1))


def text(rng, prefix_lengths, slots, suffix_lengths, spec=SPEC.text):
    """Random tokens of these lengths; every suffix token but the last is a label."""
    b = len(prefix_lengths)
    prefix = np.full((b, spec.prefix_length), PAD, np.int32)
    suffix = np.full((b, spec.suffix_length), PAD, np.int32)
    for i, (p, s) in enumerate(zip(prefix_lengths, suffix_lengths)):
        words = rng.integers(5, 900, p - len(IMAGE))
        prefix[i, spec.prefix_length - p :] = [*IMAGE, *words]
        suffix[i, :s] = rng.integers(5, 900, s)
    columns, stop = np.arange(spec.suffix_length), np.array(suffix_lengths, np.int32)
    return {
        "prefix": prefix,
        "prefix_start": np.array([spec.prefix_length - p for p in prefix_lengths], np.int32),
        "slots": np.arange(spec.num_slots) < np.array(slots)[:, None],
        "suffix": suffix,
        "suffix_stop": stop,
        "labels": columns < stop[:, None] - 1,
        "stage": np.where(np.array(slots) > 0, 2, 0).astype(np.int32),
        "truncated": np.zeros(b, bool),
    }


def batch(seed=0, spec=SPEC.text):
    """Four samples: with all slots, none, one, and with no more than an end of thinking to say."""
    rng = np.random.default_rng(seed)
    made = SPEC.fake_batch(4, ("observations", "actions", "action_pad_mask"), rng)
    made["action_pad_mask"][1, 2:] = False
    return made | {"text": text(rng, (10, 7, 8, 6), (2, 0, 1, 2), (6, 4, 5, 1), spec)}
