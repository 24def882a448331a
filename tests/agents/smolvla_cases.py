"""A very small smolvla agent, for tests of it and of all methods."""

import functools

import jax

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})

MODEL = {
    "text": {
        "vocab_size": 24,
        "hidden_size": 16,
        "intermediate_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
    },
    "vision": {
        "hidden_size": 8,
        "intermediate_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
    },
    "scale_factor": 2,
    "max_state_dim": 6,
    "max_action_dim": 4,
    "num_steps": 2,
    "freeze_vision_encoder": False,
    "train_expert_only": False,
}


def agent_kwargs(**changes):
    """Settings of an agent all of whose modules are trained; `changes` are of its model."""
    return {"model": MODEL | changes}
