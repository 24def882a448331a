import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from models.latent_reference import GRIDS, encode_images, quick_jit, sample_of
from models.latent_reference import think as slow_think
from models.qwen3_vl import cases

from jaxvla.errors import ConfigError
from jaxvla.models import latent_thinking
from jaxvla.models.adapter import put_still, take_still
from jaxvla.models.generation import Sampling, continue_text
from jaxvla.models.latent_thinking import prefill, think
from jaxvla.models.lora import LoraConfig, adapt, add_lora, merge
from jaxvla.models.module import bind, graph_of
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.weight_table import param_shapes
from jaxvla.ops.losses import IGNORE

IMAGE = (92, 90, 90, 90, 90, 93)
PREFIX, SLOTS, SUFFIX = 12, 3, 5
# Of each sample: padding on the left, slots that it uses, length of the suffix. Without padding all are as long.
STARTS, COUNTS, STOPS = (0, 4, 1, 3), (0, 3, 2, 1), (3, 4, 2, 5)
PARAMS = jax.tree.map(jnp.asarray, cases.seeded_params(cases.CONFIG))


def make_text(stops=STOPS, suffix_length=SUFFIX):
    """Padding is random tokens, which would be read if they were not masked."""
    random = np.random.RandomState(0)
    b = len(STARTS)
    prefix = random.randint(0, cases.NUM_TEXT_TOKENS, (b, PREFIX))
    for tokens, start in zip(prefix, STARTS):
        tokens[start + 1 : start + 1 + len(IMAGE)] = IMAGE
    suffix = random.randint(0, cases.NUM_TEXT_TOKENS, (b, suffix_length))
    text = {"prefix": prefix, "prefix_start": STARTS, "suffix": suffix, "suffix_stop": stops}
    slots = np.arange(SLOTS) < np.array(COUNTS)[:, None]
    return {key: np.asarray(value, np.int32) for key, value in text.items()} | {"slots": slots}


def on_device(text):
    return jax.tree.map(jnp.asarray, text)


def normal(seed, *shape):
    return jnp.asarray(np.random.RandomState(seed).standard_normal((len(STARTS), *shape)), jnp.float32)


PATCHES = normal(1, 16, cases.VISION.patch_dim)
# Stands for an action head: gives every hidden state a gradient.
HEAD = normal(2, PREFIX + SLOTS + SUFFIX, cases.TEXT.hidden_size) / 100


@functools.cache
def graph_for(position_mode):
    return graph_of(lambda rngs: Qwen3VL(cases.configured(position_mode=position_mode), rngs))


@functools.cache
def thinking(position_mode, latent_hidden):
    """(params, text, patches) -> thought, losses of the words."""

    def run(params, text, patches):
        model = bind(graph_for(position_mode), params)
        thought = think(model, text, patches, GRIDS, latent_hidden=latent_hidden)
        valid = jnp.arange(text["suffix"].shape[1]) < text["suffix_stop"][:, None]
        losses, _ = model.token_losses(thought.predictors_bsd, jnp.where(valid, text["suffix"], IGNORE))
        return thought, losses

    return quick_jit(run)


@functools.cache
def gradients(position_mode, latent_hidden):
    """params -> gradients."""

    def loss(params):
        run = thinking(position_mode, latent_hidden).__wrapped__
        thought, losses = run(params, on_device(make_text()), PATCHES)
        return losses.sum() + jnp.where(thought.valid_bt[..., None], thought.hidden_btd * HEAD, 0).sum()

    return quick_jit(jax.grad(loss))


def slow_loss(params, position_mode, latent_hidden, *, features=1.0, deepstack=1.0, detach=False):
    """The same loss from the reference, with each sample's hidden states and losses; image features times a number."""
    images, text = encode_images((params, PATCHES), None), make_text()
    total, results = 0, []
    for i in range(len(STARTS)):
        own = images._replace(
            features_bid=features * images.features_bid[i : i + 1],
            deepstack_nbid=deepstack * images.deepstack_nbid[:, i : i + 1],
        )
        hidden, losses = slow_think(params, sample_of(text, i), own, position_mode, latent_hidden, detach=detach)
        total += losses.sum() + (hidden * HEAD[i, valid_columns()[i]]).sum()
        results.append((hidden, losses))
    return total, results


@functools.cache
def slow(position_mode, latent_hidden, **options):
    """Hidden states and losses of each sample, and gradients."""
    gradients, results = jax.grad(slow_loss, has_aux=True)(PARAMS, position_mode, latent_hidden, **options)
    return results, gradients


