"""Folders of weights exchanged with transformers in both directions."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from models.qwen3_vl import hf_files

from jaxvla.models.lora import LoraConfig, add_lora, merge
from jaxvla.models.module import bind, graph_of
from jaxvla.models.qwen3_vl.config import from_hf, to_hf
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.tokens import add_tokens
from jaxvla.models.qwen3_vl.weights import load_hf, read_hf_config, save_hf

pytestmark = pytest.mark.parity

GRIDS = ((4, 8),)
TOKENS = np.array([[5, 62, *[60] * 8, 63, 9, 11], [3, 4, 62, *[60] * 8, 63, 7]])


@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


def write_random(folder, tied, dtype="float32", **options):
    """A model as transformers initialises and saves it."""
    import torch
    from transformers import Qwen3VLConfig, Qwen3VLForConditionalGeneration

    torch.manual_seed(0)
    config = Qwen3VLConfig(**hf_files.config(tied))
    model = Qwen3VLForConditionalGeneration(config).to(getattr(torch, dtype)).eval()
    model.save_pretrained(folder, **options)
    return model


def load_strictly(folder):
    """What transformers makes of a folder that fits it to the last tensor."""
    import torch
    from transformers import Qwen3VLForConditionalGeneration

    model, info = Qwen3VLForConditionalGeneration.from_pretrained(
        folder, output_loading_info=True, dtype=torch.float32, local_files_only=True
    )
    assert not any(info.values()), info
    return model.eval()


def load(folder):
    config = from_hf(read_hf_config(folder))
    return load_hf(folder, config), config


def patches():
    return np.random.default_rng(0).normal(size=(2, 32, 96)).astype(np.float32)


def torch_logits(model):
    import torch

    types = torch.from_numpy((TOKENS == 60).astype(np.int64))
    with torch.no_grad():
        return model(
            input_ids=torch.from_numpy(TOKENS),
            pixel_values=torch.from_numpy(patches()).reshape(64, 96),
            image_grid_thw=torch.tensor([[1, *GRIDS[0]]] * 2),
            mm_token_type_ids=types,
        ).logits.numpy()


def jax_logits(params, config):
    graphdef = graph_of(lambda rngs: Qwen3VL(config, rngs))

    @jax.jit
    def run(params, tokens_bt, patches_bpf):
        model = bind(graphdef, params)
        return model.logits(model.forward(tokens_bt, patches_bpf=patches_bpf, grids=GRIDS))

    return np.asarray(run(params, jnp.asarray(TOKENS, jnp.int32), patches()))


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip(tmp_path, transformers, tied):
    original = write_random(tmp_path / "in", tied)
    params, config = load(tmp_path / "in")
    save_hf(params, config, tmp_path / "out", max_shard_bytes=10**5)
    exported = load_strictly(tmp_path / "out")
    found = dict(exported.named_parameters())
    for name, parameter in original.named_parameters():
        np.testing.assert_array_equal(found[name].detach().numpy(), parameter.detach().numpy(), name)
    np.testing.assert_array_equal(torch_logits(exported), torch_logits(original))
    np.testing.assert_allclose(jax_logits(params, config), torch_logits(original), atol=1e-5)


def test_configuration_survives(tmp_path, transformers):
    write_random(tmp_path / "in", False)
    params, config = load(tmp_path / "in")
    save_hf(params, config, tmp_path / "out")
    before, after = (transformers.AutoConfig.from_pretrained(tmp_path / name).to_dict() for name in ("in", "out"))
    for section in ("text_config", "vision_config"):
        assert before[section] == after[section] | {"dtype": before[section].get("dtype")}
    assert before.keys() == after.keys()


def test_values_that_are_no_default_reach_transformers(tmp_path, transformers):
    config = from_hf(hf_files.config())
    text = dataclasses.replace(config.text, rope_theta=1234.5, mrope_section=(1, 2, 1), max_position_embeddings=4096)
    config = dataclasses.replace(config, text=text)
    (tmp_path / "config.json").write_text(json.dumps(to_hf(config)))
    found = transformers.AutoConfig.from_pretrained(tmp_path)
    rope = {"rope_type": "default", "rope_theta": 1234.5, "mrope_section": [1, 2, 1], "mrope_interleaved": True}
    assert found.text_config.rope_parameters == rope
    assert found.text_config.max_position_embeddings == 4096
    assert from_hf(found.to_dict()) == config


@pytest.mark.parametrize("options", [{}, {"max_shard_size": 60_000}])
def test_bfloat16_comes_back_bit_by_bit(tmp_path, transformers, options):
    write_random(tmp_path / "in", True, "bfloat16", **options)
    params, config = load(tmp_path / "in")
    save_hf(params, config, tmp_path / "out", dtype="bfloat16")
    expected, found = hf_files.read_files(tmp_path / "in"), hf_files.read_files(tmp_path / "out")
    assert found.keys() == expected.keys()
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)


def test_the_safetensors_library_reads_what_we_write(tmp_path, transformers):
    from safetensors import safe_open

    params, config = load(hf_files.GOLDEN)
    save_hf(params, config, tmp_path / "out", dtype="bfloat16")
    expected = hf_files.read_files(hf_files.GOLDEN)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert set(file.keys()) == expected.keys()
        assert file.metadata() == {"format": "pt"}
        for name, values in expected.items():
            np.testing.assert_array_equal(file.get_tensor(name).float().numpy(), values.astype(np.float32))


def test_the_golden_checkpoint_is_what_transformers_writes_today(tmp_path, transformers):
    from parity import qwen3_vl_checkpoint

    qwen3_vl_checkpoint.write(tmp_path)
    for path in hf_files.GOLDEN.glob("*.safetensors"):
        assert (tmp_path / path.name).read_bytes() == path.read_bytes()


def test_the_bare_model(tmp_path, transformers):
    model = write_random(tmp_path / "full", True)
    model.model.save_pretrained(tmp_path / "bare")
    jax.tree.map(np.testing.assert_array_equal, load(tmp_path / "bare")[0], load(tmp_path / "full")[0])


@pytest.mark.parametrize("tied", [True, False])
def test_new_tokens_and_merged_adapters_are_exported(tmp_path, transformers, tied):
    write_random(tmp_path / "in", tied)
    params, config = load(tmp_path / "in")
    ids = {"<<": [7], "<|thinking|>": [72]}
    params, config, _ = add_tokens(params, config, {"<|thinking|>": "copy:<<"}, ids.__getitem__, 72)
    lora_config = LoraConfig(rank=2, targets="text/layers/.*_proj/kernel|visual/merger/.*kernel")
    lora = add_lora(jax.random.key(0), params, lora_config)["lora"]
    params = merge({**params, "lora": jax.tree.map(lambda leaf: leaf + 0.1, lora)}, lora_config)
    save_hf(params, config, tmp_path / "out")
    exported = load_strictly(tmp_path / "out")
    assert exported.get_output_embeddings().weight.shape == (73, 24)
    logits = torch_logits(exported)
    np.testing.assert_allclose(jax_logits(params, config), logits, atol=1e-4)
    np.testing.assert_array_equal(logits[..., 72], logits[..., 7])
