"""What training carries from step to step."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jax.sharding import Mesh
from jaxtyping import Array, Key

from jaxvla.agents.agent import Agent
from jaxvla.models.module import Params
from jaxvla.models.partition import combine, replace
from jaxvla.parallel.mesh import AnyMesh
from jaxvla.parallel.rules import Rules
from jaxvla.parallel.sharding import tree_shardings
from jaxvla.training.optimizer import Optimizer

# Some of an agent's parameters, read from files into the shardings given for all of them.
Pretrained = Callable[[Params], Params]

# The many random draws take XLA longer to optimise than they could ever save: a third of the time to the first step.
_RUN_ONCE = {"xla_backend_optimization_level": 0}


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """A pytree of arrays; also of their shapes or shardings, in the same places.

    Attributes:
        step: int32 [], the steps taken so far.
        params: nested dict of float32 arrays; frozen ones may be narrower.
        opt_state: of optax, for the trained parameters.
        rng: uint32 [2], data of the random key that all steps derive from.
        ema: running average of the parameters that training changes, see `changing`; None where none is kept.
    """

    step: Any
    params: Any
    opt_state: Any
    rng: Any
    ema: Any = None

    @property
    def served(self) -> Any:
        """The parameters to validate and to serve: the average where there is one."""
        return self.params if self.ema is None else replace(self.params, self.ema)


def create_state(
    agent: Agent,
    optimizer: Optimizer,
    seed: int,
    mesh: Mesh,
    rules: Rules = (),
    *,
    ema: bool = False,
    pretrained: Pretrained | None = None,
) -> TrainState:
    """The state before the first step, initialised straight into its shards: no device ever holds a whole copy.

    Args:
        agent: gives the parameters.
        optimizer: gives its state.
        seed: of the parameters and of everything random in training.
        mesh: axes ("data", "fsdp", "tensor").
        rules: parameter path to PartitionSpec, see `tree_shardings`.
        ema: keep a running average of the parameters.
        pretrained: parameters that are read from files; those are not drawn.
    """
    shardings = state_shardings(abstract_state(agent, optimizer, mesh, rules, ema=ema))

    def compiled(make: Callable[..., Any], where: Any) -> Callable[..., Any]:
        return jax.jit(make, out_shardings=where, compiler_options=_RUN_ONCE)

    if pretrained is None:
        return compiled(lambda: _initial(agent, optimizer, seed, ema), shardings)()
    loaded = pretrained(shardings.params)
    drawn = compiled(lambda: _without(_initial_params(agent, seed), loaded), _without(shardings.params, loaded))()
    # In the order of the agent, like all trees of parameters.
    params = replace(shardings.params, combine(loaded, drawn))
    rest = compiled(
        lambda params: dataclasses.replace(_state_of(params, agent, optimizer, seed, ema), params=None),
        dataclasses.replace(shardings, params=None),
    )(params)
    return dataclasses.replace(rest, params=params)


def abstract_state(
    agent: Agent, optimizer: Optimizer, mesh: AnyMesh, rules: Rules = (), *, ema: bool = False
) -> TrainState:
    """The shapes, dtypes and shardings of a state, as `jax.ShapeDtypeStruct`s; nothing is computed.

    Raises:
        ConfigError: the rules do not fit, or a large parameter would be replicated, see `tree_placements`.
    """
    shapes = jax.eval_shape(lambda: _initial(agent, optimizer, 0, ema))
    shardings = tree_shardings(shapes, mesh, rules)
    return jax.tree.map(lambda x, where: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), shapes, shardings)


def state_shardings(state: TrainState) -> TrainState:
    """The sharding of every array of a state, abstract or not."""
    return jax.tree.map(lambda x: x.sharding, state)


def param_shapes(agent: Agent) -> Params:
    """The shapes and dtypes of an agent's parameters, as `jax.ShapeDtypeStruct`s; nothing is computed."""
    return _draw.eval_shape(agent, jax.random.key(0))


def changing(agent: Agent, optimizer: Optimizer, params: Params) -> Params:
    """Of `params`, what training changes, the rest being frozen: the trained ones, and modules that follow others."""
    trained, _ = optimizer.split(params)
    followers = [] if agent.targets is None else [name for name, _ in agent.targets.following]
    return trained | {name: params[name] for name in followers}


def _without(params: Params, part: Params) -> Params:
    """`params` but for the paths of `part`."""
    flat, left_out = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, part))
    kept = {path: leaf for path, leaf in flat.items() if path not in left_out}
    return traverse_util.unflatten_dict(kept, sep="/")


def _initial(agent: Agent, optimizer: Optimizer, seed: int, ema: bool) -> TrainState:
    return _state_of(_initial_params(agent, seed), agent, optimizer, seed, ema)


def _initial_params(agent: Agent, seed: int) -> Params:
    params_key, _ = jax.random.split(jax.random.key(seed))
    return _draw(agent, params_key)


# Under jit, so that a run, which asks for the shapes several times, traces a whole model once.
@functools.partial(jax.jit, static_argnums=0, inline=True)
def _draw(agent: Agent, key: Key[Array, ""]) -> Params:
    # Weakly typed parameters (from a Python number) would come back strongly typed, and the step compile once more.
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, x.dtype), agent.init(key))


def _state_of(params: Params, agent: Agent, optimizer: Optimizer, seed: int, ema: bool) -> TrainState:
    _, step_key = jax.random.split(jax.random.key(seed))
    trained, _ = optimizer.split(params)
    average = jax.tree.map(jnp.copy, changing(agent, optimizer, params)) if ema else None
    step = jnp.zeros((), jnp.int32)
    return TrainState(step, params, optimizer.transform.init(trained), jax.random.key_data(step_key), average)
