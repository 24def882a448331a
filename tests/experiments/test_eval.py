"""Closed loops of a policy from a checkpoint in the tabletop, and the main that counts successes."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import av
import numpy as np
import pytest
from serving.policies import GC_BC, save

from jaxvla.contract import Execution
from jaxvla.data.schema import BatchSpec
from jaxvla.data.transforms.normalization import FieldStatistics, Statistics
from jaxvla.envs.goals import last_frame
from jaxvla.envs.recording import recorded
from jaxvla.envs.rollout import Episode, Pace, rollouts
from jaxvla.envs.tabletop import CAMERA_SIZE, TabletopEnv
from jaxvla.envs.worlds import Scenario
from jaxvla.manifest import MANIFEST
from jaxvla.serving.execution import plan_of
from jaxvla.serving.policy import load_policy

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "experiments" / "eval.py"
SIZE = 16


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """gc_bc with random weights, chunks of two actions and a history of two observations."""
    run = tmp_path_factory.mktemp("run")
    rng = np.random.default_rng(3)
    # Of the size of demonstrated actions.
    actions = rng.normal([0, 0, 0, 0, 0, 0, 0.5], [0.02, 0.02, 0.02, 0, 0, 0.1, 1], (50, 7))
    statistics = Statistics(FieldStatistics.of(actions), FieldStatistics.of(rng.normal(size=(50, 7))), 50, 5)
    spec = BatchSpec(("images0",), (SIZE, SIZE), proprio_dim=7, action_dim=7, obs_horizon=2, action_horizon=2)
    kwargs = GC_BC | {"use_proprio": True}
    said = {"stored_sizes": {"images0": (SIZE, SIZE)}, "control_frequency": 5.0}
    save(run, "gc_bc", kwargs, spec, values=(-0.6, 0.6), statistics=statistics, **said)
    return run


def play(checkpoint, parallel, temperature, execution=None, pace=None):
    """Results without their times, and the gripper's states along each episode."""
    goals = TabletopEnv(SIZE).reset(seed=99)[0]
    states = {}

    def watch(episode, instruction, observation, said):
        states.setdefault(episode.number, []).append(observation["proprio"])

    worlds = [TabletopEnv(SIZE, max_steps=7) for _ in range(parallel)]
    episodes = [Episode(number, 100 + number, goals=goals) for number in range(9)]
    policy = load_policy(checkpoint, robots=parallel, temperature=temperature, execution=execution)
    results = list(rollouts(policy, worlds, episodes, watch=watch, pace=pace))
    unlike = {
        "milliseconds": 0.0,
        "jumps": (),
        "change": 0.0,
        "discontinuities": (),
    }  # computed in other batches, these differ by rounding
    facts = {result.number: dataclasses.replace(result, **unlike) for result in results}
    return facts, {number: np.stack(own) for number, own in states.items()}


@pytest.mark.parametrize("temperature", [0.0, 0.3])
def test_one_by_one_and_eight_at_once_are_the_same_episodes(checkpoint, temperature):
    alone, states = play(checkpoint, 1, temperature)
    together, same_states = play(checkpoint, 8, temperature)
    assert together == alone
    assert {result.decisions for result in alone.values()} == {4}
    for number in range(9):
        np.testing.assert_allclose(same_states[number], states[number], atol=1e-4)
    way = np.stack([own[-1, :3] - own[0, :3] for own in states.values()])
    assert np.ptp(way, axis=0).max() > 1e-3


@pytest.mark.parametrize("execution", [Execution(), Execution(1), Execution(1, 0.5)])
def test_without_latency_it_is_no_matter_who_cuts_and_averages_chunks(checkpoint, execution):
    inside, states = play(checkpoint, 4, 0.3, execution)
    outside, same_states = play(checkpoint, 4, 0.3, Execution(), Pace(plan_of(execution, 2)))
    assert outside == inside
    for number in range(9):
        np.testing.assert_array_equal(same_states[number], states[number])


@pytest.fixture(scope="module")
def run_main(warm):
    """Runs the main as from a shell."""
    return lambda *options: warm.start([SCRIPT, *options], ROOT)


