import contextlib
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.action_head import oracle
from models.action_head.head_cases import (
    CONFIG,
    PAD_MASK,
    VALID,
    A,
    B,
    C,
    T,
    configured,
    inputs,
    maker,
    params_for,
    quick_jit,
    to_numpy,
)
from models.random_params import random_params

from jaxvla.models.action_head.config import SIZES, ActionHeadConfig
from jaxvla.models.action_head.dit import BlockPair, Context, DiT, TimeEmbedding
from jaxvla.models.action_head.encoders import ActionEncoder
from jaxvla.models.action_head.head import ActionHead
from jaxvla.models.module import bind, graph_of, init_params
from jaxvla.ops.masked_attention import Keys
from jaxvla.ops.placement import activations_at
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.parallel.rules import Split
from jaxvla.parallel.sharding import batch_sharding, tree_shardings

WIDTH, HEADS = CONFIG.dit.inner_dim, CONFIG.dit.num_heads


def make_with(module, *args):
    return lambda rngs: module(*args, dtype=jnp.float32, rngs=rngs)


def num_params(tree):
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def head_shapes(size, context_dim, state_dim):
    config = ActionHeadConfig(size=size, use_state=state_dim > 0)

    def make(rngs):
        return ActionHead(config, context_dim, 16, 7, state_dim, rngs)

    return jax.eval_shape(lambda: init_params(make, jax.random.key(0)))


def test_parameters_of_dit_b():
    shapes = head_shapes("dit_b", 2560, 7)
    assert num_params(shapes["dit"]) == 157_032_448
    assert num_params(shapes) == 161_472_775


def test_parameters_of_dit_l():
    def linear(in_dim, out_dim):
        return in_dim * out_dim + out_dim

    d, x, o = 1536, 2560, 1024
    around_attention = linear(d, 2 * d) + linear(d, 4 * d) + linear(4 * d, d) + 2 * linear(d, d)
    pair = (around_attention + 2 * linear(x, d)) + (around_attention + 2 * linear(d, d))
    dit = 8 * pair + linear(256, d) + linear(d, d) + linear(d, 2 * d) + linear(d, o)
    actions = linear(7, d) + linear(2 * d, d) + linear(d, d) + 1024 * d
    around = actions + 32 * d + linear(o, 1024) + linear(1024, 7) + linear(8, 1024) + linear(1024, d)
    shapes = head_shapes("dit_l", x, 8)
    assert num_params(shapes["dit"]) == dit == 562_969_600
    assert num_params(shapes) == dit + around


@pytest.mark.parametrize("size", SIZES.values())
def test_heads_fill_the_inner_width(size):
    assert size.num_heads * size.head_dim == size.inner_dim


def test_time_embedding():
    make = make_with(TimeEmbedding, WIDTH)
    params = random_params(make)
    buckets = np.array([0, 1, 250, 999])
    found = bind(graph_of(make), params)(jnp.asarray(buckets)[:, None])
    expected = [oracle.time_embedding(to_numpy(params), bucket) for bucket in buckets]
    np.testing.assert_allclose(found[:, 0], expected, rtol=1e-4, atol=2e-5)


def test_action_encoder():
    make = make_with(ActionEncoder, 3, WIDTH, 8)
    params = random_params(make)
    actions, buckets = np.random.default_rng(0).standard_normal((2, A, 3)), np.array([3, 750])
    found = bind(graph_of(make), params)(jnp.asarray(actions, jnp.float32), jnp.asarray(buckets)[:, None])
    expected = [oracle.action_tokens(to_numpy(params), *row) for row in zip(actions, buckets)]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=2e-5)


