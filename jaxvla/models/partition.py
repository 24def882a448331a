"""Parameters split into those that train and those that stay frozen, and joined again.

Gradients and optimizer state are made for the first tree alone:

    trainable, frozen = partition(params, "^head/")
    opt_state = optimizer.init(trainable)
    grads = jax.grad(lambda trainable: loss(combine(trainable, frozen)))(trainable)
"""

import re

from flax import traverse_util

from jaxvla.errors import ConfigError
from jaxvla.models.module import Params


def partition(params: Params, trainable: str) -> tuple[Params, Params]:
    """Splits parameters by path, without copies.

    Args:
        params: nested dict.
        trainable: regex searched in the path "a/b/c" of each parameter.

    Returns:
        The parameters that it matches, and the others, each nested as in `params` and without empty branches.

    Raises:
        ConfigError: it matches no parameter, or is no regex.
    """
    chosen = set(match_paths(params, trainable))
    flat = traverse_util.flatten_dict(params, sep="/")
    parts = ({path: leaf for path, leaf in flat.items() if (path in chosen) == wanted} for wanted in (True, False))
    first, second = (traverse_util.unflatten_dict(part, sep="/") for part in parts)
    return first, second


def combine(*trees: Params) -> Params:
    """Joins the parts of a tree; the inverse of `partition`.

    Raises:
        ConfigError: two parts hold a parameter of the same path.
    """
    flat: dict[str, object] = {}
    for tree in trees:
        part = traverse_util.flatten_dict(tree, sep="/")
        if shared := flat.keys() & part.keys():
            raise ConfigError(f"parts of one tree of parameters share {sorted(shared)[0]}")
        flat |= part
    return traverse_util.unflatten_dict(flat, sep="/")


def replace(params: Params, part: Params) -> Params:
    """`params` with the leaves of `part`, a tree of some of its paths, in the place of its own."""
    flat, new = (traverse_util.flatten_dict(tree, sep="/") for tree in (params, part))
    return traverse_util.unflatten_dict({path: new.get(path, leaf) for path, leaf in flat.items()}, sep="/")


def select(params: Params, part: Params) -> Params:
    """The leaves of `params` at the paths of `part`."""
    flat = traverse_util.flatten_dict(params, sep="/")
    paths = traverse_util.flatten_dict(part, sep="/")
    return traverse_util.unflatten_dict({path: flat[path] for path in paths}, sep="/")


def match_paths(params: Params, pattern: str) -> list[str]:
    """The paths of the parameters in which the regex `pattern` is found.

    Raises:
        ConfigError: none, or it is no regex.
    """
    paths = list(traverse_util.flatten_dict(params, sep="/"))
    try:
        found = [path for path in paths if re.search(pattern, path)]
    except re.error as error:
        raise ConfigError(f"{pattern!r} is no regex: {error}") from error
    if not found:
        raise ConfigError(f"no parameter path matches {pattern!r}; there are {', '.join(sorted(paths)[:3])}, ...")
    return found
