import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx, traverse_util

from jaxvla.errors import ConfigError
from jaxvla.models.layers import Linear
from jaxvla.models.lora import PROJECTIONS, LoraConfig, adapt, add_lora, merge
from jaxvla.models.module import bind, graph_of, init_params
from jaxvla.models.qwen3_vl.config import preset
from jaxvla.models.qwen3_vl.weight_table import param_shapes
from jaxvla.models.stack import scan_blocks, stack_blocks

LAYERS, WIDTH = 3, 6
CONFIG = LoraConfig(rank=2, alpha=3.0, targets="layers/up/kernel|^head/kernel")


def linear(in_dim, out_dim, rngs):
    return Linear(in_dim, out_dim, bias=True, dtype=jnp.float32, rngs=rngs)


class Block(nnx.Module):
    def __init__(self, rngs):
        self.up = linear(WIDTH, 4 * WIDTH, rngs)
        self.down = linear(4 * WIDTH, WIDTH, rngs)

    def __call__(self, x_btd):
        return x_btd + self.down(jnp.tanh(self.up(x_btd)))


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layers = stack_blocks(Block, LAYERS, rngs)
        self.head = linear(WIDTH, 2, rngs)

    def __call__(self, x_btd, remat="none", unroll=False):
        return self.head(scan_blocks(self.layers, step, x_btd, remat=remat, unroll=unroll)[0])


def step(block, x_btd, _):
    return block(x_btd), None


GRAPH = graph_of(Model)
SHAPES = jax.eval_shape(lambda: init_params(Model, jax.random.key(0)))
X_BTD = np.random.default_rng(2).normal(size=(5, 3, WIDTH)).astype(np.float32)


def random(shapes, seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: 0.5 * rng.normal(size=leaf.shape).astype(np.float32), shapes)


def parameters():
    return random(jax.eval_shape(lambda: add_lora(jax.random.key(0), SHAPES, CONFIG)), seed=0)


def base_of(params):
    return {name: part for name, part in params.items() if name != "lora"}


@functools.partial(jax.jit, static_argnames=("remat", "unroll"))
def run(params, **options):
    return bind(GRAPH, params)(X_BTD, **options)


def test_adapters_of_stacked_and_plain_kernels():
    params = add_lora(jax.random.key(1), SHAPES, CONFIG)
    assert base_of(params) == SHAPES
    lora = params["lora"]
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


def test_rank_0_is_no_adapter():
    assert add_lora(jax.random.key(0), SHAPES, LoraConfig()) is SHAPES
    params = base_of(parameters())
    assert adapt(params, LoraConfig()) is params
    jax.tree.map(np.testing.assert_array_equal, merge(params, LoraConfig()), params)


def adapter_shapes(targets, rank):
    config = LoraConfig(rank=rank, targets=targets)
    shapes = param_shapes(preset("qwen3_vl_4b"))
    lora = jax.eval_shape(lambda key: add_lora(key, shapes, config)["lora"], jax.random.key(0))
    return {path: leaf.shape for path, leaf in traverse_util.flatten_dict(lora, sep="/").items()}


def test_projections_of_qwen3_vl_by_regex():
    assert adapter_shapes("text/layers/self_attn/(q|v)_proj/kernel", 8) == {
        "text/layers/self_attn/q_proj/lora_a": (36, 2560, 8),
        "text/layers/self_attn/q_proj/lora_b": (36, 8, 4096),
        "text/layers/self_attn/v_proj/lora_a": (36, 2560, 8),
        "text/layers/self_attn/v_proj/lora_b": (36, 8, 1024),
    }
    modules = {path.rpartition("/")[0].removeprefix("text/layers/") for path in adapter_shapes(PROJECTIONS, 1)}
    attention, mlp = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
    assert modules == {f"self_attn/{name}" for name in attention} | {f"mlp/{name}" for name in mlp}


def test_new_adapters_change_nothing():
    base = base_of(parameters())
    params = add_lora(jax.random.key(1), base, CONFIG)
    np.testing.assert_array_equal(run(adapt(params, CONFIG)), run(base))


@pytest.mark.parametrize("options", [{}, {"remat": "block"}, {"remat": "dots", "unroll": True}])
def test_the_step_computes_what_merged_parameters_compute(options):
    params = parameters()
    base, merged = base_of(params), merge(params, CONFIG)
    up, head = params["lora"]["layers"]["up"], params["lora"]["head"]
    for i in range(LAYERS):
        product = np.asarray(up["lora_a"][i], np.float64) @ np.asarray(up["lora_b"][i], np.float64)
        expected = base["layers"]["up"]["kernel"][i] + 1.5 * product
        np.testing.assert_allclose(merged["layers"]["up"]["kernel"][i], expected, rtol=1e-5, atol=1e-6)
    expected = base["head"]["kernel"] + 1.5 * np.asarray(head["lora_a"], np.float64) @ np.asarray(head["lora_b"])
    np.testing.assert_allclose(merged["head"]["kernel"], expected, rtol=1e-5, atol=1e-6)
    assert jax.tree.structure(merged) == jax.tree.structure(base)
    np.testing.assert_array_equal(merged["layers"]["down"]["kernel"], base["layers"]["down"]["kernel"])

    np.testing.assert_allclose(run(adapt(params, CONFIG), **options), run(merged), rtol=1e-5, atol=1e-5)
    assert float(jnp.max(jnp.abs(run(merged) - run(base)))) > 0.1


