"""The main job, from TFRecords to a policy, through experiments/train.py itself."""

import functools
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import pytest
from data.bridge_files import frame, trajectory, write
from data.raw_files import make_session, to_numpy, to_tfrecord
from experiments.mains import load, train_main

from jaxvla.checkpoint import saved_steps
from jaxvla.envs.film import SUFFIX
from jaxvla.errors import CheckpointError, ConfigError, DataError, JaxvlaError
from jaxvla.models.resnet import ARCHITECTURES, Architecture
from jaxvla.parallel import mesh
from jaxvla.parallel.mesh import make_mesh
from jaxvla.serving.policy import load_policy
from jaxvla.training.job import open_job

ROOT = pathlib.Path(__file__).resolve().parents[2]


main = train_main()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    for split, count in (("train", 6), ("val", 2)):
        write(root / "task" / split / "out.tfrecord", [trajectory(i, 6, size=16) for i in range(count)])
    return root


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """The tiny preset, shortened, of augmented images and single actions, on one of the simulated devices."""
    use_devices(1, monkeypatch)
    configs = ROOT / "configs"
    config = load(configs / "train_config.py").get_config("gc_bc_tiny").to_dict()
    config["augment"] = load(configs / "train_base.py").AUGMENT
    config |= {"batch_size": 8, "num_steps": 6, "log_interval": 1, "eval_interval": 3, "save_interval": 3}
    config["save_dir"] = str(tmp_path / "runs")
    config["data"] |= {"image_size": (), "action_horizon": 1}
    config["execution"]["execute_steps"], config["rollout"]["world"] = 0, ""
    config["agent_kwargs"]["use_proprio"] = False
    config["optimizer"] |= {"warmup_steps": 2, "decay_steps": 100}
    return config


def use_devices(count, monkeypatch):
    monkeypatch.setattr(mesh, "make_mesh", functools.partial(make_mesh, devices=jax.devices()[:count]))


def source(data, **changes):
    config = load(ROOT / "configs" / "data_config.py").get_config("bdv2_local").to_dict()
    return config | {"data_path": str(data)} | changes


def only_run(settings):
    (run,) = pathlib.Path(settings["save_dir"]).iterdir()
    return run


def losses(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row["training/loss"] for row in rows if "training/loss" in row}


ROLLOUT = {"world": "tabletop", "level": "few", "episodes": 2, "last_episodes": 3, "interval": 3, "parallel": 3}


def with_rollouts(settings, **changes):
    return settings | {"rollout": settings["rollout"] | ROLLOUT | changes}


def played(run):
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {row["step"]: row for row in rows if "rollout/success" in row}


def test_a_run_leaves_a_policy_that_needs_nothing_else(settings, data, tmp_path, capsys):
    settings = with_rollouts(settings, tasks=("put_in_container", "move_to_side"))
    settings |= {"checkpoint": {"best_metric": "success"}}
    main.train(settings, source(broken(data, tmp_path, "short")) | {"max_skipped": 0.25})
    run = only_run(settings)
    for name in ("config.json", "dataset_statistics.json", "metrics.jsonl", "loss.png", "actions.png"):
        assert (run / name).stat().st_size > 100
    assert saved_steps(run) == [3, 6]
    assert {step: row["rollout/episodes"] for step, row in played(run).items()} == {3: 2, 6: 3}
    assert {"rollout/success_put_in_container", "timer/rollout_share"} <= played(run)[6].keys()
    films = [run / "videos" / f"step6_{number:03d}_failure{SUFFIX}" for number in range(3)]
    assert sorted((run / "videos").iterdir()) == films
    moved = tmp_path / "elsewhere"
    run.rename(moved)
    policy = load_policy(moved)
    action = policy.act({"images0": frame(0, 0, 16)}, {"images0": frame(0, 5, 40)})
    assert action.shape == (1, 7)
    statistics = json.loads((moved / "dataset_statistics.json").read_text())["actions"]
    assert np.all(np.abs(action[0] - statistics["mean"]) < 5 * np.array(statistics["std"]) + 1e-6)
    printed = capsys.readouterr().out
    assert printed.count("skipped      1 of 4 train trajectories (25.0%)\n             1 fewer than 2 transitions") == 1
    assert str(run / "checkpoints" / "6") in printed
    assert "\nplays        1 of 1 actions a decision at 5 Hz, cameras images0 16 x 16\n" in printed
    assert policy.contract.cameras["images0"].stored_size == (16, 16)
    assert printed.count("\nimages0      camera -> 16 x 16 stored -> 16 x 16\n") == 1
    assert "of that of always predicting the mean action" in printed
    lines = printed.splitlines()
    said = lines.index(
        "actions      7: 6 reached movements (differences of states), gripper 6 (1 open, 0 closed, binarized)"
    )
    assert lines[said + 1].startswith("             from x (m) -0.0")
    assert lines[said + 1].endswith("gripper (1 open) 0..1")
    assert any(line.startswith("warning: the actions do not explain the differences of the states") for line in lines)
    assert policy.action_convention.gripper == (6,)
    said = lines.index("success      0 of 3 (0 to 56 %)")
    assert lines[said + 1 : said + 3] == [f"{'':<13}move_to_side 0 of 1", f"{'':<13}put_in_container 0 of 2"]
    assert lines[-3:] == [f"films        {films[0]}", *(f"{'':<13}{film}" for film in films[1:])]


