"""Closed loops of a policy from a checkpoint in the tabletop, and the main that counts successes."""

import dataclasses
import json
import os
import pathlib
import subprocess
import sys

import av
import jax
import numpy as np
import pytest
from serving.policies import GC_BC, save

from jaxvla.data.normalization import FieldStatistics, Statistics
from jaxvla.data.schema import BatchSpec
from jaxvla.envs.goals import last_frame
from jaxvla.envs.recording import recorded
from jaxvla.envs.rollout import Episode, rollouts
from jaxvla.envs.tabletop import CAMERA_SIZE, TabletopEnv
from jaxvla.serving.policy import load_policy

ROOT = pathlib.Path(__file__).resolve().parents[2]
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
    save(run, "gc_bc", kwargs, spec, values=(-0.6, 0.6), statistics=statistics)
    return run


def play(checkpoint, parallel, temperature):
    """Results without their times, and the gripper's states along each episode."""
    goals = TabletopEnv(SIZE).reset(seed=99)[0]
    states = {}

    def watch(episode, instruction, observation, said):
        states.setdefault(episode.number, []).append(observation["proprio"])

    worlds = [TabletopEnv(SIZE, max_steps=7) for _ in range(parallel)]
    episodes = [Episode(number, 100 + number, goals=goals) for number in range(9)]
    policy = load_policy(checkpoint, robots=parallel, temperature=temperature)
    results = list(rollouts(policy, worlds, episodes, watch=watch))
    facts = {result.number: dataclasses.replace(result, milliseconds=0.0) for result in results}
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


def run_main(*options):
    command = [sys.executable, str(ROOT / "experiments" / "eval.py"), *options]
    cache = os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    return subprocess.run(command, capture_output=True, text=True, env=cache, timeout=300, check=False)


def test_the_report_and_the_films(checkpoint, tmp_path):
    report = tmp_path / "out" / "report.json"
    done = run_main(
        f"--checkpoint={checkpoint}",
        "--task=stack",
        "--episodes=3",
        "--parallel=2",
        "--max_steps=3",
        "--image_size=16",
        "--temperature=0.5",
        "--videos=1",
        f"--output_path={report}",
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(report.read_text())
    assert found["checkpoint"] == str(checkpoint / "checkpoints" / "3")
    assert (found["settings"]["task"], found["settings"]["temperature"]) == ("stack", 0.5)
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


def test_films_that_cannot_be_written_are_found_out_first(tmp_path):
    (tmp_path / "report_videos").touch()
    options = ["--checkpoint=nowhere", f"--output_path={tmp_path / 'report.json'}", "--videos=1", "--video_format=gif"]
    done = run_main(*options)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"error: the film {tmp_path}/report_videos/.trial.gif cannot be written: File exists\n"


def test_no_report_is_written_where_none_is_asked_for(checkpoint):
    done = run_main(f"--checkpoint={checkpoint}", "--episodes=1", "--max_steps=1", "--image_size=16")
    assert done.returncode == 0, done.stderr
    assert "policy        0/1" in done.stdout


def test_a_policy_of_another_robot_is_refused_before_it_is_compiled(tmp_path):
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
    ],
)
def test_mistakes_are_one_line(checkpoint, options, line):
    done = run_main(f"--checkpoint={checkpoint}", *options)
    assert done.returncode == 1
    assert done.stderr.startswith(line)
    assert done.stderr.count("\n") == 1


def test_the_cameras_of_episodes_are_those_of_demonstrations(tmp_path):
    """Frames and goals pass through the JPEG of the recordings, at the size at which demonstrations are made."""
    code = (
        "import sys, runpy, numpy as np; main = runpy.run_path(sys.argv[1]); kind = main['WORLDS']['tabletop']; "
        "size = main['FLAGS']['image_size'].default; world = kind.make(size, 9, 'full'); "
        "seen = world.reset(seed=5)[0], world.step(np.zeros(7))[0], kind.goals(size, 5, None, 'full'); "
        "np.save(sys.argv[2], [view['images0'] for view in seen])"
    )
    command = [sys.executable, "-c", code, str(ROOT / "experiments" / "eval.py"), str(tmp_path / "seen.npy")]
    subprocess.run(command, check=True, timeout=300)
    env = TabletopEnv()
    views = [env.reset(seed=5)[0], env.step(np.zeros(7))[0], last_frame(CAMERA_SIZE, 5)]
    np.testing.assert_array_equal(np.load(tmp_path / "seen.npy"), [recorded(view)["images0"] for view in views])
