import dataclasses
import json
import math

import jax
import ml_dtypes
import numpy as np
import pytest
from flax import traverse_util
from models.prismatic import cases, published
from models.qwen3_vl import hf_files
from models.torch_files import Saved, call, prismatic

from jaxvla.errors import ConfigError, WeightsError
from jaxvla.models.module import init_params
from jaxvla.models.prismatic.config import PixelScale, from_hf, preset, to_hf
from jaxvla.models.prismatic.model import Prismatic
from jaxvla.models.prismatic.weight_table import param_shapes, weight_table
from jaxvla.models.prismatic.weights import _in_order, load_hf, read_hf, save_hf
from jaxvla.models.safetensors_io import HostTensor

SMALL = cases.CONFIGS["fused"]


def flatten(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def shapes(table):
    return {name: weight.hf_shape for weight in table for name in weight.hf_names}


@pytest.mark.parametrize("apart", [False, True])
def test_the_published_checkpoint_has_each_tensor_once_and_no_other(apart):
    assert (len(published.OPENVLA_7B), sum(map(math.prod, published.OPENVLA_7B.values()))) == (982, 7_541_237_184)
    table = weight_table(dataclasses.replace(preset("openvla_7b"), last_layer_apart=apart))
    assert sum(len(weight.hf_names) for weight in table) == 982
    assert shapes(table) == published.OPENVLA_7B
    assert sum(math.prod(weight.shape) for weight in table) == 7_541_237_184


def test_the_first_checkpoint_has_one_tower():
    assert (len(published.V01), sum(map(math.prod, published.V01.values()))) == (637, 7_188_124_608)
    assert shapes(weight_table(preset("prismatic_siglip_224px"))) == published.V01


def test_the_shapes_are_those_that_the_model_has():
    found = {path: leaf.shape for path, leaf in flatten(param_shapes(SMALL)).items()}
    assert found == {path: leaf.shape for path, leaf in flatten(cases.seeded_params(SMALL)).items()}
    drawn = jax.eval_shape(lambda: init_params(lambda rngs: Prismatic(SMALL, rngs), jax.random.key(0)))
    assert found == {path: leaf.shape for path, leaf in flatten(drawn).items()}


def test_shards_of_the_published_size_end_where_the_published_ones_do():
    table = weight_table(preset("openvla_7b"))
    dtype = np.dtype(ml_dtypes.bfloat16)
    tensors = {name: HostTensor(shape, dtype, lambda: None) for name, shape in shapes(table).items()}
    shards, size = [[]], 0
    for name, tensor in _in_order(tensors, table).items():
        if size + tensor.nbytes > 7 * 10**9:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += tensor.nbytes
    assert [(len(shard), shard[-1].removeprefix("language_model.")) for shard in shards] == [
        (805, "model.layers.12.mlp.gate_proj.weight"),
        (154, "model.layers.29.mlp.up_proj.weight"),
        (23, "lm_head.weight"),
    ]
    assert sum(tensor.nbytes for tensor in tensors.values()) == 15_082_474_368


STATISTICS = {"bridge_orig": {"action": {"q01": [0.0], "q99": [1.0]}, "num_transitions": 3, "num_trajectories": 1}}


def test_a_folder_round_trips_bit_for_bit(tmp_path):
    params = cases.seeded_params(SMALL)
    options = {"dtype": ml_dtypes.bfloat16, "max_shard_bytes": 20_000, "norm_stats": STATISTICS}
    save_hf(params, SMALL, tmp_path / "first", **options)
    assert len(list((tmp_path / "first").glob("*.safetensors"))) > 2
    config = read_hf(tmp_path / "first")
    assert config == SMALL
    loaded = load_hf(tmp_path / "first", config, dtype=ml_dtypes.bfloat16)
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(flatten(loaded)[path], leaf.astype(ml_dtypes.bfloat16), path)
    save_hf(loaded, config, tmp_path / "second", **(options | {"dtype": None}))
    names = sorted(path.name for path in (tmp_path / "first").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "second").iterdir())
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes(), name
    values = json.loads((tmp_path / "first" / "config.json").read_text())
    assert (values["torch_dtype"], values["norm_stats"]) == ("bfloat16", STATISTICS)
    assert json.loads((tmp_path / "first" / "dataset_statistics.json").read_text()) == STATISTICS


