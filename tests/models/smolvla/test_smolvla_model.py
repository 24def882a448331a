"""The model against a pass that keeps nothing, and what its masks, layers and frozen parts promise."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from models.smolvla import cases, oracle

from jaxvla.errors import ConfigError
from jaxvla.models.lora import LoraConfig, adapt, add_lora, merge
from jaxvla.models.module import init_params
from jaxvla.models.smolvla.config import LORA_TARGETS, preset
from jaxvla.models.smolvla.loss import reduce_errors, sample_losses
from jaxvla.models.smolvla.model import SmolVLA, draw_time, pad_last, prepare_images
from jaxvla.models.smolvla.weight_table import param_shapes

CONFIG = cases.CONFIG


@functools.cache
def sampled(num_steps):
    def run(params, batch):
        model, context = cases.look(params, batch)
        prefix = model.embed(*(batch[key] for key in cases.INPUTS))
        return prefix, model.sample(context, batch["noise"], num_steps)

    return cases.quick_jit(run)


def velocity(params, prefix, x_bad, time):
    """Of the oracle, which goes through prefix and actions anew."""

    def linear(x, name):
        return x @ np.asarray(params[name]["kernel"], np.float64) + np.asarray(params[name]["bias"], np.float64)

    periods = np.geomspace(CONFIG.min_period, CONFIG.max_period, CONFIG.expert_size // 2)
    phases = 2 * np.pi * np.float64(np.float32(time)) / periods
    waves = np.broadcast_to(np.concatenate([np.sin(phases), np.cos(phases)]), (*x_bad.shape[:2], CONFIG.expert_size))
    mixed = linear(np.concatenate([linear(x_bad, "action_in_proj"), waves], -1), "action_time_mlp_in")
    tokens = linear(mixed / (1 + np.exp(-mixed)), "action_time_mlp_out")
    return linear(oracle.joint_pass(params, prefix.x_btd, prefix.valid_bt, tokens, CONFIG), "action_out_proj")


def test_sampling_from_a_prefix_read_once_equals_whole_passes():
    params, batch = cases.seeded_params(), cases.make_batch(cases.CASES["missing_camera"])
    prefix, found = sampled(3)(params, batch)
    expected = batch["noise"].astype(np.float64)
    for time in (1, 2 / 3, 1 / 3):
        expected = expected - velocity(params, prefix, expected, time) / 3
    assert cases.relative(np.asarray(found), expected) < 1e-5


def test_what_is_not_there_changes_nothing():
    params, batch = cases.seeded_params(), cases.make_batch(cases.CASES["missing_camera"])
    expected = np.asarray(sampled(3)(params, batch)[1])
    loud = {key: value.copy() for key, value in batch.items()}
    loud["images"][~batch["present"]] = 0.7
    loud["tokens"][~batch["token_mask"]] = 9
    np.testing.assert_array_equal(sampled(3)(params, loud)[1], expected)
    # A sample that has the second camera alone, given that camera alone.
    alone = {key: value[1:2] for key, value in batch.items()}
    alone |= {"images": alone["images"][:, 1:], "present": alone["present"][:, 1:]}
    np.testing.assert_allclose(sampled(3)(params, alone)[1], expected[1:2], atol=1e-5)
    seen = {**batch, "state": batch["state"] + 1}
    assert np.abs(np.asarray(sampled(3)(params, seen)[1]) - expected).min(axis=(1, 2)).all()


def test_actions_see_those_before_them_alone():
    params, batch = cases.seeded_params(), cases.make_batch(cases.CASES["one_camera"])

    @cases.quick_jit
    def run(params, noise):
        model, context = cases.look(params, batch)
        return model.velocity(context, noise, jnp.full(len(noise), 0.5))

    changed = np.asarray(run(params, batch["noise"])) != run(params, batch["noise"] + np.eye(5)[2][None, :, None])
    np.testing.assert_array_equal(changed.any((0, 2)), [False, False, True, True, True])


def test_the_tree_of_parameters_is_that_of_the_weight_table():
    for config in (CONFIG, preset("smolvla_base")):
        shapes = jax.eval_shape(lambda c=config: init_params(lambda rngs: SmolVLA(c, rngs), jax.random.key(0)))
        assert traverse_util.flatten_dict(shapes) == traverse_util.flatten_dict(param_shapes(config))


def test_programs_do_not_grow_with_depth():
    batch = jax.tree.map(jnp.asarray, cases.make_batch(cases.CASES["one_camera"]))

    def size(text_layers, vision_layers):
        text = dataclasses.replace(CONFIG.text, num_hidden_layers=text_layers)
        vision = dataclasses.replace(CONFIG.vision, num_hidden_layers=vision_layers)
        config = dataclasses.replace(CONFIG, text=text, vision=vision)

        def loss(params):
            model, context = cases.look(params, batch, config)
            return model.errors(context, batch["actions"], batch["noise"], batch["time"]).sum()

        return str(jax.make_jaxpr(jax.grad(loss))(param_shapes(config))).count(" = ")

    assert 100 < size(4, 2) == size(16, 12)


def test_what_is_frozen():
    published = preset("smolvla_base")
    assert published.frozen_modules == ("vision", "connector", "text")
    assert dataclasses.replace(published, train_state_proj=False).frozen_modules[-1] == "state_proj"
    assert dataclasses.replace(published, train_expert_only=False).frozen_modules == ("vision",)
    assert CONFIG.frozen_modules == ()


def test_reductions_of_the_loss():
    rng = np.random.default_rng(0)
    errors = rng.uniform(size=(3, 5, 7)).astype(np.float32)
    slots = np.arange(5) < np.array([5, 2, 0])[:, None]
    dims = np.arange(7) < np.array([4, 4, 6])[:, None]
    kept = slots[:, :, None] & dims[:, None]
    arrays = [jnp.asarray(x) for x in (errors, slots, dims)]
    np.testing.assert_allclose(reduce_errors(*arrays, "valid"), errors[kept].mean(), rtol=1e-6)
    np.testing.assert_allclose(reduce_errors(*arrays, "all"), errors.mean(), rtol=1e-6)
    expected = [errors[0][kept[0]].mean(), errors[1][kept[1]].mean(), 0]
    np.testing.assert_allclose(sample_losses(*arrays), expected, rtol=1e-6)


def test_adapters_of_lerobots_targets():
    params, batch = cases.seeded_params(), cases.make_batch(cases.CASES["missing_camera"])
    lora = LoraConfig(rank=2, alpha=3.0, targets=LORA_TARGETS)
    adapted = add_lora(jax.random.key(0), params, lora)
    assert len(traverse_util.flatten_dict(adapted["lora"])) == 2 * (4 + 5)
    adapted["lora"] = jax.tree.map(lambda leaf: leaf + 0.1, adapted["lora"])
    plain = sampled(3)(params, batch)[1]
    found = sampled(3)(adapt(adapted, lora), batch)[1]
    np.testing.assert_allclose(found, sampled(3)(merge(adapted, lora), batch)[1], atol=1e-4)
    assert np.abs(np.asarray(found) - plain).max() > 0.01


def test_times_lie_near_the_noise():
    times = np.asarray(draw_time(jax.random.key(0), 4000))
    assert 0.001 <= times.min() < 0.05
    assert 0.99 < times.max() <= 1
    assert abs(times.mean() - (0.999 * 0.6 + 0.001)) < 0.02


def test_images_and_widths():
    image = jnp.full((1, 16, 32, 3), 255, jnp.uint8)
    seen = np.asarray(prepare_images(image, CONFIG))
    np.testing.assert_allclose(seen[0, :, 0, 0], [-1] * 16 + [1] * 16, atol=1e-6)
    np.testing.assert_array_equal(pad_last(jnp.ones((2, 3)), 5, "proprio"), [[1, 1, 1, 0, 0]] * 2)
    with pytest.raises(ConfigError, match="actions has 7 values, but this model takes 6"):
        pad_last(jnp.ones((2, 7)), 6, "actions")
    with pytest.raises(ConfigError, match="num_steps must be at least 1"):
        sampled(0)(cases.seeded_params(), cases.make_batch(cases.CASES["one_camera"]))
