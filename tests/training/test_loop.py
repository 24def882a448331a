import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from training.linear_agent import LinearAgent
from training.linear_run import ROLLOUT, metrics_of, signalled_at, train_linear
from training.positional_batches import SPEC, PositionalBatches

from jaxvla.checkpoint import find_checkpoint, saved_steps
from jaxvla.errors import CheckpointError, ConfigError, DataError, TrainingError
from jaxvla.ops.augmentation import AugmentConfig
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.training.checkpointer import restore_state
from jaxvla.training.config import OptimizerConfig, TrainConfig
from jaxvla.training.folders import run_folder
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.state import abstract_state

ROOT = pathlib.Path(__file__).parents[2]


def final_state(run):
    optimizer = make_optimizer(OptimizerConfig(1.0))
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return restore_state(find_checkpoint(run), abstract_state(LinearAgent(SPEC), optimizer, mesh))


def assert_same(run, other):
    """Two runs ended in the same state, bit for bit, and logged the same."""
    jax.tree.map(np.testing.assert_array_equal, final_state(run), final_state(other))
    for name in ("training/loss", "training/grad_norm", "validation/mse", "rollout/success"):
        assert metrics_of(run, name) == metrics_of(other, name)


def handlers():
    """What SIGINT and SIGTERM do now; a shell that starts tests in the background has SIGINT ignored."""
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


