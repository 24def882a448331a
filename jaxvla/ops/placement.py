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
from jaxtyping import Array, Shaped

_PLACE: contextvars.ContextVar[jax.sharding.Sharding | None] = contextvars.ContextVar("activations", default=None)


@contextlib.contextmanager
def activations_at(sharding: jax.sharding.Sharding) -> Iterator[None]:
    """Within, `pin` puts arrays there; usually split along their first axis, as the batch is."""
    token = _PLACE.set(sharding)
    try:
        yield
    finally:
        _PLACE.reset(token)


def pin(x: Shaped[Array, "b ..."]) -> Shaped[Array, "b ..."]:
    """`x`, whose first axis is that of the batch, where `activations_at` says; outside of it, left to the compiler."""
    sharding = _PLACE.get()
    return x if sharding is None else jax.lax.with_sharding_constraint(x, sharding)
