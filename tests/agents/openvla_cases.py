"""A very small openvla agent, for tests of it and of all methods."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxvla.agents.openvla_settings import LORA_TARGETS
from jaxvla.models.partition import combine
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer

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


LORA = {"rank": 2, "targets": LORA_TARGETS, "dropout": 0.3}
# The modules that each mode trains.
WHAT = {
    "full": {"vision", "projector", "llm"},
    "frozen_vision": {"projector", "llm"},
    "last_layer": {"llm/embed_tokens", "llm/last_layer", "llm/lm_head"},
    "sandwich": {"vision", "projector", "llm/embed_tokens", "llm/last_layer", "llm/lm_head"},
    "projector": {"projector"},
    "lora": {"lora"},
}


def check_frozen(agent, batch, modules):
    """Trained parameters, those of `modules`, move; frozen ones do not, and have no state of the optimizer."""
    rng = jax.random.key(0)
    optimizer = make_optimizer(OptimizerConfig(1e-2, warmup_steps=0, decay_steps=0), agent.frozen_modules)
    params, batch = agent.init(rng), jax.tree.map(jnp.asarray, batch)
    before, (trained, frozen) = flatten(jax.tree.map(np.asarray, params)), optimizer.split(params)
    state = optimizer.transform.init(trained)

    @quick_jit
    def step(trained, state, rng):
        gradients = jax.grad(lambda own: agent.loss(combine(own, frozen), batch, rng)[0])(trained)
        updates, state = optimizer.transform.update(gradients, state, trained)
        return jax.tree.map(jnp.add, trained, updates), state

    for key in jax.random.split(rng, 20):
        trained, state = step(trained, state, key)
    names = set(flatten(trained))
    assert {name for name in modules if not any(f"{path}/".startswith(f"{name}/") for path in names)} == set()
    assert all(f"{path}/".startswith(tuple(f"{name}/" for name in modules)) for path in names)
    assert not any("/unread/" in path for path in names)
    moments = {
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in jax.tree_util.tree_leaves_with_path(state)
    }
    assert not any(f"mu/{path}" in moment for path in flatten(frozen) for moment in moments)
    assert {path for path, leaf in flatten(trained).items() if np.any(np.asarray(leaf) != before[path])} == names
    for path, leaf in flatten(frozen).items():
        np.testing.assert_array_equal(leaf, before[path], path)


def flatten(tree):
    """Leaves by their paths."""
    return traverse_util.flatten_dict(tree, sep="/")
