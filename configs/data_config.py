"""Which data to train on: `--bridgedata_config data_config.py:NAME`. Values only.

`include` is a tuple of groups, each a tuple of glob patterns below `data_path` that name task folders holding
`(train|val)/out.tfrecord`, `exclude` patterns of those that are left out, by the end of their paths. `**` matches any
number of folders, and links are followed. `sample_weights` gives each group its share of the batches, empty for equal
shares. `cameras` maps a batch's camera names to the stored ones; `image_size` (height, width) is empty to take
`config.data.image_size`, or the stored size where that is empty, too. `reasoning_path` is the store of annotations
that reasoning policies learn from, below `data_path` unless it is absolute; empty for none. `max_mismatched` is the
largest share, 0 to 1, of the trajectories found there that may have another length or instruction than their
annotations, or share their key; these get no reasoning.

Trajectories that cannot be used are left out and counted; more than the share `max_skipped` of them is an error.
`validation_share` holds out a part of the training data by its keys, for data without a validation split; 0 for data
that has one. Datasets of Open X-Embodiment that have one take that. `trajectory_share` and `max_trajectories` (0 for
all) take a part of the training trajectories, another one for each `subset_seed`; a smaller part lies in a larger one.
Steps are dropped, with their frames: the first `drop_first` of each trajectory, and those whose movement is smaller
than `no_op_below` (its norm, in the units of the actions that are learned; OpenVLA drops those below 1e-4 of LIBERO)
and whose gripper is told the same as before.

An RLDS dataset is a folder of TFRecords or array_record files: `data_path` is its version folder, or, with an
`tfds_name`, the folder above all datasets. `bridge_orig` is the newest version of it there, `bridge_orig:1.0.0` a given
one. `train_split` and `val_split` are splits or slices of one as TFDS writes them: `train[:95%]`, `train[95%:]`,
`train[:500]`; an empty `val_split` is `val`, or else `validation`. `action_key`, `proprio_key` and `language_key` name
features of the steps.

`standardization` takes the place of these three where actions, states and texts of an RLDS dataset need more than a
name: that of a dataset of Open X-Embodiment (jaxvla/data/oxe/registry.py), or of a function of one's own,
`file.py:function` or `module:function`. With a dataset's name `tfds_name` may stay empty. Its `views` become images0
(primary), images1 (secondary) and images2 (wrist) where `cameras` is empty, and what nobody says of its actions is the
dataset's. `variant` chooses between "openvla" and "octo" where these differ; empty for OpenVLA's BridgeData and texts.

`mixture` names a mixture of Open X-Embodiment (jaxvla/data/oxe/mixtures.py), whose weights multiply the sizes of its
datasets: set `balance` to "size". `datasets` adds to it, or changes keys of its members; what `leave_out` names is left
out. `several_encodings` allows actions that are different things in the same dimensions.

Of a LeRobotDataset `data_path` is the folder that holds `meta`. `train_split`, `val_split`, `action_key` and
`proprio_key` are as of RLDS; instructions are its tasks. `episodes` and `exclude_episodes` choose by number, as
`0:50,60`; empty for all, and for none.

`frame_cache` is the folder of frame caches that data_processing/cache_frames.py made elsewhere; those beside the data
are found without it.

`datasets` maps the names of several datasets that a run draws from to the keys in which each differs from the others,
such as {"a": {"data_path": "data/a"}, "b": {"data_path": "data/b", "weight": 2.0}}; empty for the one that the other
keys describe. `balance` says how often each is drawn: by its `weight`, 1 where it has none ("weights"), by its weight
times its number of transitions ("size"), or all alike ("equal"). `name` is that of a single dataset, by which policies
call it; where it is empty, the last folder of `data_path` that is no version number.

`statistics_path` is a file of statistics to normalize by in place of the data's own, so that a policy begins in the
units of another: OpenVLA's dataset_statistics.json, or that of a run folder. `statistics_name` is the dataset in it,
where it has several. Its mask counts where `action_mask` is empty.

`actions` says what the actions are. `relabel` makes each but the gripper the difference of two successive states, in
the proprio dimension of the same number: for commanded movements only. `gripper` are the dimensions that are absolute
gripper states, with the values `open` and `closed`; `binarize` makes them one of the two. `angles` are dimensions (rad)
that may jump by 2 pi, and `wrap` takes their differences the short way round. `names` are of all dimensions. The base
says nothing, and then nothing is done to them; what is said is checked against the data.
`--config.data.relabel_actions` takes the place of `relabel`. `control_frequency` is how many of them a second has (Hz),
which checkpoints pass on to robots; 0 where it is not known.
"""

