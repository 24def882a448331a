"""The main that serves checkpoints: what it refuses to begin with, and one day of it."""

import asyncio
import json
import os
import socket
import subprocess
import sys

import numpy as np
from serving.policies import gray
from serving.server.hosts import client
from serving_clients.served import ROOT, checkpoint, serve

from jaxvla.serving.policy import load_policy

# Parses the flags of each case in turn, and prints how the main ended.
RUNS = """
import importlib.util, json, sys
from absl import flags
from jaxvla.errors import JaxvlaError
spec = importlib.util.spec_from_file_location("serve", "experiments/serve.py")
serve = importlib.util.module_from_spec(spec)
spec.loader.exec_module(serve)
for case in json.load(sys.stdin):
    flags.FLAGS.unparse_flags()
    for name in flags.FLAGS:
        flags.FLAGS[name].unparse()
    flags.FLAGS(["serve.py", *case])
    try:
        serve.main([])
    except JaxvlaError as error:
        print(error)
"""


def test_mistakes(tmp_path):
    run = checkpoint(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    (tmp_path / "token").touch()
    taken = socket.create_server(("127.0.0.1", 0))
    port = taken.getsockname()[1]
    given = f"--checkpoint={run}"
    cases = {
        (f"--checkpoint=a={run}", f"--checkpoint=a={tmp_path}"): f"two of --checkpoint are named 'a', {run} and",
        (f"--checkpoint=metrics={run}",): "'metrics' cannot be a name in an address; give NAME=",
        (f"--checkpoint={tmp_path}/no",): f"{tmp_path}/no",
        (f"--checkpoint={tmp_path}/empty", "--port=0"): f"{tmp_path}/empty",
        (given, f"--port={port}"): f"port {port} of 127.0.0.1 cannot be had, Address already in use: end what uses it",
        (given, "--host=0.0.0.0"): "--host 0.0.0.0 can be reached from other machines: give a --token",
        (given, f"--token_file={tmp_path}/token"): "is empty",
        (given, f"--token_file={tmp_path}/other"): "cannot be read",
        (given, "--token=a", "--token_file=b"): "give --token or --token_file, not both",
        (given, "--tls_certificate=a.pem"): "give both --tls_certificate and --tls_key, or neither",
        (
            given,
            "--keys=pusht",
        ): "--keys must be one of jaxvla, libero, droid, aloha, bridge, lerobot, vla-eval, starvla",
        (given, "--camera=images0"): "--camera must be CAMERA=PATH, once for each camera, not images0",
        (given, "--gripper=1"): "--gripper must be CLOSED,OPEN, two numbers, not 1",
        (given, "--gripper=1,-1", "--port=0"): "run does not say which of its actions is a gripper",
        (given, "--camera=wrist=a", "--port=0"): "run has no camera 'wrist'; it has images0",
        (given, "--mode=none", "--port=0"): "gc_bc does not reason: no mode of inference can be chosen",
    }
    done = subprocess.run(
        [sys.executable, "-c", RUNS],
        input=json.dumps(list(cases)),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    taken.close()
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == len(cases), lines
    for line, (case, expected) in zip(lines, cases.items()):
        assert expected in line, case


def test_two_checkpoints_are_served_and_end(tmp_path):
    run = checkpoint(tmp_path / "run")
    (tmp_path / "token").write_text("secret\n")
    observation = {"images0": gray(9, (16, 16)), "proprio": np.arange(7.0), "goals": {"images0": gray(3, (16, 16))}}

    async def act(address):
        async with client(f"{address}/b", additional_headers={"Authorization": "Bearer secret"}) as (ask, metadata, _):
            return metadata, await ask(observation)

    flags = "--checkpoint", run, "--checkpoint", f"b={run}", "--port", 0, "--token_file", tmp_path / "token"
    with serve(*flags, "--any_image_size", "--robots", 1) as address:
        metadata, answer = asyncio.run(act(address))
    assert list(metadata["policies"]) == ["run", "b"]
    assert metadata["policies"]["b"]["contract"]["control_frequency"] == 5.0
    expected = load_policy(run).act(observation, {"goals": observation["goals"]})
    np.testing.assert_array_equal(answer["actions"], expected)
