import pathlib
import runpy

import pytest

from jaxvla.data.mixture_config import name_of, read_mixture
from jaxvla.errors import ConfigError

PRESETS = runpy.run_path(str(pathlib.Path(__file__).parents[2] / "configs" / "data_config.py"))["get_config"]


def test_the_preset_mixes_two_formats():
    config = read_mixture(PRESETS("mixture_example").to_dict())
    sources = config.sources
    assert config.weights == {"bridge": 4.0, "tabletop": 1.0}
    assert [source.format for source in sources.values()] == ["rlds", "bridge_tfrecord"]
    for name, alone in (("bridge", "bridge_rlds"), ("tabletop", "sample")):
        (own,) = read_mixture(PRESETS(alone).to_dict() | {"reasoning_path": ""}).sources.values()
        assert sources[name] == own


def test_keys_of_a_dataset_take_the_place_of_the_outer_ones():
    actions = {"relabel": True, "gripper": (6,)}
    outer = {"format": "bridge_tfrecord", "include": (("**",),), "actions": actions, "data_path": "outer"}
    config = read_mixture({**outer, "datasets": {"b": {}, "a": {"data_path": "x", "actions": {"relabel": False}}}})
    assert list(config.sources) == ["a", "b"]
    assert [source.data_path for source in config.sources.values()] == ["x", "outer"]
    assert [source.actions.relabel for source in config.sources.values()] == [False, True]
    assert all(source.actions.gripper == (6,) for source in config.sources.values())


@pytest.mark.parametrize(
    ("path", "name"), [("/data/bridge_orig/1.0.0", "bridge_orig"), ("/x/bdv2/", "bdv2"), ("/x/set2/0.1", "set2")]
)
def test_one_dataset_is_named_by_its_folder(path, name):
    one = {"format": "bridge_tfrecord", "include": (("**",),), "data_path": path}
    assert list(read_mixture(one).sources) == [name_of(path)] == [name]
    assert list(read_mixture(one | {"name": "mine"}).sources) == ["mine"]
    for named in ("kitchen:1.2.0", "kitchen/1.2.0", "kitchen"):
        below = {"format": "rlds", "data_path": path, "tfds_name": named}
        assert list(read_mixture(below).sources) == ["kitchen"]


ONE = {"format": "bridge_tfrecord", "include": (("**",),)}
A = {"data_path": "a"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"datasets": {"a": A | {"weight": 0.0}}}, r"^bridgedata_config\.datasets\.a\.weight must be positive, not 0"),
        ({"datasets": {"a": A | {"weight": -1}}}, r"^bridgedata_config\.datasets\.a\.weight must be positive, not -1"),
        ({"datasets": {"a": A | {"weight": "x"}}}, r"datasets\.a\.weight must be float, not str 'x'"),
        ({"datasets": {"a": A | {"wieght": 1.0}}}, r"unknown key .*datasets\.a\.wieght: did you mean weight\?"),
        ({"datasets": {"a": A | {"format": "zarr"}}}, r"^bridgedata_config\.datasets\.a: .*format must be one of"),
        ({"datasets": {"a": {}}}, r"^bridgedata_config\.datasets\.a\.data_path is missing"),
        ({"datasets": {"a b": A}}, "must be of letters, digits"),
        ({"datasets": {"a": A}, "name": "b"}, r"^bridgedata_config\.name='b' has no effect"),
        ({"datasets": {"a": A}, "data_path": "b"}, r"^bridgedata_config\.data_path='b' has no effect"),
        ({"datasets": {"a": A}, "balance": "even"}, r"balance must be one of weights, size, equal, not 'even'"),
        ({"datasets": {"a": A | {"weight": 2.0}}, "balance": "equal"}, r"weight=2 has no effect with balance='equal'"),
        ({"data_path": "b", "dataset": {}}, r"unknown key bridgedata_config\.dataset: did you mean datasets\?"),
        ({"data_path": "/1.0.0"}, "gives the dataset no name: set bridgedata_config.name"),
    ],
)
def test_bad_settings_are_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        read_mixture(ONE | changes)
    assert "\n" not in str(caught.value)
