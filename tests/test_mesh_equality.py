"""A preset has the losses of one device on a mesh, in one process and in two; and the tool says so where it has not."""

import os
import pathlib
import subprocess
import sys

import pytest
from data.bridge_files import trajectory, write

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.multiprocess
def test_losses_of_meshes_are_compared(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "task" / split / "out.tfrecord", [trajectory(i, 6, size=16) for i in range(3)])
    command = [sys.executable, ROOT / "tools" / "mesh_equality.py", "--cases=2x1x1,1x2x1@2", "--steps=2"]
    command += ["--config=train_config.py:gc_bc_tiny", "--bridgedata_config=data_config.py:bdv2_local"]
    changes = {"data_path": tmp_path, "batch_size": 4, "data.image_size": "()", "data.action_horizon": 1}
    changes |= {"execution.execute_steps": 0, "agent_kwargs.use_proprio": False}
    command += [f"--config.{name}={value}" for name, value in changes.items()]
    done = subprocess.run(command, env=os.environ, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    first, *cases = done.stdout.splitlines()
    assert first.startswith("one device: losses ")
    assert len(set(first.split()[3:])) == 2
    assert [case.partition(" at most, at step ")[0].rpartition(" ")[0].strip() for case in cases] == [
        "2 x 1 x 1",
        "1 x 2 x 1, 2 processes",
    ]


def test_cases_that_are_none(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from mesh_equality import Case, furthest

    from jaxvla.errors import ConfigError

    assert Case.read("2x4x1") == Case((2, 4, 1))
    assert Case.read("2x2x2@4") == Case((2, 2, 2), 4)
    for text in ("2x4", "0x1x1", "2x2x2@", "2x1x1@x"):
        with pytest.raises(ConfigError, match=rf"--cases: '{text}' is not like 2x4x1 or 2x2x2@4"):
            Case.read(text)
    with pytest.raises(ConfigError, match=r"--cases: 3x1x1@2: 3 devices do not divide over 2 processes"):
        Case.read("3x1x1@2")
    assert furthest([2.0, 1.5, 3.0], [2.0, 1.0, 2.0]) == (0.5, 3)
    assert furthest([2.0, float("nan")], [2.0, 1.0]) == (float("inf"), 2)
