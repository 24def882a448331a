"""Networks and the targets that follow them, from one tree of parameters that holds both."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxvla.agents.agent import Targets
from jaxvla.models.module import Params, bind


class Networks(NamedTuple):
    """One module three times.

    Attributes:
        online: with the parameters that are trained.
        fixed: with the same ones, which gradients do not reach.
        target: like `fixed`, but each module that has a follower is that follower.
    """

    online: Any
    fixed: Any
    target: Any


def add_followers(params: Params, targets: Targets) -> Params:
    """The parameters with their followers, each a copy of what it follows."""
    return params | {follower: jax.tree.map(jnp.copy, params[name]) for follower, name in targets.following}


def bind_networks(graphdef: nnx.GraphDef, params: Params, targets: Targets) -> Networks:
    """The module of `graphdef`, whose parameters are `params` without the followers."""
    followed = dict(targets.following)
    online = {name: part for name, part in params.items() if name not in followed}
    fixed = jax.lax.stop_gradient(online)
    slow = fixed | {name: jax.lax.stop_gradient(params[follower]) for follower, name in targets.following}
    return Networks(*(bind(graphdef, tree) for tree in (online, fixed, slow)))
