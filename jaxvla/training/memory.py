"""The memory of a training step on one device, as far as shapes and shardings tell."""

import dataclasses
import math
from typing import Any

import jax

from jaxvla.training.sketch import Sketch
from jaxvla.training.state import TrainState, param_shapes
from jaxvla.training.throughput import loss_of


def shard_bytes(tree: Any) -> int:
    """Bytes that a device holds of arrays, or of `jax.ShapeDtypeStruct`s, with their shardings."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device.

    Attributes:
        parameters: of the agent.
        optimizer: its state, with the average of the parameters where one is kept.
        gradients: of what is trained.
        batch: what a step is given.
        activations: what the forward pass leaves for the backward pass, of the rows that go through it at once.
    """

    parameters: int
    optimizer: int
    gradients: int
    batch: int
    activations: int

    @property
    def total(self) -> int:
        """All together."""
        return sum(dataclasses.astuple(self))


def activation_bytes(run: Sketch) -> int:
    """Bytes that automatic differentiation keeps of one row of a batch, before XLA leaves some of it out.

    What is kept of two rows, less what is kept of one: parameters, and what is made of them alone, do not count.
    """
    params = param_shapes(run.agent)
    trained, frozen = run.optimizer.split(params)
    key = jax.eval_shape(lambda: jax.random.key(0))

    def kept(rows: int) -> int:
        def backward(trained: Any, *rest: Any) -> Any:
            return jax.vjp(lambda part: loss_of(run.agent, part, *rest), trained)[1]

        shapes = jax.eval_shape(backward, trained, frozen, run.batch(rows), key)
        return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(shapes))

    return kept(2) - kept(1)


def memory_of(run: Sketch, state: TrainState, row_bytes: int) -> Memory:
    """The memory of a run whose state lies as its shardings say.

    Args:
        run: gives the batch, and what is trained.
        state: abstract.
        row_bytes: from `activation_bytes`.
    """
    mesh = jax.tree.leaves(state.params)[0].sharding.mesh
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    trained, _ = run.optimizer.split(state.params)
    rows = run.config.batch_size // shards
    batch = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(run.batch(1))) * rows
    activations = row_bytes * rows // run.config.accumulate_steps
    rest = shard_bytes((state.opt_state, state.ema))
    return Memory(shard_bytes(state.params), rest, shard_bytes(trained), batch, activations)
