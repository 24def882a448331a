"""The step of the next stage is compiled while the present one trains, and a trace is written where it is asked for."""

import jax
import numpy as np
import pytest
from training.linear_run import metrics_of, train_linear
from training.positional_batches import PositionalBatches, global_batch

from jaxvla.errors import ConfigError
from jaxvla.training.config import ProfileConfig
from jaxvla.training.step import step_of

SHORT = {"log_interval": 5, "save_interval": 20, "eval_interval": 20, "num_steps": 20}


def at_stage(batch, stage):
    return batch | {"columns": np.zeros((len(batch["actions"]), 1 + stage), np.float32)}


class Staged(PositionalBatches):
    """Batches that grow a column after 7 steps, and another one after 14."""

    def __next__(self):
        return at_stage(super().__next__(), self.position // 7)


@pytest.fixture
def compilations(monkeypatch):
    """How often the step of a run was called without having been compiled, by the shape of its batches."""
    counted = []

    def counting(*args, **kwargs):
        step = step_of(*args, **kwargs)

        class Step:
            lower = step.lower

            def __call__(self, state, batch):
                before = step._cache_size()
                out = step(state, batch)
                if step._cache_size() > before:
                    counted.append(batch["columns"].shape[1])
                return out

        return Step()

    monkeypatch.setattr("jaxvla.training.preparing.step_of", counting)
    return counted


def test_a_switch_of_the_stage_compiles_nothing(tmp_path, compilations, capsys):
    stages = [
        jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), at_stage(global_batch(0), n)) for n in range(3)
    ]
    train_linear(tmp_path / "ahead", Staged, stages=stages, **SHORT)
    assert compilations == [1]
    assert list(metrics_of(tmp_path / "ahead", "timer/compile_s")) == [1]
    said = capsys.readouterr().err
    assert "step 7: the first of its stage, compiled ahead" in said
    assert "step 14: the first of its stage, compiled ahead" in said
    compilations.clear()
    train_linear(tmp_path / "late", Staged, **SHORT)
    assert compilations == [1, 2, 3]
    assert list(metrics_of(tmp_path / "late", "timer/compile_s")) == [1, 7, 14]
    for name in ("training/loss", "training/grad_norm", "validation/mse"):
        assert metrics_of(tmp_path / "ahead", name) == metrics_of(tmp_path / "late", name)


def test_a_trace_of_chosen_steps(tmp_path, capsys):
    train_linear(tmp_path, **SHORT | {"num_steps": 5}, profile={"start": 3, "steps": 2})
    assert f"steps 3 to 4 are traced in {tmp_path / 'profile'}" in capsys.readouterr().err
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))


@pytest.mark.parametrize(("name", "value"), [("start", -1), ("steps", 0)])
def test_settings_that_are_refused(name, value):
    with pytest.raises(ConfigError, match=rf"config\.profile\.{name} must be"):
        ProfileConfig(**{name: value})
