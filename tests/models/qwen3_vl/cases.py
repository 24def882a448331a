"""What the comparisons of Qwen3-VL with transformers share: small models, random inputs, jaxvla's side of the results.

A result holds "positions", "features", "deepstack" (image features), "layers" (what each layer hands to the next),
"hidden" (after the final norm), "logits", "loss", and with `gradients` one "gradient/PATH" per parameter. Padding is 0.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxvla.models.generation import Sampling
from jaxvla.models.module import bind, graph_of
from jaxvla.models.qwen3_vl.config import Qwen3VLConfig, TextConfig, VisionConfig
from jaxvla.models.qwen3_vl.generate import generate
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.positions import num_image_tokens, num_patches
from jaxvla.models.qwen3_vl.weight_table import weight_table
from jaxvla.ops.losses import IGNORE, masked_mean

TEXT = TextConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=40,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    mrope_section=(4, 2, 2),
)
VISION = VisionConfig(
    depth=4,
    hidden_size=24,
    intermediate_size=40,
    num_heads=2,
    out_hidden_size=32,
    deepstack_visual_indexes=(0, 2),
    num_position_embeddings=36,
    patch_size=4,
)
CONFIG = Qwen3VLConfig(
    TEXT, VISION, image_token_id=90, video_token_id=91, vision_start_token_id=92, vision_end_token_id=93
)
NUM_TEXT_TOKENS = 90
IMAGE = "image"


def configured(deepstack=(0, 2), **changes):
    vision = dataclasses.replace(VISION, deepstack_visual_indexes=deepstack)
    return dataclasses.replace(CONFIG, vision=vision, **changes)


@dataclasses.dataclass(frozen=True)
class Case:
    """A model and a batch. Each row lists lengths of text, and where an image or a frame of a video stands between."""

    config: Qwen3VLConfig
    grids: tuple[tuple[int, int], ...]
    rows: tuple[tuple[int | str, ...], ...]
    padding: str = "left"
    video: bool = False


CASES = {
    "left_padding": Case(
        configured(), ((4, 6), (2, 4)), ((3, IMAGE, 2, IMAGE, 4), (9, IMAGE, 1, IMAGE, 1), (1, IMAGE, 1, IMAGE, 2))
    ),
    "untied": Case(
        configured((1,), tie_word_embeddings=False),
        ((2, 2), (8, 4), (4, 4)),
        ((5, IMAGE, 1, IMAGE, 3, IMAGE, 2), (1, IMAGE, 4, IMAGE, 1, IMAGE, 1)),
        padding="right",
    ),
    "three_features": Case(configured((0, 1, 3)), ((6, 4),), ((2, IMAGE, 3), (4, IMAGE, 1))),
    "no_features": Case(
        configured(()), ((4, 4), (4, 4), (2, 8)), ((1, IMAGE, 1, IMAGE, 1, IMAGE, 3), (2, IMAGE, 2, IMAGE, 1, IMAGE, 1))
    ),
    "text": Case(configured(), (), ((7,), (12,), (1,))),
    "video": Case(configured(), ((4, 6), (4, 6)), ((2, IMAGE, 3, IMAGE, 1), (1, IMAGE, 1, IMAGE, 2)), video=True),
}
WITH_GRADIENTS = ("untied", "left_padding")

# Ten prompts of different lengths, continued until one of the stop tokens.
PROMPTS = Case(
    configured(),
    ((4, 4),),
    tuple(
        (before, IMAGE, after)
        for before, after in ((1, 9), (6, 2), (3, 1), (1, 1), (2, 5), (4, 7), (1, 2), (9, 3), (2, 4), (5, 10))
    ),
)
NEW_TOKENS = 12
STOP_TOKENS = (6, 56)

# Compiling is most of a test's time; without optimization it takes a third of it.
QUICK = {"xla_backend_optimization_level": 0}
quick_jit = functools.partial(jax.jit, compiler_options=QUICK)


def seeded_params(config, seed=0):
    """Random parameters, norms and biases away from their ones and zeros; the same in every version of numpy."""
    random = np.random.RandomState(seed)
    flat = {}
    for weight in weight_table(config):
        noise = 0.2 * random.standard_normal(weight.shape)
        flat[weight.path] = (noise + weight.path.endswith("scale")).astype(np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def make_batch(case, seed=0):
    """numpy arrays: "tokens", "start" or "stop", "patches", and "labels", the token that each position predicts."""
    random = np.random.RandomState(seed)
    visual = case.config.video_token_id if case.video else case.config.image_token_id
    rows = []
    for row in case.rows:
        grids, tokens = iter(case.grids), []
        for part in row:
            if part == IMAGE:
                count = num_image_tokens((next(grids),), case.config.vision)
                tokens += [case.config.vision_start_token_id, *[visual] * count, case.config.vision_end_token_id]
            else:
                tokens += random.randint(0, NUM_TEXT_TOKENS, part).tolist()
        rows.append(tokens)
    length = max(map(len, rows))
    batch = {"tokens": np.zeros((len(rows), length), np.int32)}
    lengths = np.array([len(row) for row in rows], np.int32)
    first = length - lengths if case.padding == "left" else np.zeros_like(lengths)
    for tokens, row, start in zip(batch["tokens"], rows, first):
        tokens[start : start + len(row)] = row
    batch["start" if case.padding == "left" else "stop"] = first if case.padding == "left" else lengths
    steps = np.arange(length)
    valid = (steps >= first[:, None]) & (steps < (first + lengths)[:, None])
    labels = np.where(valid & (random.rand(*valid.shape) < 0.7), batch["tokens"], IGNORE)
    labels[labels == visual] = IGNORE
    labels = np.concatenate([labels[:, 1:], np.full((len(rows), 1), IGNORE)], axis=1)
    batch["labels"] = np.where(valid, labels, IGNORE)
    if case.grids:
        shape = (len(rows), num_patches(case.grids), case.config.vision.patch_dim)
        batch["patches"] = random.standard_normal(shape).astype(np.float32)
    return batch


def valid_mask(batch):
    steps = np.arange(batch["tokens"].shape[1])
    if "start" in batch:
        return steps >= batch["start"][:, None]
    return steps < batch["stop"][:, None]


def jax_result(case, gradients=False, params=None):
    """The result of jaxvla, on the seeded parameters unless others are given; each case is compiled once."""
    batch = {key: jnp.asarray(value) for key, value in make_batch(case).items()}
    params = seeded_params(case.config) if params is None else params
    result = jax.tree.map(np.asarray, _compiled(case, gradients)(params, batch))
    valid = valid_mask(batch)
    for key, mask in (("positions", valid), *((key, valid[..., None]) for key in ("layers", "hidden", "logits"))):
        result[key] = np.where(mask, result[key], 0)
    flat = traverse_util.flatten_dict(result.pop("gradients", {}), sep="/")
    return result | {f"gradient/{path}": value for path, value in flat.items()}


@functools.cache
def _compiled(case, gradients):
    graph = graph_of(lambda rngs: Qwen3VL(case.config, rngs))

    def loss(params, batch):
        model = bind(graph, params)
        images = model.encode_images(batch["patches"], case.grids) if case.grids else None
        output, layout = model.decode_tokens(
            batch["tokens"],
            start_b=batch.get("start"),
            stop_b=batch.get("stop"),
            images=images,
            grids=case.grids,
            keep_layers=True,
        )
        hidden = model.text.norm(output.hidden_btd)
        result = {"positions": layout.positions_3bt, "layers": output.layers_lbtd, "hidden": hidden}
        result["logits"] = model.logits(hidden)
        if images is not None:
            result["features"] = images.features_bid
            if images.deepstack_nbid is not None:
                result["deepstack"] = images.deepstack_nbid
        losses, _ = model.token_losses(hidden, batch["labels"], chunk=5)
        return masked_mean(losses, batch["labels"] != IGNORE), result

    def run(params, batch):
        if gradients:
            (value, result), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
            return result | {"loss": value, "gradients": grads}
        value, result = loss(params, batch)
        return result | {"loss": value}

    return quick_jit(run)


def jax_generate(case):
    """Greedy continuations of jaxvla."""
    batch = {key: jnp.asarray(value) for key, value in make_batch(case).items()}
    arrays = {"start_b": batch["start"], "patches_bpf": batch["patches"]}
    inputs = (seeded_params(case.config), batch["tokens"], jax.random.key(0))
    sampling = Sampling(NEW_TOKENS, stop_tokens=STOP_TOKENS)
    graph = graph_of(lambda rngs: Qwen3VL(case.config, rngs))
    lowered = generate.lower(graph, *inputs, sampling=sampling, grids=case.grids, **arrays)
    return lowered.compile(QUICK)(*inputs, **arrays)


def errors(result, expected):
    """The largest difference of each array, relative to the largest entry that is expected."""
    assert result.keys() == expected.keys()
    found = {}
    for key, value in expected.items():
        if key == "layers":
            found |= {f"layer{i}": relative(result[key][i], value[i]) for i in range(len(value))}
        else:
            found[key] = relative(result[key], value)
    return found


def relative(found, expected):
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