def valid_columns():
    """Of each sample, in the order of the reference."""
    parts = zip(STARTS, COUNTS, STOPS)
    slots, suffix = PREFIX, PREFIX + SLOTS
    return [np.r_[start:PREFIX, slots : slots + count, suffix : suffix + stop] for start, count, stop in parts]


def hidden_errors(thought, results):
    """The largest relative difference of each sample; also checks which entries are valid."""
    errors = []
    for i, (hidden, _) in enumerate(results):
        np.testing.assert_array_equal(np.flatnonzero(thought.valid_bt[i]), valid_columns()[i])
        errors.append(cases.relative(np.asarray(thought.hidden_btd[i, valid_columns()[i]]), np.asarray(hidden)))
    return errors


def gradient_errors(found, expected):
    found, expected = (traverse_util.flatten_dict(tree, sep="/") for tree in (found, expected))
    assert found.keys() == expected.keys()
    return {path: cases.relative(np.asarray(found[path]), np.asarray(expected[path])) for path in expected}


@pytest.mark.parametrize("latent_hidden", ["pre_norm", "post_norm"])
@pytest.mark.parametrize("position_mode", ["mrope", "linear"])
def test_hidden_states_and_losses_equal_full_passes(position_mode, latent_hidden):
    thought, losses = thinking(position_mode, latent_hidden)(PARAMS, make_text(), PATCHES)
    results, _ = slow(position_mode, latent_hidden)
    assert max(hidden_errors(thought, results)) < 1e-5
    for found, (_, expected) in zip(losses, results):
        np.testing.assert_allclose(found[: len(expected)], expected, rtol=1e-5)
    last = jnp.stack([hidden[-1] for hidden, _ in results])
    assert cases.relative(np.asarray(thought.last_b1d[:, 0]), np.asarray(last)) < 1e-5


@pytest.mark.parametrize("latent_hidden", ["pre_norm", "post_norm"])
@pytest.mark.parametrize("position_mode", ["mrope", "linear"])
def test_gradients_equal_those_through_full_passes(position_mode, latent_hidden):
    found = gradients(position_mode, latent_hidden)(PARAMS)
    errors = gradient_errors(found, slow(position_mode, latent_hidden)[1])
    assert max(errors.values()) < 1e-5, errors


def test_the_reference_tells_a_detached_feedback():
    found = gradients("mrope", "pre_norm")(PARAMS)
    errors = gradient_errors(found, slow("mrope", "pre_norm", detach=True)[1])
    assert errors["text/layers/mlp/up_proj/kernel"] > 0.01


@pytest.mark.parametrize("factors", [{"features": 0.0}, {"deepstack": 0.0}], ids=str)
def test_the_reference_tells_missing_image_features(factors):
    thought, _ = thinking("mrope", "pre_norm")(PARAMS, make_text(), PATCHES)
    _, results = slow_loss(PARAMS, "mrope", "pre_norm", **factors)
    assert min(hidden_errors(thought, results)) > 0.01


def test_a_sample_is_the_same_alone_under_other_padding():
    text = make_text()
    run = thinking("mrope", "pre_norm")
    thought, losses = run(PARAMS, text, PATCHES)
    for i, stop in enumerate(STOPS):
        one = {key: value[i : i + 1] for key, value in text.items()}
        one["prefix"] = np.pad(one["prefix"], ((0, 0), (2, 0)), constant_values=7)
        one["prefix_start"] = one["prefix_start"] + 2
        one["slots"] = np.pad(one["slots"], ((0, 0), (0, 3)))
        one["suffix"] = np.pad(one["suffix"], ((0, 0), (0, 1)), constant_values=8)
        alone, own_losses = run(PARAMS, one, PATCHES[i : i + 1])
        found, expected = alone.hidden_btd[alone.valid_bt], thought.hidden_btd[i][thought.valid_bt[i]]
        assert cases.relative(np.asarray(found), np.asarray(expected)) < 1e-5
        np.testing.assert_allclose(own_losses[0, :stop], losses[i, :stop], rtol=1e-5)
        assert np.isfinite(alone.hidden_btd).all()


def text_of(num_slots, suffix_length):
    text = make_text(suffix_length=suffix_length)
    return text | {"slots": np.ones((len(STARTS), num_slots), bool)}


def count_passes(jaxpr, per_run=1):
    """How often the layers run: loops over layers, times the length of the loop around them."""
    count = 0
    for equation in jaxpr.eqns:
        inner = per_run
        if equation.primitive.name == "scan":
            if equation.params["length"] == cases.TEXT.num_hidden_layers:
                count += per_run
                continue
            inner *= equation.params["length"]
        for value in jax.tree.leaves(equation.params, is_leaf=lambda x: hasattr(x, "eqns") or hasattr(x, "jaxpr")):
            value = getattr(value, "jaxpr", value)
            count += count_passes(value, inner) if hasattr(value, "eqns") else 0
    return count


