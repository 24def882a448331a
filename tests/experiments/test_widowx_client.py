"""The main that drives a WidowX, as a person starts it: what moves, what is kept, and how it is stopped."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading

import av
import jax
import numpy as np
import pytest
from robots.simulation import CONTRACT
from serving_clients.openpi_server import OpenpiServer
from serving_clients.served import checkpoint

from jaxvla.robots.simulated import SimulatedWidowX
from jaxvla.robots.wire import Answering

ROOT = pathlib.Path(__file__).resolve().parents[2]
WITHOUT_JAX = ROOT / "tests" / "serving_clients" / "without_jax"
METADATA = {
    "server": "jaxvla",
    "policies": {"lift": {"contract": CONTRACT, "needed": ["images0", "proprio", "language"]}},
}


def start(*flags, without_jax=True):
    paths = [*([str(WITHOUT_JAX)] if without_jax else []), str(ROOT), os.environ.get("PYTHONPATH", "")]
    cache = {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    command = [sys.executable, str(ROOT / "experiments" / "widowx_client.py"), *map(str, flags)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = os.environ | cache | {"PYTHONPATH": os.pathsep.join(paths)}
    return subprocess.Popen(command, env=environment, text=True, **pipes)


def run(*flags, said="", **others):
    """Exit code and what was printed."""
    process = start(*flags, **others)
    out, error = process.communicate(said, timeout=120)
    return process.returncode, out + error


@pytest.fixture
def robot():
    """A simulated robot behind the service's wire, and the flags that name it."""
    simulated = SimulatedWidowX(3)
    with Answering(simulated.answer) as service:
        yield simulated, (f"--robot=127.0.0.1:{service.port}", "--image_size=16")


def down(request):
    return np.float32([[0.0, 0, -0.01, 0, 0, 0, 0]] * 2)


@pytest.fixture
def policy():
    with OpenpiServer(METADATA, needed="images0", decide=down) as server:
        yield server


def whole(path):
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(video=0))


def test_an_episode_that_a_person_instructs_and_judges(robot, policy, tmp_path):
    simulated, flags = robot
    server = f"--server=127.0.0.1:{policy.port}"
    flags = (*flags, server, "--num_timesteps=4", f"--output_path={tmp_path}", "--i_am_watching")
    code, printed = run(*flags, said="\n lower it \ny\n")
    assert code == 0, printed
    assert "What is to be done? " in printed
    assert "played       4 steps, 0 clipped to the bounds" in printed
    (log,), (film,) = tmp_path.glob("*.json"), tmp_path.glob("*.mp4")
    facts = json.loads(log.read_text())
    assert (facts["task"], facts["success"], facts["steps_played"]) == ("lower it", True, 4)
    assert whole(film) == 5 + round(1.6 * 5 - 1)
    assert [key for key, _ in simulated.commanded] == ["init", "reset", "gripper", "move", *["step_action"] * 4]
    assert {request["language"] for request in policy.requests} == {"lower it"}
    assert policy.requests[0]["jaxvla"]["reset"] is True
    assert len(policy.requests) == 2  # chunks of two


def test_nothing_moves_unless_somebody_watches(robot, policy, tmp_path):
    simulated, flags = robot
    code, printed = run(*flags, f"--server=127.0.0.1:{policy.port}", f"--output_path={tmp_path / 'out'}")
    assert code == 1
    assert printed.startswith("error: nothing moves without --i_am_watching: stand beside the robot")
    assert simulated.commanded == policy.requests == []
    assert not (tmp_path / "out").exists()


def test_the_keyboard_stops_it_and_what_was_seen_is_kept(robot, policy, tmp_path):
    simulated, flags = robot
    flags = (*flags, f"--server=127.0.0.1:{policy.port}", "--instruction=lower it", f"--output_path={tmp_path}")
    pressed = threading.Event()

    def decide(request):
        if len(policy.requests) == 3:
            pressed.set()
        return down(request)

    policy.decide = decide
    process = start(*flags, "--i_am_watching")
    assert pressed.wait(60)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    commanded, state = len(simulated.commanded), simulated.env.state.copy()
    assert process.returncode == 130
    assert "stopped      by the keyboard at step" in out
    assert "nothing more is sent: the arm holds its last pose, the gripper keeps what it holds" in out
    assert "Traceback" not in error
    (log,), (film,) = tmp_path.glob("*.json"), tmp_path.glob("*.mp4")
    facts = json.loads(log.read_text())
    assert facts["by_keyboard"] is True
    assert commanded - 4 - facts["steps_played"] in (0, 1)  # one may have been sent and not been answered
    assert whole(film) >= facts["steps_played"]
    np.testing.assert_array_equal(simulated.env.state, state)


def test_a_policy_that_gives_nan_ends_it_with_an_error(robot, policy, tmp_path):
    simulated, flags = robot
    policy.decide = lambda request: down(request) * (np.nan if len(policy.requests) > 1 else 1)
    flags = (*flags, f"--server=127.0.0.1:{policy.port}", "--instruction=lower it", f"--output_path={tmp_path}")
    code, printed = run(*flags, "--i_am_watching")
    assert code == 1
    assert "stopped      at step 2: the policy gave the action [nan, " in printed
    assert "\nerror: at step 2: the policy gave the action" in printed
    assert simulated.commanded[-1][0] == "step_action"
    assert len(simulated.commanded) == 4 + 2
    assert len(list(tmp_path.glob("*.mp4"))) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "give --server or --checkpoint, one of them"),
        (["--server=127.0.0.1:1", "--checkpoint=x"], "give --server or --checkpoint, one of them"),
        (["--server=nowhere"], "--server must be HOST:PORT"),
        (["--checkpoint=x", "--asynchronous"], "--asynchronous needs a --server"),
    ],
)
def test_flags_that_say_nothing_are_one_line(flags, message, tmp_path):
    code, printed = run("--i_am_watching", f"--output_path={tmp_path}", *flags)
    assert (code, printed.count("\n")) == (1, 1)
    assert printed.startswith(f"error: {message}")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--robot=127.0.0.1:1"], "does not answer within 3 s: is it running"),
        (["--cameras=images1=/blue/image_raw"], "the policy looks at images0, and --cameras names images1"),
        (["--cameras=images0"], "--cameras must be CAMERA=TOPIC"),
        (["--low=0,0,0"], "--low must be 4 numbers, not 0,0,0"),
        (["--low=1,0,0,0"], "nothing lies between the bounds"),
        (["--initial_eep=0.1,nan,0"], "--initial_eep must be 3 numbers"),
        (["--goal_eep=0.1,0,0.9"], "--goal_eep (0.1, 0.0, 0.9) is out of bounds"),
    ],
)
def test_what_cannot_be_driven_is_one_line(flags, message, policy, tmp_path):
    server = f"--server=127.0.0.1:{policy.port}"
    code, printed = run("--i_am_watching", server, "--instruction=lift", f"--output_path={tmp_path}", *flags)
    assert (code, printed.count("\n")) == (1, 1)
    assert message in printed
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_drives_a_simulated_robot(tmp_path):
    folder = checkpoint(tmp_path / "run")
    flags = ("--simulate", "--num_timesteps=3", f"--output_path={tmp_path / 'out'}", "--i_am_watching")
    code, printed = run(*flags, f"--checkpoint={folder}", without_jax=False)
    assert code == 0, printed
    (log,) = (tmp_path / "out").glob("*.json")
    facts = json.loads(log.read_text())
    assert (facts["steps_played"], facts["success"], facts["task"]) == (3, False, "as the goal shows")
    assert facts["contract"]["obs_horizon"] == 2
