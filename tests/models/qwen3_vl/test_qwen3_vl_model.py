import contextlib
import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx, traverse_util
from models.qwen3_vl import cases

from jaxvla.errors import ConfigError
from jaxvla.models.layers import Linear
from jaxvla.models.module import bind, graph_of, init_params
from jaxvla.models.qwen3_vl.config import preset
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.positions import num_patches
from jaxvla.models.qwen3_vl.weight_table import param_shapes
from jaxvla.models.text_decoder import TextDecoder
from jaxvla.ops.attention import KeyValues
from jaxvla.ops.placement import activations_at
from jaxvla.parallel.rules import Split
from jaxvla.parallel.sharding import batch_sharding, tree_shardings

CONFIG = cases.CONFIG


def make(config):
    return lambda rngs: Qwen3VL(config, rngs)


@pytest.mark.parametrize(
    "config",
    [preset("tiny"), preset("qwen3_vl_8b"), cases.configured(()), cases.CASES["untied"].config],
    ids=["tiny", "8b", "no DeepStack", "untied"],
)
def test_the_tree_of_parameters_is_that_of_the_weight_table(config):
    shapes = jax.eval_shape(lambda: init_params(make(config), jax.random.key(0)))
    assert traverse_util.flatten_dict(shapes) == traverse_util.flatten_dict(param_shapes(config))


def test_first_matrices_have_the_standard_deviation_of_the_original():
    layer = Linear(48, 64, bias=True, dtype=jnp.float32, rngs=nnx.Rngs(0))
    assert abs(float(layer.kernel.std()) - 0.02) < 1e-3
    np.testing.assert_array_equal(layer.bias, 0)


def test_embeddings_over_prefix_and_slots_equal_one_pass():
    """A scan feeds each hidden state back as the next input; keys of the prefix stay outside its carry."""
    graph, params = graph_of(make(CONFIG)), cases.seeded_params(CONFIG)
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 90, (2, 6)), jnp.int32)
    start, num_slots = jnp.array([2, 0]), 3
    text = CONFIG.text

    def thinking(params):
        model = bind(graph, params)
        output, layout = model.decode_tokens(tokens, start_b=start, keep_keys=True)
        shape = (text.num_hidden_layers, 2, num_slots, text.num_key_value_heads, text.head_dim)

        def step(carry, slot):
            hidden_b1d, k, v = carry
            slots = KeyValues(k, v, None, jnp.full(2, slot))
            positions = jnp.broadcast_to(layout.next_position_b[:, None] + slot, (3, 2, 1))
            later = model.text(hidden_b1d, positions, past=(output.keys, slots), keep_keys=True)
            k, v = (
                jax.lax.dynamic_update_slice_in_dim(buffer, new, slot, axis=2)
                for buffer, new in zip((k, v), later.keys[:2])
            )
            return (later.hidden_btd, k, v), later.hidden_btd[:, 0]

        carry = (output.hidden_btd[:, -1:], jnp.zeros(shape), jnp.zeros(shape))
        return jnp.moveaxis(jax.lax.scan(step, carry, jnp.arange(num_slots))[1], 0, 1)

    def whole(params, hidden_bkd):
        model = bind(graph, params)
        layout = model.layout(tokens, start_b=start)
        first = model.text(model.embed(tokens), layout.positions_3bt, start_b=start).hidden_btd[:, -1:]
        x_btd = jnp.concatenate([model.embed(tokens), first, hidden_bkd[:, :-1]], axis=1)
        slots_bt = layout.next_position_b[:, None] + jnp.arange(num_slots)
        positions = jnp.concatenate([layout.positions_3bt, jnp.broadcast_to(slots_bt, (3, 2, num_slots))], axis=2)
        return model.text(x_btd, positions, start_b=start).hidden_btd[:, -num_slots:]

    found = cases.quick_jit(thinking)(params)
    assert cases.relative(np.asarray(found), np.asarray(cases.quick_jit(whole)(params, found))) < 1e-5


