"""Embeddings and logits stay where their rows of the vocabulary are, forwards and backwards."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxvla.ops.losses import IGNORE, chunked_cross_entropy
from jaxvla.ops.placement import activations_at, pin
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.parallel.sharding import batch_sharding, replicated, tree_shardings

MESH = make_mesh(MeshConfig(1, 2, 4))
V, D, T = 1012, 24, 10


def value_and_grad(tied):
    def loss(params, tokens, labels):
        table = params["embed_tokens"]["embedding"]
        x_btd = pin(jnp.tanh(pin(table[tokens])))
        kernel, axis = (table, 0) if tied else (params["lm_head"]["kernel"], 1)
        losses, hits = chunked_cross_entropy(x_btd, kernel, labels, vocab_axis=axis, chunk=4)
        return losses.sum(), hits.sum()

    def both(*args):
        with activations_at(batch_sharding(MESH)):
            return jax.value_and_grad(loss, has_aux=True)(*args)

    return both


@pytest.mark.parametrize("tied", [True, False])
def test_no_device_sees_the_whole_vocabulary(tied):
    rng = np.random.default_rng(0)
    params = {"embed_tokens": {"embedding": rng.normal(size=(V, D)).astype(np.float32)}}
    if not tied:
        params["lm_head"] = {"kernel": rng.normal(size=(D, V)).astype(np.float32)}
    tokens, labels = rng.integers(0, V, (2, 4, T)).astype(np.int32)
    labels[:, ::3] = IGNORE
    placed = tree_shardings(params, MESH)
    assert placed["embed_tokens"]["embedding"].spec == P("tensor", "fsdp")
    batch = batch_sharding(MESH)
    step = jax.jit(value_and_grad(tied), in_shardings=(placed, batch, batch), out_shardings=(replicated(MESH), placed))
    compiled = step.lower(params, tokens, labels).compile()
    shapes = set(re.findall(r"[a-z]+\d+\[([\d,]+)\]", compiled.as_text()))
    assert any(str(V // 4) in shape.split(",") for shape in shapes)
    assert not [shape for shape in shapes if str(V) in shape.split(",")]
    (value, hits), grads = compiled(*jax.device_put((params, tokens, labels), (placed, batch, batch)))
    (expected, expected_hits), expected_grads = jax.jit(value_and_grad(tied))(params, tokens, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert hits == expected_hits
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected_grads)
