import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxvla.errors import ConfigError
from jaxvla.models.module import bind, graph_of, init_params, params_of
from jaxvla.models.stack import REMAT_POLICIES, scan_blocks, stack_blocks
from jaxvla.ops.dropout import dropout

LAYERS, WIDTH = 3, 4


class Block(nnx.Module):
    """A residual layer with a dropout key and a bias of its own, and a scale that all layers share."""

    def __init__(self, rngs):
        self.dense = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x_bd, scale, bias_d, rng):
        return x_bd + dropout(jnp.tanh(self.dense(x_bd) * scale + bias_d), 0.5, rng)


class Model(nnx.Module):
    """The stack as a model holds it."""

    def __init__(self, rngs):
        self.layers = stack_blocks(Block, LAYERS, rngs)

    def __call__(self, x_bd, scale, xs, **options):
        def step(block, x_bd, x):
            x_bd = block(x_bd, scale, *x)
            return x_bd, x_bd.sum()

        return scan_blocks(self.layers, step, x_bd, xs, **options)


GRAPH = graph_of(Model)


@pytest.fixture(scope="module")
def inputs():
    biases = jax.random.normal(jax.random.key(2), (LAYERS, WIDTH))
    xs = biases, jax.random.split(jax.random.key(3), LAYERS)
    return init_params(Model, jax.random.key(0)), jax.random.normal(jax.random.key(1), (5, WIDTH)), xs


def scanned_loss(params, x_bd, scale, xs, **options):
    y, ys = bind(GRAPH, params)(x_bd, scale, xs, **options)
    return (y**2).sum() + ys.sum(), ys


def looped_loss(params, x_bd, scale, xs):
    sums = []
    for i in range(LAYERS):
        layer = jax.tree.map(lambda leaf, i=i: leaf[i], params["layers"])
        x_bd = bind(graph_of(Block), layer)(x_bd, scale, *jax.tree.map(lambda leaf, i=i: leaf[i], xs))
        sums.append(x_bd.sum())
    return (x_bd**2).sum() + sum(sums), jnp.stack(sums)


def test_leaves_are_stacked_and_drawn_apart(inputs):
    params = inputs[0]
    assert jax.tree.map(jnp.shape, params) == {
        "layers": {"dense": {"kernel": (LAYERS, WIDTH, WIDTH), "bias": (LAYERS, WIDTH)}}
    }
    kernels = params["layers"]["dense"]["kernel"]
    assert len({np.asarray(kernel).tobytes() for kernel in kernels}) == LAYERS
    assert abs(kernels.std() - WIDTH**-0.5) < 0.2, "initialised for the width, not for the number of layers"


@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("remat", REMAT_POLICIES)
def test_scan_is_the_loop(inputs, remat, unroll):
    params, x_bd, xs = inputs
    results = [
        jax.jit(jax.value_and_grad(loss, (0, 1, 2), has_aux=True))(params, x_bd, jnp.float32(0.7), xs)
        for loss in (looped_loss, lambda *args: scanned_loss(*args, remat=remat, unroll=unroll))
    ]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), *results)


def test_remat_recomputes_what_it_says(inputs):
    params, x_bd, xs = inputs

    def count(operation, remat):
        def loss(params):
            return scanned_loss(params, x_bd, jnp.float32(1), xs, remat=remat)[0]

        return str(jax.make_jaxpr(jax.grad(loss))(params)).count(f" {operation}")

    products = {remat: count("dot_general", remat) for remat in REMAT_POLICIES}
    activations = {remat: count("tanh", remat) for remat in REMAT_POLICIES}
    assert products["none"] == products["dots"] < products["block"]
    assert activations["none"] < activations["dots"] == activations["block"]


def test_program_does_not_grow_with_depth(inputs):
    _, x_bd, _ = inputs

    def size(layers):
        def forward(rng):
            blocks = stack_blocks(Block, layers, nnx.Rngs(rng))
            return scan_blocks(blocks, lambda block, x, _: (block(x, 1.0, 0.0, None), None), x_bd)[0]

        return len(str(jax.make_jaxpr(forward)(jax.random.key(0))).splitlines())

    assert size(2) == size(20)


def test_a_module_survives_the_boundary():
    model = Model(nnx.Rngs(0))
    params = params_of(model)
    again = params_of(bind(GRAPH, params))
    assert jax.tree.structure(params) == jax.tree.structure(again)
    assert all((a == b).all() for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(again)))
    assert (hash(GRAPH), GRAPH) == (hash(graph_of(Model)), graph_of(Model))
    shapes = jax.eval_shape(lambda rng: init_params(Model, rng), jax.random.key(0))
    assert jax.tree.map(jnp.shape, shapes) == jax.tree.map(jnp.shape, params)


def test_unknown_policy():
    with pytest.raises(ConfigError, match="no remat policy named 'full'; there are: none, dots, block"):
        scan_blocks(Model(nnx.Rngs(0)).layers, lambda block, x, _: (x, None), jnp.ones(2), remat="full")