HANDLERS_BEFORE = handlers()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing happened to, and its summary. It plays, which others do not that are held against it."""
    run = tmp_path_factory.mktemp("whole") / "run"
    return run, train_linear(run, rollout=ROLLOUT)


def test_a_run_learns_and_leaves_its_files(whole):
    run, summary = whole
    assert (summary.step, summary.interrupted) == (60, False)
    assert summary.checkpoint == find_checkpoint(run)
    assert summary.plot.read_bytes().startswith(b"\x89PNG")
    assert saved_steps(run) == [30, 60]
    assert len(list((run / "tensorboard").glob("events.out.tfevents.*"))) == 1
    losses = metrics_of(run, "training/loss")
    assert list(losses) == [10, 20, 30, 40, 50, 60]
    assert losses[60] < 0.5 * losses[10]
    assert summary.train_loss == losses[60]
    validation = metrics_of(run, "validation/mse")
    assert list(validation) == [20, 40, 60]
    assert summary.validation["mse"] == validation[60]
    baseline = metrics_of(run, "validation/mse_mean_action")
    assert len(set(baseline.values())) == 1
    assert summary.mse_ratio == pytest.approx(validation[60] / baseline[60])
    assert summary.mse_ratio < 0.5


def test_timers_are_logged(whole):
    run, _ = whole
    assert list(metrics_of(run, "timer/compile_s")) == [1]
    assert list(metrics_of(run, "timer/validation_s")) == [20, 40, 60]
    assert list(metrics_of(run, "timer/save_ms")) == [30, 60]
    assert list(metrics_of(run, "timer/save_written_s")) == [30, 60]
    step, rate = metrics_of(run, "timer/step_ms"), metrics_of(run, "timer/samples_per_s")
    assert all(1000 * 16 / step[i] == pytest.approx(rate[i]) for i in step)
    assert all(0 <= wait <= step[i] for i, wait in metrics_of(run, "timer/data_wait_ms").items())
    # The model's work is the same at every step, whatever time it takes.
    work = {i: rate * step[i] for i, rate in metrics_of(run, "timer/flops_per_s").items()}
    assert list(work) == list(step)
    assert work == pytest.approx(dict.fromkeys(step, next(iter(work.values()))))
    assert not metrics_of(run, "timer/mfu"), "nobody knows the peak of a CPU"


def test_no_thread_and_no_handler_is_left(whole):
    names = {thread.name for thread in threading.enumerate()}
    assert not names & {"DeviceFeed", "Interrupt", "Watchdog", "Ahead"}
    assert handlers() == HANDLERS_BEFORE


def test_killed_and_resumed_is_as_if_never_stopped(whole, tmp_path):
    run = tmp_path / "run"
    script = pathlib.Path(__file__).with_name("linear_run.py")
    environment = os.environ | {
        "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}",
        "JAX_COMPILATION_CACHE_DIR": str(ROOT / ".cache" / "jax"),
    }
    options = {"run": str(run), "kill_at": 47, "rollout": ROLLOUT}
    done = subprocess.run([sys.executable, script, json.dumps(options)], env=environment, timeout=120)
    assert done.returncode == -signal.SIGKILL
    assert saved_steps(run) == [30]
    assert max(metrics_of(run, "training/loss")) == max(metrics_of(run, "rollout/success")) == 40
    train_linear(run, resume_path=str(run), rollout=ROLLOUT)
    assert_same(run, whole[0])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_and_stops(tmp_path, capsys, number):
    summary = train_linear(tmp_path, signalled_at(37, number))
    assert summary.interrupted
    assert f"{number.name}: stopping after this step, with a checkpoint" in capsys.readouterr().err
    assert saved_steps(tmp_path) == [30, summary.step]
    assert 30 < summary.step <= 40
    assert int(final_state(tmp_path).step) == summary.step
    assert max(metrics_of(tmp_path, "training/loss")) == summary.step


def test_second_interrupt_aborts_at_once():
    code = (
        "import os, signal, time\n"
        "from jaxvla.training.interrupt import Interrupt\n"
        "with Interrupt() as interrupt:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    while not interrupt.requested: time.sleep(0.01)\n"
        "    assert interrupt.agreed()\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    time.sleep(60)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=50)
    assert done.returncode == 130
    assert done.stderr.count("SIGINT: stopping") == 1


def test_a_checkpoint_folder_starts_a_new_run_even_on_another_mesh(whole, tmp_path):
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    train_linear(tmp_path / "run", resume_path=str(whole[0] / "checkpoints" / "30"), mesh=mesh)
    expected = metrics_of(whole[0], "training/loss")
    losses = metrics_of(tmp_path / "run", "training/loss")
    assert losses == pytest.approx({step: expected[step] for step in (40, 50, 60)}, rel=1e-5)
    assert saved_steps(tmp_path / "run") == [60]


def test_a_finished_run_has_nothing_to_resume(whole):
    with pytest.raises(ConfigError, match=r"is at step 60 of 60: raise config.num_steps"):
        train_linear(whole[0], resume_path=str(whole[0]))


def test_another_learning_rate_is_another_run(whole):
    with pytest.raises(CheckpointError, match=r"train_config.optimizer.learning_rate: 0.03 -> 0.1"):
        train_linear(whole[0], resume_path=str(whole[0]), num_steps=90, optimizer={"learning_rate": 0.1})


def poisoned(position, value):
    class Batches(PositionalBatches):
        def __next__(self):
            batch = super().__next__()
            if self.position > position:
                batch["actions"][0] = value
            return batch

    return Batches


@pytest.mark.parametrize(("log_interval", "value"), [(10, np.nan), (100, np.inf)])
def test_a_loss_that_is_not_finite(tmp_path, log_interval, value):
    message = rf"the loss is {value} at step 13; nothing was saved since. Lower config.optimizer.learning_rate"
    with pytest.raises(TrainingError, match=message):
        train_linear(tmp_path, poisoned(12, value), log_interval=log_interval, save_interval=10)
    assert saved_steps(tmp_path) == [10]
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(final_state(tmp_path).params))


class Ending(PositionalBatches):
    error = StopIteration

    def __next__(self):
        if self.position == 7:
            raise self.error
        return super().__next__()


class Damaged(Ending):
    error = DataError("out.tfrecord: record 3 is damaged")


def test_training_data_must_not_end(tmp_path):
    with pytest.raises(TrainingError, match="ended before step 8; a training loader must be endless"):
        train_linear(tmp_path, Ending)


def test_an_error_of_the_loader_ends_the_run(tmp_path):
    with pytest.raises(DataError, match="record 3 is damaged"):
        train_linear(tmp_path, Damaged)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 12}, "batch_size 12 does not divide over 8"),
        ({"checkpoint": {"best_metric": "accuracy"}}, "'accuracy' is no validation metric of linear; there are mse"),
    ],
)
def test_settings_that_do_not_fit_fail_before_the_first_step(tmp_path, changes, message):
    with pytest.raises(ConfigError, match=message):
        train_linear(tmp_path / "run", **changes)
    assert not (tmp_path / "run").exists()


def test_logging_every_step(tmp_path):
    train_linear(tmp_path, log_interval=1, num_steps=3, eval_interval=2, save_interval=2)
    assert list(metrics_of(tmp_path, "training/loss")) == [1, 2, 3]
    assert list(metrics_of(tmp_path, "timer/step_ms")) == [2, 3]
    assert list(metrics_of(tmp_path, "validation/mse")) == [2, 3]


def test_shares_of_datasets_are_those_since_the_last_log(tmp_path):
    options = {"log_interval": 2, "eval_interval": 9, "save_interval": 3}
    train_linear(tmp_path, num_steps=3, drawn=lambda start, stop: {"a": start + stop / 100}, **options)
    assert metrics_of(tmp_path, "data/share/a") == {2: 0.02, 3: 2.03}
    again = {"resume_path": str(tmp_path), "num_steps": 5}
    train_linear(tmp_path, drawn=lambda start, stop: {"b": start + stop / 100}, **options, **again)
    assert metrics_of(tmp_path, "data/share/b") == {4: 3.04, 5: 4.05}


def test_run_folders(tmp_path, whole):
    def config(resume_path=""):
        optimizer = OptimizerConfig(1e-3)
        return TrainConfig(
            "gc_bc", {}, 8, 1, 1, 1, 1, AugmentConfig(), optimizer, save_dir=str(tmp_path), resume_path=resume_path
        )

    first, second = run_folder(config()), run_folder(config())
    assert first != second
    assert first.name.startswith("gc_bc_")
    assert first.is_dir()
    assert run_folder(config(), "first_try").name.startswith("first_try_")
    assert run_folder(config(str(whole[0]))) == whole[0]
    assert run_folder(config(str(whole[0] / "checkpoints" / "30"))).parent == tmp_path
    made = list(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        run_folder(config(str(tmp_path)))
    assert list(tmp_path.iterdir()) == made


class Switching(PositionalBatches):
    """Batches that grow a column after 17 steps, as those of the next stage of a curriculum do."""

    def __next__(self):
        columns = 1 if self.position < 17 else 2
        batch = super().__next__()
        return batch | {"columns": np.zeros((len(batch["actions"]), columns), np.float32)}


def test_batches_of_another_shape_compile_once_and_are_logged_apart(whole, tmp_path):
    train_linear(tmp_path, Switching)
    assert list(metrics_of(tmp_path, "timer/compile_s")) == [1, 18]
    losses = metrics_of(tmp_path, "training/loss")
    assert list(losses) == [10, 17, 20, 30, 40, 50, 60]
    assert losses[30] == metrics_of(whole[0], "training/loss")[30]
    assert list(metrics_of(tmp_path, "timer/step_ms")) == list(losses)


def test_a_run_with_an_average_and_in_parts_resumes_exactly(tmp_path):
    changes = {"accumulate_steps": 2, "ema_decay": 0.9}
    train_linear(tmp_path / "whole", **changes)
    train_linear(tmp_path / "half", **changes, num_steps=30)
    train_linear(tmp_path / "half", **changes, resume_path=str(tmp_path / "half"))
    for name in ("training/loss", "validation/mse"):
        whole, half = metrics_of(tmp_path / "whole", name), metrics_of(tmp_path / "half", name)
        assert whole[60] == half[60]
