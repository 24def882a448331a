"""The files that OpenVLA-OFT puts beside OpenVLA's folder."""

import dataclasses

import jax
import numpy as np
import pytest
from agents.openvla_cases import flatten
from models.prismatic import cases
from models.torch_files import Saved, call

from jaxvla.errors import WeightsError
from jaxvla.models.prismatic.components import find_components, load_components, part_of
from jaxvla.models.prismatic.config import HeadConfig
from jaxvla.models.prismatic.weight_table import component_tables, param_shapes, weight_table
from jaxvla.models.prismatic.weights import load_hf, read_hf, save_hf
from jaxvla.models.safetensors_io import HostTensor, open_checkpoint, write_safetensors

CONFIG = dataclasses.replace(cases.CONFIGS["fused"], head=HeadConfig(3, 5), film=True)
FILES = [f"{name}--latest_checkpoint.safetensors" for name in ("action_head", "proprio_projector", "vision_backbone")]

_ADAPTERS = ("lora_A.default.weight", "lora_B.default.weight")


def params_of(config):
    random = np.random.RandomState(0)
    return jax.tree.map(lambda x: random.standard_normal(x.shape).astype(np.float32), param_shapes(config))


def placed(config):
    return jax.tree.map(lambda _: jax.sharding.SingleDeviceSharding(jax.devices()[0]), param_shapes(config))


def write(path, tensors):
    made = {name: HostTensor(x.shape, x.dtype, lambda x=x: x) for name, x in tensors.items()}
    write_safetensors(path, made)


def read(path):
    with open_checkpoint(path) as stored:
        return {name: x.read_rows(0, x.shape[0]).reshape(x.shape) for name, x in stored.items()}


@pytest.fixture
def folder(tmp_path):
    save_hf(params_of(CONFIG), CONFIG, tmp_path / "folder")
    return tmp_path / "folder"


def test_a_folder_with_its_files_round_trips_bit_for_bit(folder, tmp_path):
    assert sorted(path.name for path in folder.iterdir() if "--" in path.name) == FILES
    found, params = find_components(folder, CONFIG), params_of(CONFIG)
    loaded = load_hf(folder, read_hf(folder))
    added = load_components(found, CONFIG, placed(CONFIG))
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal((flatten(added) | flatten(loaded))[path], leaf, path)
    save_hf(loaded | added | {"vision": added["vision"]}, CONFIG, tmp_path / "again")
    for path in folder.iterdir():
        assert (tmp_path / "again" / path.name).read_bytes() == path.read_bytes(), path.name


def test_names_of_a_distributed_run_and_adapters_that_are_not_merged(folder):
    """As published: torch's "module." before each name, PEFT's base_layer and a pair of adapters, times 16 / rank."""
    random, path = np.random.RandomState(1), folder / FILES[2]
    stored = {}
    adapted = ("attn.qkv", "patch_embed.proj")
    for name, x in read(path).items():
        if not name.removesuffix(".weight").removesuffix(".bias").endswith(adapted):
            stored[f"module.{name}"] = x
            continue
        module, _, part = name.rpartition(".")
        stored[f"module.{module}.base_layer.{part}"] = x
        if part == "weight":
            tail = (1, 1) if x.ndim == 4 else ()
            stored[f"module.{module}.lora_A.default.weight"] = random.randn(32, *x.shape[1:]).astype(np.float32)
            stored[f"module.{module}.lora_B.default.weight"] = random.randn(x.shape[0], 32, *tail).astype(np.float32)
    write(path, stored)
    loaded = flatten(load_components({"vision_backbone": path}, CONFIG, placed(CONFIG)))
    names = (
        "module.vision_backbone.featurizer.blocks.{}.block.attn.qkv.",
        "module.vision_backbone.fused_featurizer.patch_embed.proj.",
    )
    for i in range(2):
        base, a, b = (stored[names[0].format(i) + x] for x in ("base_layer.weight", *_ADAPTERS))
        found = loaded["vision/dino/layers/self_attn/qkv/kernel"][i]
        np.testing.assert_allclose(found, (base + 0.5 * b @ a).T, rtol=1e-5, atol=1e-5)
    base, a, b = (stored[names[1] + x] for x in ("base_layer.weight", *_ADAPTERS))
    merged = base.reshape(len(base), -1) + 0.5 * b.reshape(len(b), -1) @ a.reshape(32, -1)
    np.testing.assert_allclose(loaded["vision/siglip/patch_embedding/kernel"], merged.T, rtol=1e-5, atol=1e-5)
    kept = "vision/dino/layers/mlp/linear_fc1/kernel"
    np.testing.assert_array_equal(loaded[kept], flatten(params_of(CONFIG))[kept])
    short = {name: x for name, x in stored.items() if name != names[0].format(1) + _ADAPTERS[0]}
    write(path, short)
    with pytest.raises(WeightsError, match="adapters of some layers of vision/dino/layers/self_attn/qkv/kernel only"):
        load_components({"vision_backbone": path}, CONFIG, placed(CONFIG))
    write(path, stored | {names[0].format(1) + _ADAPTERS[0]: np.zeros((32, 7), np.float32)})
    with pytest.raises(WeightsError, match=r"adapters of .*blocks.1.block.attn.qkv are \[32, 7\] and \[24, 32\]"):
        load_components({"vision_backbone": path}, CONFIG, placed(CONFIG))


