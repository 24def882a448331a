"""Names and shapes of exported adapters, by what PEFT calls the modules; tests/parity loads them there."""

import json

import jax
import numpy as np
import pytest
from models.qwen3_vl import cases

from jaxvla.errors import WeightsError
from jaxvla.models.lora import LoraConfig, add_lora
from jaxvla.models.qwen3_vl.peft import save_peft
from jaxvla.models.safetensors_io import read_header

LORA = LoraConfig(rank=2, alpha=6.0, targets="q_proj/kernel|mergers?/linear_fc1/kernel|patch_embed/kernel", dropout=0.1)


def adapted():
    base = cases.seeded_params(cases.CONFIG)
    params = add_lora(jax.random.key(0), base, LORA)
    return jax.tree.map(lambda x: np.asarray(x) + np.float32(0.5), params)


def test_a_layer_is_a_module_and_factors_are_transposed(tmp_path):
    params = adapted()
    save_peft(params, cases.CONFIG, LORA, tmp_path / "out", base="/models/base", tokens=(3, 5))
    with open(tmp_path / "out" / "adapter_model.safetensors", "rb") as file:
        header = read_header(file)
        stored = {name: tensor.read_rows(0, tensor.shape[0]) for name, tensor in header.items()}
    shapes = {name: tensor.shape for name, tensor in header.items()}
    layers, text, vision = cases.TEXT.num_hidden_layers, cases.TEXT, cases.VISION
    merged = vision.hidden_size * vision.spatial_merge_size**2
    modules = [f"model.language_model.layers.{i}.self_attn.q_proj" for i in range(layers)]
    modules += ["model.visual.merger.linear_fc1", "model.visual.patch_embed.proj"]
    modules += [
        f"model.visual.deepstack_merger_list.{i}.linear_fc1" for i in range(len(vision.deepstack_visual_indexes))
    ]
    queries = text.num_attention_heads * text.head_dim
    for i, module in enumerate(modules[:layers]):
        name, lora = f"base_model.model.{module}", params["lora"]["text"]["layers"]["self_attn"]["q_proj"]
        assert shapes[f"{name}.lora_A.weight"] == (2, text.hidden_size)
        assert shapes[f"{name}.lora_B.weight"] == (queries, 2)
        np.testing.assert_array_equal(stored[f"{name}.lora_A.weight"], lora["lora_a"][i].T)
        np.testing.assert_array_equal(stored[f"{name}.lora_B.weight"], lora["lora_b"][i].T)
    assert shapes["base_model.model.model.visual.merger.linear_fc1.lora_A.weight"] == (2, merged)
    patch = (vision.in_channels, vision.temporal_patch_size, vision.patch_size, vision.patch_size)
    assert shapes["base_model.model.model.visual.patch_embed.proj.lora_A.weight"] == (2, *patch)
    assert shapes["base_model.model.model.visual.patch_embed.proj.lora_B.weight"] == (vision.hidden_size, 2, 1, 1, 1)
    rows = stored["base_model.model.model.language_model.embed_tokens.token_adapter.trainable_tokens_delta"]
    np.testing.assert_array_equal(rows, params["text"]["embed_tokens"]["embedding"][[3, 5]])

    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert sorted(config["target_modules"]) == sorted(modules)
    assert (config["r"], config["lora_alpha"], config["lora_dropout"]) == (2, 6.0, 0.1)
    assert config["base_model_name_or_path"] == "/models/base"
    assert config["trainable_token_indices"]["embed_tokens"] == [3, 5]
    assert len(stored) == 2 * len(modules) + len(config["trainable_token_indices"])


def test_folders_and_parameters_that_do_not_fit(tmp_path):
    with pytest.raises(WeightsError, match="hold no adapters"):
        save_peft(cases.seeded_params(cases.CONFIG), cases.CONFIG, LORA, tmp_path / "out")
    (tmp_path / "file").touch()
    with pytest.raises(WeightsError, match="is not empty: choose another folder"):
        save_peft(adapted(), cases.CONFIG, LORA, tmp_path)
