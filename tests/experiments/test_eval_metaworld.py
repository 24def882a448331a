"""Meta-World evaluated by a published protocol, from the command line."""

import importlib.util
import json
import pathlib

import pytest
from interchange.act_policies import KWARGS
from serving.policies import make
from serving_clients.served import serve

from jaxvla.data.schema import BatchSpec
from jaxvla.envs.metaworld.protocols import SUITES
from jaxvla.interchange.native import write_native

ROOT = pathlib.Path(__file__).resolve().parents[2]
SIDE = 32
HARD = ["--env=metaworld", "--suite=hard", "--episodes=6", "--max_steps=5", "--parallel=2"]

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("metaworld") is None, reason="needs the simulator: pip install -e '.[metaworld]'"
)


@pytest.fixture(scope="module")
def run_main(warm):
    """Runs the main as from a shell."""
    return lambda *options: warm.start([ROOT / "experiments" / "eval.py", *options], ROOT)


@pytest.fixture(scope="module")
def policy(tmp_path_factory):
    """Random weights, for the camera of LeRobot's protocol."""
    folder = tmp_path_factory.mktemp("act") / "policy"
    spec = BatchSpec(("corner2",), (SIDE, SIDE), 4, 4, action_horizon=6)
    cameras = {"cameras": {"corner2": "observation.images.corner2"}}
    said = {"stored_sizes": {"corner2": (SIDE, SIDE)}, "control_frequency": 80.0}
    data = {"data_path": "data/x", "format": "lerobot"} | cameras
    params, assets = make("act", KWARGS, spec, values=(0.001, 0.005), data_config=data, **said)
    write_native(folder, params, assets, 3, "")
    return folder


@pytest.fixture(scope="module")
def played(policy, run_main, tmp_path_factory):
    report = tmp_path_factory.mktemp("out") / "hard.json"
    done = run_main(f"--checkpoint={policy}", *HARD, f"--output_path={report}", "--videos=1")
    assert done.returncode == 0, done.stderr
    return report, done.stdout


def test_it_says_which_protocol_it_played(played):
    report, printed = played
    lines = printed.splitlines()
    assert lines[0].startswith("protocol     lerobot: corner2 at (0.75, 0.075, 0.7) turned by 180 degrees, 10 episodes")
    assert lines[1:4] == [
        "deviation    episodes 6, the protocol says 60",
        "deviation    max_steps 5, the protocol says 500",
        "deviation    image_size 32, the protocol says 480",
    ]
    found = json.loads(report.read_text())
    assert found["metaworld"]["terms"] == lines[:4]
    assert found["settings"]["seed"] == 42
    assert found["deviations"] == []


def test_every_task_is_told(played):
    report, _ = played
    found = json.loads(report.read_text())
    own = found["metaworld"]["policy"]
    assert list(own["tasks"]) == sorted(SUITES["hard"])
    assert own["difficulties"]["hard"]["episodes"] == 6
    page = report.with_suffix(".md").read_text()
    assert "| hard | 0 of 6 = 0% (0% to 39%) |" in page
    assert len(list(report.with_name("hard_videos").iterdir())) == 1
    assert sorted(path.suffix for path in report.parent.iterdir()) == ["", ".json", ".md"], "the journal is gone"


def test_one_that_was_killed_goes_on(policy, played, run_main, tmp_path):
    """What the journal has is not played again: its steps, which no episode here can have, stay."""
    found = json.loads(played[0].read_text())
    known = found["episodes"]["policy"][:4]
    known[2] |= {"steps": 77}
    settings = {name: value for name, value in found["settings"].items() if name != "parallel"}
    stamp = {"checkpoint": found["checkpoint"]} | settings
    lines = [stamp, *(["policy", result] for result in known)]
    report = tmp_path / "again.json"
    journal = report.with_name(".again.json.episodes")
    journal.write_text("".join(json.dumps(line, sort_keys=True) + "\n" for line in lines))
    done = run_main(f"--checkpoint={policy}", *HARD, f"--output_path={report}")
    assert done.returncode == 0, done.stderr
    again = json.loads(report.read_text())["episodes"]["policy"]
    assert [result["steps"] for result in again] == [5, 5, 77, 5, 5, 5]
    new = [result | {"milliseconds": 0} for result in again[4:]]
    assert new == [result | {"milliseconds": 0} for result in found["episodes"]["policy"][4:]]
    assert not journal.exists()


def test_a_served_policy_plays_the_same(policy, played, run_main, tmp_path):
    report = tmp_path / "served.json"
    with serve(f"--checkpoint={policy}", "--port=0") as address:
        done = run_main(f"--server={address}", *HARD, f"--output_path={report}")
    assert done.returncode == 0, done.stderr
    again, before = (json.loads(path.read_text()) for path in (report, played[0]))
    assert again["checkpoint"] == f"served at {address}"
    assert (again["settings"], again["contract"]) == (before["settings"], before["contract"])
    facts = ("number", "seed", "task", "success", "steps", "decisions")
    for own, others in zip(again["episodes"]["policy"], before["episodes"]["policy"], strict=True):
        assert [own[name] for name in facts] == [others[name] for name in facts]
        # Without the training data's deviations jumps are in the units of actions.
        assert len(own["jumps"]) == len(others["jumps"])


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--env=metaworld", "--suite=mt11"], "error: no metaworld suite named 'mt11', did you mean 'mt10'?"),
        (["--server=x:1"], "error: --checkpoint does not go with --server: leave it out, or start the server with it"),
        (["--suite=mt10"], "error: tabletop has no suites, and so no 'mt10'; worlds with suites are metaworld"),
        (["--env=metaworld", "--suite=mt10", "--task=reach-v3"], "error: --suite takes the place of --task: leave one"),
        (["--env=metaworld", "--level=starvla"], "error: the policy does not fit metaworld: it reads corner2, proprio"),
    ],
)
def test_mistakes_are_one_line(policy, run_main, options, line):
    done = run_main(f"--checkpoint={policy}", *options)
    assert done.returncode == 1
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1
