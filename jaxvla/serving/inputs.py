"""What goes into the computation of a decision."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxvla.models.module import Params


def inputs_read(decide: Callable[..., Any], params: Params, inputs: tuple[Any, Any]) -> dict[str, tuple[str, ...]]:
    """Which observations and goals a computation reads, by name.

    Args:
        decide: (parameters, (observations, tasks), no draw) to actions.
        params: or their shapes.
        inputs: of the right shapes.
    """
    jaxpr = jax.make_jaxpr(decide)(params, inputs, None).jaxpr
    read = {id(variable) for equation in jaxpr.eqns for variable in equation.invars}
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(inputs)]
    given = jaxpr.invars[len(jax.tree.leaves(params)) :]
    used = [path for path, variable in zip(paths, given) if id(variable) in read]
    return {
        "observation": tuple(name.key for part, name, *_ in used if part.idx == 0),
        "goals": tuple(path[-1].key for path in used if path[1].key == "goals"),
    }


def stack(steps: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Several of the same as one, along a new first axis."""
    return {name: np.stack([step[name] for step in steps]) for name in steps[0]}


def fill(batch: Any, rows: int) -> Any:
    """A batch of as many rows; its first one fills it up."""
    return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[:1], rows - len(x), axis=0)]), batch)
