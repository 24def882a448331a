"""DINOv2 and SigLIP against timm and transformers, from tests/parity/vision_torch.py."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util
from models.vision import tower_cases

from jaxvla.errors import ConfigError, WeightsError
from jaxvla.models.safetensors_io import HostTensor, write_safetensors
from jaxvla.models.vision import dinov2
from jaxvla.models.vision.dinov2_weights import load_dinov2, resize_positions, weight_table
from jaxvla.models.weights import host_tensors

GOLDEN = pathlib.Path(__file__).parent / "golden"


def golden(name):
    with np.load(GOLDEN / f"{name}.npz") as values:
        return dict(values)


def flatten(tree):
    return traverse_util.flatten_dict(tree, sep="/")


@pytest.mark.parametrize("name", tower_cases.CASES)
def test_features_and_gradients(name):
    case, expected = tower_cases.CASES[name], golden(name)
    expected.pop("larger", None)
    result = tower_cases.jax_result(case, remat="block", attention="chunked")
    for key, error in tower_cases.errors(result, expected).items():
        assert error < (1e-4 if key == "pixels" else 1e-5), f"{key} is off by {error:.1e}"
    dead = {key for key, value in result.items() if key.startswith("gradient/") and not np.abs(value).max() > 0}
    assert dead == {key for key in result if key.startswith("gradient/unread/")}
    assert bool(dead) == (case.config.read_layers is not None)


@pytest.mark.parametrize("name", ["timm_registers", "timm_classic", "transformers_registers"])
def test_positions_of_larger_images(name):
    case = tower_cases.CASES[name]
    table = tower_cases.seeded_params(case)["position_embedding"]["embedding"]
    found = resize_positions(jnp.asarray(table), 5, int(case.config.class_position))
    np.testing.assert_allclose(found, golden(name)["larger"], atol=2e-6)


def write(folder, case, change=lambda tensors: tensors):
    """A file of the case's parameters."""
    tensors = host_tensors(tower_cases.seeded_params(case), case.table)
    write_safetensors(folder / "model.safetensors", change(tensors))
    return folder


def extended(tensors):
    """With what models have besides, under the name of a model that classifies."""
    more = {"dinov2." + name: tensor for name, tensor in tensors.items()}
    for name in ("dinov2.embeddings.mask_token", "classifier.weight"):
        more[name] = HostTensor((1, 16), np.dtype(np.float32), lambda: np.ones((1, 16), np.float32))
    return more


@pytest.mark.parametrize("name", [name for name in tower_cases.CASES if "siglip" not in name])
def test_files_come_back(name, tmp_path):
    case = tower_cases.CASES[name]
    transformers = case.names == "transformers"
    params, report = load_dinov2(write(tmp_path, case, extended if transformers else dict), case.config)
    assert len(report.used) == sum(len(weight.hf_names) for weight in case.table)
    assert len(report.unused) == 2 * transformers
    expected = flatten(tower_cases.seeded_params(case))
    assert flatten(params).keys() == expected.keys()
    for path, leaf in flatten(params).items():
        np.testing.assert_array_equal(leaf, expected[path], path)


def test_queries_keys_and_values_of_three_tensors_stand_in_one_kernel(tmp_path):
    case = tower_cases.CASES["transformers_classic"]
    tensors = host_tensors(tower_cases.seeded_params(case), case.table)
    kernel = tower_cases.seeded_params(case)["layers"]["self_attn"]["qkv"]["kernel"]
    name = "encoder.layer.1.attention.attention.{}.weight"
    parts = [tensors[name.format(part)].make().T for part in ("query", "key", "value")]
    np.testing.assert_array_equal(np.concatenate(parts, 1), kernel[1])
    # A device that holds a third of the columns, and one that holds parts of two tensors.
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:4]), ("tensor",))
    shapes = {weight.path: (None,) * len(weight.shape) for weight in case.table}
    shapes["layers/self_attn/qkv/kernel"] = (None, None, "tensor")
    places = {path: jax.NamedSharding(mesh, jax.P(*axes)) for path, axes in shapes.items()}
    params, _ = load_dinov2(write(tmp_path, case), case.config, traverse_util.unflatten_dict(places, sep="/"))
    found = params["layers"]["self_attn"]["qkv"]["kernel"]
    assert found.addressable_shards[0].data.shape == (3, 16, 12)
    np.testing.assert_array_equal(found, kernel)


def test_a_file_for_images_of_another_size(tmp_path):
    case = tower_cases.CASES["timm_classic"]
    larger = dataclasses.replace(case.config, image_size=35)
    params, _ = load_dinov2(write(tmp_path, case), larger)
    np.testing.assert_allclose(params["position_embedding"]["embedding"], golden("timm_classic")["larger"], atol=2e-6)
    without = dataclasses.replace(case.config, class_position=False)
    with pytest.raises(WeightsError, match=r"10 positions, which are not those of a square .* class_position to True"):
        load_dinov2(tmp_path, without)


def test_files_of_something_else(tmp_path):
    ones = np.ones(3, np.float32)
    write_safetensors(tmp_path / "model.safetensors", {"fc.bias": HostTensor((3,), ones.dtype, lambda: ones)})
    with pytest.raises(WeightsError, match=r"holds no DINOv2: neither pos_embed nor embeddings\.position"):
        load_dinov2(tmp_path, tower_cases.CASES["timm_classic"].config)


def test_published_sizes():
    small = dinov2.preset("small", image_size=518)
    mask_token = 384
    assert sum(np.prod(weight.shape) for weight in weight_table(small)) == 22_056_576 - mask_token
    large = dinov2.preset("large", num_register_tokens=4, class_position=False, read_layers=23)
    assert sum(np.prod(weight.shape) for weight in weight_table(large)) == 303_230_976
    with pytest.raises(ConfigError, match="no DINOv2 of size 'huge'; there are: small"):
        dinov2.preset("huge")
    with pytest.raises(ConfigError, match="read_layers must be within 1 and num_hidden_layers 24"):
        dinov2.preset("large", read_layers=0)
    with pytest.raises(ConfigError, match="num_register_tokens must not be negative"):
        dinov2.preset("base", num_register_tokens=-1)
