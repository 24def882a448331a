"""Where the activations of a batch live on a mesh.

A model whose parameters are sharded has to say where its activations stay: left to itself, the partitioner of XLA moves
them to the parameters. Models mark them with `pin` and know no mesh. Who traces a model names the place:

    def train_step(state, batch):
        with activations_at(batch_sharding):
            ...  # jax.value_and_grad of a loss, and all that it calls

Both have to happen inside the function that is jitted, so that the place is a part of what was traced.
"""

import contextlib
import contextvars
from collections.abc import Iterator

import jax
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float, Int, Shaped

_PLACE: contextvars.ContextVar[NamedSharding | None] = contextvars.ContextVar("activations", default=None)


@contextlib.contextmanager
def activations_at(sharding: NamedSharding) -> Iterator[None]:
    """Within, `pin` puts arrays there; usually split along their first axis, as the batch is."""
    token = _PLACE.set(sharding)
    try:
        yield
    finally:
        _PLACE.reset(token)


def pin(x: Shaped[Array, "b ..."], free: int | None = None) -> Shaped[Array, "b ..."]:
    """`x`, whose first axis is that of the batch, where `activations_at` says; outside of it, left to the compiler.

    Axis `free` is left to it in any case: heads stay with the columns of the matrices that made them.
    """
    sharding = _PLACE.get()
    if sharding is None:
        return x
    if free is not None:
        axes = [*sharding.spec, *(None,) * (x.ndim - len(sharding.spec))]
        axes[free] = PartitionSpec.UNCONSTRAINED
        sharding = NamedSharding(sharding.mesh, PartitionSpec(*axes))
    return jax.lax.with_sharding_constraint(x, sharding)


def look_up(
    table_vd: Float[Array, "v d"], rows_bt: Int[Array, "b t"], dtype: jax.typing.DTypeLike
) -> Float[Array, "b t d"]:
    """Rows of a table in `dtype`, where `activations_at` says, of a table whose columns are split as the batch is last.

    Devices that hold other columns read theirs for the samples of all of them, and exchange what they read. Left to
    itself, the partitioner of XLA lets each device read its columns for the whole batch, of all devices.
    """
    sharding = _PLACE.get()
    axes = sharding.spec[0] if sharding is not None and len(sharding.spec) else None
    if not isinstance(axes, tuple) or len(axes) < 2:
        return pin(table_vd[rows_bt].astype(dtype))
    *before, last = axes
    by_sample, by_column = (
        NamedSharding(sharding.mesh, PartitionSpec(tuple(before), *rest)) for rest in ((), (None, last))
    )
    rows_bt = jax.lax.with_sharding_constraint(rows_bt, by_sample)
    return pin(jax.lax.with_sharding_constraint(table_vd[rows_bt].astype(dtype), by_column))
