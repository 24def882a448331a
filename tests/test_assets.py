"""What checkpoints keep of several datasets."""

import dataclasses
import json

import numpy as np
import pytest
from serving.two_datasets import assets, dataset
from training.positional_batches import make_assets

from jaxvla.assets import Assets
from jaxvla.contract import CameraContract
from jaxvla.data.transforms.normalization import FieldStatistics
from jaxvla.errors import ConfigError


def test_each_dataset_has_its_units():
    both = assets()
    np.testing.assert_allclose(both.of("arm").action_normalizer().inverse(np.ones(2)), [3, 4])
    np.testing.assert_allclose(both.of("base").action_normalizer().inverse(np.ones(1)), [11])
    np.testing.assert_allclose(both.of("base").proprio_normalizer().forward(np.array([9, 12, 7])), [0, 1, -2])
    assert both.names == ("arm", "base")
    assert both.of("base").of("base").names == ("base",)


def test_the_robot_has_the_sizes_of_its_dataset():
    base = assets().of("base")
    assert (base.spec.action_dim, base.spec.proprio_dim, base.spec.cameras) == (2, 4, ("images0", "wrist"))
    robot = base.robot_spec
    assert (robot.action_dim, robot.proprio_dim, robot.cameras) == (1, 3, ("wrist",))
    assert make_assets().robot_spec == make_assets().spec


def test_contracts_differ_where_datasets_do():
    contracts = {name: assets().of(name).contract() for name in ("arm", "base")}
    assert [contract.control_frequency for contract in contracts.values()] == [5, 10]
    assert contracts["base"].cameras == {"wrist": CameraContract((16, 16), (8, 8))}
    assert [contract.action_dim for contract in contracts.values()] == [2, 1]


def test_a_dataset_must_be_named_where_there_are_several():
    with pytest.raises(ConfigError, match=r"of 2 datasets .*: give one as dataset; there are: arm, base$"):
        assets().of()
    with pytest.raises(ConfigError, match=r"no dataset 'leg'; there are: arm, base$"):
        assets().of("leg")


@pytest.mark.parametrize(
    ("data_config", "name"),
    [
        ({"data_path": "/data/bridge/1.0.0"}, "bridge"),
        ({"data_path": "/data/bridge/1.0.0", "name": "mine", "datasets": {}}, "mine"),
        ({"data_path": "", "name": "", "datasets": {"own": {"data_path": "/x"}}}, "own"),
    ],
)
def test_the_only_dataset_need_not_be_named(data_config, name):
    one = dataclasses.replace(make_assets(), data_config=data_config)
    assert one.of() is one.of(name) is one
    with pytest.raises(ConfigError, match=f"no dataset 'other'; there are: {name}$"):
        one.of("other")


def test_it_survives_json():
    both = assets()
    again = Assets.from_json(json.loads(json.dumps(both.to_json(), allow_nan=False)))
    assert again.to_json() == both.to_json()
    assert again.datasets["base"].stored_sizes == {"wrist": (16, 16)}
    assert again.of("arm").to_json() == both.of("arm").to_json()


def test_checkpoints_from_before_mixtures_are_read():
    values = make_assets().to_json()
    del values["datasets"], values["cameras"], values["spec"]["several_action_dims"]
    old = Assets.from_json(values)
    assert old.to_json() == make_assets().to_json()


def test_the_mean_action_is_that_of_each_dataset():
    """Normalized by mean and deviation it is 0; by bounds it is where the mean lies between them."""
    assert make_assets().mean_action().shape == (2,)
    skewed = FieldStatistics.of(np.array([[0.0], [0.0], [0.0], [4.0]]))
    base = dataset(1, 3, 9.0, "wrist", 10.0)
    base = dataclasses.replace(base, statistics=dataclasses.replace(base.statistics, actions=skewed))
    both = assets(action_normalization="bounds")
    both = dataclasses.replace(both, datasets={**both.datasets, "base": base})
    np.testing.assert_allclose(both.mean_action(), [[0, 0], [-0.5, 0]])
