"""Every method that learns from images alone, in the training loop: stopped and resumed, and on eight devices."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from training.positional_batches import PositionalBatches, make_assets, rows_of

from jaxvla.agents import make_agent
from jaxvla.config import from_mapping
from jaxvla.data.schema import BatchSpec, InstructionSpec
from jaxvla.models.resnet import ARCHITECTURES, Architecture
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
}
STEPS = 4


@pytest.fixture(scope="module", autouse=True)
def small_encoders():
    with pytest.MonkeyPatch.context() as patch:
        for name, film in (("small", False), ("small-film", True)):
            patch.setitem(ARCHITECTURES, name, Architecture((1,), num_filters=4, film=film))
        yield


def batch_at(agent, position):
    return agent.spec.fake_batch(16, agent.batch_keys, np.random.default_rng((3, position)))


def losses(method, run, devices, **changes):
    """Trains, and returns the losses that the run logged, by step."""
    agent = make_agent(method, METHODS[method], SPEC)

    class Batches(PositionalBatches):
        def __next__(self):
            self.position += 1
            return batch_at(agent, self.position)

    values = {
        "agent": method,
        "agent_kwargs": METHODS[method],
        "batch_size": 16,
        "num_steps": STEPS,
        "log_interval": 1,
        "eval_interval": STEPS,
        "save_interval": STEPS // 2,
        "augment": {"order": ("brightness",)},
        "optimizer": {"learning_rate": 1e-2, "clip_norm": 1.0},
    } | changes
    assets = dataclasses.replace(make_assets(**values), agent=method, agent_kwargs=METHODS[method], spec=SPEC)
    config = from_mapping(TrainConfig, values)
    mesh = make_mesh(config.mesh, jax.devices()[:devices])
    train(config, agent, mesh, Batches(), lambda step: iter([rows_of(batch_at(agent, 1000), slice(9))]), assets, run)
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
