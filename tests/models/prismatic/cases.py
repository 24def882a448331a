"""What the comparisons of Prismatic models with timm and transformers share: small models, random inputs, our results.

A result holds "features" of the towers, "images" (what the projector makes of them), "logits" of every position,
"loss", and with `gradients` one "gradient/PATH" for each parameter.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxvla.models.module import bind, graph_of
from jaxvla.models.prismatic.config import PrismaticConfig, TextConfig
from jaxvla.models.prismatic.model import Prismatic
from jaxvla.models.prismatic.weight_table import weight_table
from jaxvla.models.vision.dinov2 import Dinov2Config
from jaxvla.models.vision.siglip import SiglipConfig
from jaxvla.ops.losses import IGNORE

_SIZES = {"num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 14, "patch_size": 7, "read_layers": 2}
DINO = Dinov2Config(8, 32, **_SIZES, num_register_tokens=4, class_position=False)
SIGLIP = SiglipConfig(12, 40, **_SIZES, exact_gelu=True, joint_qkv=True, attention_pool=True)
TEXT = TextConfig(48, 16, 24, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
CONFIGS = {
    "fused": PrismaticConfig(TEXT, DINO, SIGLIP),
    "siglip": PrismaticConfig(TEXT, None, SIGLIP, "gelu_mlp"),
    "dino": PrismaticConfig(TEXT, DINO, None, "linear"),
}
NEW_TOKENS = 3
# Compiling is most of a test's time; without optimization it takes a third of it.
quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def seeded_params(config):
    """Random parameters; the same in every version of numpy."""
    random, flat = np.random.RandomState(0), {}
    for weight in weight_table(config):
        noise = 0.3 * random.standard_normal(weight.shape)
        flat[weight.path] = (noise + ("scale" in weight.path.split("/")[-1])).astype(np.float32)
    return traverse_util.unflatten_dict(flat, sep="/")


def make_batch(config):
    """uint8 images [b, 1, h, w, 3], tokens of several lengths, and labels of the last three of each sample."""
    random = np.random.RandomState(1)
    stop = np.array([7, 5], np.int32)
    tokens = random.randint(0, config.text.vocab_size, (2, 7)).astype(np.int32)
    images = random.randint(0, 256, (2, 1, config.image_size, config.image_size, 3)).astype(np.uint8)
    place = np.arange(7)
    labelled = (place >= stop[:, None] - 3) & (place < stop[:, None])
    return {"images": images, "tokens": tokens, "stop": stop, "labels": np.where(labelled, tokens, IGNORE)}


@functools.cache
def graph(config):
    return graph_of(lambda rngs: Prismatic(config, rngs))


def jax_result(config, gradients=False):
    """The result of jaxvla; logits of padding are 0."""
    result = jax.tree.map(np.asarray, _compiled(config, gradients)(seeded_params(config), make_batch(config)))
    flat = traverse_util.flatten_dict(result.pop("gradients", {}), sep="/")
    return result | {f"gradient/{path}": value for path, value in flat.items()}


@functools.cache
def _compiled(config, gradients):
    patches = config.tokens_per_image

    def loss(params, batch):
        model = bind(graph(config), params)
        images = model.encode_images(batch["images"])
        output = model.read(batch["tokens"], images, batch["stop"])
        hidden = model.llm.norm(output.hidden_btd)
        # Position patches + t predicts token t + 1.
        losses, _ = model.llm.token_losses(hidden[:, patches:-1], batch["labels"][:, 1:])
        mean = losses.sum() / (batch["labels"][:, 1:] != IGNORE).sum()
        valid = jnp.arange(hidden.shape[1]) < batch["stop"][:, None] + patches
        features = model.vision(batch["images"][:, 0])
        return mean, {"features": features, "images": images, "logits": model.llm.logits(hidden) * valid[..., None]}

    def run(params, batch):
        if not gradients:
            value, result = loss(params, batch)
            return result | {"loss": value}
        (value, result), grads = jax.value_and_grad(loss, has_aux=True)(params, batch)
        return result | {"loss": value, "gradients": grads}

    return quick_jit(run)


def relative(found, expected):
    """The largest difference, relative to the largest entry that is expected."""
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
