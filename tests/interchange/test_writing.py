"""Policies to LeRobot's folders and back; tests/parity has LeRobot itself read them."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from interchange.act_policies import DATA, KWARGS, change, make_old, observation, renamed_statistics, save_run

from jaxvla.contract import Execution
from jaxvla.errors import CheckpointError, ConfigError, WeightsError
from jaxvla.interchange.kinds import KINDS
from jaxvla.interchange.policy_folder import read_policy
from jaxvla.interchange.writing import camera_features, check_written
from jaxvla.serving.export import export_lerobot
from jaxvla.serving.policy import load_policy
from jaxvla.serving.stored import open_stored


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A run, its parameters, and its export."""
    root = tmp_path_factory.mktemp("act")
    params, _ = save_run(root / "run")
    export_lerobot(root / "run", root / "policy", data_licence="CC-BY-4.0")
    return root / "run", params, root / "policy"


@pytest.fixture
def folder(exported, tmp_path):
    """A copy to change."""
    return shutil.copytree(exported[2], tmp_path / "policy")


@pytest.fixture(scope="module")
def played(exported):
    """What the run plays."""
    return load_policy(exported[0]).act(observation(), {})


def test_what_is_written(exported):
    values = json.loads((exported[2] / "config.json").read_text())
    assert values["type"] == "act"
    assert (values["chunk_size"], values["n_action_steps"]) == (6, 4)
    assert values["dim_model"] == 16
    assert not values["push_to_hub"]
    assert values["input_features"] == {
        "observation.images.top": {"type": "VISUAL", "shape": [3, 32, 48]},
        "observation.images.wrist": {"type": "VISUAL", "shape": [3, 32, 48]},
        "observation.state": {"type": "STATE", "shape": [5]},
    }
    names = {path.name for path in exported[2].iterdir()}
    assert {"README.md", "model.safetensors", "policy_preprocessor.json", "policy_postprocessor.json"} < names
    steps = json.loads((exported[2] / "policy_preprocessor.json").read_text())["steps"]
    assert [step["registry_name"].split("_")[0] for step in steps] == ["rename", "to", "device", "normalizer"]
    assert "The data: CC-BY-4.0." in (exported[2] / "README.md").read_text()


@pytest.mark.parametrize("own", [{"ensemble_by": "agreement"}, {"ensemble_last": 3}])
def test_an_ensemble_that_lerobot_has_not(tmp_path, own):
    save_run(tmp_path / "run", execution=Execution(1, 0.1, **own))
    with pytest.raises(ConfigError, match=r"weigh all predictions by age, execution\.ensemble is 0\.1 "):
        export_lerobot(tmp_path / "run", tmp_path / "policy")
    assert not (tmp_path / "policy").exists()


def test_parameters_come_back_bit_for_bit(exported):
    _, params, folder = exported
    found = open_stored(folder).read()
    assert jax.tree.structure(found) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, found, params)


def test_it_plays_as_the_run_does(exported, played):
    policy = load_policy(exported[2])
    assert policy.contract.execute_steps == 4
    assert policy.spec.cameras == ("top", "wrist")
    found = policy.act(observation(), {})
    assert found.shape == (4, 4)
    np.testing.assert_allclose(found, played, atol=1e-5)


def test_the_older_layout_plays_alike(folder, played):
    make_old(folder)
    policy = read_policy(folder, KINDS)
    assert policy.preprocessor is None
    assert set(policy.statistics) == {
        "observation.images.top",
        "observation.images.wrist",
        "observation.state",
        "action",
    }
    np.testing.assert_allclose(load_policy(folder).act(observation(), {}), played, atol=1e-5)


def test_statistics_under_foreign_names(folder):
    renamed_statistics(folder, lambda key: f"arm.buffer.{key}")
    with pytest.raises(WeightsError, match=r"no statistics of 'action'.*there are: arm.buffer.action.*dataset='arm'"):
        load_policy(folder)
    assert load_policy(folder, dataset="arm").action_convention is None
    renamed_statistics(folder, lambda key: key.replace("arm.buffer.", "x/"))
    with pytest.raises(WeightsError, match=r"no statistics of 'action', by which it is normalized \(MEAN_STD\).*x/act"):
        load_policy(folder)


