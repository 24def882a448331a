"""What a plan says beforehand against what a run then takes, on eight simulated devices."""

import dataclasses
import json
import pathlib
import subprocess
import sys

import jax
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "configs"))

from train_config import get_config

from jaxvla.config import from_mapping
from jaxvla.errors import ConfigError
from jaxvla.parallel.devices import named
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.training import fitting, plan_report
from jaxvla.training.plan import make_plan, mfu, step_time
from jaxvla.training.sketch import Robot, sketch
from jaxvla.training.state import create_state

ROOT = pathlib.Path(__file__).resolve().parents[2]
ROBOT = Robot(cameras=1, dims=7)


def settings():
    """A narrow policy, but for two layers that are large enough to be sharded."""
    values = get_config("gc_bc_tiny").to_dict()
    values["agent_kwargs"]["hidden_dims"] = (1024, 1024, 1024)
    return values | {"mesh": {"data": 2, "fsdp": 4, "tensor": 1}, "ema_decay": 0.9}


@pytest.fixture(scope="module")
def planned():
    run = sketch(settings(), ROBOT)
    return run, make_plan(run, make_mesh(run.config.mesh), 8)


def held(tree, device):
    arrays = jax.tree.leaves(tree)
    return sum(shard.data.nbytes for x in arrays for shard in x.addressable_shards if shard.device == device)


def test_the_plan_is_what_the_real_step_takes(planned):
    run, plan = planned
    mesh, config = make_mesh(run.config.mesh), run.config
    state = create_state(run.agent, run.optimizer, config.seed, mesh, ema=True)
    device = jax.devices()[3]
    assert held(state.params, device) == plan.memory.parameters
    assert held((state.opt_state, state.ema), device) == plan.memory.optimizer
    assert plan.memory.parameters < 0.6 * sum(x.nbytes for x in jax.tree.leaves(state.params)), "nothing is sharded"
    step = run.step(run.state(mesh), mesh)
    sizes = step.lower(state, run.batch(config.batch_size)).compile().memory_analysis()
    real = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    assert plan.compiled.state == pytest.approx(real, rel=0.05)
    assert plan.compiled.temporary == pytest.approx(sizes.temp_size_in_bytes, rel=0.05)
    by_shapes = plan.memory.parameters + plan.memory.optimizer + plan.memory.batch
    assert plan.compiled.state == pytest.approx(by_shapes, rel=0.05)


def test_sharded_kernels_are_gathered_and_the_rest_is_summed(planned):
    _, plan = planned
    sent = {(row.kind, row.axes) for row in plan.collectives if row.payload > 2**20}
    assert ("all-gather", ("fsdp",)) in sent
    large = 2 * 1024 * 1024 * 4
    gathered = sum(row.payload for row in plan.collectives if row.kind == "all-gather")
    assert gathered >= large
    assert plan.executed_flops >= plan.model_flops > 0


def test_times_follow_the_device(planned):
    _, plan = planned
    half, whole = (step_time(plan, named("h100"), efficiency) for efficiency in (0.5, 1.0))
    assert half.compute == 2 * whole.compute == pytest.approx(plan.executed_flops / 8 / (0.5 * 989e12))
    assert half.expected <= half.unhidden
    assert mfu(plan, plan.model_flops / (8 * 989e12), named("h100")) == pytest.approx(1)
    split = dataclasses.replace(plan, collectives=tuple(dataclasses.replace(r, local=False) for r in plan.collectives))
    assert step_time(split, named("h100"), 0.5).communication == pytest.approx(9 * half.communication)


def test_what_would_make_it_fit(planned):
    _, plan = planned
    limit = plan.memory.total * 0.999
    found = {change.flags.split("=")[0]: change for change in fitting.changes(settings(), ROBOT, plan, limit)}
    larger = found["--mesh data"]
    assert larger.flags == "--mesh data=1,fsdp=8,tensor=1"
    assert larger.memory.parameters < plan.memory.parameters
    assert found["--config.accumulate_steps"].memory.activations < plan.memory.activations
    assert found["--config.batch_size"].memory.batch < plan.memory.batch
    lines = plan_report.mends(list(found.values()), limit)
    assert len(lines) == 1 + len(found)
    assert plan_report.verdict(plan, 1.0) == "does not fit into 0.0 GB"
    assert plan_report.verdict(plan, 1e12).startswith("fits")


def test_a_plan_is_plain_json(planned):
    _, plan = planned
    values = json.loads(json.dumps(plan_report.to_json(plan, named("v5e"), 0.5, 10)))
    assert values["memory"]["parameters"] == plan.memory.parameters
    assert values["hours"] == pytest.approx(step_time(plan, named("v5e"), 0.5).expected * 10 / 3600)


def test_a_batch_that_does_not_divide_is_refused():
    run = sketch(settings() | {"batch_size": 12}, ROBOT)
    with pytest.raises(ConfigError, match="batch_size 12 does not divide over 8"):
        make_plan(run, make_mesh(MeshConfig(2, 4, 1)), 8)


def main(*flags):
    command = [sys.executable, ROOT / "experiments" / "plan.py", "--config=train_config.py:gc_bc_tiny", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


def test_a_mistake_is_one_line():
    done = main("--mesh=rows=8")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "error: --mesh must be like data=32,fsdp=8 with axes data, fsdp, tensor, not rows=8\n"


def test_the_main_plans_for_devices_that_are_not_there(tmp_path):
    done = main("--mesh=data=16", "--device_memory=1GiB", f"--output_path={tmp_path / 'plan.json'}")
    assert done.returncode == 0, done.stderr
    assert "16 devices: data 16, fsdp 1, tensor 1; batch 32" in done.stdout
    assert "fits into 1.1 GB, as compiled" in done.stdout
    values = json.loads((tmp_path / "plan.json").read_text())
    assert values["settings"]["mesh"] == {"data": 16, "fsdp": 1, "tensor": 1}
    assert from_mapping(Robot, values["robot"]) == Robot()
