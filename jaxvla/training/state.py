"""What training carries from step to step."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh

from jaxvla.agents.agent import Agent
from jaxvla.parallel.sharding import Rules, tree_shardings

# The many random draws take XLA longer to optimise than they could ever save: a third of the time to the first step.
_RUN_ONCE = {"xla_backend_optimization_level": 0}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree of arrays; also of their shapes or shardings, in the same places.

    Attributes:
        step: int32 [], the steps taken so far.
        params: nested dict of float32 arrays.
        opt_state: of optax.
        rng: uint32 [2], data of the random key that all steps derive from.
    """

    step: Any
    params: Any
    opt_state: Any
    rng: Any


def create_state(
    agent: Agent, optimizer: optax.GradientTransformation, seed: int, mesh: Mesh, rules: Rules = ()
) -> TrainState:
    """The state before the first step, initialised straight into its shards: no device ever holds a whole copy.

    Args:
        agent: gives the parameters.
        optimizer: gives its state.
        seed: of the parameters and of everything random in training.
        mesh: axes ("data", "fsdp", "tensor").
        rules: parameter path to PartitionSpec, see `tree_shardings`.
    """
    shardings = state_shardings(abstract_state(agent, optimizer, mesh, rules))
    initial = jax.jit(lambda: _initial(agent, optimizer, seed), out_shardings=shardings, compiler_options=_RUN_ONCE)
    return initial()


def abstract_state(agent: Agent, optimizer: optax.GradientTransformation, mesh: Mesh, rules: Rules = ()) -> TrainState:
    """The shapes, dtypes and shardings of a state, as `jax.ShapeDtypeStruct`s; nothing is computed."""
    shapes = jax.eval_shape(lambda: _initial(agent, optimizer, 0))
    shardings = tree_shardings(shapes, mesh, rules)
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)


def state_shardings(state: TrainState) -> TrainState:
    """The sharding of every array of a state, abstract or not."""
    return jax.tree.map(lambda x: x.sharding, state)


def _initial(agent: Agent, optimizer: optax.GradientTransformation, seed: int) -> TrainState:
    params_key, step_key = jax.random.split(jax.random.key(seed))
    # Weakly typed parameters (from a Python number) would come back strongly typed, and the step compile once more.
    params = jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), agent.init(params_key))
    return TrainState(jnp.zeros((), jnp.int32), params, optimizer.init(params), jax.random.key_data(step_key))
