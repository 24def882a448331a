"""A very small openvla agent, for tests of it and of all methods."""

import functools

import jax

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

_TOWER = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
    "read_layers": 1,
}
MODEL = {
    "text": {
        "vocab_size": 280,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
    },
    "dino": _TOWER | {"num_register_tokens": 1, "class_position": False, "layer_scale": 1.0},
    "siglip": _TOWER | {"exact_gelu": True, "joint_qkv": True, "attention_pool": True},
}
TOKENS = {"first": 270, "space": 271, "end": 272, "actions_end": 270}


def agent_kwargs(**changes):
    """Settings of an agent of one action chunk; its prompts have tokens below 14."""
    return {"model": MODEL, "tokens": TOKENS} | changes
