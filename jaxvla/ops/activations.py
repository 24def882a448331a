"""Nonlinearities by the name that a configuration gives them."""

from collections.abc import Callable

import jax
from jaxtyping import Array

from jaxvla.errors import ConfigError

_ACTIVATIONS = {"gelu": jax.nn.gelu, "relu": jax.nn.relu, "swish": jax.nn.swish}


def activation(name: str) -> Callable[[Array], Array]:
    """The elementwise function called `name`.

    Raises:
        ConfigError: there is none.
    """
    if name not in _ACTIVATIONS:
        raise ConfigError(f"no activation named {name!r}; there are: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]
