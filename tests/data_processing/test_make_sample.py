import hashlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

from jaxvla.data.formats.untrusted import load_pickle
from jaxvla.envs.expert import demonstrate
from jaxvla.envs.recording import recorded
from jaxvla.envs.tabletop import NEUTRAL_STATE, START_SPREAD, TabletopEnv

ROOT = pathlib.Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "data_processing" / "make_sample_bridgedata.py"


def command(output: pathlib.Path, *flags: str) -> list[str]:
    return [sys.executable, str(SCRIPT), f"--output_path={output}", "--image_size=32", *flags]


def make(output: pathlib.Path, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(command(output, *flags), cwd=ROOT, capture_output=True, text=True, check=False)


def md5s(folder: pathlib.Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {str(file.relative_to(folder)): hashlib.md5(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    output = tmp_path_factory.mktemp("sample") / "new" / "raw"
    run = make(output, "--num_trajectories=7", "--num_workers=2")
    assert run.returncode == 0, run.stderr
    assert "wrote 7 trajectories" in run.stdout
    return output


@pytest.fixture(scope="module")
def trajectories(dataset):
    return sorted(dataset.glob("*/*/raw/traj_group0/traj*"))


def test_every_task_has_dated_folders_that_can_be_split(dataset, trajectories):
    assert len(trajectories) == 7
    sessions = {}
    for folder in trajectories:
        task, date = folder.relative_to(dataset).parts[:2]
        sessions.setdefault(task, set()).add(date)
        assert time.strptime(date, "%Y-%m-%d_%H-%M-%S") > time.strptime("2021-07-23", "%Y-%m-%d")
    assert {task: len(dates) for task, dates in sessions.items()} == {
        "put_in_container": 2,
        "move_to_side": 2,
        "stack": 2,
    }
    config = json.loads((trajectories[0].parents[2] / "config.json").read_text())
    assert config["agent"]["env"][1]["camera_topics"][0] == "/D435/color/image_raw"


def test_pickles_hold_what_the_collector_writes(trajectories):
    for folder in trajectories:
        observations, policy = load_pickle(folder / "obs_dict.pkl"), load_pickle(folder / "policy_out.pkl")
        steps = len(policy)
        assert {key: len(value) for key, value in observations.items()} == dict.fromkeys(observations, steps + 1)
        states = observations["full_state"]
        assert states.shape == (steps + 1, 7)
        np.testing.assert_allclose(np.diff(observations["time_stamp"]), 0.2, atol=1e-6)
        actions = np.stack([step["actions"] for step in policy])
        np.testing.assert_array_equal(actions[0], [0, 0, 0, 0, 0, 0, 1])
        # A push may end at the edge of the workspace.
        own = [step.get("taught", True) for step in policy]
        np.testing.assert_allclose((states[:-1, :6] + actions[:, :6])[own], states[1:, :6][own], atol=1e-6)
        np.testing.assert_allclose(observations["desired_state"][1:, 6], actions[:, 6])
        # The relative rotation R_eef R_default^T gives back yaw and no roll or pitch.
        default = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]])
        relative = observations["eef_transform"][:, :3, :3] @ default.T
        np.testing.assert_allclose(np.arctan2(relative[:, 1, 0], relative[:, 0, 0]), states[:, 5], atol=1e-9)
        np.testing.assert_allclose(relative[:, 2], np.tile([0, 0, 1], (steps + 1, 1)), atol=1e-9)
        for t, step in enumerate(policy):
            before, after = observations["eef_transform"][t], step["new_robot_transform"]
            np.testing.assert_allclose(step["delta_robot_transform"][:3, :3] @ before[:3, :3], after[:3, :3], atol=1e-9)
            np.testing.assert_allclose(step["delta_robot_transform"][:3, 3] + before[:3, 3], after[:3, 3], atol=1e-9)


def test_there_is_one_jpeg_per_frame_and_camera(trajectories):
    for folder in trajectories:
        frames = len(load_pickle(folder / "obs_dict.pkl")["full_state"])
        for camera in ("images0", "images1"):
            names = {file.name for file in (folder / camera).iterdir()}
            assert names == {f"im_{t}.jpg" for t in range(frames)}
        with Image.open(folder / "images0" / "im_0.jpg") as image:
            assert image.size == (32, 32)
            assert image.format == "JPEG"


def test_language_and_truth_belong_to_the_episode(trajectories):
    folder = trajectories[0]
    agent_data = load_pickle(folder / "agent_data.pkl")
    env = TabletopEnv(image_size=32, max_steps=90, level=agent_data["level"])
    steps = list(demonstrate(env, **agent_data["demonstration"]))
    assert env.success()
    assert agent_data["traj_ok"]
    assert agent_data["term_t"] == len(steps) - 2
    lines = (folder / "lang.txt").read_text().splitlines()
    assert lines == [*env.task.instructions[:2], "confidence: 1"]
    with Image.open(folder / "images0" / "im_3.jpg") as image:
        np.testing.assert_array_equal(np.asarray(image), recorded(steps[3][0])["images0"])
        assert np.abs(np.asarray(image, int) - steps[3][0]["images0"]).mean() < 8


def test_pushes_are_not_taught(trajectories):
    untaught = 0
    for folder in trajectories:
        env = TabletopEnv(render=False, max_steps=90)
        steps = list(demonstrate(env, **load_pickle(folder / "agent_data.pkl")["demonstration"]))
        said = [step.get("taught", True) for step in load_pickle(folder / "policy_out.pkl")]
        assert said == [decision.taught for _, decision in steps[:-1]]
        untaught += said.count(False)
    assert untaught > 0


def test_level_and_coverage_are_those_asked_for(tmp_path):
    flags = ("--level=one", "--noanywhere", "--push_rate=0", "--miss_rate=0", "--num_trajectories=3", "--num_workers=1")
    run = make(tmp_path / "raw", *flags)
    assert run.returncode == 0, run.stderr
    for folder in (tmp_path / "raw").glob("*/*/raw/traj_group0/traj*"):
        assert "red cube" in (folder / "lang.txt").read_text()
        assert not any("taught" in step for step in load_pickle(folder / "policy_out.pkl"))
        start = load_pickle(folder / "obs_dict.pkl")["full_state"][0]
        assert np.abs(start[:3] - NEUTRAL_STATE[:3]).max() <= START_SPREAD
    refused = make(tmp_path / "other", "--level=one", "--tasks=stack")
    assert refused.returncode == 1
    assert refused.stderr == "error: --tasks must be different ones of put_in_container on level one, not stack\n"


def test_several_levels_share_the_trajectories(tmp_path):
    run = make(tmp_path / "raw", "--level=one", "--level=few", "--num_trajectories=6", "--num_workers=1")
    assert run.returncode == 0, run.stderr
    found = [load_pickle(path)["level"] for path in (tmp_path / "raw").rglob("agent_data.pkl")]
    assert (found.count("one"), found.count("few")) == (2, 4)  # of one and of two tasks
    refused = make(tmp_path / "other", "--level=one", "--level=one")
    assert refused.stderr == "error: --level must be given different levels, not one and one\n"


def test_other_tasks_are_made_where_they_are_named(tmp_path):
    flags = ("--tasks=go_around,stack", "--num_trajectories=2", "--num_workers=1", f"--annotations_path={tmp_path}/a")
    run = make(tmp_path / "raw", *flags)
    assert run.returncode == 0, run.stderr
    folders = sorted((tmp_path / "raw").glob("*/*/raw/traj_group0/traj*"))
    assert [folder.relative_to(tmp_path / "raw").parts[0] for folder in folders] == ["go_around", "stack"]
    assert all(
        load_pickle(folder / "agent_data.pkl")["demonstration"]["task"] == folder.parts[-5] for folder in folders
    )
    assert "the post" in (folders[0] / "lang.txt").read_text()
    assert len(json.loads((tmp_path / "a").read_text())) == 2
    replaced = make(tmp_path / "raw", *flags, "--overwrite")
    assert replaced.returncode == 0, replaced.stderr


def test_bytes_do_not_depend_on_the_number_of_workers(dataset, tmp_path):
    run = make(tmp_path / "raw", "--num_trajectories=7", "--num_workers=1")
    assert run.returncode == 0, run.stderr
    first, second = md5s(dataset), md5s(tmp_path / "raw")
    assert first == second
    assert len(first) > 7 * 2 * 20
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw"]


def test_annotations_are_told_for_every_trajectory_whatever_the_workers(dataset, trajectories, tmp_path):
    contents = []
    for workers in (1, 2):
        path = tmp_path / f"{workers}.json"
        run = make(
            tmp_path / f"raw{workers}",
            "--num_trajectories=7",
            f"--num_workers={workers}",
            f"--annotations_path={path}",
        )
        assert run.returncode == 0, run.stderr
        assert f"to {path}" in run.stdout
        contents.append(path.read_bytes())
    assert contents[0] == contents[1]
    assert md5s(tmp_path / "raw1") == md5s(dataset)  # the data is the same with and without annotations
    told = json.loads(contents[0])
    assert sorted(told) == [folder.relative_to(dataset).as_posix() for folder in trajectories]
    for folder in trajectories:
        path = folder.relative_to(dataset).as_posix()
        assert list(told[path]) == ["0"]
        metadata = told[path]["0"]["metadata"]
        assert metadata["file_path"] == path
        assert metadata["n_steps"] == len(load_pickle(folder / "obs_dict.pkl")["full_state"])
        assert metadata["language_instruction"] == (folder / "lang.txt").read_text().splitlines()[0]
    assert len(list(tmp_path.iterdir())) == 4


def test_annotations_are_not_replaced_unasked_nor_put_among_the_data(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("mine")
    flags = ("--num_trajectories=1", "--num_workers=1")
    for place, message in (
        (path, "exists: pass --overwrite"),
        (tmp_path, "is a folder"),
        (tmp_path / "raw/a.json", "lies in"),
    ):
        refused = make(tmp_path / "raw", *flags, f"--annotations_path={place}")
        assert refused.returncode == 1
        assert message in refused.stderr
        assert refused.stderr.count("\n") == 1
    assert path.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.json"]
    replaced = make(tmp_path / "raw", *flags, f"--annotations_path={path}", "--overwrite")
    assert replaced.returncode == 0, replaced.stderr
    assert len(json.loads(path.read_text())) == 1


def test_only_its_own_folders_are_replaced(dataset, tmp_path):
    own = tmp_path / "raw"
    assert make(own, "--num_trajectories=1", "--num_workers=1").returncode == 0
    before = md5s(own)
    refused = make(own, "--num_trajectories=1", "--num_workers=1")
    assert refused.returncode == 1
    assert refused.stderr.startswith(f"error: {own} exists: pass --overwrite")
    assert refused.stderr.count("\n") == 1
    assert md5s(own) == before
    replaced = make(own, "--num_trajectories=1", "--num_workers=1", "--overwrite", "--seed=1")
    assert replaced.returncode == 0, replaced.stderr
    assert md5s(own) != before

    (own / "notes.txt").write_text("mine")
    spared = make(own, "--num_trajectories=1", "--overwrite")
    assert spared.returncode == 1
    assert "did not write" in spared.stderr
    assert (own / "notes.txt").read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["raw"]


def test_a_killed_run_leaves_no_dataset(tmp_path):
    output = tmp_path / "raw"
    process = subprocess.Popen(
        command(output, "--num_trajectories=5000", "--num_workers=1"), cwd=ROOT, stderr=subprocess.DEVNULL
    )
    while not list(tmp_path.glob(".raw.partial-*/*/*/raw/traj_group0/traj0/lang.txt")):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not output.exists()


@pytest.mark.parametrize("flag", ["--num_trajectories=0", "--image_size=8", "--tasks=pour", "--tasks=stack,stack"])
def test_impossible_values_are_refused_in_one_line(tmp_path, flag):
    run = make(tmp_path / "raw", flag)
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert run.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_terminated_it_leaves_neither_workers_nor_folders(tmp_path):
    flags = ("--num_trajectories=100000", "--num_workers=2")
    process = subprocess.Popen(
        command(tmp_path / "raw", *flags), cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    while not list(tmp_path.glob(".raw.partial-*/*/*/raw/*/*")):
        assert process.poll() is None
        time.sleep(0.1)
    process.terminate()
    _, printed = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "terminated\n" in printed
    assert not list(tmp_path.iterdir())
    deadline = time.monotonic() + 30  # multiprocessing's own tracker ends a moment later
    while time.monotonic() < deadline and exists(process.pid):
        time.sleep(0.1)
    assert not exists(process.pid)


def test_an_output_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    run = make(tmp_path / "file" / "raw", "--num_trajectories=1")
    assert run.returncode == 1
    assert run.stderr.startswith("error: ")
    assert "file" in run.stderr
    assert "Traceback" not in run.stderr
