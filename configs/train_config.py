"""How to train: `--config train_config.py:NAME`. Values only; each is read once, into the dataclasses of jaxvla.

    python experiments/train.py --config train_config.py:gc_bc --bridgedata_config data_config.py:bdv2_local

Their keys are in train_base.py, the presets in train_bridge.py, train_reasoning.py, train_lerobot.py,
train_openvla.py and train_metaworld.py.

Names: gc_bc, lc_bc, gc_ddpm_bc, gc_iql, contrastive_rl_td, with BridgeData V2's values; ecot (a Qwen3-VL that reasons,
needs --config.backbone.path), and ecot_lara with LaRA-VLA's; act and smolvla with LeRobot's, and act_dinov2, which
looks through DINOv2; openvla, openvla_lora and openvla_oft with their own. NAME_tiny of all but ecot_lara, act_dinov2
and openvla_lora trains on two CPU cores. metaworld_lc_bc and metaworld_ecot_tiny do so on ten tasks of Meta-World,
metaworld_ecot is ecot for all fifty.

`data.image_size` (height, width) is what the policy sees, empty for the stored size; convert at no less than it.
Cameras that it sees otherwise are in `data.camera_sizes`, such as {"wrist": (128, 128)}. docs/formats.md has the other
keys of `data`, in the order in which they act.
"""

import train_bridge
import train_lerobot
import train_metaworld
import train_openvla
import train_reasoning
from ml_collections import ConfigDict

PRESETS = {
    **train_bridge.PRESETS,
    **train_reasoning.PRESETS,
    **train_lerobot.PRESETS,
    **train_openvla.PRESETS,
    **train_metaworld.PRESETS,
}


def get_config(name: str = "") -> ConfigDict:
    """The preset called `name`."""
    if name not in PRESETS:
        raise ValueError(f"no training config named {name!r}; there are: {', '.join(PRESETS)}")
    return ConfigDict(PRESETS[name]())
