import dataclasses
import json
import math
import tracemalloc

import jax
import numpy as np
import pytest
from flax import traverse_util
from jax.sharding import NamedSharding, PartitionSpec
from models.qwen3_vl import hf_files

from jaxvla.errors import WeightsError
from jaxvla.models import weights
from jaxvla.models.module import init_params
from jaxvla.models.qwen3_vl.config import from_hf, preset, to_hf
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.weight_table import param_shapes, weight_table
from jaxvla.models.qwen3_vl.weights import load_hf, read_hf_config, save_hf
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.parallel.sharding import tree_shardings

LAYER = "model.language_model.layers."


def load(folder, **options):
    return load_hf(folder, from_hf(read_hf_config(folder)), **options)


def flatten(tree):
    return traverse_util.flatten_dict(tree, sep="/")


def assert_same_tensors(found, expected):
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        assert found[name].dtype == values.dtype
        np.testing.assert_array_equal(found[name], values, name)


def failure(call, *args, **options):
    with pytest.raises(WeightsError) as error:
        call(*args, **options)
    assert "\n" not in str(error.value)
    return str(error.value)


def variants():
    tiny = preset("tiny")
    yield "tied", tiny
    yield "untied", dataclasses.replace(tiny, tie_word_embeddings=False)
    no_features = dataclasses.replace(tiny.vision, deepstack_visual_indexes=())
    yield "without DeepStack", dataclasses.replace(tiny, vision=no_features)
    yield "8B", preset("qwen3_vl_8b")


@pytest.mark.parametrize("config", [pytest.param(config, id=name) for name, config in variants()])
def test_the_table_has_every_parameter_once_and_every_tensor_once(config):
    table = weight_table(config)
    names = [name for weight in table for name in weight.hf_names]
    assert len(set(names)) == len(names)
    assert {name: weight.hf_shape for weight in table for name in weight.hf_names} == hf_files.shapes(to_hf(config))
    model = jax.eval_shape(lambda key: init_params(lambda rngs: Qwen3VL(config, rngs), key), jax.random.key(0))
    assert len(table) == len(flatten(model))
    assert flatten(param_shapes(config)) == flatten(model)


def tensors_of(path):
    """The values that make up a parameter: here its path has the words of the original's names."""
    *words, kind = path.split("/")
    name = ".".join(words).replace("text.lm_head", "lm_head").replace("text.", "model.language_model.")
    name = name.replace("visual.", "model.visual.").replace("patch_embed", "patch_embed.proj")
    name = name.replace("deepstack_mergers.", "deepstack_merger_list.{}.")
    name = name.replace("layers.", "layers.{}.").replace("blocks.", "blocks.{}.")
    name += ".bias" if kind == "bias" else ".weight"
    shapes = hf_files.shapes(hf_files.CONFIG)
    names = [name.format(i) for i in range(9) if name.format(i) in shapes]
    values = [hf_files.tensor(name, shapes[name]) for name in names]
    if kind == "kernel":
        values = [matrix.reshape(len(matrix), -1).T for matrix in values]
    return np.stack(values) if "{}" in name else values[0]


def test_every_value_of_a_checkpoint_of_transformers_lands_in_its_place():
    params = flatten(load(hf_files.GOLDEN))
    assert len(params) == 41
    assert all(leaf.dtype == np.float32 for leaf in params.values())
    for path, leaf in params.items():
        np.testing.assert_array_equal(leaf, tensors_of(path), path)
    assert params["text/layers/mlp/down_proj/kernel"].shape == (3, 40, 24)
    assert params["visual/deepstack_mergers/norm/bias"].shape == (2, 64)
    patch = hf_files.tensor("model.visual.patch_embed.proj.weight", (16, 3, 2, 4, 4))
    assert params["visual/patch_embed/kernel"][2 * 32 + 1 * 16 + 3 * 4 + 1, 7] == patch[7, 2, 1, 3, 1]


