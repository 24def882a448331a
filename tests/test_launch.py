"""The launch files: that they parse, that their flags are those of train.py, and that one of them trains."""

import json
import os
import pathlib
import re
import subprocess
import sys

import pytest
import yaml
from data.bridge_files import trajectory, write

ROOT = pathlib.Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
SCRIPTS = sorted([*LAUNCH.glob("*.sh"), *LAUNCH.glob("*.sbatch")])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse(path):
    subprocess.run(["bash", "-n", path], check=True)


def test_the_manifest_parses_and_says_the_number_of_pods_once():
    service, job = yaml.safe_load_all((LAUNCH / "gke.yaml").read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    spec, name = job["spec"], service["metadata"]["name"]
    (container,) = spec["template"]["spec"]["containers"]
    assert spec["completions"] == spec["parallelism"]
    assert f"--num_processes={spec['completions']}" in container["args"]
    assert spec["template"]["spec"]["subdomain"] == name
    port = container["ports"][0]["containerPort"]
    assert f"--coordinator={job['metadata']['name']}-0.{name}:{port}" in container["args"]
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes


def test_their_flags_are_those_of_train():
    text = (ROOT / "experiments" / "train.py").read_text()
    known = set(re.findall(r'DEFINE_\w+\(\s*"(\w+)"', text))
    others = {"kill", "gpu", "gpus", "label", "list", "zone", "worker", "command", "exclude", "quiet"}
    for path in [*SCRIPTS, LAUNCH / "gke.yaml"]:
        lines = [line for line in path.read_text().splitlines() if not line.startswith("#SBATCH")]
        found = set(re.findall(r"(?<![\w-])--([a-z_]+)", "\n".join(lines)))
        assert found & known, path
        assert found - known - others == set(), path


@pytest.mark.multiprocess
def test_one_host_trains_with_two_processes_and_is_complete_when_started_again(tmp_path):
    for split in ("train", "val"):
        write(tmp_path / "data" / "task" / split / "out.tfrecord", [trajectory(i, 6, size=16) for i in range(3)])
    command = [LAUNCH / "local.sh", "--config", "train_config.py:gc_bc_tiny"]
    command += ["--bridgedata_config", "data_config.py:bdv2_local", "--name", "first"]
    changes = {"data_path": tmp_path / "data", "save_dir": tmp_path, "num_steps": 2, "log_interval": 1}
    changes |= {"batch_size": 4, "eval_interval": 2, "save_interval": 1, "data.image_size": "()"}
    changes |= {"data.action_horizon": 1, "execution.execute_steps": 0, "agent_kwargs.use_proprio": False}
    command += [f"--config.{name}={value}" for name, value in changes.items()]
    own = {"PROCESSES": "2", "RESTARTS": "0", "PYTHON": sys.executable, "PYTHONPATH": str(ROOT)}
    own |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2 --xla_backend_optimization_level=0"}
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line) for line in (tmp_path / "first" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "training/loss" in row] == [1, 2]
    assert "devices      4 (cpu): data 4, fsdp 1, tensor 1" in done.stdout
    done = subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert f"{tmp_path / 'first'} is complete, at step 2" in done.stdout
