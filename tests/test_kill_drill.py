"""A run of two processes that is killed three times is as if nothing had happened; a drill goes on from its report."""

import json
import os
import pathlib
import subprocess
import sys

import pytest
from data.bridge_files import trajectory, write

ROOT = pathlib.Path(__file__).resolve().parents[1]


@pytest.mark.multiprocess
def test_three_kills_change_nothing(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "data" / "task" / split / "out.tfrecord", [trajectory(i, 6, size=16) for i in range(3)])
    command = [sys.executable, ROOT / "tools" / "kill_drill.py", "--kills=3", f"--output_path={tmp_path / 'drill'}"]
    command += ["--config=train_config.py:gc_bc_tiny", "--bridgedata_config=data_config.py:bdv2_local"]
    changes = {"data_path": tmp_path / "data", "num_steps": 9, "batch_size": 4, "data.image_size": "()"}
    changes |= {"data.action_horizon": 1, "execution.execute_steps": 0, "agent_kwargs.use_proprio": False}
    command += [f"--config.{name}={value}" for name, value in changes.items()]
    own = os.environ | {"PYTHONPATH": str(ROOT)}
    own["XLA_FLAGS"] = own["XLA_FLAGS"].replace("device_count=8", "device_count=1")
    done = subprocess.run(command, env=own, capture_output=True, text=True, timeout=400, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "losses and batches are those of the run that nothing happened to, bit for bit" in done.stdout
    report = json.loads((tmp_path / "drill" / "report.json").read_text())
    assert report["failures"] == []
    assert sum(life["killed"] for life in report["lives"]) == 3
    assert not any(life["hung"] for life in report["lives"])


def test_a_drill_goes_on_from_its_report(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools")
    from kill_drill import Report

    from jaxvla.errors import ConfigError

    folder = tmp_path / "drill"
    report = Report.begun(folder, ["--config=x"])
    assert (report.kills, report.runs) == (0, 0)
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"is there and has no report\.json; give another one, or remove it"):
        Report.begun(folder, ["--config=x"])
    report.lives += [{"run": "drilled1", "killed": killed} for killed in (True, True, False)]
    report.failures.append("drilled1: loss of step 3")
    report.write(folder)
    again = Report.begun(folder, ["--config=x"])
    assert again == report
    assert (again.kills, again.runs) == (2, 1)
    with pytest.raises(ConfigError, match="is of other flags, --config=x; give another one"):
        Report.begun(folder, ["--config=y"])
    assert [path.name for path in folder.iterdir()] == ["report.json"]
