"""What the comparisons of SmolVLA with LeRobot share: a small model, random inputs, jaxvla's side of the results.

A result holds "vision" (what the tower makes of each camera), "prefix" (embeddings), "text_layers" and "expert_layers"
(the output of each layer), "errors" (squared, of each element), "actions" (sampled), and with `gradients` one
"gradient/PATH" for each parameter, of the mean error. What is padding of the prefix is 0.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxvla.models.module import bind, graph_of
from jaxvla.models.smolvla.config import SmolVLAConfig, TextConfig
from jaxvla.models.smolvla.model import SmolVLA
from jaxvla.models.smolvla.weight_table import weight_table
from jaxvla.models.vision.siglip import SiglipConfig
from jaxvla.ops.patches import cut_patches

CONFIG = SmolVLAConfig(
    TextConfig(64, 24, 40, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1, head_dim=8),
    SiglipConfig(16, 24, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8),
    scale_factor=2,
    chunk_size=5,
    max_state_dim=6,
    max_action_dim=7,
    freeze_vision_encoder=False,
    train_expert_only=False,
)
INPUTS = ("images", "present", "tokens", "token_mask", "state")
# Compiling is most of a test's time; without optimization it takes a third of it.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


@dataclasses.dataclass(frozen=True)
class Case:
    """Which cameras each sample has, and how many words its instruction has."""

    cameras: tuple[tuple[bool, ...], ...]
    words: tuple[int, ...]


CASES = {
    "one_camera": Case(((True,), (True,)), (4, 4)),
    "missing_camera": Case(((True, True), (False, True), (True, False)), (6, 1, 3)),
    "three_cameras": Case(((True, True, True), (True, False, True)), (2, 5)),
}


def seeded_params(config=CONFIG, seed=0):
    """Random parameters, norms and biases away from their ones and zeros; the same in every version of numpy."""
    random = np.random.RandomState(seed)
    flat = {}
    for weight in weight_table(config):
        noise = 0.2 * random.standard_normal(weight.shape)
        flat[weight.path] = (noise + weight.path.endswith("scale")).astype(np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def make_batch(case, config=CONFIG, seed=0):
    """numpy arrays; images in [-1, 1], a missing camera is all -1 as LeRobot fills it."""
    random = np.random.RandomState(seed)
    present, size = np.array(case.cameras), config.vision.image_size
    b, length = len(present), max(case.words) + 2
    images = random.uniform(-1, 1, (*present.shape, size, size, 3)).astype(np.float32)
    actions, noise = random.standard_normal((2, b, config.chunk_size, config.max_action_dim)).astype(np.float32)
    return {
        "images": np.where(present[..., None, None, None], images, np.float32(-1)),
        "present": present,
        "tokens": random.randint(0, config.text.vocab_size, (b, length)).astype(np.int32),
        "token_mask": np.arange(length) < np.array(case.words)[:, None],
        "state": random.standard_normal((b, config.max_state_dim)).astype(np.float32),
        "actions": actions,
        "noise": noise,
        "time": random.uniform(0.01, 1, b).astype(np.float32),
    }


def valid_mask(batch, config=CONFIG):
    """Which tokens of the prefix are there."""
    images = np.repeat(batch["present"], config.tokens_per_image, axis=1)
    return np.concatenate([images, batch["token_mask"], np.ones((len(images), 1), bool)], axis=1)


@functools.cache
def graph(config=CONFIG):
    return graph_of(lambda rngs: SmolVLA(config, rngs))


def jax_result(name, config=CONFIG, gradients=False, params=None):
    """The result of jaxvla; each configuration is compiled once for each case."""
    batch = make_batch(CASES[name], config)
    params = seeded_params(config) if params is None else params
    result = jax.tree.map(np.asarray, _compiled(config, gradients)(params, batch))
    result["text_layers"] = result["text_layers"] * valid_mask(batch, config)[..., None]
    result["prefix"] = result["prefix"] * valid_mask(batch, config)[..., None]
    flat = traverse_util.flatten_dict(result.pop("gradients", {}), sep="/")
    return result | {f"gradient/{path}": value for path, value in flat.items()}


@functools.cache
def _compiled(config, gradients):
    def loss(params, batch):
        model = bind(graph(config), params)
        b, n = batch["present"].shape
        patches = cut_patches(batch["images"].reshape(b * n, *batch["images"].shape[2:]), config.vision.patch_size)
        prefix = model.embed(*(batch[key] for key in INPUTS))
        read = model.text(prefix, keep_layers=True)
        context = model.expert.context(read.keys)
        errors = model.errors(context, batch["actions"], batch["noise"], batch["time"])
        time = batch["time"][:, None, None]
        tokens = model.embed_actions(time * batch["noise"] + (1 - time) * batch["actions"], batch["time"])
        _, layers = model.expert(tokens, context, keep_layers=True)
        return errors.mean(), {
            "vision": model.vision(patches).reshape(b, n, config.vision.num_patches, -1),
            "prefix": prefix.x_btd,
            "text_layers": read.layers_lbtd,
            "expert_layers": layers.reshape(-1, *layers.shape[2:]),
            "errors": errors,
            "actions": model.sample(context, batch["noise"]),
        }

    def run(params, batch):
        if not gradients:
            return loss(params, batch)[1]
        grads, result = jax.grad(loss, has_aux=True)(params, batch)
        return result | {"gradients": grads}

    return quick_jit(run)


def look(params, batch, config=CONFIG):
    """The model, and what its expert looks at."""
    model = bind(graph(config), params)
    return model, model.look(*(jnp.asarray(batch[key]) for key in INPUTS))


def errors(result, expected):
    """The largest difference of each array, of each layer apart, relative to the largest entry that is expected."""
    assert result.keys() == expected.keys()
    found = {}
    for key, value in expected.items():
        if key.endswith("_layers"):
            assert len(result[key]) == len(value)
            found |= {f"{key}{i}": relative(result[key][i], value[i]) for i in range(len(value))}
        else:
            found[key] = relative(result[key], value, expected.get(key.replace(*_NO_GRADIENT), value))
    return found


# What is added to all keys changes no softmax: its gradient is 0 but for rounding, and is held against that of queries.
_NO_GRADIENT = ("self_attn/k_proj/bias", "self_attn/q_proj/bias")


def relative(found, expected, scale=None):
    assert found.shape == expected.shape
    scale = expected if scale is None else scale
    return float(np.abs(found - expected).max() / max(np.abs(scale).max(), 1e-30))
