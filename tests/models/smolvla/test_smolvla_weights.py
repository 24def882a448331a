import dataclasses
import json
import math

import numpy as np
import pytest
from flax import traverse_util
from models.qwen3_vl import hf_files
from models.smolvla import lerobot_files
from models.smolvla.lerobot_files import VLM_PREFIX, write_folder

from jaxvla.errors import ConfigError, WeightsError
from jaxvla.models.safetensors_io import write_checkpoint
from jaxvla.models.smolvla.config import SmolVLAConfig, TextConfig, from_lerobot, preset
from jaxvla.models.smolvla.weight_table import weight_table
from jaxvla.models.smolvla.weights import load_lerobot, load_vlm, read_lerobot_config, tensors_of
from jaxvla.models.vision.siglip import SiglipConfig

SMALL = SmolVLAConfig(
    TextConfig(64, 24, 40, num_hidden_layers=4, num_attention_heads=3, num_key_value_heads=1, head_dim=8),
    SiglipConfig(16, 24, num_hidden_layers=2, num_attention_heads=2, image_size=512, patch_size=16),
)
UNREAD = {VLM_PREFIX + "lm_head.weight", VLM_PREFIX + "model.text_model.norm.weight"}


def flatten(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def test_the_published_checkpoint_has_each_tensor_once_and_no_other():
    published = lerobot_files.shapes()
    assert (len(published), sum(map(math.prod, published.values()))) == (500, 450_046_176)
    table = weight_table(from_lerobot(lerobot_files.VALUES))
    ours = {name: weight.hf_shape for weight in table for name in weight.hf_names}
    assert len(ours) == sum(len(weight.hf_names) for weight in table)
    assert {name: shape for name, shape in published.items() if name not in UNREAD} == ours


def test_every_value_lands_in_its_place(tmp_path):
    params, report = load_lerobot(write_folder(tmp_path), SMALL)
    flat, shapes = flatten(params), lerobot_files.shapes(**lerobot_files.SMALL)
    assert len(report.used) == len(shapes) - 2
    assert report.unused.keys() == UNREAD
    assert report.lines()[0] == f"{len(shapes) - 2} tensors were read, 2 were not used"
    assert any("lm_head.weight is not used: the policy says no words" in line for line in report.lines())

    def stored(name):
        return hf_files.tensor(name, shapes[name])

    expert = "model.vlm_with_expert.lm_expert.layers.{}.self_attn.k_proj.weight"
    cross = flat["expert/layers/cross/self_attn/k_proj/kernel"]
    np.testing.assert_array_equal(cross, [stored(expert.format(i)).T for i in (1, 3)])
    joint = flat["expert/layers/joint/self_attn/k_proj/kernel"]
    np.testing.assert_array_equal(joint, [stored(expert.format(i)).T for i in (0, 2)])
    text = VLM_PREFIX + "model.text_model.layers.{}.mlp.up_proj.weight"
    np.testing.assert_array_equal(flat["text/layers/mlp/up_proj/kernel"], [stored(text.format(i)).T for i in range(4)])
    patch = stored(VLM_PREFIX + "model.vision_model.embeddings.patch_embedding.weight")
    assert flat["vision/patch_embedding/kernel"][2 * 256 + 3 * 16 + 5, 7] == patch[7, 2, 3, 5]
    assert all(leaf.dtype == np.float32 for leaf in flat.values())


def test_round_trip(tmp_path):
    params, _ = load_lerobot(write_folder(tmp_path / "in"), SMALL)
    (tmp_path / "out").mkdir()
    write_checkpoint(tmp_path / "out", tensors_of(params, weight_table(SMALL)), 2**40)
    found, expected = (hf_files.read_files(tmp_path / name) for name in ("out", "in"))
    assert expected.keys() == found.keys()
    for name in found.keys() - UNREAD:
        np.testing.assert_array_equal(found[name], expected[name].astype(np.float32), name)
    assert all(found[name].shape == expected[name].shape for name in UNREAD)
    again, report = load_lerobot(tmp_path / "out", SMALL)
    assert report.unused.keys() == UNREAD
    for path, leaf in flatten(again).items():
        np.testing.assert_array_equal(leaf, flatten(params)[path], path)


def test_names_of_compiled_policies_and_statistics_of_old_ones(tmp_path):
    expected, _ = load_lerobot(write_folder(tmp_path / "plain"), SMALL)

    def compiled(tensors):
        for name in list(tensors):
            tensors[name.replace("model.", "model._orig_mod.", 1)] = tensors.pop(name)
        tensors["normalize_inputs.buffer_observation_state.mean"] = np.zeros(6, np.float32)

    params, report = load_lerobot(write_folder(tmp_path / "compiled", compiled), SMALL)
    assert report.unused["normalize_inputs.buffer_observation_state.mean"].startswith("statistics")
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, flatten(expected)[path], path)


