import pathlib
import runpy

import pytest

from jaxvla.data.mixture_config import expand, name_of, read_mixture
from jaxvla.data.oxe import mixtures
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


def oxe(**changes):
    return read_mixture(PRESETS("oxe_magic_soup").to_dict() | changes)


@pytest.mark.parametrize("name", ["oxe_magic_soup", "oxe_magic_soup_plus"])
def test_a_named_mixture_is_that_of_the_table(name):
    config = read_mixture(PRESETS(name).to_dict())
    assert config.weights == mixtures.find(name)
    assert config.balance == "size"
    for dataset, source in config.sources.items():
        assert (source.dataset.name, source.format, source.data_path) == (dataset, "rlds", "data/oxe")
        assert source.cameras == source.dataset.cameras.named(("primary", "secondary", "wrist"))
    assert oxe(views=("primary",)).sources["taco_play"].cameras == {"images0": "observation/rgb_static"}
    if name.endswith("plus"):
        assert config.sources["bc_z"].dataset.folders == ("bc_z:0.1.0",)


@pytest.mark.parametrize(
    "name", ["bridge_orig", "bridge_oxe", "libero_spatial", "libero_object", "libero_goal", "libero_10"]
)
def test_presets_of_one_dataset(name):
    settings = PRESETS(name).to_dict()
    ((called, source),) = read_mixture(settings).sources.items()
    assert called == source.standardization == (f"{name}_no_noops" if name.startswith("libero") else name)
    assert source.actions.names[-1] == "gripper (1 open)"
    assert expand(expand(settings)) == expand(settings) == settings | {"name": called}


def test_members_of_a_mixture_can_be_changed_left_out_and_added():
    changes = {"viola": {"weight": 5.0, "variant": "octo"}, "mine": {"standardization": "x.py:f", "tfds_name": "m"}}
    config = oxe(datasets=changes, leave_out=("kuka", "toto"), data_path="root")
    assert config.sources.keys() == ({*mixtures.find("oxe_magic_soup"), "mine"} - {"kuka", "toto"})
    assert (config.weights["viola"], config.weights["mine"], config.weights["taco_play"]) == (5.0, 1.0, 2.0)
    assert (config.sources["viola"].variant, config.sources["taco_play"].variant) == ("octo", "")
    assert (config.sources["mine"].data_path, config.sources["mine"].dataset) == ("root", None)
    of_octo = oxe(variant="octo")
    assert of_octo.weights == mixtures.find("oxe_magic_soup", "octo")
    assert {source.variant for source in of_octo.sources.values()} == {"octo"}
    assert set(oxe(balance="equal").weights.values()) == {1.0}
    settings = PRESETS("oxe_magic_soup").to_dict() | {"leave_out": ("kuka",)}
    assert expand(expand(settings)) == expand(settings)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mixture": "oxe_magic_soop"}, r"'oxe_magic_soop': did you mean oxe_magic_soup or "),
        ({"leave_out": ("viol",)}, r"viol in bridgedata_config\.leave_out: did you mean viola\?"),
        ({"mixture": "bridge", "leave_out": ("bridge_orig",)}, r"leave_out=\('bridge_orig',\) leaves nothing of"),
        ({"mixture": "", "standardization": "viola", "leave_out": ("toto",)}, "has no effect: there is one dataset"),
        ({"datasets": {"viola": {"weight": 0}}}, r"datasets\.viola\.weight must be positive, not 0: leave it out"),
        ({"datasets": {"viola": {"weight": -2.0}}}, r"datasets\.viola\.weight must be positive, not -2"),
        ({"datasets": {"viola": {"standardization": "voila"}}}, r"datasets\.viola: .*'voila': did you mean viola\?"),
        ({"datasets": {"roboset": {"standardization": "roboset"}}},
         r"roboset has JOINT_POS \(joint 1, .* gripper\); austin_bud.* and 22 more have EEF_POS \(x, y, .*: leave out "
         r"by bridgedata_config\.leave_out=\('roboset',\), or set bridgedata_config\.several_encodings=True$"),
        ({"datasets": {"rh20t": {"standardization": "rh20t"}}}, r"rh20t has EEF_POS \(.*, poses to reach\); "),
        ({"standardization": "viola"}, "standardization='viola' has no effect: those of mixture oxe_magic_soup have"),
        ({"tfds_name": "viola"}, "tfds_name='viola' has no effect: those of mixture"),
        ({"views": ("secondary",)}, r"datasets\.austin_buds.* has none of bridgedata_config\.views=\('secondary',\)"),
    ],
)  # fmt: skip
def test_bad_mixtures_of_open_x_embodiment_are_one_line(changes, message):
    with pytest.raises(ConfigError, match=message) as caught:
        oxe(**changes)
    assert "\n" not in str(caught.value)


def test_several_encodings_can_be_allowed():
    assert len(oxe(mixture="oxe_flex_act_soup", several_encodings=True).sources) == 32


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
