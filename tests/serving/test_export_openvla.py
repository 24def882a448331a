"""OpenVLA as its authors publish it, from a checkpoint and back."""

import dataclasses
import json
import subprocess
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
from agents.openvla_cases import LORA, MODEL, agent_kwargs, flatten
from agents.openvla_oft_cases import SPEC as SMALL
from serving.policies import GC_BC, save
from training.positional_batches import SPEC as PLAIN

from jaxvla.agents import make_agent, start_of
from jaxvla.agents.backbone import merge_adapters
from jaxvla.agents.language import TokenLanguage
from jaxvla.data.openvla_statistics import openvla_normalizer, read_openvla
from jaxvla.data.schema import InstructionSpec
from jaxvla.data.text.tokenizer import TINY, load_tokenizer
from jaxvla.errors import ConfigError, WeightsError
from jaxvla.serving.export import export_openvla

TOKENIZER = load_tokenizer(TINY)
SPEC = dataclasses.replace(SMALL, instruction=InstructionSpec(5, TOKENIZER.vocab_size))
WIDER = MODEL | {"text": MODEL["text"] | {"vocab_size": 1280}}
LANGUAGE = TokenLanguage(TOKENIZER, 5, "error", "openvla").to_json()
BOUNDED = {"language": LANGUAGE, "action_normalization": "bounds_q99", "proprio_normalization": "bounds_q99"}


def save_run(run, kwargs, **others):
    return save(run, "openvla", kwargs, SPEC, values=(-0.1, 0.1), **(BOUNDED | others))


def start(folder, kwargs):
    agent = make_agent("openvla", kwargs | {"path": str(folder)}, SPEC)
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return start_of("openvla", agent).load(jax.tree.map(lambda _: place, jax.eval_shape(agent.init, jax.random.key(0))))


def test_the_command_writes_what_training_starts_from_bit_for_bit(tmp_path):
    kwargs = agent_kwargs(model=WIDER, num_cameras=2, parallel={"enabled": True, "film": True})
    params, assets = save_run(tmp_path / "run", kwargs)
    command = [sys.executable, "experiments/export.py", "--checkpoint", tmp_path / "run", "--format", "openvla"]
    command += ["--output_path", tmp_path / "out"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert done.stdout.startswith("wrote action_head--latest_checkpoint.safetensors, chat_template.jinja, config.json")
    jax.tree.map(np.testing.assert_array_equal, start(tmp_path / "out", kwargs), params)
    assert load_tokenizer(tmp_path / "out", chats=False).vocab_size == TOKENIZER.vocab_size
    (name,) = assets.names
    written = read_openvla(tmp_path / "out" / "dataset_statistics.json", name)
    normalized = np.random.default_rng(0).uniform(-1, 1, (9, SPEC.action_dim))
    expected = assets.action_normalizer().inverse(normalized)
    np.testing.assert_allclose(openvla_normalizer(written).inverse(normalized), expected, rtol=1e-5)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["norm_stats"] == json.loads((tmp_path / "out" / "dataset_statistics.json").read_text())
    with pytest.raises(WeightsError, match="is not empty"):
        export_openvla(tmp_path / "run", tmp_path / "out")


def test_adapters_are_merged_and_weights_narrowed(tmp_path):
    kwargs = agent_kwargs(model=WIDER, num_cameras=2, train_what="lora") | {"lora": LORA}
    params, _ = save_run(tmp_path / "run", kwargs)
    export_openvla(tmp_path / "run", tmp_path / "out", dtype="bfloat16")
    plain, merged = merge_adapters(kwargs, params)
    found = start(tmp_path / "out", plain | {"train_what": "full"})
    for path, leaf in flatten(merged).items():
        np.testing.assert_array_equal(flatten(found)[path], leaf.astype(ml_dtypes.bfloat16).astype(np.float32), path)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "bfloat16"


def test_what_cannot_be_exported(tmp_path):
    save(tmp_path / "plain", "gc_bc", GC_BC, PLAIN)
    with pytest.raises(ConfigError, match="is of gc_bc, not of openvla: leave --format openvla out"):
        export_openvla(tmp_path / "plain", tmp_path / "out")
    save_run(tmp_path / "normal", agent_kwargs(model=WIDER, num_cameras=2), action_normalization="normal")
    with pytest.raises(ConfigError, match=r"normalization 'normal': train with config.data.normalization='bounds_q99'"):
        export_openvla(tmp_path / "normal", tmp_path / "out")
    assert not (tmp_path / "out").exists()