from ml_collections import ConfigDict


def _base() -> dict:
    return {
        "name": "",
        "mixture": "",
        "leave_out": (),
        "several_encodings": False,
        "balance": "weights",
        "datasets": {},
        "format": "bridge_tfrecord",
        "data_path": "",
        "include": (("**",),),
        "exclude": (),
        "sample_weights": (),
        "cameras": {"images0": "images0"},
        "image_size": (),
        "action_mask": (),
        "actions": {
            "relabel": False,
            "gripper": (),
            "open": 1.0,
            "closed": 0.0,
            "binarize": False,
            "angles": (),
            "wrap": False,
            "names": (),
        },
        "control_frequency": 0.0,
        "reasoning_path": "reasoning.sqlite",
        "max_mismatched": 0.1,
        "max_skipped": 0.1,
        "validation_share": 0.0,
        "max_trajectories": 0,
        "trajectory_share": 1.0,
        "subset_seed": 0,
        "drop_first": 0,
        "no_op_below": 0.0,
        "action_key": "action",
        "proprio_key": "observation/state",
        "language_key": "language_instruction",
        "standardization": "",
        "variant": "",
        "views": ("primary", "secondary", "wrist"),
        "tfds_name": "",
        "train_split": "train",
        "val_split": "",
        "statistics_path": "",
        "statistics_name": "",
        "episodes": "",
        "exclude_episodes": "",
        "frame_cache": "",
    }


def _tfrecord() -> dict:
    """Another robot's data in the TFRecords of BridgeData; needs --config.data_path."""
    return _base()


def _rlds() -> dict:
    """Another RLDS dataset; needs --config.data_path, cameras and an image size."""
    return _base() | {"format": "rlds", "include": (), "cameras": {}}


def _lerobot() -> dict:
    """A LeRobotDataset and its first camera; needs --config.data_path."""
    own = {"format": "lerobot", "include": (), "proprio_key": "observation.state"}
    return _base() | own | {"validation_share": 0.05}


def _bridge() -> dict:
    """BridgeData V2: commanded movements of the pose, which reached states relabel, and the absolute gripper."""
    config = _base() | {"control_frequency": 5.0}
    config["actions"] |= {
        "relabel": True,
        "gripper": (6,),
        "binarize": True,
        "angles": (3, 4, 5),
        "names": ("x (m)", "y (m)", "z (m)", "roll (rad)", "pitch (rad)", "yaw (rad)", "gripper (1 open)"),
    }
    return config


def _bdv2_local() -> dict:
    return _bridge() | {"data_path": "data/bdv2"}


def _all() -> dict:
    patterns = (
        "icra/?*/?*/?*",
        "flap/?*/?*/?*",
        "bridge_data_v1/berkeley/?*/?*",
        "rss/?*/?*/?*",
        "bridge_data_v2/?*/?*/?*",
        "scripted/?*",
    )
    return _bridge() | {"data_path": "data/bdv2", "include": (patterns,)}


def _sample(level: str = "one") -> dict:
    """The tabletop's demonstrations of a level, as `make sample LEVEL=...` leaves them."""
    cameras = {"images0": "images0", "images1": "images1"}
    return _bridge() | {"data_path": f"data/sample/{level}/tfrecord", "cameras": cameras}


def _sample_lerobot() -> dict:
    """The same as a LeRobotDataset, as `make train` writes it for methods of LeRobot."""
    cameras = {name: f"observation.images.{name}" for name in ("images0", "images1")}
    own = {"format": "lerobot", "include": (), "proprio_key": "observation.state", "val_split": "val"}
    return _bridge() | own | {"data_path": "data/sample/one/lerobot", "cameras": cameras}


def _sample_few() -> dict:
    return _sample("few")