@pytest.mark.parametrize(
    ("num_slots", "suffix_length", "passes"), [(0, 0, 1), (0, 5, 2), (1, 0, 2), (3, 0, 4), (6, 5, 8)]
)
def test_only_what_is_there_costs_a_pass(num_slots, suffix_length, passes):
    graph, text = graph_for("mrope"), text_of(num_slots, suffix_length)
    traced = jax.make_jaxpr(lambda params: think(bind(graph, params), on_device(text)), return_shape=True)
    jaxpr, shape = traced(PARAMS)
    assert count_passes(jaxpr.jaxpr) == passes
    assert shape.hidden_btd.shape == (4, PREFIX + num_slots + suffix_length, cases.TEXT.hidden_size)
    assert shape.predictors_bsd.shape == (4, suffix_length, cases.TEXT.hidden_size)


def adapted_params(config):
    shapes = jax.eval_shape(lambda: add_lora(jax.random.key(0), PARAMS, config)["lora"])
    rng = np.random.RandomState(3)
    return PARAMS | {"lora": jax.tree.map(lambda x: jnp.asarray(0.2 * rng.normal(size=x.shape), jnp.float32), shapes)}


def adapter_gradients(config):
    """(adapters, dropout key) -> loss and gradients, of hidden states without images."""

    def loss(lora, key):
        model = bind(graph_for("mrope"), adapt({**PARAMS, "lora": lora}, config, key))
        thought = think(model, on_device(make_text()), latent_hidden="post_norm")
        return jnp.where(thought.valid_bt[..., None], thought.hidden_btd * HEAD, 0).sum()

    return quick_jit(jax.value_and_grad(loss))


def test_gradients_of_adapters_with_dropout_are_those_of_the_plain_loop(monkeypatch):
    config = LoraConfig(rank=2, targets="text/layers/.*(q|down)_proj/kernel", dropout=0.3)
    lora, key = adapted_params(config)["lora"], jax.random.key(5)
    run = adapter_gradients(config)
    loss, found = run(lora, key)
    assert run(lora, jax.random.key(6))[0] != loss == run(lora, key)[0]
    monkeypatch.setattr(latent_thinking, "_loop", latent_thinking._loop.fun)
    plain, expected = adapter_gradients(config)(lora, key)
    assert float(loss) == pytest.approx(float(plain), rel=1e-5)
    for path, grads in traverse_util.flatten_dict(expected, sep="/").items():
        assert cases.relative(traverse_util.flatten_dict(found, sep="/")[path], grads) < 1e-4, path


def test_adapters_compute_what_merged_parameters_compute():
    config = LoraConfig(rank=2, targets="text/layers/.*_proj/kernel|visual/.*/linear_fc1/kernel", dropout=0.3)
    params, run, text = adapted_params(config), thinking("mrope", "post_norm"), on_device(make_text())
    thought, losses = run(adapt(params, config), text, PATCHES)
    merged_thought, merged_losses = run(merge(params, config), text, PATCHES)
    valid = np.asarray(thought.valid_bt)
    assert cases.relative(thought.hidden_btd[valid], merged_thought.hidden_btd[valid]) < 1e-4
    np.testing.assert_allclose(losses, merged_losses, rtol=1e-4, atol=1e-4)
    assert not np.allclose(losses, run(PARAMS, text, PATCHES)[1], rtol=1e-2)


def test_every_pass_draws_its_own_dropout():
    config = LoraConfig(rank=2, targets="text/layers/.*q_proj/kernel", dropout=0.3)
    plain, keys = take_still(adapt(adapted_params(config), config, jax.random.key(0)))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(plain))
    (path,) = keys
    found = [traverse_util.flatten_dict(put_still(plain, keys, run), sep="/")[path].key for run in range(3)]
    every = jax.random.key_data(jnp.concatenate([keys[path]["key"], *found]))
    assert len({tuple(key) for key in every.tolist()}) == 4 * cases.TEXT.num_hidden_layers