def test_only_adapters_have_gradients_and_optimizer_state():
    params = parameters()
    base, lora = base_of(params), params["lora"]

    def loss(lora, base):
        return jnp.mean(bind(GRAPH, adapt({**base, "lora": lora}, CONFIG))(X_BTD) ** 2)

    grads = jax.jit(jax.grad(loss))(lora, base)
    assert jax.tree.structure(grads) == jax.tree.structure(lora)
    state = optax.adam(1e-3).init(lora)
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(lora))
    assert sorted(leaf.shape for leaf in jax.tree.leaves(state) if leaf.ndim) == sorted(2 * shapes)
    # The chain rule through the merged kernel, by hand.
    whole = jax.jit(jax.grad(lambda params: jnp.mean(bind(GRAPH, params)(X_BTD) ** 2)))(merge(params, CONFIG))
    kernel_grad, up = whole["layers"]["up"]["kernel"], lora["layers"]["up"]
    expected = 1.5 * jnp.einsum("lio,lro->lir", kernel_grad, up["lora_b"])
    np.testing.assert_allclose(grads["layers"]["up"]["lora_a"], expected, rtol=1e-4, atol=1e-3)


def test_dropout_is_of_what_adapters_are_fed():
    config = dataclasses.replace(CONFIG, dropout=0.5, targets="layers/up/kernel")
    params = parameters()
    params["lora"] = {"layers": params["lora"]["layers"]}
    whole, base = run(adapt(params, config)), run(base_of(params))
    np.testing.assert_array_equal(whole, run(adapt(params, dataclasses.replace(config, dropout=0.0))))
    drawn = [run(adapt(params, config, jax.random.key(seed))) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert not np.allclose(drawn[0], drawn[2])
    assert not np.allclose(drawn[0], whole)
    # Without an adapter's product nothing is left that dropout could change.
    params["lora"] = jax.tree.map(jnp.zeros_like, params["lora"])
    np.testing.assert_array_equal(run(adapt(params, config, jax.random.key(0))), base)


def test_every_layer_draws_its_own_dropout():
    config = dataclasses.replace(CONFIG, dropout=0.5)
    keys = adapt(parameters(), config, jax.random.key(0))
    own = [*keys["layers"]["up"]["kernel"].key, keys["head"]["kernel"].key]
    assert len({tuple(jax.random.key_data(key).tolist()) for key in own}) == LAYERS + 1


def test_merged_kernels_and_their_gradients_are_never_whole():
    class Deep(nnx.Module):
        def __init__(self, rngs):
            self.layers = stack_blocks(lambda rngs: linear(128, 128, rngs), 24, rngs)

        def __call__(self, x_btd):
            return scan_blocks(self.layers, step, x_btd, remat="block")[0]

    graph, config = graph_of(Deep), LoraConfig(rank=2, targets="kernel")
    params = jax.eval_shape(lambda: add_lora(jax.random.key(0), init_params(Deep, jax.random.key(0)), config))
    x_btd = jax.ShapeDtypeStruct((1, 4, 128), jnp.float32)

    def compiled(params_of):
        def loss(lora, base, x_btd):
            return jnp.sum(bind(graph, params_of({**base, "lora": lora}, config))(x_btd) ** 2)

        return jax.jit(jax.grad(loss)).lower(params["lora"], base_of(params), x_btd).compile()

    stack = 24 * 128 * 128 * 4
    adapted, merged = compiled(adapt), compiled(merge)
    temporary = [plan.memory_analysis().temp_size_in_bytes for plan in (adapted, merged)]
    assert temporary[0] < 0.1 * stack < 2 * stack <= temporary[1] * 1.1
    # Nor is one layer's: no product has the shape of a kernel.
    products = [re.findall(r"= f32\[([\d,]*)\]\S* dot\(", plan.as_text()) for plan in (adapted, merged)]
    shapes = [[shape for shape in found if shape.endswith("128,128")] for found in products]
    assert products[0]
    assert not shapes[0]
    assert shapes[1]


def test_export_keeps_dtypes():
    params = parameters()
    params = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.bfloat16), base_of(params)) | {"lora": params["lora"]}
    merged = merge(params, CONFIG)
    assert {leaf.dtype for leaf in jax.tree.leaves(merged)} == {np.dtype(jnp.bfloat16)}


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        ("bias", r"targets 'bias' matches head/bias \(2,\), but LoRA adapts kernels .*: end it in /kernel\$"),
        ("nothing", "^lora.targets: no parameter path matches 'nothing'; there are head/bias"),
        ("(", "^lora.targets: '\\(' is no regex"),
    ],
)
def test_what_cannot_be_adapted(targets, message):
    with pytest.raises(ConfigError, match=message):
        add_lora(jax.random.key(0), SHAPES, LoraConfig(rank=1, targets=targets))


def test_adapters_of_another_model():
    params = parameters()
    params["lora"]["layers"]["up"]["lora_a"] = np.zeros((LAYERS, WIDTH + 1, 2), np.float32)
    with pytest.raises(ConfigError, match=r"layers/up is for \(3, 7, 24\), but the kernel is \(3, 6, 24\)"):
        adapt(params, CONFIG)
    with pytest.raises(ConfigError, match=r"head is for .* but there is none"):
        merge({"layers": params["layers"], "lora": {"head": params["lora"]["head"]}}, CONFIG)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rank": -1}, r"lora\.rank must be 0 \(no adapters\) or more, not -1"),
        ({"rank": 2, "alpha": 0.0}, "alpha must be positive, not 0.0"),
        ({"rank": 2, "dropout": 1.0}, r"dropout must lie in \[0, 1\), not 1.0"),
        ({"dropout": 0.1}, "dropout 0.1 has no effect at rank 0: set lora.rank=16, or dropout=0"),
    ],
)
def test_values_out_of_range(changes, message):
    with pytest.raises(ConfigError, match=message):
        LoraConfig(**changes)