def test_what_stands_in_the_padding_changes_nothing():
    case = cases.CASES["left_padding"]
    graph, params = graph_of(make(case.config)), cases.seeded_params(case.config)
    batch = {key: jnp.asarray(value) for key, value in cases.make_batch(case).items()}
    other = jnp.where(cases.valid_mask(batch), batch["tokens"], case.config.image_token_id)

    @cases.quick_jit
    def forward(params, tokens):
        model = bind(graph, params)
        arrays = {"start_b": batch["start"], "patches_bpf": batch["patches"], "grids": case.grids}
        hidden = model.forward(tokens, final_norm=False, **arrays)
        return jnp.where(cases.valid_mask(batch)[..., None], hidden, 0)

    np.testing.assert_allclose(forward(params, batch["tokens"]), forward(params, other), rtol=1e-5, atol=1e-5)


def test_activations_stay_where_the_batch_is():
    config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, num_hidden_layers=2))
    mesh = jax.make_mesh((2, 4, 1), ("data", "fsdp", "tensor"), axis_types=(jax.sharding.AxisType.Auto,) * 3)
    params = jax.tree.map(jnp.asarray, cases.seeded_params(config)["text"])
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 90, (8, 64)), jnp.int32)
    positions = jnp.broadcast_to(jnp.arange(64), (3, 8, 64))

    def compiled(params, tokens, place):
        graph = graph_of(lambda rngs: TextDecoder(config.decoder, rngs))

        def decode(params, tokens):
            decoder = bind(graph, params)
            with place:
                return decoder(decoder.embed_tokens(tokens), positions).hidden_btd

        return jax.jit(decode).lower(params, tokens).compile(cases.QUICK)

    arrays = (
        # Columns of all kernels, which draw activations to them.
        jax.device_put(params, tree_shardings(params, mesh, (("kernel$", Split((None, "fsdp"))),))),
        jax.device_put(tokens, batch_sharding(mesh)),
    )
    # Each device has one sample, so an activation of more than one has come from others.
    foreign = re.compile(r"f32\[[2-8],64,\d+\]\S* all-gather")
    pinned = compiled(*arrays, activations_at(batch_sharding(mesh)))
    assert foreign.search(compiled(*arrays, contextlib.nullcontext()).as_text())
    assert not foreign.search(pinned.as_text())
    np.testing.assert_allclose(
        pinned(*arrays), compiled(params, tokens, contextlib.nullcontext())(params, tokens), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize(
    ("patches", "grids", "message"),
    [
        (None, ((4, 6),), "images and grids come together"),
        ((1, 24, 96), (), r"patches \(1, 24, 96\) do not fit grids \(\)"),
        ((1, 20, 96), ((4, 6),), r"do not fit grids \(\(4, 6\),\), which make 24 patches of 96 values"),
        ((1, 15, 96), ((3, 5),), "3 x 5 patches does not divide"),
    ],
)
def test_patches_that_do_not_fit_their_grids_are_refused(patches, grids, message):
    graph, params = graph_of(make(CONFIG)), param_shapes(CONFIG)
    patches = None if patches is None else jnp.zeros(patches)
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(
            lambda params: bind(graph, params).forward(jnp.zeros((1, 30), jnp.int32), patches_bpf=patches, grids=grids),
            params,
        )


def test_cudnn_attention_is_refused_where_it_cannot_run():
    config = dataclasses.replace(CONFIG, attention="cudnn", dtype="bfloat16")
    graph = graph_of(make(config))
    with pytest.raises(ConfigError, match=r"'cudnn' needs a GPU, not cpu; set attention to 'xla'"):
        jax.eval_shape(lambda p: bind(graph, p).forward(jnp.zeros((1, 3), jnp.int32)), param_shapes(config))


def test_depth_does_not_grow_the_program():
    def lines(num_layers):
        config = dataclasses.replace(CONFIG, text=dataclasses.replace(CONFIG.text, num_hidden_layers=num_layers))
        config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, depth=num_layers))
        graph, case = graph_of(make(config)), cases.CASES["left_padding"]
        patches = jnp.zeros((1, num_patches(case.grids), config.vision.patch_dim))

        def forward(params, tokens):
            return bind(graph, params).forward(tokens, patches_bpf=patches, grids=case.grids)

        lowered = jax.jit(forward).lower(param_shapes(config), jnp.zeros((1, 30), jnp.int32))
        return len(lowered.as_text().splitlines())

    assert lines(4) == lines(16)
