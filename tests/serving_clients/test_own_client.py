"""The client for robots, installed without jax, and the WidowX's that loads none of it, against the server."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from serving_clients.environment import ROOT, python_of
from serving_clients.served import SIZE, checkpoint, serve

from jaxvla.serving.policy import load_policy

pytestmark = pytest.mark.clients
HERE = ROOT / "tests" / "serving_clients"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("served") / "run")


def test_it_acts_as_the_policy_does_and_survives_a_restart(run, tmp_path):
    python = python_of("jaxvla")
    rng = np.random.default_rng(0)
    given = {"images0": rng.integers(0, 256, (100, 48, 48, 3), np.uint8), "goal": np.zeros((48, 48, 3), np.uint8)}
    given["proprio"] = rng.normal(size=(100, 7)).astype(np.float32)
    np.savez(tmp_path / "given.npz", **given)
    with serve("--checkpoint", run, "--port", 0) as address:
        port = address.rpartition(":")[2]
        command = [python, HERE / "jaxvla_acts.py", port, tmp_path / "given.npz", tmp_path / "acted.npz"]
        alone = {"env": {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}, "cwd": tmp_path}
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **alone)
        lines = [client.stdout.readline() for _ in range(3)]
    with serve("--checkpoint", run, "--port", port):
        rest, _ = client.communicate("\n", timeout=120)
    assert client.returncode == 0
    assert lines[0].startswith("found [] 1.")  # nothing of jax, and an old numpy
    assert "error the observation lacks" in lines[1]
    assert lines[2] == "restart\n"
    assert rest.startswith("back ['run']")
    policy, acted = load_policy(run), np.load(tmp_path / "acted.npz")
    task = {"goals": {"images0": given["goal"]}}
    expected = []
    for i in range(100):
        observation = {"images0": given["images0"][i], "proprio": given["proprio"][i]}
        if i % 2:
            policy.observe(observation)
        else:
            expected.extend(policy.act(observation, task))
    np.testing.assert_array_equal(acted["actions"], expected)
    np.testing.assert_array_equal(acted["again"], expected[:4])


def drive(*flags):
    """The WidowX's main where jax cannot be imported; its exit code and what it printed."""
    paths = [str(HERE / "without_jax"), os.environ.get("PYTHONPATH", ""), str(ROOT)]
    command = [sys.executable, str(ROOT / "experiments" / "widowx_client.py"), "--simulate", "--i_am_watching"]
    own = {"env": os.environ | {"PYTHONPATH": os.pathsep.join(paths)}, "timeout": 120, "check": False}
    done = subprocess.run([*command, *map(str, flags)], capture_output=True, text=True, **own)
    return done.returncode, done.stdout + done.stderr


def test_a_widowx_is_driven_from_a_server_without_jax(run, tmp_path):
    token = tmp_path / "token"
    token.write_text("secret")
    with serve("--checkpoint", run, "--port", 0, "--token_file", token) as address:
        place = address.removeprefix("ws://")
        flags = ["--server", place, "--num_timesteps=5", f"--output_path={tmp_path / 'out'}"]
        assert drive(*flags)[0] == 1
        code, printed = drive(*flags, f"--token_file={token}", "--episodes=2")
        assert code == 0, printed
        assert "looks back at 2 steps" in drive(*flags, f"--token_file={token}", "--asynchronous")[1]
    logs = sorted((tmp_path / "out").glob("*.json"))
    assert len(logs) == 2
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 2
    facts = json.loads(logs[0].read_text())
    assert facts["contract"]["cameras"]["images0"]["stored_size"] == [SIZE, SIZE]
    assert (facts["steps_played"], facts["stopped"], facts["task"]) == (5, None, "as the goal shows")
    assert len(facts["steps"]) == 5