def test_cameras_keep_the_names_of_a_lerobot_dataset_alone(exported):
    data = DATA | {"cameras": {"top": "observation.images.front", "wrist": "observation.image"}}
    assets = dataclasses.replace(open_stored(exported[0]).assets, data_config=data)
    assert camera_features(assets) == data["cameras"]
    assets = dataclasses.replace(assets, data_config=data | {"format": "rlds"})
    assert camera_features(assets) == {name: f"observation.images.{name}" for name in ("top", "wrist")}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"type": "diffusion"}, "of a policy of type 'diffusion'; read are those of act"),
        ({"type": None}, "of type None"),
        ({"input_features": None}, "has no input_features that can be read"),
        ({"output_features": {}}, "has no output feature 'action'"),
        ({"chunk_size": None}, "no chunk_size and n_action_steps"),
        ({"n_action_steps": 7}, "no chunk_size and n_action_steps, numbers from 1 to the former"),
        ({"temporal_ensemble_coeff": "much"}, "temporal_ensemble_coeff is 'much', no number"),
        ({"normalization_mapping": ["MEAN_STD"]}, r"normalization_mapping is \['MEAN_STD'\], no mapping"),
        ({"pre_norm": True}, "pre_norm is True, but act here has False"),
        ({"vision_backbone": "resnet50"}, "vision_backbone is 'resnet50', but act here looks through resnet18"),
        ({"dim_model": 32}, r"encoder_latent_input_proj.weight is \[16, 3\] there, \[32, 3\] here"),
        ({"n_encoder_layers": 3}, r"12 missing \(model.encoder.layers.2.linear1.bias"),
        ({"n_encoder_layers": 1}, r"12 left over \(model.encoder.layers.1.linear1.bias"),
    ],
)
def test_folders_that_are_refused(folder, values, message):
    change(folder, **values)
    with pytest.raises(WeightsError, match=message):
        open_stored(folder).read()


def test_pictures_that_are_normalized_otherwise(folder):
    path = folder / "policy_preprocessor.json"
    path.write_text(path.read_text().replace('"VISUAL": "MEAN_STD"', '"VISUAL": "IDENTITY"'))
    with pytest.raises(WeightsError, match="pictures are normalized by IDENTITY"):
        load_policy(folder)


def test_a_folder_above_it_and_adapters(folder, tmp_path):
    folder.rename(tmp_path / "pretrained_model")
    with pytest.raises(CheckpointError, match="is no checkpoint"):
        load_policy(tmp_path)
    with pytest.raises(WeightsError, match=r"has no config.json: give .*pretrained_model, which lies below it"):
        read_policy(tmp_path, KINDS)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(WeightsError, match="holds adapters, no whole policy"):
        read_policy(tmp_path, KINDS)
    with pytest.raises(WeightsError, match="there is no folder"):
        read_policy(tmp_path / "gone", KINDS)


def test_what_is_not_exported(exported, tmp_path):
    run, _, folder = exported
    with pytest.raises(WeightsError, match="is not empty: choose another folder"):
        export_lerobot(run, folder)
    assets = open_stored(run).assets
    with pytest.raises(ConfigError, match="LeRobot has no policy 'gc_bc', only those of act, smolvla"):
        check_written(dataclasses.replace(assets, agent="gc_bc"))
    wider = dataclasses.replace(assets.spec, action_dim=7)
    with pytest.raises(ConfigError, match=r"the robot of pick has other numbers in an action than .* 4 and 7"):
        check_written(dataclasses.replace(assets, spec=wider))
    save_run(tmp_path / "norms", kwargs=KWARGS | {"encoder": {"name": "resnetv1-tiny"}})
    with pytest.raises(
        WeightsError, match=r"resnet18 or resnet34, not through resnetv1-tiny: no weights .* --format safetensors"
    ):
        export_lerobot(tmp_path / "norms", tmp_path / "out")
    with pytest.raises(CheckpointError, match="step 3 cannot be chosen"):
        open_stored(folder, 3)
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob(".out*"))
