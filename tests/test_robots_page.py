"""The code of docs/robots.md runs, and its messages are those of the sources."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
from serving_clients.openpi_server import OpenpiServer
from test_docs import literals, stands_in

ROOT = pathlib.Path(__file__).resolve().parents[1]
TEXT = (ROOT / "docs" / "robots.md").read_text()
CLIENT, OWN_ROBOT = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
METADATA = {
    "server": "jaxvla",
    "policies": {
        "lift": {"contract": {"execute_steps": 2, "obs_horizon": 1}, "needed": ["images0", "proprio", "language"]}
    },
}


def up(request):
    return np.float32([[0, 0, 0.01, 0, 0, 0, 1]] * 2)


def test_your_own_robot_takes_40_lines():
    assert 30 < OWN_ROBOT.count("\n") <= 40


def test_the_client_acts():
    with OpenpiServer(needed="images0", decide=up) as server:
        code = CLIENT.replace('"192.168.0.7", 8000', f'"127.0.0.1", {server.port}')
        values = {"pixels": np.zeros((8, 8, 3), np.uint8), "state": np.zeros(7)}
        exec(code, values)
        assert values["reply"]["actions"].shape == (2, 7)
        assert {*server.requests[0]} == {"images0", "proprio", "language"}


@pytest.mark.parametrize(
    ("decide", "printed", "decisions"),
    [
        (up, "", 2),
        (lambda request: up(request) * np.nan, "the robot stands still: ValueError('step 0: the policy gave [nan ", 1),
        (lambda request: np.zeros(0, np.float32), "the robot stands still: ClientError(", 1),
    ],
)
def test_your_own_robot_moves_or_stands_still(decide, printed, decisions, tmp_path):
    with OpenpiServer(METADATA, needed="images0", decide=decide) as server:
        code = (
            OWN_ROBOT.replace("8000", str(server.port))
            .replace("range(60)", "range(4)")
            .replace("HZ, MOST = 5", "HZ, MOST = 50")
        )
        own = "\nprint('at', *robot.arm.env.state.round(3))\n"
        (tmp_path / "my_robot.py").write_text(code + own)
        environment = {"PYTHONPATH": f"{ROOT / 'tests' / 'serving_clients' / 'without_jax'}:{ROOT}"}
        command = [sys.executable, str(tmp_path / "my_robot.py")]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=60, check=True)
        assert len(server.requests) == decisions
        assert server.requests[0]["images0"].shape == (64, 64, 3)
        assert done.stdout.startswith(printed or "at ")
        assert done.stderr == ""


def test_messages_of_the_table_are_those_of_the_sources():
    sources = "\n".join(text.replace("\n", " ") for text in literals())
    table = TEXT.partition("| message | mend |")[2]
    fragments = re.findall(r"^\| `(.*?)` \|", table, re.MULTILINE)
    assert len(fragments) == 6
    assert [each for each in fragments if not stands_in(each, sources)] == []