def test_the_report_and_the_films(checkpoint, run_main, tmp_path):
    report = tmp_path / "out" / "report.json"
    done = run_main(
        f"--checkpoint={checkpoint}",
        "--task=stack",
        "--episodes=3",
        "--parallel=2",
        "--max_steps=3",
        "--temperature=0.5",
        "--videos=1",
        f"--output_path={report}",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["checkpoint"] == str(checkpoint / "checkpoints" / "3")
    assert (found["settings"]["task"], found["settings"]["temperature"]) == ("stack", 0.5)
    assert (found["settings"]["execute_steps"], found["settings"]["image_size"]) == (2, SIZE)
    assert found["contract"]["cameras"] == {"images0": {"stored_size": [SIZE, SIZE], "policy_size": [SIZE, SIZE]}}
    assert found["deviations"] == []
    assert done.stdout.startswith(
        "contract     2 of 2 actions a decision at 5 Hz, cameras images0 16 x 16\npolicy: compiled"
    )
    rows = found["episodes"]["policy"]
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert {row["task"] for row in rows} == {"stack"}
    assert len({row["seed"] for row in rows}) == 3
    # Chunks of two: three steps are two decisions.
    assert {(row["steps"], row["decisions"]) for row in rows} == {(3, 2)}
    summary = found["summary"]["policy"]
    assert (summary["successes"], summary["tasks"]) == (0, {"stack": {"episodes": 3, "successes": 0}})
    # Wilson's interval of no success ends at z^2 / (n + z^2).
    np.testing.assert_allclose(summary["interval_95"], [0, 1.96**2 / (3 + 1.96**2)], atol=1e-12)
    assert "0% to 56%" in done.stdout
    (film,) = (tmp_path / "out" / "report_videos").iterdir()
    assert film.name == "policy_000_failure.mp4"
    with av.open(film) as container:
        assert container.streams[0].frames == 4 + 7  # the last one stays for 1.6 s


def test_ways_of_playing_and_latencies_are_compared(checkpoint, run_main, tmp_path):
    report = tmp_path / "report.json"
    done = run_main(
        f"--checkpoint={checkpoint}",
        "--episodes=2",
        "--max_steps=4",
        "--chunking=naive,ensembled",
        "--latency=0,1",
        f"--output_path={report}",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    names = [f"{way} {latency}" for way in ("naive", "ensembled") for latency in (0, 1)]
    assert list(found["summary"]) == list(found["episodes"]) == names
    assert [found["summary"][name]["latency"] for name in names] == [0, 1, 0, 1]
    averages = {way: execution["ensemble"] for way, execution in found["executions"].items()}
    assert averages == {"naive": None, "ensembled": 0.01}
    # The second decision of two actions comes when the first is played out; with latency, after one of them.
    assert [[row["decisions"] for row in found["episodes"][name]] for name in names] == [[2, 2], [4, 4], [4, 4], [4, 4]]
    assert all(len(row["jumps"]) == 3 for row in found["episodes"]["ensembled 0"])
    rows = [line.split(" | ")[:3] for line in done.stdout.splitlines() if line.startswith("| ")]
    assert rows[2:] == [[f"| {way}", latency, "0 of 2"] for way, latency in (name.split() for name in names)]
    assert report.with_suffix(".png").stat().st_size > 1000


def test_films_that_cannot_be_written_are_found_out_first(run_main, tmp_path):
    (tmp_path / "report_videos").touch()
    options = ["--checkpoint=nowhere", f"--output_path={tmp_path / 'report.json'}", "--videos=1", "--video_format=gif"]
    done = run_main(*options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: the film {tmp_path}/report_videos/.trial.gif cannot be written: File exists\n"


def test_what_flags_and_the_world_make_otherwise_is_printed_and_reported(checkpoint, run_main, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(checkpoint, run)
    path = run / "checkpoints" / "3" / "assets" / "assets.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"control_frequency": 30.0}))
    (path.parents[1] / MANIFEST).unlink()
    flags = (
        "--episodes=1",
        "--max_steps=2",
        "--image_size=20",
        "--ensemble=0.01",
        f"--output_path={tmp_path / 'r.json'}",
    )
    done = run_main(f"--checkpoint={run}", *flags)
    assert done.returncode == 0, done.stderr
    lines = [
        "deviation    execute_steps 1, the checkpoint says 2",
        "deviation    ensemble 0.01, the checkpoint says none",
        "deviation    image_size of images0 20 x 20, the checkpoint says 16 x 16",
        "deviation    control_frequency 5 Hz, the checkpoint says 30 Hz",
    ]
    assert done.stdout.splitlines()[1:5] == lines
    found = json.loads((tmp_path / "r.json").read_text())
    assert [
        f"deviation    {each['what']} {each['used']}, the checkpoint says {each['checkpoint']}"
        for each in found["deviations"]
    ] == lines
    used = {name: found["settings"][name] for name in ("execute_steps", "ensemble", "image_size")}
    assert used == {"execute_steps": 1, "ensemble": 0.01, "image_size": 20}
    assert (found["contract"]["execute_steps"], found["contract"]["control_frequency"]) == (2, 30.0)
    assert found["episodes"]["policy"][0]["decisions"] == 2


def test_no_report_is_written_where_none_is_asked_for(checkpoint):
    """In a process of its own."""
    flags = ("--episodes=1", "--max_steps=1", "--execute_steps=0", "--ensemble=none")
    command = [sys.executable, SCRIPT, f"--checkpoint={checkpoint}", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "policy        0/1" in done.stdout
    assert "deviation" not in done.stdout


def test_a_policy_of_another_robot_is_refused_before_it_is_compiled(run_main, tmp_path):
    rng = np.random.default_rng(3)
    statistics = Statistics(
        FieldStatistics.of(rng.normal(size=(50, 14))), FieldStatistics.of(rng.normal(size=(50, 8))), 50, 5
    )
    spec = BatchSpec(("images0", "wrist"), (SIZE, SIZE), proprio_dim=8, action_dim=14)
    save(tmp_path, "gc_bc", GC_BC | {"use_proprio": True}, spec, statistics=statistics)
    done = run_main(f"--checkpoint={tmp_path}", "--episodes=1")
    assert done.returncode == 1
    assert done.stderr.startswith(
        "error: the policy does not fit tabletop: it reads images0, proprio [8], wrist, goals"
    )
    assert "but tabletop shows images0, images1, proprio [7] and takes 7;" in done.stderr
    assert done.stderr.count("\n") == 1
    assert "compiled" not in done.stdout


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--output_path=s3://x/report.json"], "error: --output_path: s3://x/report.json is no local path"),
        (["--checkpoint=gs://runs/x"], "error: gs://runs/x is no local path"),
        (["--task=juggle"], "error: no tabletop task named 'juggle' on level full; there are: put_in_container"),
        (["--modes=none"], "error: gc_bc does not reason: no mode of inference can be chosen, leave 'none' out"),
        (["--videos=2"], "error: --videos needs --output_path"),
        (["--video_format=avi"], "error: flag --video_format=avi: value should be one of <mp4|gif>"),
        (["--execute_steps=3"], "error: execution.execute_steps must be 0 (all) to 2, the action_horizon, not 3"),
        (["--ensemble=much"], "error: --ensemble must be a number or none, not 'much'"),
        (["--chunking=fast"], "error: --chunking must be some of naive, ensembled, realtime, prefix, both, not fast"),
        (["--latency=0,2"], "error: --latency=2 does not go with chunks of 2 actions"),
        (["--latency=1,1"], "error: --latency must be different numbers of control steps, not '1,1'"),
        (["--least_delay=1", "--chunking=naive"], "error: --least_delay is for chunks in real time: add --chunking"),
        (["--chunking=realtime"], "error: execution.realtime is for actions that are made by flow matching"),
    ],
)
def test_mistakes_are_one_line(checkpoint, run_main, options, line):
    done = run_main(f"--checkpoint={checkpoint}", *options)
    assert done.returncode == 1
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_the_cameras_of_episodes_are_those_of_demonstrations():
    """Frames and goals pass through the JPEG of the recordings, at the size at which demonstrations are made."""
    scenario = Scenario("tabletop")
    world = scenario.make()
    seen = world.reset(seed=5)[0], world.step(np.zeros(7))[0], scenario.episode(0, 5, with_goals=True).goals
    env = TabletopEnv()
    views = [env.reset(seed=5)[0], env.step(np.zeros(7))[0], last_frame(CAMERA_SIZE, 5)]
    np.testing.assert_array_equal([view["images0"] for view in seen], [recorded(view)["images0"] for view in views])
