import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util

from jaxvla.errors import ConfigError
from jaxvla.models.lora import LoraConfig, adapt, init_lora, merge
from jaxvla.models.module import bind, graph_of, init_params
from jaxvla.models.qwen3_vl.config import preset
from jaxvla.models.qwen3_vl.weight_table import param_shapes
from jaxvla.models.stack import scan_blocks, stack_blocks

LAYERS, WIDTH = 3, 6
CONFIG = LoraConfig("layers/up/kernel|^head/kernel", rank=2, alpha=3.0)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.up = nnx.Linear(WIDTH, 4 * WIDTH, rngs=rngs)
        self.down = nnx.Linear(4 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x_bd):
        return x_bd + self.down(jnp.tanh(self.up(x_bd)))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layers = stack_blocks(Block, LAYERS, rngs)
        self.head = nnx.Linear(WIDTH, 2, rngs=rngs)

    def __call__(self, x_bd, remat="none", unroll=False):
        return self.head(scan_blocks(self.layers, step, x_bd, remat=remat, unroll=unroll)[0])


def step(block, x_bd, _):
    return block(x_bd), None


GRAPH = graph_of(Model)
X_BD = np.random.default_rng(2).normal(size=(5, WIDTH)).astype(np.float32)


def random(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32), shapes)


def parameters():
    base = jax.eval_shape(lambda: init_params(Model, jax.random.key(0)))
    lora = jax.eval_shape(lambda: init_lora(jax.random.key(0), base, CONFIG))
    return random(base, seed=0), random(lora, seed=1)


@functools.partial(jax.jit, static_argnames=("remat", "unroll"))
def run(params, **options):
    return bind(GRAPH, params)(X_BD, **options)


def test_adapters_of_stacked_and_plain_kernels():
    shapes = jax.eval_shape(lambda: init_params(Model, jax.random.key(0)))
    lora = init_lora(jax.random.key(1), shapes, CONFIG)
    found = {path: leaf.shape for path, leaf in traverse_util.flatten_dict(lora, sep="/").items()}
    assert found == {
        "layers/up/lora_a": (LAYERS, WIDTH, 2),
        "layers/up/lora_b": (LAYERS, 2, 4 * WIDTH),
        "head/lora_a": (WIDTH, 2),
        "head/lora_b": (2, 2),
    }
    assert not np.any(lora["layers"]["up"]["lora_b"])
    a = np.asarray(lora["layers"]["up"]["lora_a"])
    assert len(np.unique(a)) == a.size
    assert 0.5 / WIDTH**0.5 < np.abs(a).max() <= 1 / WIDTH**0.5


def test_projections_of_qwen3_vl_by_regex():
    shapes = param_shapes(preset("qwen3_vl_4b"))
    config = LoraConfig("text/layers/self_attn/(q|v)_proj/kernel", rank=8)
    lora = jax.eval_shape(lambda key: init_lora(key, shapes, config), jax.random.key(0))
    assert {path: leaf.shape for path, leaf in traverse_util.flatten_dict(lora, sep="/").items()} == {
        "text/layers/self_attn/q_proj/lora_a": (36, 2560, 8),
        "text/layers/self_attn/q_proj/lora_b": (36, 8, 4096),
        "text/layers/self_attn/v_proj/lora_a": (36, 2560, 8),
        "text/layers/self_attn/v_proj/lora_b": (36, 8, 1024),
    }


def test_new_adapters_change_nothing():
    base, _ = parameters()
    lora = init_lora(jax.random.key(1), base, CONFIG)
    np.testing.assert_array_equal(run(adapt(base, lora, CONFIG)), run(base))