@pytest.mark.parametrize("max_shard_bytes", [5 * 10**9, 30_000])
def test_round_trip_of_a_checkpoint_of_transformers(tmp_path, max_shard_bytes):
    params = load(hf_files.GOLDEN)
    config = from_hf(read_hf_config(hf_files.GOLDEN))
    save_hf(params, config, tmp_path / "out", dtype="bfloat16", max_shard_bytes=max_shard_bytes)
    assert_same_tensors(hf_files.read_files(tmp_path / "out"), hf_files.read_files(hf_files.GOLDEN))
    sizes = [path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors")]
    assert len(sizes) == (1 if max_shard_bytes > 10**6 else math.ceil(98_000 / 30_000))
    assert from_hf(read_hf_config(tmp_path / "out")) == config
    assert read_hf_config(tmp_path / "out")["dtype"] == "bfloat16"
    assert flatten(load(tmp_path / "out", dtype="bfloat16"))["text/norm/scale"].dtype == "bfloat16"


@pytest.mark.parametrize(("dtype", "tied"), [("F32", True), ("BF16", False), ("F16", True)])
def test_round_trip_keeps_the_dtype_of_parameters(tmp_path, dtype, tied):
    values = hf_files.config(tied)
    folder = hf_files.write_folder(tmp_path / "in", values, dtype)
    save_hf(load(folder, dtype=hf_files.DTYPES[dtype]), from_hf(values), tmp_path / "out")
    assert_same_tensors(hf_files.read_files(tmp_path / "out"), hf_files.read_files(folder))


def test_names_of_the_bare_model(tmp_path):
    values = hf_files.config(tied=True)

    def bare(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    params = load(hf_files.write_folder(tmp_path / "bare", values, edit=bare))
    expected = load(hf_files.write_folder(tmp_path / "full", values))
    jax.tree.map(np.testing.assert_array_equal, params, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("kind", ["fsdp", "fsdp and tensor", "replicated"])
def test_eight_devices_hold_what_one_holds(kind, dtype):
    config = from_hf(read_hf_config(hf_files.GOLDEN))
    shapes = param_shapes(config, dtype)
    mesh = make_mesh(MeshConfig(data=1, fsdp=4, tensor=2) if kind == "fsdp and tensor" else MeshConfig(fsdp=8, data=1))
    shardings = tree_shardings(shapes, mesh, ((".*", PartitionSpec()),) if kind == "replicated" else (), min_bytes=64)
    params = load_hf(hf_files.GOLDEN, config, shardings, dtype)
    assert jax.tree.map(lambda leaf: leaf.sharding, params) == shardings
    split = [leaf for leaf in jax.tree.leaves(params) if not leaf.is_fully_replicated]
    assert len(split) == 0 if kind == "replicated" else len(split) > 20
    jax.tree.map(np.testing.assert_array_equal, params, load_hf(hf_files.GOLDEN, config, dtype=dtype))


def test_host_memory_holds_the_parameters_once(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_CHUNK_BYTES", 2**14)  # in proportion to so small a model
    values = hf_files.config()
    values["text_config"] |= {"vocab_size": 2000, "hidden_size": 128, "intermediate_size": 2048}
    values["vision_config"] |= {"out_hidden_size": 128}
    config = from_hf(values)
    folder = hf_files.write_folder(tmp_path, values, "BF16")
    shardings = tree_shardings(param_shapes(config), make_mesh(MeshConfig(data=2, fsdp=4)), min_bytes=2**18)
    for placed in (None, shardings):
        tracemalloc.start()
        params = load_hf(folder, config, placed)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 1.15 * sum(leaf.nbytes for leaf in jax.tree.leaves(params))
    # Device arrays are that memory, and no copies of it: the replicas of a shard are one.
    kernel = params["text"]["layers"]["mlp"]["up_proj"]["kernel"]
    assert len({shard.data.unsafe_buffer_pointer() for shard in kernel.addressable_shards}) == 4


def test_loaded_parameters_can_be_donated():
    params = load(hf_files.GOLDEN)
    before = jax.tree.map(np.array, params)
    after = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf + 1, tree), donate_argnums=0)(params)
    jax.tree.map(lambda old, new: np.testing.assert_array_equal(old + 1, new), before, after)


def test_parameters_that_are_sharded_are_saved_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(weights, "_BLOCK_BYTES", 4000)
    config = from_hf(read_hf_config(hf_files.GOLDEN))
    mesh = make_mesh(MeshConfig(data=1, fsdp=8))
    one = jax.sharding.SingleDeviceSharding(jax.devices()[3])
    shardings = jax.tree.map(lambda leaf: one, param_shapes(config))
    shardings["text"]["embed_tokens"]["embedding"] = NamedSharding(mesh, PartitionSpec("fsdp"))
    shardings["text"]["layers"]["self_attn"]["q_proj"]["kernel"] = NamedSharding(
        mesh, PartitionSpec(None, None, "fsdp")
    )
    shardings["visual"]["pos_embed"]["embedding"] = NamedSharding(mesh, PartitionSpec(None, "fsdp"))
    params = load_hf(hf_files.GOLDEN, config, shardings)
    save_hf(params, config, tmp_path / "out", dtype="bfloat16")
    assert_same_tensors(hf_files.read_files(tmp_path / "out"), hf_files.read_files(hf_files.GOLDEN))
    assert params["text"]["embed_tokens"]["embedding"]._npy_value is None, "no copy stays on the host"


def test_tokenizer_files_are_copied(tmp_path, samples):
    source = samples / "tok_qwen3_vl_4b_instruct"
    params = load(hf_files.GOLDEN)
    save_hf(params, from_hf(hf_files.config()), tmp_path / "out", source=source)
    for name in ("vocab.json", "merges.txt", "tokenizer_config.json", "chat_template.json", "generation_config.json"):
        assert (tmp_path / "out" / name).read_bytes() == (source / name).read_bytes()
    assert read_hf_config(tmp_path / "out")["text_config"]["vocab_size"] == 72


def test_folders_without_weights(tmp_path):
    config = from_hf(hf_files.config())
    assert f"{tmp_path / 'nowhere'} does not exist" in failure(load_hf, tmp_path / "nowhere", config)
    assert f"{tmp_path} has no config.json" in failure(load_hf, tmp_path, config)
    (tmp_path / "config.json").write_text("{")
    assert "config.json is not JSON" in failure(load_hf, tmp_path, config)
    (tmp_path / "config.json").write_text("[]")
    assert "has model_type None; only 'qwen3_vl' is read" in failure(load_hf, tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "qwen2_5_vl"}))
    assert "has model_type 'qwen2_5_vl'; only 'qwen3_vl' is read" in failure(load_hf, tmp_path, config)
    (tmp_path / "config.json").write_text(json.dumps(hf_files.config()))
    assert f"{tmp_path} holds no weights" in failure(load_hf, tmp_path, config)