def test_files_that_do_not_fit(folder):
    without = dataclasses.replace(CONFIG, film=False)
    with pytest.raises(WeightsError, match=r"no place for: set config.agent_kwargs.parallel.film to True"):
        find_components(folder, without)
    stateless = dataclasses.replace(CONFIG, head=HeadConfig(3))
    with pytest.raises(WeightsError, match=r"no place for: set config.agent_kwargs.parallel.proprio to True"):
        find_components(folder, stateless)
    with pytest.raises(WeightsError, match=r"no place for: set config.agent_kwargs.parallel.enabled to True"):
        find_components(folder, CONFIG.published)
    other = dataclasses.replace(CONFIG, head=HeadConfig(4, 5))
    with pytest.raises(WeightsError, match=r"layer_norm1.weight is \[48\] there, \[64\] here"):
        load_components(find_components(folder, other), other, placed(other))
    (folder / FILES[0]).rename(folder / FILES[0].replace("latest", "150000"))
    write(folder / FILES[1], {"fc1.weight": np.zeros((16, 5), np.float32)})
    with pytest.raises(WeightsError, match=r"3 missing .*fc1.bias, fc2.bias, fc2.weight"):
        load_components(find_components(folder, CONFIG), CONFIG, placed(CONFIG))
    write(folder / FILES[0], {})
    with pytest.raises(WeightsError, match=r"has several files of action_head, action_head--150000_checkpoint.safe"):
        find_components(folder, CONFIG)


def test_published_files_are_those_of_torch(folder):
    expected = flatten(load_components(find_components(folder, CONFIG), CONFIG, placed(CONFIG)))
    for file in FILES:
        path, saved = folder / file, Saved()
        tensors = {f"module.{name}": saved.tensor(x) for name, x in read(path).items()}
        saved.write(folder / file.replace("latest", "150000").replace(".safetensors", ".pt"), tensors)
        path.unlink()
    found = flatten(load_components(find_components(folder, CONFIG), CONFIG, placed(CONFIG)))
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, path)
    Saved().write(folder / "action_head--150000_checkpoint.pt", {"model": call("os", "system", "echo")})
    with pytest.raises(WeightsError, match=r"action_head--150000_checkpoint.pt"):
        load_components(find_components(folder, CONFIG), CONFIG, placed(CONFIG))


def test_the_table_of_the_folder_stays_that_of_the_published_model():
    assert weight_table(CONFIG) == weight_table(CONFIG.published)
    assert component_tables(CONFIG.published) == {}
    assert set(flatten(part_of(params_of(CONFIG), weight_table(CONFIG)))) == set(
        flatten(param_shapes(CONFIG.published))
    )
