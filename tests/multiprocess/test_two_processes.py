"""Two processes of four devices each train as one process of eight does."""

import functools

import pytest
from training import process_jobs
from training.linear_run import ROLLOUT, metrics_of, train_linear

from jaxvla.checkpoint import find_checkpoint, read_json, saved_steps

MESH = {"data": 2, "fsdp": 4}


start_job = functools.partial(process_jobs.start_job, "linear_run.py", 2, 4)


@pytest.mark.multiprocess
def test_a_job_of_two_is_stopped_and_one_process_goes_on(tmp_path):
    settings = {"mesh": MESH, "log_interval": 1, "eval_interval": 3, "save_interval": 3, "num_steps": 8}
    settings |= {"rollout": ROLLOUT | {"interval": 3}, "checkpoint": {"best_metric": "success"}}
    alone, job = tmp_path / "alone", tmp_path / "job"
    train_linear(alone, **settings)
    errors = start_job(run=str(job), stop=[1, 5], **settings)  # a signal to the second process stops both
    assert "step 3/8" in errors[0]
    assert "step 3/8" not in errors[1]
    assert "SIGTERM" in errors[1]
    first, last = saved_steps(job)
    assert first == 3 < last < 8
    assert read_json(find_checkpoint(job), "data") == [{"position": last}, {"position": last}]
    train_linear(job, resume_path=str(job), **settings)
    for name in ("training/loss", "validation/mse", "validation/mse_mean_action"):
        assert metrics_of(job, name) == pytest.approx(metrics_of(alone, name), rel=1e-5)
    played = metrics_of(alone, "rollout/success")
    assert metrics_of(job, "rollout/success") == pytest.approx(played, abs=1 / 40)
    assert list(played) == [3, 6, 8]
    assert list(metrics_of(job, "training/loss")) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.multiprocess
def test_an_error_of_one_process_ends_both_with_one_message(tmp_path):
    settings = {"mesh": MESH, "log_interval": 1, "num_steps": 8, "run": str(tmp_path)}
    errors = start_job(codes=(1, 1), fail=[1, 4, "damaged"], **settings)
    reason = "process 1: error: out.tfrecord: record 3 is damaged"
    assert errors[1].splitlines().count(reason) == 1
    (line,) = [line for line in errors[0].splitlines() if "error" in line]
    assert line == f"process 0: ending, since {reason}"
    assert not any("Traceback" in text for text in errors)


@pytest.mark.multiprocess
def test_a_step_that_hangs_ends_both_with_the_stack_of_who_waits(tmp_path):
    settings = {"mesh": MESH, "log_interval": 1, "num_steps": 12, "run": str(tmp_path)}
    settings["watchdog"] = {"factor": 5.0, "at_least_s": 3.0, "end": True}
    errors = start_job(codes=(1, 1), fail=[0, 9, "hang"], **settings)
    assert "linear_run.py" in errors[0]
    assert all("WARNING: process" in text or "ending, since process" in text for text in errors)
    assert any("has taken" in text and "resume from the last checkpoint" in text for text in errors)
