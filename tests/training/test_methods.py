"""Every method, in the training loop: stopped and resumed, and on eight devices."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from agents import ecot_cases, openvla_cases, smolvla_cases
from jax.sharding import PartitionSpec
from training.positional_batches import PositionalBatches, make_assets, make_statistics, rows_of

from jaxvla.agents import make_agent
from jaxvla.config import from_mapping
from jaxvla.data.schema import BatchSpec, InstructionSpec
from jaxvla.models.resnet import ARCHITECTURES, Architecture
from jaxvla.models.vision import frozen_resnet
from jaxvla.parallel.mesh import make_mesh
from jaxvla.training.config import TrainConfig
from jaxvla.training.loop import train

SPEC = BatchSpec(("images0",), (8, 8), 4, 2, action_horizon=2, instruction=InstructionSpec(5, vocab_size=9))
ENCODER, FILM = {"encoder": {"name": "small"}}, {"encoder": {"name": "small-film"}}
METHODS = {
    "gc_bc": ENCODER | {"hidden_dims": (8,)},
    "lc_bc": FILM | {"hidden_dims": (8,), "instruction_encoder": {"width": 8, "num_layers": 1, "num_heads": 2}},
    "gc_ddpm_bc": ENCODER | {"score_network": {"hidden_dim": 8, "num_blocks": 1}, "diffusion": {"num_levels": 4}},
    "gc_iql": ENCODER | {"hidden_dims": (8,), "target_rate": 0.1},
    "contrastive_rl_td": ENCODER | {"hidden_dims": (8,), "target_rate": 0.1},
    "act": {"encoder": {"name": "resnet-small"}, "transformer": {"width": 8, "num_heads": 2, "mlp_dim": 8}},
    "smolvla": smolvla_cases.agent_kwargs(),
    "openvla": openvla_cases.agent_kwargs(),
    "openvla_oft": openvla_cases.agent_kwargs(parallel={"enabled": True, "film": True}),
    "ecot": {
        "backbone": dataclasses.asdict(ecot_cases.BACKBONE),
        "action_head": ecot_cases.HEAD,
        "stop_token": ecot_cases.STOP,
        "pad_token": ecot_cases.PAD,
        "lora": {"rank": 2, "targets": "text/layers/.*(q|down)_proj/kernel", "dropout": 0.2, "base": "int4"},
    },
}
# Those that are a way of another.
AGENTS = {"openvla_oft": "openvla"}
# Of a method, where they differ: the sizes of its batches, what a run trains with, and where parameters live.
SPECS = {"ecot": ecot_cases.SPEC}
CHANGES = {"ecot": {"ema_decay": 0.9, "mesh": {"fsdp": -1, "data": 1}}}
RULES = {
    "ecot": (
        ("_proj/(kernel|kernel/values|lora_a)$", PartitionSpec(None, "fsdp")),
        ("_proj/lora_b$", PartitionSpec(None, None, "fsdp")),
    )
}
STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def small_encoders():
    with pytest.MonkeyPatch.context() as patch:
        for name, film in (("small", False), ("small-film", True)):
            patch.setitem(ARCHITECTURES, name, Architecture((1,), num_filters=4, film=film))
        patch.setitem(frozen_resnet.ARCHITECTURES, "resnet-small", Architecture((2,), num_filters=4))
        yield


def batch_at(agent, position):
    rng = np.random.default_rng((3, position))
    if agent.spec.text is not None:
        keys = tuple(key for key in agent.batch_keys if key != "text")
        text = ecot_cases.text(rng, rng.integers(5, 11, 16), rng.integers(0, 3, 16), rng.integers(1, 7, 16))
        return agent.spec.fake_batch(16, keys, rng) | {"text": text}
    return agent.spec.fake_batch(16, agent.batch_keys, rng)


def losses(method, run, devices, **changes):
    """Trains, and returns the losses that the run logged, by step."""
    spec, name = SPECS.get(method, SPEC), AGENTS.get(method, method)
    agent = make_agent(name, METHODS[method], spec)

    class Batches(PositionalBatches):
        def __next__(self):
            self.position += 1
            return batch_at(agent, self.position)

    values = {
        "agent": name,
        "agent_kwargs": METHODS[method],
        "batch_size": 16,
        "num_steps": STEPS,
        "log_interval": 1,
        "eval_interval": STEPS,
        "save_interval": STEPS // 2,
        "augment": {"order": ("brightness",)},
        "optimizer": {"learning_rate": 1e-2, "clip_norm": 1.0},
    }
    values |= CHANGES.get(method, {}) | changes
    own = {"agent": name, "agent_kwargs": METHODS[method], "spec": spec, "statistics": make_statistics(spec)}
    assets = dataclasses.replace(make_assets(**values), **own)
    config = from_mapping(TrainConfig, values)
    mesh = make_mesh(config.mesh, jax.devices()[:devices])

    def validation(_):
        return iter([rows_of(batch_at(agent, 1000), slice(9))])

    train(config, agent, mesh, Batches(), validation, assets, run, RULES.get(method, ()))
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["training/loss"] for row in rows if "training/loss" in row}


@pytest.mark.parametrize("method", METHODS)
def test_resumed_runs_and_eight_devices_give_the_same_losses(method, tmp_path):
    whole = losses(method, tmp_path / "whole", 1)
    assert sorted(whole) == [1, 2, 3, 4]
    resumed = losses(method, tmp_path / "resumed", 1, resume_path=str(tmp_path / "whole" / "checkpoints" / "2"))
    assert resumed == {step: loss for step, loss in whole.items() if step > 2}
    eight = losses(method, tmp_path / "eight", 8)
    np.testing.assert_allclose(list(eight.values()), list(whole.values()), rtol=1e-5)
