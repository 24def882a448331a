"""Prismatic models against timm and transformers, from tests/parity/prismatic_torch.py."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.prismatic import cases

from jaxvla.errors import ConfigError
from jaxvla.models.cache import extend, start_cache
from jaxvla.models.module import bind
from jaxvla.models.prismatic.config import PixelScale, PrismaticConfig, preset

GOLDEN = pathlib.Path(__file__).parent / "golden"


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as values:
        return dict(values)


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_features_logits_loss_and_gradients(name):
    config = dataclasses.replace(cases.CONFIGS[name], remat="block", attention="chunked")
    expected = golden(name)
    del expected["tokens"]
    result = cases.jax_result(config, gradients=True)
    assert len([key for key in expected if key.startswith("gradient/")]) >= 3
    for key, value in expected.items():
        error = cases.relative(result[key], value)
        assert error < (1e-4 if key.startswith("gradient/") else 2e-5), f"{key} is off by {error:.1e}"


def test_the_last_layer_apart_computes_the_same():
    config = cases.CONFIGS["siglip"]
    apart = dataclasses.replace(config, last_layer_apart=True)
    params = cases.seeded_params(config)
    layers = params["llm"]["layers"]
    params["llm"] = params["llm"] | {
        "layers": jax.tree.map(lambda x: x[:-1], layers),
        "last_layer": jax.tree.map(lambda x: x[-1:], layers),
    }
    batch, expected = cases.make_batch(config), golden("siglip")["tokens"]
    np.testing.assert_array_equal(greedy(apart, params, batch), expected)


@pytest.mark.parametrize("name", cases.CONFIGS)
def test_greedy_tokens_behind_prompts_of_several_lengths(name):
    config = cases.CONFIGS[name]
    found = greedy(config, cases.seeded_params(config), cases.make_batch(config))
    np.testing.assert_array_equal(found, golden(name)["tokens"])


def greedy(config, params, batch):
    """Tokens from a cache that a batch of prompts, padded on the right, fills."""

    def run(params, batch):
        model = bind(cases.graph(config), params)
        images = model.encode_images(batch["images"])
        output = model.read(batch["tokens"], images, batch["stop"], keep_keys=True)
        stop_b = batch["stop"] + images.shape[1]
        cache = start_cache(output, stop_b, output.hidden_btd.shape[1] + cases.NEW_TOKENS)
        hidden = jnp.take_along_axis(output.hidden_btd, stop_b[:, None, None] - 1, axis=1)
        tokens = []
        for _ in range(cases.NEW_TOKENS):
            tokens.append(model.llm.logits(model.llm.norm(hidden)).argmax(-1))
            hidden, cache = extend(model.llm, cache, model.llm.embed_tokens(tokens[-1]))
        return jnp.concatenate(tokens, axis=1)

    return cases.quick_jit(run)(params, batch)


def test_bfloat16_stays_near_and_is_used():
    config = dataclasses.replace(cases.CONFIGS["fused"], dtype="bfloat16", scan_layers=False)
    result, expected = cases.jax_result(config), golden("fused")
    assert 1e-4 < cases.relative(result["features"], expected["features"]) < 0.1
    assert 1e-4 < abs(result["loss"] - expected["loss"]) < 0.1


def test_sizes_that_contradict_each_other():
    config = cases.CONFIGS["fused"]
    for changes, words in (
        ({"siglip": None}, "'fused_gelu_mlp' does not go with 1 tower:"),
        ({"projector": "linear"}, "'linear' does not go with 2 towers:"),
        ({"dino": None, "siglip": None}, "a model needs a vision tower"),
        ({"projector": "mlp"}, "projector must be one of fused_gelu_mlp, gelu_mlp, linear"),
        ({"siglip": dataclasses.replace(cases.SIGLIP, image_size=28)}, "must have image_size and patch_size in common"),
        ({"text": dataclasses.replace(cases.TEXT, num_hidden_layers=1), "last_layer_apart": True}, "at least 2"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(config, **changes)
    with pytest.raises(ConfigError, match=r"text.num_key_value_heads 3 does not go with num_attention_heads 4"):
        dataclasses.replace(cases.TEXT, num_key_value_heads=3)
    with pytest.raises(ConfigError, match="no Prismatic preset named 'openvla_13b'; there are: openvla_7b"):
        preset("openvla_13b")
    assert preset("openvla_7b").projector_dims == (2176, 8704, 4096, 4096)
    assert preset("prismatic_siglip_224px").projector_dims == (1152, 4096, 4096)


def test_pictures_of_another_size():
    config = cases.CONFIGS["siglip"]
    model = bind(cases.graph(config), cases.seeded_params(config))
    with pytest.raises(ConfigError, match=r"images are \(28, 28, 3\), but this model sees \(14, 14, 3\): resize"):
        model.encode_images(jnp.zeros((1, 1, 28, 28, 3), jnp.uint8))


def test_each_tower_scales_its_own_pixels():
    config = cases.CONFIGS["fused"]
    changed = dataclasses.replace(config, dino_pixels=PixelScale((0.0,) * 3, (1.0,) * 3))
    features, other = (cases.jax_result(c)["features"] for c in (config, changed))
    assert np.abs(features - other)[..., : cases.DINO.hidden_size].max() > 1e-3
    unchanged = (x[..., cases.DINO.hidden_size :] for x in (features, other))
    np.testing.assert_allclose(*unchanged, atol=1e-5)


def test_one_tower_is_enough():
    assert list(PrismaticConfig(cases.TEXT, cases.DINO, None, "linear").towers) == ["dino"]
