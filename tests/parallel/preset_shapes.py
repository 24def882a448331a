"""The parameters of large presets as shapes, and the golden files of where they live; as a script it writes those anew:

PYTHONPATH=.:configs python tests/parallel/preset_shapes.py
"""

import dataclasses
import functools
import json
import pathlib

import jax
import train_config
from jax.sharding import AbstractMesh

from jaxvla.agents import make_agent
from jaxvla.agents.backbone import BackboneConfig, open_backbone
from jaxvla.config import from_mapping
from jaxvla.data.schema import BatchSpec, InstructionSpec, TextSpec
from jaxvla.parallel.mesh import AXES
from jaxvla.parallel.sharding import path_string, tree_placements
from jaxvla.reasoning.prompt import THINKING_TOKENS

# Name of the golden file: preset, and its backbone where it has one.
PRESETS = {
    "ecot_qwen3_vl_2b": ("ecot", "qwen3_vl_2b"),
    "ecot_qwen3_vl_8b": ("ecot", "qwen3_vl_8b"),
    "openvla": ("openvla", ""),
    "smolvla": ("smolvla", ""),
}
GOLDEN = pathlib.Path(__file__).parent / "golden"


def mesh(data, fsdp, tensor):
    """Without devices."""
    return AbstractMesh((data, fsdp, tensor), AXES)


@functools.cache
def agent_of(preset, backbone="", lora=0, base=""):
    """The agent of a preset, for batches of one camera and seven dimensions; `base`, of its adapters."""
    config = train_config.get_config(preset).to_dict()
    size = config["data"]["image_size"] or (224, 224)
    spec = BatchSpec(("images0",), size, 7, 7, action_horizon=config["data"]["action_horizon"])
    kwargs = config["agent_kwargs"]
    if base:
        kwargs["lora"] |= {"base": base}
    if backbone:
        settings = config["backbone"] | {"preset": backbone, "lora": config["backbone"]["lora"] | {"rank": lora}}
        kwargs |= open_backbone(from_mapping(BackboneConfig, settings), THINKING_TOKENS).agent_kwargs()
        kwargs |= {"stop_token": 0, "pad_token": 1}
        spec = dataclasses.replace(spec, text=TextSpec(160, 8, 200))
    elif "language" in config:
        spec = dataclasses.replace(spec, instruction=InstructionSpec(config["language"]["max_length"], 32000))
    return make_agent(config["agent"], kwargs, spec)


@functools.cache
def params_of(preset, backbone="", lora=0, base=""):
    """Shapes and dtypes of its parameters."""
    return jax.eval_shape(agent_of(preset, backbone, lora, base).init, jax.random.key(0))


def layout(params, on):
    """Path -> "shape dtype spec", of every parameter on a mesh."""
    placed = jax.tree.leaves(tree_placements(params, on))
    leaves = jax.tree_util.tree_leaves_with_path(params)
    return {path_string(path): described(leaf, place) for (path, leaf), place in zip(leaves, placed)}


def described(leaf, place):
    axes = ["+".join(axis) if isinstance(axis, tuple) else axis or "-" for axis in place.spec]
    return f"{'x'.join(map(str, leaf.shape))} {leaf.dtype} {','.join(axes) or 'whole'}"


def golden_mesh():
    return mesh(4, 8, 4)


if __name__ == "__main__":
    for name, preset in PRESETS.items():
        text = json.dumps(layout(params_of(*preset), golden_mesh()), indent=0)
        (GOLDEN / f"{name}.json").write_text(f"{text}\n")