def test_a_pair_of_blocks():
    make = functools.partial(BlockPair, CONFIG, C)
    params = random_params(make)
    rng = np.random.default_rng(1)
    x, condition = rng.standard_normal((2 * B, 5, WIDTH)), rng.standard_normal((2 * B, WIDTH))
    context, visible = rng.standard_normal((B, T, C)), rng.random((2 * B, 5)) < 0.7

    @quick_jit
    def run(params, x, condition, context, valid, visible):
        pair = bind(graph_of(make), params)
        keys = pair.cross_block.attention.keys(context)
        x = pair.cross_block(x, condition, keys, valid, None)
        return x, pair.self_block(x, condition, None, visible, None)

    silu = oracle.silu(condition)[:, None]
    arrays = (jnp.asarray(array, jnp.float32) for array in (x, silu, context))
    found = run(params, *arrays, jnp.asarray(VALID), jnp.asarray(visible))
    cross, own = (to_numpy(params)[name] for name in ("cross_block", "self_block"))
    for m in range(2 * B):
        between = oracle.block(cross, x[m], condition[m], context[m // 2], VALID[m // 2], HEADS)
        np.testing.assert_allclose(found[0][m], between, rtol=1e-4, atol=2e-5)
        expected = oracle.block(own, between, condition[m], None, visible[m], HEADS)
        np.testing.assert_allclose(found[1][m], expected, rtol=1e-4, atol=2e-5)


def test_output_modulation_has_the_shift_first():
    params = params_for()["dit"]
    graph = graph_of(lambda rngs: DiT(CONFIG, C, rngs))
    x = np.random.default_rng(2).standard_normal((2, 5, WIDTH))
    # Blocks that add nothing, so that the output sees the input.
    still = jax.tree.map(jnp.zeros_like, params["layers"])
    keys = jnp.zeros((CONFIG.depth // 2, 2, T, HEADS, WIDTH // HEADS))
    context = Context(Keys(keys, keys), jnp.ones((2, T), bool))
    run = quick_jit(lambda params, *args: bind(graph, params)(*args, context, num_outputs=A))
    found = run({**params, "layers": still}, jnp.asarray(x, jnp.float32), jnp.array([[10], [600]]))
    for row, bucket in enumerate([10, 600]):
        condition = oracle.time_embedding(to_numpy(params["time"]), bucket)
        expected = oracle.output(to_numpy(params), x[row], condition)[-A:]
        np.testing.assert_allclose(found[row], expected, rtol=1e-4, atol=2e-5)


def test_loop_and_remat_change_nothing():
    """Beside blocks written out and not rematerialised: the same outputs and gradients, from the same dropout key."""
    params, rng, values = params_for(), jax.random.key(0), inputs()

    def run(config):
        graph = graph_of(maker(config))

        def loss(params, context):
            head = bind(graph, params)
            keys = head.dit.context(context, jnp.asarray(VALID))
            out = head.predict(values["noise"], jnp.arange(B), keys, visible_ma=jnp.asarray(PAD_MASK), rng=rng)
            return (out**2).sum()

        return quick_jit(jax.value_and_grad(loss, (0, 1)))(params, values["context"])

    results = [run(configured(**options)) for options in ({"remat": "block"}, {"scan_layers": False})]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), *results)


def test_activations_stay_where_they_are_put():
    """Parameters sharded over eight devices: fewer sums of activations, the same result."""
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    split = batch_sharding(mesh)
    config, params = configured(num_layers=2), params_for(num_layers=2)
    rng = np.random.default_rng(3)
    context, x = (jnp.asarray(rng.standard_normal(shape), jnp.float32) for shape in ((8, T, C), (16, A, 3)))
    columns = (("kernel$", Split((None, "fsdp"))),)
    shardings = tree_shardings(params, mesh, columns), split, split

    def run(place):
        graph = graph_of(lambda rngs: ActionHead(config, C, A, 3, 0, rngs))

        def predict(params, context, x):
            head = bind(graph, params)
            valid = jnp.asarray(np.resize(VALID, (8, T)))
            with place:
                return head.predict(x, jnp.arange(16), head.dit.context(context, valid))

        compiled = quick_jit(predict, in_shardings=shardings).lower(params, context, x).compile()
        return compiled(*jax.device_put((params, context, x), shardings)), compiled.as_text().count(" all-reduce(")

    (pinned, sums), (free, sums_without) = run(activations_at(split)), run(contextlib.nullcontext())
    np.testing.assert_allclose(pinned, free, rtol=1e-4, atol=1e-5)
    assert sums < sums_without
