"""Training that begins from a policy of LeRobot."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from data import lerobot_files
from experiments.mains import load
from interchange.act_policies import DATA, change, save_run

from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError, WeightsError
from jaxvla.interchange.starting import settings_from
from jaxvla.serving.export import export_lerobot
from jaxvla.training.job import open_job

ROOT = pathlib.Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """Of one camera, observation.images.top of 16 x 24, 3 numbers of state and 2 of actions."""
    return lerobot_files.write(tmp_path_factory.mktemp("data") / "grasp", lengths=(6,) * 6)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A policy that fits the data, its folder and its parameters."""
    root, spec = tmp_path_factory.mktemp("act"), BatchSpec(("top",), (16, 24), 3, 2, action_horizon=5)
    params, _ = save_run(root / "run", spec, data_config=DATA | {"cameras": {"top": "observation.images.top"}})
    export_lerobot(root / "run", root / "policy")
    return root / "policy", params


@pytest.fixture
def policy(exported, tmp_path):
    """A copy to change, and the parameters."""
    return shutil.copytree(exported[0], tmp_path / "policy"), exported[1]


def settings(path, preset="act", **changes):
    config = load(ROOT / "configs" / "train_config.py").get_config(preset).to_dict()
    config["rollout"]["world"] = ""
    return config | {"policy": {"path": str(path)}, "batch_size": 2} | changes


def source(data, **changes):
    config = load(ROOT / "configs" / "data_config.py").get_config("lerobot").to_dict()
    return config | {"data_path": str(data), "validation_share": 0.2} | changes


def test_a_job_begins_from_it(policy, dataset):
    folder, params = policy
    job = open_job(settings(folder), source(dataset))
    shapes = jax.eval_shape(job.agent.init, jax.random.key(0))
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    found = job.pretrained(jax.tree.map(lambda _: place, shapes))
    jax.tree.map(np.testing.assert_array_equal, found, params)
    assert job.agent.spec.action_horizon == 5
    assert job.agent.config.transformer.width == 16
    assert job.agent.config.kl_weight == 10  # how it is trained is as the run says
    assert job.assets.execution.execute_steps == 4
    assert job.assets.data_config["cameras"] == {"top": "observation.images.top"}
    text = "\n".join(job.weights)
    assert f"act from {folder}" in text
    assert "model.vae_encoder_pos_enc is not used: a constant" in text
    assert "agent_kwargs.transformer.width 512 -> 16" in text
    assert "data.action_horizon 100 -> 5" in text
    assert "cameras images0=images0 -> top=observation.images.top" in text
    batch = next(job.training_batches())
    assert batch["observations"]["top"].shape == (2, 1, 16, 24, 3)


def test_what_is_played_is_as_the_run_says(policy, dataset):
    made = settings_from(settings(policy[0], execution={"execute_steps": 2, "ensemble": None}), source(dataset))
    assert made.train["execution"] == {"execute_steps": 2, "ensemble": None}
    made = settings_from(settings(policy[0]), source(dataset))
    assert made.train["execution"] == settings(policy[0])["execution"] | {"execute_steps": 4, "ensemble": None}
    assert settings_from(settings(""), source(dataset)) is None


def test_cameras_are_named_by_hand_or_as_lerobot_renamed_them(policy, dataset):
    change(policy[0], input_features=renamed(policy[0], "observation.images.front"))
    with pytest.raises(
        ConfigError,
        match=r"cameras of .*policy are observation.images.front; those of the data are observation.images.top: say "
        r"which is which, --bridgedata_config.cameras.front=observation.images.top",
    ):
        settings_from(settings(policy[0]), source(dataset))
    given = source(dataset, cameras={"images0": "images0", "front": "top"})
    assert settings_from(settings(policy[0]), given).data["cameras"] == {"front": "top"}
    path = policy[0] / "policy_preprocessor.json"
    pipeline = json.loads(path.read_text())
    pipeline["steps"][0]["config"] = {"rename_map": {"observation.images.top": "observation.images.front"}}
    path.write_text(json.dumps(pipeline))
    assert settings_from(settings(policy[0]), source(dataset)).data["cameras"] == {"front": "observation.images.top"}


def renamed(folder, camera):
    features = json.loads((folder / "config.json").read_text())["input_features"]
    return {camera if entry["type"] == "VISUAL" else name: entry for name, entry in features.items()}


def test_cameras_of_several_datasets(policy, dataset):
    own = {"data_path": str(dataset)}
    datasets = {"a": own, "b": own | {"cameras": {"top": "images0"}}}
    made = settings_from(settings(policy[0]), source("", datasets=datasets, data_path=""))
    assert made.data["datasets"]["a"]["cameras"] == {"top": "observation.images.top"}
    assert made.data["datasets"]["b"]["cameras"] == {"top": "images0"}
    other = {"a": own | {"format": "rlds", "cameras": {"images0": "image"}}}
    with pytest.raises(
        ConfigError, match=r"of the data are images0: .*--bridgedata_config.datasets.a.cameras.top=NAME"
    ):
        settings_from(settings(policy[0]), source("", datasets=other, data_path=""))


def test_settings_that_contradict_it(policy, dataset):
    given = source(dataset)
    with pytest.raises(
        ConfigError, match=r"is of type 'act', and config.agent is 'gc_bc': give --config train_config.py:act"
    ):
        settings_from(settings(policy[0], agent="gc_bc"), given)
    encoder = {"agent_kwargs": {"encoder": {"name": "resnet18", "path": "/models/resnet18"}}}
    with pytest.raises(
        ConfigError, match=r"encoder.path is /models/resnet18, and the policy of config.policy.path has these"
    ):
        settings_from(settings(policy[0], **encoder), given)
    with pytest.raises(ConfigError, match=r"unknown key config.policy.folder: .*known are path"):
        settings_from(settings("", policy={"folder": "x"}), given)
    for name in ("pre", "post"):
        path = policy[0] / f"policy_{name}processor.json"
        path.write_text(path.read_text().replace('"ACTION": "MEAN_STD"', '"ACTION": "MIN_MAX"'))
    with pytest.raises(ConfigError, match="normalizes states and actions differently, by MEAN_STD and MIN_MAX"):
        settings_from(settings(policy[0]), given)


def test_data_of_another_robot(tmp_path, dataset):
    save_run(tmp_path / "run")
    export_lerobot(tmp_path / "run", tmp_path / "policy")
    cameras = {"top": "images0", "wrist": "images0"}
    with pytest.raises(WeightsError, match=r"an action has 4 numbers there, 2 in the data: act cannot go on with it"):
        open_job(settings(tmp_path / "policy"), source(dataset, cameras=cameras))
