"""What the comparisons of ResNets with torch share: networks, random inputs, and jaxvla's side of the results.

A result holds "map", the last feature map, and the gradients of its inner product with "weights": "d_params",
"d_pixels" and "d_cond".
"""

import jax
import jax.numpy as jnp
import numpy as np
from models.random_params import random_params

from jaxvla.models.module import bind, graph_of
from jaxvla.models.resnet import Architecture, EncoderConfig, ResNet

# Small enough for files that hold every gradient; with repeated blocks, strides and odd sizes.
SMALL = {
    "small-basic-film": Architecture((3, 2), num_filters=8, film=True),
    "small-bottleneck": Architecture((2, 3), num_filters=8, bottleneck=True),
}
COND_DIM = 3


def make(name, rngs):
    """A ResNet with the preset's settings; `name` must be registered."""
    cond_dim = COND_DIM if name.endswith("film") else None
    return ResNet(EncoderConfig(name), (32, 32), cond_dim=cond_dim, rngs=rngs)


def random_inputs(name, image_size, batch_size=2):
    """numpy arrays: parameters, uint8 images, conditions, weights of the map."""
    rng = np.random.default_rng(0)
    params = random_params(lambda rngs: make(name, rngs))
    images = rng.integers(0, 256, (batch_size, *image_size, 3), dtype=np.uint8)
    cond = rng.standard_normal((batch_size, COND_DIM), dtype=np.float32)
    shape = jax.eval_shape(feature_map(name), params, jnp.zeros(images.shape), cond).shape
    return {"params": params, "images": images, "cond": cond, "weights": rng.standard_normal(shape, dtype=np.float32)}


def feature_map(name):
    """(params, pixels, cond) -> the last feature map."""
    graph = graph_of(lambda rngs: make(name, rngs))
    return lambda params, pixels, cond: bind(graph, params).feature_map(pixels, cond if name.endswith("film") else None)


def jax_result(name, inputs):
    """The result of jaxvla."""

    def loss(params, pixels, cond):
        y_bhwc = feature_map(name)(params, pixels, cond)
        return (y_bhwc * inputs["weights"]).sum(), y_bhwc

    pixels = inputs["images"] / np.float32(127.5) - 1
    gradients, y_bhwc = jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))(inputs["params"], pixels, inputs["cond"])
    return {"map": y_bhwc, **dict(zip(("d_params", "d_pixels", "d_cond"), gradients))}


def assert_close(result, expected, map_tolerance, gradient_tolerance):
    """Every array within a tolerance relative to its own largest entry."""

    def check(path, a, b):
        a, b = np.asarray(a), np.asarray(b)
        name = jax.tree_util.keystr(path)
        tolerance = map_tolerance if name == "['map']" else gradient_tolerance
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1e-12)
        assert error <= tolerance, f"{name}: {error:.1e}"

    jax.tree_util.tree_map_with_path(check, dict(result), dict(expected))