def test_both_cameras_are_converted_trained_on_and_looked_through(settings, tmp_path, monkeypatch):
    both = ("images0", "images1")
    monkeypatch.setitem(ARCHITECTURES, "small", Architecture((1,), num_filters=4))
    settings["agent_kwargs"] |= {"encoder": {"name": "small"}, "hidden_dims": (8,)}
    settings["augment"]["order"] = ()
    make_session(tmp_path / "raw" / "task", count=6, cameras=both)
    to_numpy(tmp_path / "raw", tmp_path / "np")
    to_tfrecord(tmp_path / "np", tmp_path / "tf")
    main.train(settings | {"num_steps": 3}, source(tmp_path / "tf", cameras={name: name for name in both}, actions={}))
    policy = load_policy(only_run(settings))
    assert policy.needed == {"observation": both, "goals": both}
    seen = {name: frame(0, number, 16) for number, name in enumerate(both)}
    action = policy.act(seen, seen)
    for name in both:
        assert np.abs(policy.act(seen | {name: 255 - seen[name]}, seen) - action).max() > 1e-6
    with pytest.raises(DataError, match=r"no camera 'images2', it has images0, images1: set bridgedata_config.cameras"):
        main.train(settings, source(tmp_path / "tf", cameras={"images0": "images0", "wrist": "images2"}))


def test_a_resumed_run_gives_the_same_losses_bit_for_bit(settings, data):
    main.train(settings, source(data))
    whole = losses(only_run(settings))
    halves = settings | {"save_dir": settings["save_dir"] + "_halves", "num_steps": 3}
    main.train(halves, source(data))
    run = only_run(halves)
    main.train(halves | {"num_steps": 6, "resume_path": str(run)}, source(data))
    assert losses(run) == whole
    assert len(whole) == 6


def test_one_and_eight_devices_agree(settings, data, monkeypatch):
    settings |= {"num_steps": 20, "eval_interval": 20, "save_interval": 20}
    found = []
    for devices in (1, 8):
        own = settings | {"save_dir": f"{settings['save_dir']}_{devices}"}
        use_devices(devices, monkeypatch)
        main.train(own, source(data))
        found.append(losses(only_run(own)))
    assert found[0].keys() == found[1].keys() == set(range(1, 21))
    np.testing.assert_allclose(list(found[0].values()), list(found[1].values()), rtol=1e-5)


def test_real_frames_lower_the_loss(settings, bridge_rlds):
    settings |= {"num_steps": 100, "log_interval": 5, "eval_interval": 100, "save_interval": 100}
    settings["optimizer"] |= {"warmup_steps": 5, "learning_rate": 2e-3}
    config = load(ROOT / "configs" / "data_config.py").get_config("bridge_rlds").to_dict()
    main.train(settings, config | {"data_path": str(bridge_rlds), "image_size": (16, 16)})
    found = list(losses(only_run(settings)).values())
    assert np.mean(found[-4:]) < np.mean(found[:4]) - 0.3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"world": "kitchen"}, "config.rollout: no world named 'kitchen'; there are: tabletop"),
        ({"level": "ten"}, "config.rollout: no tabletop level named 'ten'; there are: one, few, full"),
        ({"tasks": ("juggle",)}, "config.rollout: no tabletop task named 'juggle' on level few; there are: put_in_c"),
        ({"interval": 0}, "config.rollout.interval must be at least 1, not 0"),
    ],
)
def test_what_cannot_be_played_is_said_before_data_is_opened(settings, changes, message):
    with pytest.raises(ConfigError, match=message) as error:
        main.train(with_rollouts(settings, **changes), source("/nowhere/at/all"))
    assert "\n" not in str(error.value)


