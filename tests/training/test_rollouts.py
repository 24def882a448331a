"""Closed loop during training, of the linear agent in a world that it learns to master."""

import os
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from training.linear_run import ROLLOUT, metrics_of, signalled_at, train_linear
from training.positional_batches import make_assets

from jaxvla.checkpoint import saved_steps
from jaxvla.envs.evaluation import wilson
from jaxvla.errors import ConfigError
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.parallel.sharding import gather
from jaxvla.training.checkpointer import Checkpointer
from jaxvla.training.config import CheckpointConfig
from jaxvla.training.state import TrainState


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run with rollouts that nothing happened to, its summary, and what it said."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, train_linear(run, rollout=ROLLOUT)


def test_success_rises_and_is_logged_with_its_interval(whole):
    run, summary = whole
    success = metrics_of(run, "rollout/success")
    assert list(success) == [10, 20, 30, 40, 50, 60]
    assert success[10] < 0.5 < success[60]
    for step, rate in success.items():
        interval = metrics_of(run, "rollout/success_low")[step], metrics_of(run, "rollout/success_high")[step]
        assert interval == wilson(round(40 * rate), 40)
    assert set(metrics_of(run, "rollout/episodes").values()) == {40}
    assert min(metrics_of(run, "rollout/ms_per_decision").values()) > 0
    assert summary.rollout.successes == 40 * success[60]
    (events,) = (run / "tensorboard").iterdir()
    assert events.read_bytes().count(b"rollout/success_high") == 6


def test_the_time_of_rollouts_is_told_and_is_not_that_of_steps(whole):
    run, _ = whole
    seconds, share = metrics_of(run, "timer/rollout_s"), metrics_of(run, "timer/rollout_share")
    assert list(seconds) == list(share) == [10, 20, 30, 40, 50, 60]
    assert all(0 < value < 1 for value in share.values())
    slow = run.with_name("slow")

    def wait(step, played):
        if played == 1:
            signal.sigtimedwait([], 0.9)

    train_linear(slow, rollout=ROLLOUT, interrupt=wait, num_steps=30)
    assert min(metrics_of(slow, "timer/rollout_s").values()) > 0.9
    assert metrics_of(slow, "timer/step_ms")[30] < 90


def test_stopped_and_resumed_has_the_same_successes(whole, tmp_path):
    stopped = train_linear(tmp_path, signalled_at(35, signal.SIGTERM), rollout=ROLLOUT)
    assert stopped.interrupted
    assert 30 < stopped.step < 40
    assert stopped.rollout.successes == 40 * metrics_of(tmp_path, "rollout/success")[30]
    # How many are played side by side changes nothing; a resumed run may choose it anew.
    train_linear(tmp_path, resume_path=str(tmp_path), rollout=ROLLOUT | {"parallel": 40})
    for name in ("validation/mse", "rollout/success", "rollout/success_low"):
        assert metrics_of(tmp_path, name) == metrics_of(whole[0], name)


def test_a_signal_is_heard_between_episodes(tmp_path, capsys):
    def stop(step, played):
        if (step, played) == (20, 3):
            os.kill(os.getpid(), signal.SIGTERM)
            while "SIGTERM: stopping" not in capsys.readouterr().err:
                pass

    summary = train_linear(tmp_path, rollout=ROLLOUT, interrupt=stop)
    assert summary.interrupted
    assert summary.step == 20
    assert saved_steps(tmp_path) == [20]
    assert list(metrics_of(tmp_path, "rollout/success")) == [10]
    assert summary.rollout.successes == 40 * metrics_of(tmp_path, "rollout/success")[10]


def test_the_best_checkpoint_is_that_of_the_most_successes(tmp_path):
    best = {"keep_last": 1, "keep_best": 1, "best_metric": "success"}
    train_linear(tmp_path, rollout=ROLLOUT, checkpoint=best, save_interval=10)
    success = metrics_of(tmp_path, "rollout/success")
    most = max(step for step, rate in success.items() if rate == max(success.values()))
    assert saved_steps(tmp_path) == sorted({most, 60})


@pytest.mark.parametrize(("metric", "kept"), [("success", [3, 5]), ("mse", [2, 5])])
def test_success_ranks_upwards_and_errors_downwards(tmp_path, metric, kept):
    """Step 4 was not measured, and step 1 before there were rollouts."""
    measured = {1: {"mse": 0.6}, 2: {"mse": 0.1, "success": 0.2}, 3: {"mse": 0.5, "success": 0.8}, 4: None}
    measured[5] = {"mse": 0.7, "success": 0.0}
    config = CheckpointConfig(keep_last=1, keep_best=1, best_metric=metric)
    with Checkpointer(tmp_path, config, make_assets()) as checkpointer:
        for step, metrics in measured.items():
            state = TrainState(jnp.int32(step), {"x": jnp.zeros(2)}, {}, jnp.zeros(2, jnp.uint32))
            checkpointer.save(state, {"position": step}, metrics)
    assert saved_steps(tmp_path) == kept


def test_success_without_rollouts_ranks_nothing(tmp_path):
    with pytest.raises(ConfigError, match=r"best_metric 'success' is of rollouts: set config\.rollout\.world"):
        train_linear(tmp_path / "run", checkpoint={"best_metric": "success"})
    assert not (tmp_path / "run").exists()


def test_sharded_parameters_play_as_whole_ones(whole, tmp_path):
    train_linear(tmp_path, rollout=ROLLOUT, mesh={"data": 2, "fsdp": 4})
    found, expected = (metrics_of(run, "rollout/success") for run in (tmp_path, whole[0]))
    np.testing.assert_allclose(list(found.values()), list(expected.values()), atol=1 / 40)
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    sharded = jax.device_put(jnp.arange(16.0), NamedSharding(mesh, PartitionSpec("fsdp")))
    one = gather({"x": sharded})["x"]
    assert one.devices() == {jax.local_devices()[0]}
    np.testing.assert_array_equal(one, np.arange(16.0))
