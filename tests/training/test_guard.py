"""Steps whose loss or gradient is not finite: raise, skip, roll back."""

import re

import jax
import numpy as np
import pytest
from training.linear_agent import LinearAgent
from training.linear_run import metrics_of, train_linear
from training.positional_batches import SPEC, PositionalBatches

from jaxvla.checkpoint import read_json, saved_steps
from jaxvla.errors import ConfigError, TrainingError
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.training.checkpointer import restore_state
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.state import abstract_state

SHORT = {"log_interval": 5, "save_interval": 5, "eval_interval": 20, "num_steps": 20}


def poisoned(*steps, value=np.nan):
    """Batches of which those of some steps have one action that is not finite."""

    class Batches(PositionalBatches):
        def __next__(self):
            batch = super().__next__()
            if self.position in steps:
                batch["actions"][0, 0, 0] = value
                batch["action_pad_mask"][0] = True
            return batch

    return Batches


def state_at(run, step):
    optimizer = make_optimizer(OptimizerConfig(1.0))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    abstract = abstract_state(LinearAgent(SPEC), optimizer, mesh)
    return restore_state(run / "checkpoints" / str(step), abstract)


def same(one, other):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, one, other)))


def kept(run):
    return sorted(path.name for path in (run / "bad_batches").iterdir())


def test_an_error_keeps_the_batch(tmp_path):
    with pytest.raises(TrainingError, match=r"the loss is inf at step 13; nothing was saved since\.") as error:
        train_linear(tmp_path, poisoned(13, value=np.inf), **SHORT)
    (path,) = re.findall(r"its batch is in (\S+\.npz)\.", str(error.value))
    with np.load(path) as batch:
        assert batch["actions"].shape == (16, 2, 2)
        assert np.isinf(batch["actions"]).sum() == 1
        clean = PositionalBatches()
        clean.set_state({"position": 12})
        np.testing.assert_array_equal(batch["observations/images0"], next(clean)["observations"]["images0"])
    assert saved_steps(tmp_path) == [5, 10]


def test_skipped_steps_change_nothing_but_the_step_also_across_a_stop(tmp_path, capsys):
    own = {**SHORT, "on_nan": "skip", "ema_decay": 0.5}
    whole, half = tmp_path / "whole", tmp_path / "half"
    train_linear(whole, poisoned(11, 12, 13, 14, 15), **own)
    said = capsys.readouterr().err
    assert "WARNING: the loss is nan at step 13: its update was left out (3 of at most 10); its batch is in" in said
    assert kept(whole) == [f"step{step}_process0.npz" for step in (11, 12, 13, 14, 15)]
    for step, losses in ((10, 1), (15, 0), (20, 1)):
        assert (step in metrics_of(whole, "training/loss")) == bool(losses)
    assert metrics_of(whole, "training/bad_steps") == {15: 5, 20: 5}
    assert list(metrics_of(whole, "timer/compile_s")) == [1]
    train_linear(half, poisoned(11, 12, 13, 14, 15), **own | {"num_steps": 10})
    train_linear(half, poisoned(11, 12, 13, 14, 15), **own, resume_path=str(half))
    for name in ("training/loss", "training/learning_rate", "validation/mse"):
        assert metrics_of(half, name)[20] == metrics_of(whole, name)[20]


def test_rolled_back_is_the_checkpoint_with_the_data_behind_the_bad_step(tmp_path, capsys):
    own = {**SHORT, "on_nan": "roll_back"}
    train_linear(tmp_path, poisoned(13), **own)
    said = capsys.readouterr().err
    assert "WARNING: the loss is nan at step 13: rolling back (1 of at most 10)" in said
    assert "rolled back to the checkpoint of step 10; going on with the data of step 16" in said
    before, after = state_at(tmp_path, 10), state_at(tmp_path, 15)
    assert same(before.params, after.params)
    assert same(before.opt_state, after.opt_state)
    assert int(after.step) == 15
    assert read_json(tmp_path / "checkpoints" / "15", "data") == [{"position": 15}]
    assert not same(after.params, state_at(tmp_path, 20).params)
    assert kept(tmp_path) == ["step13_process0.npz"]
    # Steps 11 and 12 were taken, and are in the log; what followed the bad step is not.
    losses = metrics_of(tmp_path, "training/loss")
    assert list(losses) == [5, 10, 15, 20]
    assert all(map(np.isfinite, losses.values()))


@pytest.mark.parametrize("on_nan", ["skip", "roll_back"])
def test_a_run_that_gets_no_better_ends(tmp_path, on_nan):
    own = {**SHORT, "num_steps": 200, "on_nan": on_nan, "max_bad_steps": 2}
    with pytest.raises(
        TrainingError, match=r"the loss is nan at step \d+, after 2 such steps \(config.max_bad_steps\)"
    ):
        train_linear(tmp_path, poisoned(*range(6, 200)), **own)
    assert len(kept(tmp_path)) == 3


def test_there_must_be_a_checkpoint_to_go_back_to(tmp_path):
    with pytest.raises(TrainingError, match=r"roll_back found no checkpoint to go back to: lower config.save_interval"):
        train_linear(tmp_path, poisoned(2), **SHORT | {"on_nan": "roll_back"})


def test_a_gradient_that_is_not_finite_is_a_bad_step(tmp_path):
    class Agent(LinearAgent):
        def loss(self, params, batch, rng):
            loss, metrics = super().loss(params, batch, rng)
            # The derivative of the root at 0 is infinite, and 0 times that no number.
            return loss + 0 * jax.numpy.sqrt(0 * params["head"]["bias"].sum()), metrics

    with pytest.raises(TrainingError, match="the gradient's norm is nan at step 1; nothing was saved since"):
        train_linear(tmp_path, agent=Agent(SPEC), **SHORT)
    assert saved_steps(tmp_path) == []


def test_a_batch_that_cannot_be_kept_does_not_end_the_run(tmp_path, capsys):
    tmp_path.joinpath("bad_batches").write_text("in the way")
    train_linear(tmp_path, poisoned(3), **SHORT | {"on_nan": "skip", "num_steps": 5})
    assert "its batch could not be written to" in capsys.readouterr().err


@pytest.mark.parametrize(("name", "value"), [("on_nan", "ignore"), ("max_bad_steps", 0)])
def test_settings_that_are_refused(tmp_path, name, value):
    with pytest.raises(ConfigError, match=f"config.{name} must be"):
        train_linear(tmp_path, **{name: value})