def test_a_policy_that_does_not_fit_the_world_is_refused_before_it_is_trained(settings, data):
    with pytest.raises(ConfigError) as error:
        main.train(with_rollouts(settings), source(data, cameras={"wrist": "images0"}))
    assert str(error.value).startswith("the policy does not fit tabletop: it reads wrist, goals of wrist and acts in 7")
    assert "but tabletop shows images0, images1, proprio [7] and takes 7;" in str(error.value)
    assert not pathlib.Path(settings["save_dir"]).exists()


def test_frames_that_are_no_squares_need_a_size_of_the_camera(settings, tmp_path):
    for split in ("train", "val"):
        features = [trajectory(i, 6, size=16) for i in range(2)]
        for own in features:
            for part in ("observations/images0", "next_observations/images0"):
                own[part] = own[part][:, :12]
        write(tmp_path / "wide" / "task" / split / "out.tfrecord", features)
    with pytest.raises(ConfigError, match="camera_size is 0, but the frames are stored as 12 x 16, not as squares"):
        main.train(with_rollouts(settings), source(tmp_path / "wide"))
    job = open_job(with_rollouts(settings, camera_size=16), source(tmp_path / "wide"))
    main.ClosedLoop(job, main.open_scenario(job.config.rollout))


def broken(data, tmp_path, name):
    """A copy of the data with one fault."""
    root = tmp_path / name
    good = [trajectory(i, 6, size=16) for i in range(3)]
    bad = trajectory(9, 6, size=16)
    if name == "nan":
        bad["actions"][2, 1] = np.nan
    elif name == "short":
        bad = trajectory(9, 1, size=16)
    write(root / "task" / "train" / "out.tfrecord", [*good, bad])
    if name != "no_val":
        write(root / "task" / "val" / "out.tfrecord", good)
    if name == "truncated":
        path = root / "task" / "train" / "out.tfrecord"
        path.write_bytes(path.read_bytes()[:-1000])
    return root


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nan", r"1 actions are not finite, such as .*step 2, dimension 1: nan"),
        ("short", r"1 fewer than 2 transitions, such as .*: 1: repair the data, or"),
        ("no_val", r"no val/out\.tfrecord below"),
        ("truncated", r"out\.tfrecord: record 3 at byte \d+ needs"),
    ],
)
def test_bad_data_is_one_line_and_leaves_no_run(settings, data, tmp_path, name, message):
    with pytest.raises(DataError, match=message) as error:
        main.train(settings, source(broken(data, tmp_path, name)))
    assert "\n" not in str(error.value)
    assert not pathlib.Path(settings["save_dir"]).exists()


