import pytest

from jaxvla.data.oxe import mixtures
from jaxvla.data.oxe.registry import DATASETS
from jaxvla.errors import ConfigError

FRACTAL, KUKA = 0.54087122203, 0.8341046294
HYDRA = "stanford_hydra_dataset_converted_externally_to_rlds"
BUDS = "austin_buds_dataset_converted_externally_to_rlds"
DOOR = "nyu_door_opening_surprising_effectiveness"


@pytest.mark.parametrize(
    ("name", "variant", "size", "weights"),
    [
        ("bridge", "openvla", 1, {"bridge_orig": 1}),
        ("bridge", "octo", 1, {"bridge_dataset": 1}),
        ("bridge_rt_1", None, 2, {"bridge_orig": 1, "fractal20220817_data": 1}),
        ("rtx", "openvla", 10, {"fractal20220817_data": FRACTAL, "kuka": KUKA, "jaco_play": 2, DOOR: None}),
        ("rtx", "octo", 11, {"berkeley_cable_routing": 3, DOOR: 5, "bridge_dataset": 1, "bridge_orig": None}),
        # Of the four that are named twice the first weight counts.
        ("rtx_franka", "openvla", 24, {"taco_play": 2, "berkeley_cable_routing": 3, "viola": 2, "toto": 1, BUDS: 3}),
        ("rtx_franka", "octo", 25, {"taco_play": 2, HYDRA: 1, DOOR: 5, "roboturk": 1}),
        ("oxe_magic_soup", "openvla", 23, {"language_table": 0.1, "jaco_play": 1, HYDRA: 2, "bc_z": None, DOOR: None}),
        ("oxe_magic_soup", "octo", 25, {"bc_z": 0.2, DOOR: 1, "cmu_stretch": 1, "berkeley_fanuc_manipulation": 2}),
        ("oxe_magic_soup_plus", None, 27,
         {"droid": 0.06, "dobbe": 0.2, "fmb_dataset": 1, "fractal20220817_data": FRACTAL}),
        ("oxe_magic_soup_plus_minus", None, 25,
         {"droid": None, "language_table": None, "fractal20220817_data": 1, "kuka": KUKA, "bc_z": 0.2}),
        ("oxe_flex_act_soup", None, 32,
         {"aloha_static_dataset": 3, "aloha_mobile_dataset": 2, "gnm_dataset": 1, "dobbe": 1, "roboset": 0.5,
          "rh20t": 0.5, "berkeley_mvp_converted_externally_to_rlds": 1, "aloha_dagger_dataset": None}),
        ("libero_spatial_no_noops", None, 1, {"libero_spatial_no_noops": 1}),
        ("tdroid_flip_pot_upright", "octo", 1, {"tdroid_flip_pot_upright": 1}),
    ],
)  # fmt: skip
def test_weights_are_those_of_the_peers(name, variant, size, weights):
    mixture = mixtures.find(name, variant)
    assert len(mixture) == size
    assert {dataset: mixture.get(dataset) for dataset in weights} == weights


def test_mixtures_name_datasets_with_positive_weights():
    for variants in mixtures.MIXTURES.values():
        for mixture in variants.values():
            assert mixture.keys() <= DATASETS.keys()
            assert min(mixture.values()) > 0
            assert "uiuc_d3field" not in mixture


def test_openvla_is_the_default_where_both_have_one():
    assert mixtures.find("rtx") == mixtures.find("rtx", "openvla")
    assert mixtures.find("oxe_flex_act_soup", "openvla") == mixtures.find("oxe_flex_act_soup", "octo")


def test_what_is_found_can_be_changed():
    mixtures.find("rtx")["kuka"] = 100.0
    assert mixtures.find("rtx")["kuka"] == KUKA


def test_unknown_ones_are_refused():
    with pytest.raises(
        ConfigError, match=r"no mixture or dataset .* 'oxe_magic_soup_plusminus': did you mean .*plus_minus"
    ):
        mixtures.find("oxe_magic_soup_plusminus")
    with pytest.raises(ConfigError, match="variant must be one of openvla, octo, not 'rt'"):
        mixtures.find("rtx", "rt")