def test_a_checkpoint_of_another_configuration(tmp_path):
    folder = hf_files.write_folder(tmp_path, hf_files.config())
    tied = failure(load_hf, folder, from_hf(hf_files.config(tied=True)))
    mend = "use the config.json that came with the weights"
    assert tied == f"{folder} does not fit the configuration: 1 left over (lm_head.weight); {mend}"
    deeper = hf_files.config()
    deeper["text_config"]["num_hidden_layers"] = 5
    missing = failure(load_hf, folder, from_hf(deeper))
    assert f"22 missing ({LAYER}3.input_layernorm.weight, {LAYER}3.mlp.down_proj.weight, " in missing
    assert missing.endswith(f", ...); {mend}")
    wider = hf_files.config()
    wider["text_config"]["intermediate_size"] = 44
    assert f"{LAYER}0.mlp.gate_proj.weight is [40, 24] there, [44, 24] here; use" in failure(
        load_hf, folder, from_hf(wider)
    )


def test_tensors_missing_and_left_over_at_once(tmp_path):
    def rename(tensors):
        tensors["model.language_model.norm.bias"] = tensors.pop("model.language_model.norm.weight")

    folder = hf_files.write_folder(tmp_path, hf_files.config(), edit=rename)
    assert failure(load, folder) == (
        f"{folder} does not fit the configuration: 1 missing (model.language_model.norm.weight) "
        "and 1 left over (model.language_model.norm.bias); use the config.json that came with the weights"
    )


def test_a_truncated_checkpoint(tmp_path):
    folder = hf_files.write_folder(tmp_path, hf_files.config())
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    assert "model.safetensors is truncated: its header speaks of" in failure(load, folder)


def test_shardings_of_another_tree():
    config = from_hf(read_hf_config(hf_files.GOLDEN))
    shardings = tree_shardings(param_shapes(config), make_mesh(MeshConfig(fsdp=8, data=1)))
    del shardings["text"]["norm"]
    assert "the tree of shardings does not fit the configuration: 1 missing (text/norm/scale)" in failure(
        load_hf, hf_files.GOLDEN, config, shardings
    )


def test_nothing_half_written_is_left(tmp_path):
    params, config = load(hf_files.GOLDEN), from_hf(hf_files.config())
    assert "the tree of parameters does not fit the configuration: 1 left over (text/lm_head/kernel)" in failure(
        save_hf, params, from_hf(hf_files.config(tied=True)), tmp_path / "out"
    )
    assert "holds no tokenizer" in failure(save_hf, params, config, tmp_path / "out", source=tmp_path)
    assert "has dtype int8" in failure(save_hf, params, config, tmp_path / "out", dtype="int8")
    (tmp_path / "file").touch()
    assert "cannot write the weights to" in failure(save_hf, params, config, tmp_path / "file" / "out")
    (tmp_path / "file").unlink()
    params["text"]["norm"]["scale"] = params["text"]["norm"]["scale"][:5]
    assert "text/norm/scale is [5], not [24]" in failure(save_hf, params, config, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_what_stands_there_is_not_overwritten(tmp_path):
    params, config = load(hf_files.GOLDEN), from_hf(hf_files.config())
    (tmp_path / "notes.txt").touch()
    assert f"{tmp_path} is not empty" in failure(save_hf, params, config, tmp_path)
    (tmp_path / "notes.txt").unlink()
    save_hf(params, config, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "model.safetensors"]
