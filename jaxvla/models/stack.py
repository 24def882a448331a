"""Repeated blocks: parameters stacked [L, ...], run by one lax.scan, so that compile time does not grow with depth."""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx
from jaxtyping import Array, Key

from jaxvla.errors import ConfigError
from jaxvla.models.module import MakeModule, Params, bind, compute_dtype, params_of
from jaxvla.ops.attention import check_implementation

Carry = TypeVar("Carry")

# What the forward pass keeps for the backward pass: everything; the products of matrices; the input of each block.
REMAT_POLICIES = ("none", "dots", "block")


def check_remat(name: str) -> None:
    """Raises ConfigError unless `name` is a remat policy; for configurations that hold one."""
    if name not in REMAT_POLICIES:
        raise ConfigError(f"no remat policy named {name!r}; there are: {', '.join(REMAT_POLICIES)}")


def check_compute(dtype: str, remat: str, attention: str) -> None:
    """For configurations of models: raises ConfigError unless these are a compute dtype, a remat policy and an
    implementation of attention."""
    compute_dtype(dtype)
    check_remat(remat)
    check_implementation(attention)


def stack_blocks(make_block: MakeModule, num_blocks: int, rngs: nnx.Rngs) -> Any:
    """One block whose every parameter has a leading axis of `num_blocks`, each slice drawn with its own key.

    The module is a container: assign it to an attribute of the model and run it by `scan_blocks`, never by a call.
    """
    graphdefs = []

    # Traced once, which gives the graph definition, too: blocks are most of what a model takes to trace.
    def draw(key: Key[Array, ""]) -> Params:
        graphdef, state = nnx.split(make_block(nnx.Rngs(key)), nnx.Param)
        graphdefs.append(graphdef)
        return nnx.to_pure_dict(state)

    stacked = jax.vmap(draw)(jax.random.split(rngs.params(), num_blocks))
    return bind(graphdefs[0], stacked)


def map_blocks(blocks: nnx.Module, use: Callable[[Any], Any]) -> Any:
    """What `use` makes of each of stacked blocks, none of which follows another, stacked [L, ...]."""
    graphdef, _ = nnx.split(blocks, nnx.Param)
    return jax.vmap(lambda params: use(bind(graphdef, params)))(params_of(blocks))


def scan_blocks(
    blocks: nnx.Module,
    step: Callable[[Any, Carry, Any], tuple[Carry, Any]],
    carry: Carry,
    xs: Any = None,
    *,
    remat: str = "none",
    unroll: bool = False,
) -> tuple[Carry, Any]:
    """Runs stacked blocks one after the other.

    Args:
        blocks: from `stack_blocks`.
        step: (block, carry, x) -> (carry, y) for one block. What all blocks share, such as a mask, it closes over.
        carry: a pytree whose shapes and dtypes each step keeps.
        xs: a pytree of arrays [L, ...], one slice per block: dropout keys, cached keys and values. None for none.
        remat: "none", "dots" or "block", see `REMAT_POLICIES`.
        unroll: writes the blocks out one by one instead of a loop; for operations that are slow in loops.

    Returns:
        The last carry, and the y's stacked [L, ...].

    Raises:
        ConfigError: an unknown remat policy.
    """
    check_remat(remat)
    graphdef, _ = nnx.split(blocks, nnx.Param)

    def body(carry: Carry, layer: tuple[Any, Any]) -> tuple[Carry, Any]:
        params, x = layer
        return step(bind(graphdef, params), carry, x)

    if remat != "none":
        policy = jax.checkpoint_policies.dots_with_no_batch_dims_saveable if remat == "dots" else None
        # A loop already keeps the recomputation apart; written out, only the barrier of prevent_cse does.
        body = jax.checkpoint(body, policy=policy, prevent_cse=unroll)
    return jax.lax.scan(body, carry, (params_of(blocks), xs), unroll=unroll)
