"""The unmodified clients of openpi and vla-eval against the server, compared with the policy in this process."""

import json
import os
import subprocess

import numpy as np
import pytest
from serving_clients.environment import ROOT, python_of
from serving_clients.served import SIZE, checkpoint, serve

from jaxvla.envs.evaluation import episodes
from jaxvla.envs.rollout import rollouts
from jaxvla.envs.worlds import Scenario
from jaxvla.serving.policy import load_policy

pytestmark = pytest.mark.clients
HERE = ROOT / "tests" / "serving_clients"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("served") / "run")


def test_openpi_client(run, tmp_path):
    python = python_of("openpi")
    rng = np.random.default_rng(0)
    given = {name: rng.integers(0, 256, (100, 48, 48, 3), np.uint8) for name in ("images0", "goals")}
    given["proprio"] = rng.normal(size=(100, 7)).astype(np.float32)
    np.savez(tmp_path / "given.npz", **given)
    with serve("--checkpoint", run, "--port", 0) as address:
        port = address.rpartition(":")[2]
        command = [python, HERE / "openpi_acts.py", port, tmp_path / "given.npz", tmp_path / "acted.npz"]
        client = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert client.stdout.readline() == "restart\n"
    with serve("--checkpoint", run, "--port", port):
        rest, _ = client.communicate("\n", timeout=60)
    assert client.returncode == 0
    assert rest.splitlines() == ["away: ConnectionClosedOK", "back"] or rest.splitlines()[1:] == ["back"]
    policy, acted = load_policy(run), np.load(tmp_path / "acted.npz")
    for i in range(100):
        observation = {"images0": given["images0"][i], "proprio": given["proprio"][i]}
        expected = policy.act(observation, {"goals": {"images0": given["goals"][i]}})
        np.testing.assert_array_equal(acted["actions"][i], expected)
    # One that was refused was not seen: the history goes on with the last that was.
    first = {"images0": given["images0"][0], "proprio": given["proprio"][0]}
    chunks = [policy.act(first, {"goals": {"images0": given["goals"][0]}}) for _ in range(2)]
    np.testing.assert_array_equal(acted["played"], np.concatenate(chunks))


def test_vla_eval(run, tmp_path):
    python = python_of("vla-eval")
    count, steps = 4, 7
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{HERE}"}
    with serve("--checkpoint", run, "--port", 0) as address:
        arguments = [address, count, SIZE, steps, tmp_path / "results.json"]
        command = [python, "-m", "vla_eval_tabletop", *map(str, arguments)]
        subprocess.run(command, env=environment, cwd=tmp_path, check=True, timeout=300)
    told = json.loads((tmp_path / "results.json").read_text())
    scenario, states = Scenario("tabletop", "full", (), SIZE, steps), {}

    def watch(episode, instruction, observation, said):
        states.setdefault(str(episode.number), []).append(observation["proprio"].tolist())

    played = rollouts(load_policy(run), [scenario.make()], episodes(scenario, range(count), True, 0), watch)
    expected = {str(result.number): result.success for result in played}
    assert told["states"] == states, "the same steps, to the bit"
    own = {task["task"]: task["episodes"] for task in told["result"]["tasks"]}
    assert {name: bool(each[0]["metrics"]["success"]) for name, each in own.items()} == expected
    assert all(each[0].get("failure_reason") is None for each in own.values())
