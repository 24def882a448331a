"""Backbones of checkpoints for other programs, and what a policy makes of the same checkpoints."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from agents.ecot_cases import BACKBONE, HEAD, SPEC
from serving.policies import GC_BC, save
from training.positional_batches import SPEC as PLAIN

from jaxvla.agents.backbone import SHIPPED, merge_adapters
from jaxvla.data.text.tokenizer import IM_END, TINY, load_tokenizer
from jaxvla.errors import CheckpointError, ConfigError, WeightsError
from jaxvla.manifest import MANIFEST
from jaxvla.models.qwen3_vl.config import from_hf
from jaxvla.models.qwen3_vl.weights import load_hf, read_hf_config
from jaxvla.models.safetensors_io import read_header
from jaxvla.reasoning.prompt import THINKING_TOKENS
from jaxvla.serving.export import export_backbone
from jaxvla.serving.policy import load_policy

TOKENIZER = load_tokenizer(TINY).with_added_tokens(THINKING_TOKENS)
LORA = {"rank": 2, "alpha": 8.0}


def kwargs(dtype="float32", **changes):
    backbone = dataclasses.asdict(dataclasses.replace(BACKBONE, dtype=dtype))
    own = {"stop_token": TOKENIZER.id_of(IM_END), "pad_token": TOKENIZER.pad_id, "action_head": HEAD}
    return {"backbone": backbone} | own | changes


def save_run(run, agent_kwargs):
    text = {"tokenizer": TOKENIZER.files()}
    config = {"backbone": {"path": "/models/base"}}
    return save(run, "ecot", agent_kwargs, SPEC, values=(-0.1, 0.1), text=text, train_config=config)[0]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory):
    """A run with adapters beside a bfloat16 base."""
    run = tmp_path_factory.mktemp("adapted")
    return run, save_run(run, kwargs("bfloat16", lora=LORA))


def read_folder(folder):
    assert load_tokenizer(folder).id_of(THINKING_TOKENS[0]) == TOKENIZER.id_of(THINKING_TOKENS[0])
    config = from_hf(read_hf_config(folder), str(folder))
    return load_hf(folder, config, dtype="float32")


def test_adapters_are_merged_into_the_model(adapted, tmp_path):
    run, params = adapted
    for dtype, expected_dtype in (("", "bfloat16"), ("float32", "float32")):
        folder = tmp_path / expected_dtype
        export_backbone(run, folder, dtype=dtype)
        assert read_hf_config(folder)["dtype"] == expected_dtype
        up = {
            name: params["backbone"]["lora"]["text"]["layers"]["mlp"]["up_proj"][name] for name in ("lora_a", "lora_b")
        }
        base = np.asarray(params["backbone"]["text"]["layers"]["mlp"]["up_proj"]["kernel"], np.float32)
        expected = base + 4.0 * np.einsum("lir,lro->lio", up["lora_a"], up["lora_b"])
        found = read_folder(folder)["text"]["layers"]["mlp"]["up_proj"]["kernel"]
        np.testing.assert_allclose(found, expected.astype(expected_dtype).astype(np.float32), rtol=1e-2, atol=1e-5)
        assert (np.abs(found - expected).max() < 1e-6) == (dtype == "float32")


def test_adapters_alone_carry_the_rows_of_the_thinking_tokens(adapted, tmp_path):
    run, _ = adapted
    export_backbone(run, tmp_path / "out", adapters=True)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "/models/base"
    ids = [TOKENIZER.id_of(name) for name in THINKING_TOKENS]
    assert config["trainable_token_indices"] == {"embed_tokens": ids}
    with open(tmp_path / "out" / "adapter_model.safetensors", "rb") as file:
        assert len(read_header(file)) == 2 * 7 * BACKBONE.text.num_hidden_layers + 1
    assert load_tokenizer(tmp_path / "out").vocab_size == TOKENIZER.vocab_size


def test_adapters_name_the_backbone_that_ships_with_the_package(adapted, tmp_path):
    run = shutil.copytree(adapted[0], tmp_path / "run")
    (path,) = run.rglob("assets.json")
    assets = json.loads(path.read_text())
    assets["train_config"]["backbone"] = {"preset": "tiny"}
    path.write_text(json.dumps(assets))
    (path.parents[1] / MANIFEST).unlink()
    export_backbone(run, tmp_path / "out", adapters=True)
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(SHIPPED["tiny"])


def test_a_backbone_without_adapters_is_exported_by_the_command(tmp_path):
    params = save_run(tmp_path / "run", kwargs())
    command = [sys.executable, "experiments/export.py", "--checkpoint", tmp_path / "run", "--output_path"]
    done = subprocess.run([*command, tmp_path / "out"], capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.startswith("wrote chat_template.jinja, config.json, model.safetensors, tokenizer.json")
    jax.tree.map(np.testing.assert_array_equal, read_folder(tmp_path / "out"), params["backbone"])
    with pytest.raises(WeightsError, match="is not empty: choose another folder"):
        export_backbone(tmp_path / "run", tmp_path / "out")
    with pytest.raises(ConfigError, match="was trained without LoRA: export the whole model, without adapters"):
        export_backbone(tmp_path / "run", tmp_path / "adapters", adapters=True)


def test_what_cannot_be_exported(adapted, tmp_path):
    run, _ = adapted
    with pytest.raises(CheckpointError, match="has no step 4; there are 3"):
        export_backbone(run, tmp_path / "out", 4)
    with pytest.raises(ConfigError, match="dtype float32 is that of a whole model"):
        export_backbone(run, tmp_path / "out", adapters=True, dtype="float32")
    save(tmp_path / "plain", "gc_bc", GC_BC, PLAIN)
    with pytest.raises(ConfigError, match="is of gc_bc, which has no backbone to export"):
        export_backbone(tmp_path / "plain", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_policy_serves_merged_parameters(adapted, monkeypatch):
    run, params = adapted
    # What it says in words is of no interest here, and a checkpoint of this size holds no prompts.
    monkeypatch.setattr("jaxvla.serving.policy.Policy", lambda agent, params, *_: (agent, params))
    agent, served = load_policy(run)
    assert agent.config.lora.rank == 0
    _, expected = merge_adapters(kwargs("bfloat16", lora=LORA), params)
    jax.tree.map(np.testing.assert_array_equal, served, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(served["backbone"])} == {jnp.dtype(jnp.bfloat16)}