def _sample_full() -> dict:
    return _sample("full")


def _bridge_rlds() -> dict:
    return _bridge() | {
        "format": "rlds",
        "data_path": "data/bridge_dataset/1.0.0",
        "include": (),
        "cameras": {"images0": "image_0"},
    }


def _oxe(**changes: object) -> dict:
    """Datasets of Open X-Embodiment below `data/oxe`, each as <name>/<version>."""
    return _rlds() | {"data_path": "data/oxe", "reasoning_path": "", "validation_share": 0.05} | changes


def _bridge_orig() -> dict:
    """BridgeData V2 in RLDS as OpenVLA trains on it, without the first step of each episode."""
    return _oxe(standardization="bridge_orig", control_frequency=5.0)


def _bridge_oxe() -> dict:
    """The older part of BridgeData V2 that is in Open X-Embodiment itself."""
    return _oxe(standardization="bridge_oxe", control_frequency=5.0)


def _oxe_magic_soup() -> dict:
    return _oxe(mixture="oxe_magic_soup", balance="size")


def _oxe_magic_soup_plus() -> dict:
    return _oxe(mixture="oxe_magic_soup_plus", balance="size")


def _libero(suite: str) -> dict:
    """A suite of LIBERO as OpenVLA trains on it, without idle steps."""
    return _oxe(standardization=f"libero_{suite}_no_noops", control_frequency=20.0)


def _libero_spatial() -> dict:
    return _libero("spatial")


def _libero_object() -> dict:
    return _libero("object")


def _libero_goal() -> dict:
    return _libero("goal")


def _libero_10() -> dict:
    return _libero("10")


def _metaworld(suite: str) -> dict:
    """Demonstrations of Meta-World, as data_processing/make_metaworld_demos.py leaves them.

    The camera is named after the view of the protocol, so that data of another one is refused.
    """
    own = {"format": "lerobot", "include": (), "proprio_key": "observation.state", "val_split": "val"}
    config = _base() | own | {"data_path": f"data/metaworld/{suite}", "control_frequency": 80.0}
    config["cameras"] = {"corner2_crop": "observation.images.corner2_crop"}
    config["actions"] |= {"names": ("x (cm)", "y (cm)", "z (cm)", "closing effort")}
    return config


def _metaworld_mt10() -> dict:
    return _metaworld("mt10")


def _metaworld_mt50() -> dict:
    return _metaworld("mt50")


def _mixture_example() -> dict:
    """The tabletop's demonstrations, and BridgeData V2 in RLDS four times as often."""
    sample, bridge = _sample(), _bridge_rlds()
    own = ("format", "data_path", "include", "cameras", "control_frequency")
    datasets = {"tabletop": {key: sample[key] for key in own}, "bridge": {key: bridge[key] for key in own}}
    datasets["tabletop"]["weight"], datasets["bridge"]["weight"] = 1.0, 4.0
    return _bridge() | {"datasets": datasets, "reasoning_path": ""}


PRESETS = {
    "bdv2_local": _bdv2_local,
    "all": _all,
    "sample": _sample,
    "sample_lerobot": _sample_lerobot,
    "sample_few": _sample_few,
    "sample_full": _sample_full,
    "bridge_rlds": _bridge_rlds,
    "metaworld_mt10": _metaworld_mt10,
    "metaworld_mt50": _metaworld_mt50,
    "mixture_example": _mixture_example,
    "bridge_orig": _bridge_orig,
    "bridge_oxe": _bridge_oxe,
    "oxe_magic_soup": _oxe_magic_soup,
    "oxe_magic_soup_plus": _oxe_magic_soup_plus,
    "libero_spatial": _libero_spatial,
    "libero_object": _libero_object,
    "libero_goal": _libero_goal,
    "libero_10": _libero_10,
    "tfrecord": _tfrecord,
    "rlds": _rlds,
    "lerobot": _lerobot,
}


def get_config(name: str = "") -> ConfigDict:
    """The preset called `name`."""
    if name not in PRESETS:
        raise ValueError(f"no data config named {name!r}; there are: {', '.join(PRESETS)}")
    return ConfigDict(PRESETS[name]())