@pytest.mark.parametrize(
    ("changes", "source_changes", "message"),
    [
        ({}, {"data_path": "/nowhere/at/all"}, "no data folder /nowhere/at/all"),
        ({}, {"include": (("nothing/?*",),)}, r"include pattern 'nothing/\?\*' matches no"),
        ({}, {"image_sise": (3, 3)}, r"bridgedata_config\.image_sise: did you mean image_size"),
        ({"mesh": {"data": 3, "fsdp": 1, "tensor": 1}}, {}, "needs 3 devices, but there are 1"),
        ({"num_steps": "many"}, {}, r"config\.num_steps must be int"),
        ({"agent": "gc_cb"}, {}, "gc_cb.*gc_bc"),
        ({"agent_kwargs": {"encoder": {"name": "resnet"}}}, {}, "resnetv1-34-bridge"),
        ({"resume_path": "/nowhere/at/all"}, {}, "is no checkpoint"),
        ({"resume_path": "/nowhere/at/all"}, {"data_path": "/nowhere/at/all"}, "is no checkpoint"),
        ({"resume_path": "gs://x/run"}, {"data_path": "/nowhere"}, r"config\.resume_path: gs://x/run is no local path"),
        ({"save_dir": "gs://x/runs"}, {"data_path": "/nowhere"}, r"config\.save_dir: gs://x/runs is no local path"),
        ({"save_dir": __file__}, {"data_path": "/nowhere"}, "cannot make a run folder in .*: .* is no folder that"),
        ({}, {"data_path": "s3://x"}, "data_path: s3://x is no local path: use a local disk, or mount the bucket"),
        ({"checkpoint": {"best_metric": "accuracy"}}, {}, "best_metric 'accuracy'"),
        ({"execution": {"execute_steps": 2}}, {"data_path": "/nowhere"}, r"0 \(all\) to 1, the action_horizon, not 2"),
        ({"execution": {"execute_steps": 4, "ensemble": 0.01}}, {}, "execution.ensemble=0.01 decides at every step"),
        ({"execution": {"ensemble": -1.0}}, {}, r"execution\.ensemble must be 0 or positive, or None, not -1.0"),
        ({"execution": {"realtime": {"enabled": True}}}, {}, "is for actions that are made by flow matching, which"),
        ({}, {"control_frequency": -5.0}, r"bridgedata_config\.control_frequency must be in Hz, or 0 .*, not -5.0"),
    ],
)
def test_bad_settings_are_one_line_and_leave_no_checkpoint(settings, data, changes, source_changes, message):
    with pytest.raises(JaxvlaError, match=message) as error:
        main.train(settings | changes, source(data, **source_changes))
    assert "\n" not in str(error.value)
    assert not list(pathlib.Path(settings["save_dir"]).rglob("metrics.jsonl"))


def test_a_batch_that_the_devices_do_not_divide_is_one_line(settings, data, monkeypatch):
    use_devices(8, monkeypatch)
    with pytest.raises(ConfigError, match=r"9.*8"):
        main.train(settings | {"batch_size": 9}, source(data))
    assert not pathlib.Path(settings["save_dir"]).exists()


def test_resuming_with_another_configuration_names_the_difference(settings, data):
    settings |= {"num_steps": 1}
    main.train(settings, source(data))
    run = only_run(settings)
    changed = settings | {"num_steps": 2, "resume_path": str(run), "seed": 7}
    changed["optimizer"] = settings["optimizer"] | {"learning_rate": 0.5}
    with pytest.raises(CheckpointError, match=r"seed: 42 -> 7") as error:
        main.train(changed, source(data))
    assert "optimizer.learning_rate: 0.001 -> 0.5" in str(error.value)
    assert saved_steps(run) == [1]


SPY = """
import runpy, sys
sys.path.insert(0, {fake!r})
sys.argv = {argv!r}
try:
    runpy.run_path(sys.argv[0], run_name="__main__")
except SystemExit as error:
    assert (error.code or 0) == {code}, error.code
for package in {absent!r}:
    assert package not in sys.modules, package
"""


def spy(tmp_path, arguments, absent, code=0):
    """Runs the main in a process where tensorflow could be imported, and checks that some packages were not."""
    fake = tmp_path / "fake"
    (fake / "tensorflow").mkdir(parents=True)
    (fake / "tensorflow" / "__init__.py").write_text("")
    argv = [str(ROOT / "experiments" / "train.py"), *arguments]
    script = SPY.format(fake=str(fake), argv=argv, absent=absent, code=code)
    cache = os.environ | {"JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir}
    command = [sys.executable, "-c", script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path, env=cache)
    assert done.returncode == 0, done.stderr
    return done


def test_training_from_tfrecords_never_imports_tensorflow(data, tmp_path):
    arguments = [
        "--config=experiments/configs/train_config.py:gc_bc_tiny",
        "--bridgedata_config=data_config.py:bdv2_local",
        f"--config.data_path={data}",
        "--config.batch_size=8",
        "--name=spied",
        "--debug",
    ]
    done = spy(tmp_path, arguments, ["tensorflow", "torch", "wandb"])
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("spied_")
    assert saved_steps(run) == [4]
    assert str(run) in done.stdout
    assert "Traceback" not in done.stderr


def test_help_needs_no_heavy_import(tmp_path):
    done = spy(tmp_path, ["--help"], ["tensorflow", "jax", "grain", "orbax", "flax"], code=1)  # absl's own code
    for flag in ("--config", "--bridgedata_config", "--name", "--[no]debug", "resume_path"):
        assert flag in done.stdout