def test_the_language_model_by_itself(tmp_path):
    def bare(tensors):
        for name in list(tensors):
            values = tensors.pop(name)
            if name.startswith(VLM_PREFIX):
                tensors[name.removeprefix(VLM_PREFIX)] = values

    folder = write_folder(tmp_path / "vlm", bare)
    shallow = dataclasses.replace(SMALL, text=dataclasses.replace(SMALL.text, num_hidden_layers=2))
    params, report = load_vlm(folder, shallow)
    assert params.keys() == {"vision", "connector", "text"}
    later = [name for name, reason in report.unused.items() if reason == "the policy keeps 2 layers"]
    assert len(later) == 2 * 9
    whole, _ = load_lerobot(write_folder(tmp_path / "policy"), SMALL)
    kernel = params["text"]["layers"]["self_attn"]["q_proj"]["kernel"]
    np.testing.assert_array_equal(kernel, whole["text"]["layers"]["self_attn"]["q_proj"]["kernel"][:2])


def failure(call, *args):
    with pytest.raises((WeightsError, ConfigError)) as error:
        call(*args)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_does_not_fit_is_named(tmp_path):
    def rename(tensors):
        tensors["model.state_proj.scale"] = tensors.pop("model.state_proj.bias")

    assert "1 missing (model.state_proj.bias) and 1 left over (model.state_proj.scale); choose the sizes" in failure(
        load_lerobot, write_folder(tmp_path / "names", rename), SMALL
    )
    wider = dataclasses.replace(SMALL, max_action_dim=40)
    folder = write_folder(tmp_path / "shapes")
    assert "model.action_in_proj.weight is [18, 32] there, [18, 40] here" in failure(load_lerobot, folder, wider)
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    assert "is truncated" in failure(load_lerobot, folder, SMALL)


def test_configurations(tmp_path):
    folder = write_folder(tmp_path)
    config = from_lerobot(read_lerobot_config(folder), folder / "config.json")
    assert config == preset("smolvla_base")
    assert (config.expert_size, config.joint_layer.intermediate_size, config.tokens_per_image) == (720, 2048, 64)
    assert (config.cross_layer.key_input, config.joint_layer.key_input) == (320, None)
    changed = lerobot_files.VALUES | {"chunk_size": 20, "num_vlm_layers": 8, "train_expert_only": False}
    config = from_lerobot(changed)
    assert (config.chunk_size, config.text.num_hidden_layers, config.train_expert_only) == (20, 8, False)
    for key, value in (
        ("type", "pi0"),
        ("attention_mode", "self_attn"),
        ("self_attn_every_n_layers", 4),
        ("num_expert_layers", 8),
        ("add_image_special_tokens", True),
        ("num_expert_layers", None),
        ("resize_imgs_with_padding", [256, 256]),
        ("resize_imgs_with_padding", None),
        ("vlm_model_name", "some/other"),
        ("num_steps", 0),
        ("chunk_size", "fifty"),
        ("num_vlm_layers", 15),
        ("num_vlm_layers", "all"),
    ):
        assert key.removeprefix("num_vlm") in failure(from_lerobot, lerobot_files.VALUES | {key: value}, "here")
    assert "does not exist" in failure(read_lerobot_config, tmp_path / "nowhere")
    (tmp_path / "config.json").write_text(json.dumps({"type": "act"}))
    assert "has type 'act'; only 'smolvla' is read" in failure(read_lerobot_config, tmp_path)
    with pytest.raises(ConfigError, match="no SmolVLA preset named"):
        preset("smolvla_large")
    for name, value, words in (
        ("scale_factor", 5, "does not divide the 32 patches"),
        ("loss_reduction", "sum", "loss_reduction must be one of"),
        ("min_period", 1e-3, "min_period"),
        ("expert_width_multiplier", 0.001, "must be even"),
    ):
        with pytest.raises(ConfigError, match=words):
            dataclasses.replace(preset("smolvla_base"), **{name: value})