def test_no_pass_adds_up_gradients_of_frozen_kernels():
    wide = dataclasses.replace(cases.TEXT, hidden_size=256, intermediate_size=1024, num_hidden_layers=8)
    vision = dataclasses.replace(cases.VISION, out_hidden_size=256)
    model = dataclasses.replace(cases.CONFIG, text=wide, vision=vision, remat="block")
    graph, config, base = graph_of(lambda rngs: Qwen3VL(model, rngs)), LoraConfig(rank=2), param_shapes(model)
    lora = jax.eval_shape(lambda: add_lora(jax.random.key(0), base, config)["lora"])

    def loss(lora, base):
        text = on_device(text_of(3, 2))
        return think(bind(graph, adapt({**base, "lora": lora}, config)), text).hidden_btd.sum()

    plan = quick_jit(jax.grad(loss)).lower(lora, base).compile().memory_analysis()
    stack = sum(4 * x.size for x in jax.tree.leaves(base["text"]["layers"]))
    assert plan.temp_size_in_bytes < 0.3 * stack


def test_what_the_backward_pass_keeps_grows_linearly_with_the_slots():
    def kept_bytes(num_slots):
        text = on_device(text_of(num_slots, SUFFIX))
        run = functools.partial(jax.vjp, lambda params: think(bind(graph_for("mrope"), params), text).hidden_btd[:, :1])
        _, backward = jax.eval_shape(run, PARAMS)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(backward))

    keys = 2 * cases.TEXT.num_hidden_layers * cases.TEXT.num_key_value_heads * cases.TEXT.head_dim
    state_of_a_slot = len(STARTS) * (keys + cases.TEXT.hidden_size) * PARAMS["text"]["norm"]["scale"].itemsize
    growths = {(kept_bytes(n + 4) - kept_bytes(n)) / 4 for n in (4, 8, 12)}
    assert len(growths) == 1
    assert growths.pop() < 1.5 * state_of_a_slot


def test_without_slots_the_suffix_follows_the_prefix():
    text = text_of(0, SUFFIX)
    found, _ = thinking("mrope", "pre_norm")(PARAMS, text, PATCHES)
    tokens = jnp.concatenate([text["prefix"], text["suffix"]], axis=1)
    bounds = {"start_b": jnp.asarray(text["prefix_start"]), "stop_b": jnp.asarray(PREFIX + text["suffix_stop"])}

    @quick_jit
    def forward(params):
        model = bind(graph_for("mrope"), params)
        return model.forward(tokens, patches_bpf=PATCHES, grids=GRIDS, final_norm=False, **bounds)

    valid = np.asarray(found.valid_bt)
    assert cases.relative(np.asarray(found.hidden_btd)[valid], np.asarray(forward(PARAMS))[valid]) < 1e-5


def test_words_go_on_behind_the_thinking():
    graph, forced, new = graph_for("mrope"), np.array([0, 2, 1, 0]), 3
    start = make_text(stops=forced, suffix_length=2)

    @quick_jit
    def speak(params, text, patches):
        model = bind(graph, params)
        thought, cache = prefill(model, text, patches, GRIDS, room=new)
        return continue_text(model.text, cache, thought.last_b1d, jax.random.key(0), sampling=Sampling(new))

    generated = speak(PARAMS, start, PATCHES)
    suffix = np.zeros((len(STARTS), SUFFIX), np.int32)
    for row, given, count, words in zip(suffix, start["suffix"], forced, generated.tokens_bm):
        row[: count + new] = [*given[:count], *words]
    whole = start | {"suffix": suffix, "suffix_stop": np.asarray(forced + new, np.int32)}
    thought, _ = thinking("mrope", "pre_norm")(PARAMS, whole, PATCHES)
    predicted = bind(graph, PARAMS).logits(thought.predictors_bsd).argmax(-1)
    for i, count in enumerate(forced):
        said = slice(PREFIX + SLOTS + count, PREFIX + SLOTS + count + new)
        assert cases.relative(np.asarray(generated.hidden_bmd[i]), np.asarray(thought.hidden_btd[i, said])) < 1e-5
        np.testing.assert_array_equal(generated.tokens_bm[i], predicted[i, count : count + new])


@pytest.mark.parametrize("latent_hidden", ["pre_norm", "post_norm"])
def test_hidden_states_keep_the_compute_dtype(latent_hidden):
    config = cases.configured(dtype="bfloat16", remat="block")
    graph, text = graph_of(lambda rngs: Qwen3VL(config, rngs)), make_text()

    def run(params):
        return think(bind(graph, params), on_device(text), PATCHES, GRIDS, latent_hidden=latent_hidden)

    thought = jax.eval_shape(run, param_shapes(config))
    assert {x.dtype for x in (thought.hidden_btd, thought.predictors_bsd, thought.last_b1d)} == {jnp.dtype("bfloat16")}


def test_an_unknown_hidden_state_is_refused():
    with pytest.raises(ConfigError, match=r"no latent_hidden named 'last'; there are: pre_norm, post_norm"):
        think(bind(graph_for("mrope"), PARAMS), on_device(make_text()), PATCHES, GRIDS, latent_hidden="last")