@pytest.mark.parametrize("options", [{}, {"remat": "block"}, {"remat": "dots", "unroll": True}])
def test_the_step_computes_what_merged_parameters_compute(options):
    base, lora = parameters()
    merged = merge(base, lora, CONFIG)
    up, head = lora["layers"]["up"], lora["head"]
    for i in range(LAYERS):
        product = np.asarray(up["lora_a"][i], np.float64) @ np.asarray(up["lora_b"][i], np.float64)
        expected = base["layers"]["up"]["kernel"][i] + 1.5 * product
        np.testing.assert_allclose(merged["layers"]["up"]["kernel"][i], expected, rtol=1e-5, atol=1e-6)
    expected = base["head"]["kernel"] + 1.5 * np.asarray(head["lora_a"], np.float64) @ np.asarray(head["lora_b"])
    np.testing.assert_allclose(merged["head"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    np.testing.assert_array_equal(merged["layers"]["down"]["kernel"], base["layers"]["down"]["kernel"])

    np.testing.assert_allclose(run(adapt(base, lora, CONFIG), **options), run(merged), rtol=1e-5, atol=1e-5)
    assert float(jnp.max(jnp.abs(run(merged) - run(base)))) > 0.1


def test_only_adapters_have_gradients_and_optimizer_state():
    base, lora = parameters()

    def loss(lora, base):
        return jnp.mean(bind(GRAPH, adapt(base, lora, CONFIG))(X_BD) ** 2)

    grads = jax.jit(jax.grad(loss))(lora, base)
    assert jax.tree.structure(grads) == jax.tree.structure(lora)
    state = optax.adam(1e-3).init(lora)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(lora))
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim) == sorted(2 * shapes)
    # The chain rule through the merged kernel, by hand.
    whole = jax.jit(jax.grad(lambda params: jnp.mean(bind(GRAPH, params)(X_BD) ** 2)))(merge(base, lora, CONFIG))
    kernel_grad, up = whole["layers"]["up"]["kernel"], lora["layers"]["up"]
    expected = 1.5 * jnp.einsum("lio,lro->lir", kernel_grad, up["lora_b"])
    np.testing.assert_allclose(grads["layers"]["up"]["lora_a"], expected, rtol=1e-4, atol=1e-3)


def test_kernels_are_merged_layer_by_layer():
    class Deep(nnx.Module):
        def __init__(self, rngs):
            self.layers = stack_blocks(lambda rngs: nnx.Linear(128, 128, rngs=rngs), 24, rngs)

        def __call__(self, x_bd):
            return scan_blocks(self.layers, step, x_bd, remat="block")[0]

    graph, config = graph_of(Deep), LoraConfig("kernel", rank=2)
    base = jax.eval_shape(lambda: init_params(Deep, jax.random.key(0)))
    lora = jax.eval_shape(lambda: init_lora(jax.random.key(0), base, config))
    x_bd = jax.ShapeDtypeStruct((4, 128), jnp.float32)

    def temporary_bytes(params_of):
        def loss(lora, base, x_bd):
            return jnp.sum(bind(graph, params_of(base, lora, config))(x_bd) ** 2)

        return jax.jit(jax.grad(loss)).lower(lora, base, x_bd).compile().memory_analysis().temp_size_in_bytes

    stack = 24 * 128 * 128 * 4
    assert temporary_bytes(adapt) < 0.3 * stack < 2 * stack <= temporary_bytes(merge) * 1.1


def test_export_keeps_dtypes():
    base, lora = parameters()
    base = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), base)
    merged = merge(base, lora, CONFIG)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {np.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("targets", "message"),
    [("bias", r"matches head/bias \(2,\)"), ("nothing", "no parameter path matches 'nothing'")],
)
def test_what_cannot_be_adapted(targets, message):
    with pytest.raises(ConfigError, match=message):
        init_lora(jax.random.key(0), parameters()[0], LoraConfig(targets))


def test_adapters_of_another_model():
    base, lora = parameters()
    lora["layers"]["up"]["lora_a"] = np.zeros((LAYERS, WIDTH + 1, 2), np.float32)
    with pytest.raises(ConfigError, match=r"layers/up is for \(3, 7, 24\), but the kernel is \(3, 6, 24\)"):
        adapt(base, lora, CONFIG)
    with pytest.raises(ConfigError, match=r"head is for .* but there is none"):
        merge({"layers": base["layers"]}, {"head": lora["head"]}, CONFIG)


def test_ranks_are_positive():
    with pytest.raises(ConfigError, match="at least 1, not 0"):
        LoraConfig("kernel", rank=0)
