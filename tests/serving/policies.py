"""Checkpoints of small policies, one of them an agent that says in its actions what it saw."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from training.positional_batches import make_assets, make_statistics

from jaxvla import agents
from jaxvla.data.schema import BatchSpec
from jaxvla.training.checkpointer import Checkpointer
from jaxvla.training.config import CheckpointConfig
from jaxvla.training.state import TrainState

GC_BC = {"encoder": {"name": "resnetv1-tiny"}, "hidden_dims": (8,), "dropout_rate": 0.0}


@dataclasses.dataclass(frozen=True)
class Echo:
    """Says what it saw: the first action is (oldest frame, newest frame), the second (goal, proprio)."""

    spec: BatchSpec
    batch_keys: tuple[str, ...] = ("observations", "goals", "actions")
    frozen_modules: tuple[str, ...] = ()
    targets: None = None

    def init(self, rng):
        return {"scale": jnp.ones(())}

    def loss(self, params, batch, rng):
        return params["scale"], {}

    def evaluate(self, params, batch, rng):
        return {"mse": jnp.zeros(len(batch["actions"]))}

    def act(self, params, observations, task, rng=None, temperature=1.0):
        images, goal = observations["images0"] / 255, task["goals"]["images0"] / 255
        seen = [images[:, 0].mean((1, 2, 3)), images[:, -1].mean((1, 2, 3)), goal.mean((1, 2, 3))]
        numbers = jnp.stack([*seen, observations["proprio"][:, -1, 0]], axis=-1) * params["scale"]
        return numbers.reshape(-1, 2, 2)


def make(agent, kwargs, spec, values=(0.1, 0.3), **others):
    """Arbitrary parameters and the assets, of which `others` are fields."""
    own = {"agent": agent, "agent_kwargs": kwargs, "spec": spec, "statistics": make_statistics(spec)}
    assets = dataclasses.replace(make_assets(), **own | others)
    shapes = jax.eval_shape(agents.make_agent(agent, kwargs, spec).init, jax.random.key(0))
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: jnp.asarray(rng.uniform(*values, x.shape), x.dtype), shapes), assets


def save(run, agent, kwargs, spec, steps=(3,), values=(0.1, 0.3), **others):
    """Checkpoints of what `make` makes; returns that."""
    params, assets = make(agent, kwargs, spec, values, **others)
    with Checkpointer(run, CheckpointConfig(), assets) as checkpointer:
        for step in steps:
            checkpointer.save(TrainState(jnp.int32(step), params, {}, jnp.zeros(2, jnp.uint32)), {}, None)
    return params, assets


def gray(value, size=(8, 8)):
    return np.full((*size, 3), value, np.uint8)
