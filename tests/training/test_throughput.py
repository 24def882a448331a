"""Rates of a run against their definition."""

import jax
import numpy as np
import pytest
from training.linear_agent import LinearAgent
from training.positional_batches import SPEC

from jaxvla.parallel import devices
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.training import throughput
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.throughput import Throughput, num_tokens, step_flops

AGENT = LinearAgent(SPEC)
OPTIMIZER = make_optimizer(OptimizerConfig(1.0))
MESH = make_mesh(MeshConfig(data=2), jax.devices()[:2])


def batch(rows):
    return SPEC.fake_batch(rows, AGENT.batch_keys, np.random.default_rng(0))


def counted(rows):
    rates = Throughput(AGENT, OPTIMIZER, MESH)
    rates.count(AGENT.init(jax.random.key(0)), batch(rows))
    return rates.rates({"timer/step_ms": 20.0})


def test_flops_follow_the_batch_and_the_time():
    one, two = counted(8), counted(16)
    assert 0 < one["timer/flops_per_s"] == two["timer/flops_per_s"] / 2
    assert one["timer/flops_per_s"] * 0.020 == step_flops(AGENT, OPTIMIZER, AGENT.init(jax.random.key(0)), batch(8))
    assert set(one) == {"timer/flops_per_s"}, "nothing is known of the peak of a CPU, and there are no texts"


def test_mfu_is_a_share_of_the_peak_of_all_devices(monkeypatch):
    device = devices.named("h100")
    monkeypatch.setattr(throughput, "of_kind", lambda kind: device)
    rates = counted(8)
    assert rates["timer/mfu"] == pytest.approx(rates["timer/flops_per_s"] / (2 * 989e12))


def test_an_interval_without_timed_steps_has_no_rates():
    assert Throughput(AGENT, OPTIMIZER, MESH).rates({"training/loss": 1.0}) == {}


def test_tokens_are_the_columns_of_texts():
    text = {
        "prefix": np.zeros((2, 5)),
        "slots": np.zeros((2, 3), bool),
        "suffix": np.zeros((2, 7)),
        "stage": np.ones(2),
    }
    assert num_tokens({"text": text}) == 30
    assert num_tokens({"instruction": np.zeros((2, 9), np.int32)}) == 18
    assert num_tokens({"instruction": np.zeros((2, 9), np.float32)}) == 0
    assert num_tokens({}) == 0


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("NVIDIA H200", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("TPU v5 lite", "v5e"),
        ("TPU v5", "v5p"),
        ("cpu", None),
    ],
)
def test_devices_are_found_by_what_jax_calls_them(kind, name):
    found = devices.of_kind(kind)
    assert (found and found.name) == name
