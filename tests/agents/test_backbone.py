import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.ecot_cases import BACKBONE, quick_jit

from jaxvla.agents.backbone import SHIPPED, BackboneConfig, open_backbone
from jaxvla.data.text.tokenizer import TINY, load_tokenizer
from jaxvla.errors import ConfigError, JaxvlaError
from jaxvla.models.lora import LoraConfig
from jaxvla.models.module import init_params
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.weights import save_hf
from jaxvla.reasoning.prompt import THINKING_TOKENS

NEW = ("<|thinking|>", "<|start_of_thinking|>")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A Hugging Face folder of random weights whose embedding has one row more than the tokenizer has tokens."""
    path = tmp_path_factory.mktemp("model") / "hf"
    tokenizer = load_tokenizer(TINY)
    config = dataclasses.replace(BACKBONE, text=dataclasses.replace(BACKBONE.text, vocab_size=tokenizer.vocab_size + 1))
    params = quick_jit(lambda rng: init_params(lambda rngs: Qwen3VL(config, rngs), rng))(jax.random.key(0))
    save_hf(params, config, path)
    tokenizer.save(path)
    return path, params


def test_a_folder_gives_sizes_tokenizer_and_weights(folder):
    path, params = folder
    backbone = open_backbone(BackboneConfig(path=str(path), dtype="float32", token_init="mean"), NEW)
    old = load_tokenizer(TINY).vocab_size
    assert [backbone.tokenizer.id_of(name) for name in NEW] == [old, old + 1]
    assert backbone.model.text.vocab_size == old + 2
    assert (backbone.model.dtype, backbone.model.remat) == ("float32", "block")
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loaded = backbone.load(jax.tree.map(lambda _: where, params))
    table, before = (np.asarray(tree["text"]["embed_tokens"]["embedding"]) for tree in (loaded, params))
    np.testing.assert_array_equal(table[:old], before[:old])
    np.testing.assert_allclose(table[old:], np.broadcast_to(before[:old].mean(0), (2, before.shape[1])), atol=1e-8)
    for part in ("layers", "norm"):
        jax.tree.map(np.testing.assert_array_equal, loaded["text"][part], params["text"][part])
    jax.tree.map(np.testing.assert_array_equal, loaded["visual"], params["visual"])


def test_tokens_that_the_folder_has_are_left_alone(tmp_path):
    second = tmp_path / "second"
    config = dataclasses.replace(BACKBONE, text=dataclasses.replace(BACKBONE.text, vocab_size=1008))
    wider = quick_jit(lambda rng: init_params(lambda rngs: Qwen3VL(config, rngs), rng))(jax.random.key(1))
    save_hf(wider, config, second)
    load_tokenizer(TINY).with_added_tokens(NEW).save(second)
    loaded = open_backbone(BackboneConfig(path=str(second)), NEW).load(
        jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), wider)
    )
    jax.tree.map(np.testing.assert_array_equal, loaded, wider)


def test_a_base_under_adapters_is_read_in_the_compute_dtype(folder):
    path, params = folder
    config = BackboneConfig(path=str(path), dtype="bfloat16", lora=LoraConfig(rank=1))
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    shardings = jax.tree.map(lambda _: where, params)
    shardings["lora"] = {"text": {"anything": where}}  # of the agent's parameters, which are more than the file's
    loaded = open_backbone(config, NEW).load(shardings)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {jnp.dtype(jnp.bfloat16)}
    kernel = params["text"]["layers"]["mlp"]["up_proj"]["kernel"]
    np.testing.assert_array_equal(loaded["text"]["layers"]["mlp"]["up_proj"]["kernel"], kernel.astype(jnp.bfloat16))


def test_the_small_backbone_ships_with_its_weights():
    backbone = open_backbone(BackboneConfig(preset="tiny", dtype="float32"), THINKING_TOKENS)
    assert BackboneConfig(preset="tiny").folder == SHIPPED["tiny"]
    random = open_backbone(BackboneConfig(preset="tiny_random", dtype="float32"), THINKING_TOKENS)
    assert (backbone.model, random.load) == (random.model, None)
    shapes = jax.eval_shape(lambda rng: init_params(lambda rngs: Qwen3VL(backbone.model, rngs), rng), jax.random.key(0))
    where = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    loaded = backbone.load(jax.tree.map(lambda _: where, shapes))
    assert jax.tree.map(lambda x: x.shape, loaded) == jax.tree.map(lambda x: x.shape, shapes)
    files = list(SHIPPED["tiny"].iterdir())
    assert sum(file.stat().st_size for file in files) < 10e6
    assert "README.md" in [file.name for file in files]


def test_a_preset_has_random_weights():
    backbone = open_backbone(BackboneConfig(preset="tiny_random"), NEW)
    assert backbone.load is None
    assert backbone.model.text.vocab_size >= backbone.tokenizer.vocab_size


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "neither is given: set --config.backbone.path to the folder"),
        ({"path": "x", "preset": "tiny"}, "both are given"),
    ],
)
def test_one_of_path_and_preset(changes, message):
    with pytest.raises(ConfigError, match=message):
        BackboneConfig(**changes)


def test_folders_that_cannot_be_used(folder, tmp_path):
    for path in ("/nowhere/at/all", tmp_path):
        with pytest.raises(JaxvlaError, match=str(path)):
            open_backbone(BackboneConfig(path=str(path)), NEW)
    other = tmp_path / "config.json"
    other.write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(JaxvlaError, match="llama"):
        open_backbone(BackboneConfig(path=str(tmp_path)), NEW)
