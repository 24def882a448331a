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


def stack(steps: Sequence[dict[str, np.ndarray]], *lead: int) -> dict[str, np.ndarray]:
    """Several of the same as one, along a new first axis, or along new axes of these lengths."""
    stacked = {name: np.stack([step[name] for step in steps]) for name in steps[0]}
    return {name: x.reshape(*lead, *x.shape[1:]) for name, x in stacked.items()} if lead else stacked


def fill(batch: Any, count: int, rows: int) -> Any:
    """A batch of `count` rows as one of `rows`; its first one fills it up."""
    if rows == count:
        return batch
    return jax.tree.map(lambda x: np.concatenate([x, np.repeat(x[:1], rows - count, axis=0)]), batch)
