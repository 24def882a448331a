"""The mixtures of datasets that OpenVLA and Octo train on, by their names, with the weight of each dataset.

A weight multiplies the number of a dataset's transitions: of two datasets with the same weight the one that is twice as
large is drawn twice as often. Where both peers have a mixture of the same name they differ a little, and `variant`
chooses; OpenVLA leaves out what has a wrist camera alone, and bc_z.

`rtx_franka` adds to `rtx` a list that names four datasets again. OpenVLA keeps the first weight of each, and so do both
here; Octo refuses the mixture for it. OpenVLA itself was trained on `oxe_magic_soup_plus` for about 70 % of the way,
and on `oxe_magic_soup_plus_minus` from then on. Of bc_z the mixtures need version 0.1.0, for later ones are broken, as
is `uiuc_d3field`, which none has.
"""

from jaxvla.data.oxe.registry import DATASETS, Variant, check_variant, unknown

Mixture = dict[str, float]

_KUKA = {"kuka": 0.8341046294}
_GOOGLE = {"fractal20220817_data": 0.54087122203, **_KUKA}
_OPENVLA_BRIDGE = {"bridge_orig": 1.0}
_OCTO_BRIDGE = {"bridge_dataset": 1.0}
_DOOR = "nyu_door_opening_surprising_effectiveness"

_RTX = {
    "taco_play": 2.0,
    "jaco_play": 2.0,
    "berkeley_cable_routing": 3.0,
    "roboturk": 1.0,
    "viola": 2.0,
    "berkeley_autolab_ur5": 1.0,
    "toto": 1.0,
}
_FRANKA = {
    "taco_play": 1.0,
    "berkeley_cable_routing": 1.0,
    "viola": 1.0,
    "toto": 1.0,
    "stanford_hydra_dataset_converted_externally_to_rlds": 1.0,
    "austin_buds_dataset_converted_externally_to_rlds": 3.0,
    "nyu_franka_play_dataset_converted_externally_to_rlds": 3.0,
    "maniskill_dataset_converted_externally_to_rlds": 0.1,
    "furniture_bench_dataset_converted_externally_to_rlds": 0.1,
    "cmu_franka_exploration_dataset_converted_externally_to_rlds": 5.0,
    "austin_sailor_dataset_converted_externally_to_rlds": 1.0,
    "austin_sirius_dataset_converted_externally_to_rlds": 1.0,
    "berkeley_rpt_converted_externally_to_rlds": 1.0,
    "kaist_nonprehensile_converted_externally_to_rlds": 3.0,
    "stanford_robocook_converted_externally_to_rlds": 1.0,
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": 1.0,
    "utaustin_mutex": 1.0,
    "cmu_play_fusion": 1.0,
}
# What all magic soups share, but for language_table, which one of them leaves out.
_SOUP = {
    "taco_play": 2.0,
    "jaco_play": 1.0,
    "berkeley_cable_routing": 1.0,
    "roboturk": 2.0,
    "viola": 2.0,
    "berkeley_autolab_ur5": 2.0,
    "toto": 1.0,
    "stanford_hydra_dataset_converted_externally_to_rlds": 2.0,
    "austin_buds_dataset_converted_externally_to_rlds": 1.0,
    "nyu_franka_play_dataset_converted_externally_to_rlds": 3.0,
    "furniture_bench_dataset_converted_externally_to_rlds": 0.1,
    "ucsd_kitchen_dataset_converted_externally_to_rlds": 2.0,
    "austin_sailor_dataset_converted_externally_to_rlds": 1.0,
    "austin_sirius_dataset_converted_externally_to_rlds": 1.0,
    "dlr_edan_shared_control_converted_externally_to_rlds": 1.0,
    "iamlab_cmu_pickup_insert_converted_externally_to_rlds": 1.0,
    "utaustin_mutex": 1.0,
    "berkeley_fanuc_manipulation": 2.0,
    "cmu_stretch": 1.0,
}
_TABLE = {"language_table": 0.1}
_PLUS = {"bc_z": 0.2, "fmb_dataset": 1.0, "dobbe": 0.2}
_FLEXIBLE = {
    "berkeley_mvp_converted_externally_to_rlds": 1.0,
    "gnm_dataset": 1.0,
    "aloha_static_dataset": 3.0,
    "aloha_mobile_dataset": 2.0,
    "dobbe": 1.0,
    "roboset": 0.5,
    "rh20t": 0.5,
}
_OPENVLA_RTX = {**_GOOGLE, **_OPENVLA_BRIDGE, **_RTX}
_OCTO_RTX = {**_GOOGLE, **_OCTO_BRIDGE, **_RTX, _DOOR: 5.0}
_OPENVLA_SOUP = {**_GOOGLE, **_OPENVLA_BRIDGE, **_SOUP, **_TABLE}
_OCTO_SOUP = {**_GOOGLE, **_OCTO_BRIDGE, **_SOUP, **_TABLE, _DOOR: 1.0, "bc_z": 0.2}

MIXTURES: dict[str, dict[Variant, Mixture]] = {
    "bridge": {"openvla": _OPENVLA_BRIDGE, "octo": _OCTO_BRIDGE},
    "bridge_rt_1": {"openvla": {**_OPENVLA_BRIDGE, "fractal20220817_data": 1.0}},
    "rtx": {"openvla": _OPENVLA_RTX, "octo": _OCTO_RTX},
    "rtx_franka": {"openvla": {**_FRANKA, **_OPENVLA_RTX}, "octo": {**_FRANKA, **_OCTO_RTX}},
    "oxe_magic_soup": {"openvla": _OPENVLA_SOUP, "octo": _OCTO_SOUP},
    "oxe_magic_soup_plus": {"openvla": {**_OPENVLA_SOUP, **_PLUS, "droid": 0.06}},
    "oxe_magic_soup_plus_minus": {
        "openvla": {"fractal20220817_data": 1.0, **_KUKA, **_OPENVLA_BRIDGE, **_SOUP, **_PLUS}
    },
    "oxe_flex_act_soup": {"octo": {**_OCTO_SOUP, **_FLEXIBLE}},
}


def find(name: str, variant: str | None = None) -> Mixture:
    """The weights, by dataset, of a mixture; of a dataset that is none, such as `libero_spatial_no_noops`, 1.

    Args:
        name: of a mixture, or of a dataset.
        variant: whose, of a mixture that both OpenVLA and Octo have; None for OpenVLA's. One that is not the other's
            is the same for both.

    Raises:
        ConfigError: no such mixture, dataset or variant; names the nearest.
    """
    check_variant(variant)
    if name in MIXTURES:
        own = MIXTURES[name]
        return dict(own.get(variant or "openvla") or next(iter(own.values())))
    if name in DATASETS:
        return {name: 1.0}
    raise unknown("mixture or dataset", name, (*MIXTURES, *DATASETS))
