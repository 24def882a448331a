"""A small head, random parameters and inputs, shared by the tests of the action head."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from models.random_params import random_params

from jaxvla.models.action_head.config import ActionHeadConfig
from jaxvla.models.action_head.head import ActionHead
from jaxvla.models.module import bind, graph_of

B, T, C, A, D, P = 3, 6, 24, 4, 3, 5
CONFIG = ActionHeadConfig(
    size="dit_tiny",
    output_dim=32,
    hidden_size=40,
    num_future_tokens=3,
    max_seq_len=8,
    repeated_diffusion_steps=3,
)
# Left padding, holes, right padding; every sample sees something.
VALID = np.array([[0, 0, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0], [1, 1, 1, 1, 0, 0]], bool)
PAD_MASK = np.array([[1, 1, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]], bool)

quick_jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def maker(config=CONFIG, state_dim=0):
    return lambda rngs: ActionHead(config, C, A, D, state_dim, rngs)


def configured(**changes):
    return dataclasses.replace(CONFIG, **changes)


@functools.cache
def params_for(state_dim=0, **changes):
    return random_params(maker(configured(use_state=state_dim > 0, **changes), state_dim))


@functools.cache
def calls(method, config=CONFIG, state_dim=0, **static):
    """(params, *args) -> the method's result, jitted."""
    graph = graph_of(maker(config, state_dim))
    return quick_jit(lambda params, *args: getattr(bind(graph, params), method)(*args, **static))


def inputs(seed=0):
    rng = np.random.default_rng(seed)
    shapes = {"context": (B, T, C), "noise": (B, A, D), "actions": (B, A, D), "state": (B, P)}
    return {name: jnp.asarray(rng.standard_normal(shape), jnp.float32) for name, shape in shapes.items()}


def to_numpy(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)