def test_every_value_lands_in_its_place(tmp_path):
    save_hf(cases.seeded_params(SMALL), SMALL, tmp_path / "folder")
    stored, flat = hf_files.read_files(tmp_path / "folder"), flatten(cases.seeded_params(SMALL))
    blocks = "vision_backbone.fused_featurizer.blocks.{}.attn.qkv.weight"
    kernel = flat["vision/siglip/layers/self_attn/qkv/kernel"]
    np.testing.assert_array_equal(kernel, [stored[blocks.format(i)].T for i in range(2)])
    unread = flat["vision/siglip/unread/layers/self_attn/qkv/kernel"]
    np.testing.assert_array_equal(unread, [stored[blocks.format(2)].T])
    scale = flat["vision/dino/layers/layer_scale2"][1]
    np.testing.assert_array_equal(scale, stored["vision_backbone.featurizer.blocks.1.ls2.scale_factor"])
    patch = stored["vision_backbone.featurizer.patch_embed.proj.weight"]
    assert flat["vision/dino/patch_embedding/kernel"][2 * 49 + 3 * 7 + 5, 6] == patch[6, 2, 3, 5]
    np.testing.assert_array_equal(
        flat["vision/siglip/unread/pool/latent"], stored["vision_backbone.fused_featurizer.attn_pool.latent"][0, 0]
    )


def original(path, config, tensors, **more):
    saved = Saved()
    saved.write(path, prismatic(saved, tensors, len(config.towers)) | more)


@pytest.mark.parametrize("name", ["fused", "siglip"])
def test_a_checkpoint_of_the_original_training(tmp_path, name):
    config = cases.CONFIGS[name]
    params = cases.seeded_params(config)
    save_hf(params, config, tmp_path / "folder")
    tensors = hf_files.read_files(tmp_path / "folder")
    original(tmp_path / "a.pt", config, tensors, epoch=40)
    loaded = flatten(load_hf(tmp_path / "a.pt", config))
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(loaded[path], leaf, path)
    del tensors["projector.fc1.bias"]
    original(tmp_path / "b.pt", config, tensors | {"language_model.model.layers.0.more": np.zeros(3, np.float32)})
    with pytest.raises(WeightsError, match=r"1 missing \(projector\.fc1\.bias\) and 1 left over \(language_model"):
        load_hf(tmp_path / "b.pt", config)
    original(tmp_path / "c.pt", config, tensors, optimizer=call("os", "system", "true"))
    with pytest.raises(WeightsError, match=r"c\.pt: its pickle names os\.system"):
        load_hf(tmp_path / "c.pt", config)


def test_configurations(tmp_path):
    for name in ("openvla_7b", "prismatic_siglip_224px"):
        assert from_hf(to_hf(preset(name))) == preset(name)
    values = to_hf(preset("openvla_7b"))
    assert values["text_config"] == {"model_type": "llama", "vocab_size": 32064}
    assert preset("openvla_7b").text.rms_norm_eps == 1e-6
    for changes, words in (
        ({"model_type": "llava"}, "model_type is 'llava', but this model has 'openvla'"),
        ({"arch_specifier": "no-align+pooled"}, "'no-align\\+pooled' has none of the projectors"),
        ({"timm_model_ids": ["vit_base_patch16_clip_224"]}, "names 'vit_base_patch16_clip_224'; the towers that are"),
        ({"text_config": {"tie_word_embeddings": True}}, "tie_word_embeddings is True"),
        ({"timm_model_ids": []}, "a model needs a vision tower"),
    ):
        with pytest.raises(ConfigError, match=words):
            from_hf(values | changes)


def test_the_scales_of_the_folder_win(tmp_path):
    folder = tmp_path / "folder"
    save_hf(cases.seeded_params(SMALL), SMALL, folder)
    rounded = {"mean": [0.484375, 0.455078125, 0.40625], "std": [0.228515625, 0.2236328125, 0.224609375]}
    half = {"mean": [0.5] * 3, "std": [0.5] * 3, "inplace": False}
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps({"tvf_normalize_params": [rounded, half]}))
    assert read_hf(folder).dino_pixels == PixelScale(tuple(rounded["mean"]), tuple(rounded["std"]))
    for content, words in (
        (json.dumps({"tvf_normalize_params": [half]}), "not a list of 2, one of each tower"),
        (json.dumps({"tvf_normalize_params": [half, {"mean": [0.5] * 3}]}), "tvf_normalize_params.std is missing"),
        ("{", "cannot be read"),
    ):
        path.write_text(content)
        with pytest.raises((ConfigError, WeightsError), match=words):
            read_hf(folder)


def test_folders_that_do_not_fit(tmp_path):
    folder = tmp_path / "folder"
    save_hf(cases.seeded_params(SMALL), SMALL, folder)
    deeper = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, num_hidden_layers=4))
    with pytest.raises(WeightsError, match=r"9 missing .*use the config.json that came with the weights"):
        load_hf(folder, deeper)
    wider = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, vocab_size=64))
    with pytest.raises(WeightsError, match=r"embed_tokens.weight is \[48, 16\] there, \[64, 16\] here"):
        load_hf(folder, wider)
    with pytest.raises(WeightsError, match="is not empty"):
        save_hf(cases.seeded_params(SMALL), SMALL, folder)
    (folder / "config.json").write_text(json.dumps({"model_type": "qwen3_vl"}))
    with pytest.raises(WeightsError, match="model_type 'qwen3_vl'; only 'openvla' is read"):
        read_hf(folder)
