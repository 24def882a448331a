"""Embeddings and logits stay where their rows of the vocabulary are, forwards and backwards."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from jaxvla.ops.losses import IGNORE, chunked_cross_entropy
from jaxvla.ops.placement import activations_at, look_up, pin
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.parallel.sharding import batch_sharding, replicated, tree_shardings

B, V, D, T = 8, 1012, 24, 10


def value_and_grad(tied, mesh):
    def loss(params, tokens, labels):
        table = params["embed_tokens"]["embedding"]
        x_btd = pin(jnp.tanh(look_up(table, tokens, jnp.float32)))
        kernel, axis = (table, 0) if tied else (params["lm_head"]["kernel"], 1)
        losses, hits = chunked_cross_entropy(x_btd, kernel, labels, vocab_axis=axis, chunk=4)
        return losses.sum(), hits.sum()

    def both(*args):
        with activations_at(batch_sharding(mesh)):
            return jax.value_and_grad(loss, has_aux=True)(*args)

    return both


@pytest.mark.parametrize(
    ("tied", "sizes"), [(True, (1, 2, 4)), (False, (1, 2, 4)), (True, (2, 2, 2)), (True, (2, 4, 1))]
)
def test_no_device_sees_the_whole_vocabulary_or_the_whole_batch(tied, sizes):
    mesh, rng = make_mesh(MeshConfig(*sizes)), np.random.default_rng(0)
    params = {"embed_tokens": {"embedding": rng.normal(size=(V, D)).astype(np.float32)}}
    if not tied:
        params["lm_head"] = {"kernel": rng.normal(size=(D, V)).astype(np.float32)}
    tokens, labels = rng.integers(0, V, (2, B, T)).astype(np.int32)
    labels[:, ::3] = IGNORE
    placed = tree_shardings(params, mesh)
    assert placed["embed_tokens"]["embedding"].spec == P("tensor", "fsdp")
    data, _, tensor = sizes
    batch = batch_sharding(mesh)
    step = jax.jit(
        value_and_grad(tied, mesh), in_shardings=(placed, batch, batch), out_shardings=(replicated(mesh), placed)
    )
    compiled = step.lower(params, tokens, labels).compile()
    shapes = set(re.findall(r"[a-z]+\d+\[([\d,]+)\]", compiled.as_text()))
    assert any(str(V // tensor) in shape.split(",") for shape in shapes)
    assert tensor == 1 or not [shape for shape in shapes if str(V) in shape.split(",")]
    whole = [shape for shape in shapes if shape.startswith((f"{B},{T},", f"{B * T},"))]
    assert data == 1 or not whole, whole
    (value, hits), grads = compiled(*jax.device_put((params, tokens, labels), (placed, batch, batch)))
    (expected, expected_hits), expected_grads = jax.jit(value_and_grad(tied, mesh))(params, tokens, labels)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    assert hits == expected_hits
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), grads, expected_grads)
