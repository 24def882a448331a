"""Two processes whose latest checkpoint is damaged, or can be read by one of them alone, go on from the same one."""

import functools
import json
import shutil

import numpy as np
import pytest
from training import process_jobs
from training.linear_run import metrics_of, train_linear
from training.two_checkpoints import ARRAYS, cut, the_file

from jaxvla.checkpoint import saved_steps
from jaxvla.manifest import MANIFEST

SETTINGS = {"log_interval": 1, "eval_interval": 20, "save_interval": 3}
start_job = functools.partial(
    process_jobs.start_job, "linear_run.py", 2, 1, timeout=400, mesh={"data": 1, "fsdp": 2}, **SETTINGS
)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run with checkpoints of steps 3 and 6, and the losses of one that went on to step 8."""
    folder = tmp_path_factory.mktemp("runs")
    for name, num_steps in (("short", 6), ("long", 8)):
        train_linear(folder / name, num_steps=num_steps, mesh={"data": 2, "fsdp": 4}, **SETTINGS)
    return folder / "short", metrics_of(folder / "long", "training/loss")


def goes_on(run, losses, **options):
    errors = start_job(run=str(run), resume_path=str(run), num_steps=8, **options)
    found = metrics_of(run, "training/loss")
    assert list(found) == list(losses)
    np.testing.assert_allclose(list(found.values()), list(losses.values()), rtol=1e-5)
    assert saved_steps(run) == [3, 6, 8]
    assert not (run / "damaged" / "6_1").exists()
    (said,) = [line for line in errors[0].splitlines() if "is damaged" in line]
    assert "is damaged" not in errors[1]
    return said


@pytest.mark.multiprocess
def test_both_go_on_from_the_one_before(saved, tmp_path):
    run = shutil.copytree(saved[0], tmp_path / "run")
    cut(the_file(run / "checkpoints" / "6", f"params/{ARRAYS}"))
    said = goes_on(run, saved[1])
    assert said.startswith(f"WARNING: checkpoint {run}/checkpoints/6 is damaged: params/")
    assert said.endswith(f": moved to {run}/damaged/6; going on from step 3")


@pytest.mark.multiprocess
def test_what_one_process_cannot_read_no_process_reads(saved, tmp_path):
    run = shutil.copytree(saved[0], tmp_path / "run")
    early, late = (
        sorted(json.loads((run / "checkpoints" / step / MANIFEST).read_text())["files"]) for step in ("3", "6")
    )
    # The second process reads every other file. Those of arrays have names that no other checkpoint has.
    name = next(name for name in late[1::2] if name not in early)
    said = goes_on(run, saved[1], hidden=[1, name])
    assert f"is damaged: {name}: Permission denied (says process 1): moved to " in said


@pytest.mark.multiprocess
def test_a_process_that_can_read_nothing_ends_both(saved, tmp_path):
    run = shutil.copytree(saved[0], tmp_path / "run")
    errors = start_job(codes=(1, 1), run=str(run), resume_path=str(run), num_steps=8, hidden=[1, "/"])
    assert saved_steps(run) == [3, 6]
    for text in errors:
        (line,) = [line for line in text.splitlines() if "error" in line]
        assert f"none of the 2 checkpoints in {run}/checkpoints is whole" in line
        assert "Permission denied (says process 1)" in line
