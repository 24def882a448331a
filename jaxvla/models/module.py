"""The boundary between flax.nnx modules and pytrees: a static graph definition, and a nested dict of arrays.

    graphdef = graph_of(make)               no arrays are made
    params = init_params(make, rng)         {"encoder": {"stem": {"kernel": ...}}}
    model = bind(graphdef, params)          inside jit, grad or scan; costs nothing at run time

`make` maps `nnx.Rngs` to a module. Parameters are float32; the compute dtype is the module's own affair.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Key

from jaxvla.errors import ConfigError

Params = dict[str, Any]
MakeModule = Callable[[nnx.Rngs], nnx.Module]

_COMPUTE_DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def graph_of(make: MakeModule) -> nnx.GraphDef:
    """The static part of the module that `make` builds: hashable, equal for equal modules."""
    return nnx.split(nnx.eval_shape(lambda: make(nnx.Rngs(0))), nnx.Param)[0]


def init_params(make: MakeModule, rng: Key[Array, ""]) -> Params:
    """The parameters of the module that `make` builds, drawn from `rng`; works under jit, vmap and eval_shape."""
    return params_of(make(nnx.Rngs(rng)))


def params_of(module: nnx.Module) -> Params:
    """The parameters of a module as a nested dict with str keys."""
    return nnx.to_pure_dict(nnx.split(module, nnx.Param)[1])


def bind(graphdef: nnx.GraphDef, params: Params) -> Any:
    """The module of `graphdef` with these parameters."""
    return nnx.merge(graphdef, params)


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype in which matrix products and convolutions run.

    Raises:
        ConfigError: neither float32 nor bfloat16.
    """
    if name not in _COMPUTE_DTYPES:
        raise ConfigError(f"no compute dtype named {name!r}; there are: {', '.join(_COMPUTE_DTYPES)}")
    return jnp.dtype(_COMPUTE_DTYPES[name])
