"""Which data to train on: `--bridgedata_config data_config.py:NAME`. Values only.

`include` is a tuple of groups, each a tuple of glob patterns below `data_path` that name task folders holding
`(train|val)/out.tfrecord`; `sample_weights` gives each group its share of the batches, empty for equal
shares. `cameras` maps a batch's camera names to the stored ones; `image_size` (height, width) is empty to keep the
stored size. `reasoning_path` is the store of annotations that reasoning policies learn from, below `data_path` unless
it is absolute; empty for none. `max_mismatched` is the largest share, 0 to 1, of the trajectories found there that may
have another length or instruction than their annotations, or share their key; these get no reasoning.
"""

from ml_collections import ConfigDict


def _base() -> dict:
    return {
        "format": "bridge_tfrecord",
        "data_path": "",
        "include": (("**",),),
        "exclude": (),
        "sample_weights": (),
        "cameras": {"images0": "images0"},
        "image_size": (),
        "action_mask": (),
        "reasoning_path": "reasoning.sqlite",
        "max_mismatched": 0.1,
    }


def _bdv2_local() -> dict:
    return _base() | {"data_path": "data/bdv2"}


def _all() -> dict:
    patterns = (
        "icra/?*/?*/?*",
        "flap/?*/?*/?*",
        "bridge_data_v1/berkeley/?*/?*",
        "rss/?*/?*/?*",
        "bridge_data_v2/?*/?*/?*",
        "scripted/?*",
    )
    return _base() | {"data_path": "data/bdv2", "include": (patterns,)}


def _sample() -> dict:
    return _base() | {"data_path": "data/sample/tfrecord"}


def _bridge_rlds() -> dict:
    return _base() | {
        "format": "rlds",
        "data_path": "data/bridge_dataset/1.0.0",
        "include": (),
        "cameras": {"images0": "image_0"},
        "image_size": (128, 128),
    }


PRESETS = {"bdv2_local": _bdv2_local, "all": _all, "sample": _sample, "bridge_rlds": _bridge_rlds}


def get_config(name: str = "") -> ConfigDict:
    """The preset called `name`."""
    if name not in PRESETS:
        raise ValueError(f"no data config named {name!r}; there are: {', '.join(PRESETS)}")
    return ConfigDict(PRESETS[name]())
