"""How fast a run is: its rates beside what its devices could do at most."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from jaxvla.agents.agent import Agent
from jaxvla.data.schema import Batch
from jaxvla.models.flops import training_flops
from jaxvla.models.module import Params
from jaxvla.models.partition import combine
from jaxvla.parallel.devices import of_kind
from jaxvla.training.optimizer import Optimizer


def step_flops(agent: Agent, optimizer: Optimizer, params: Params, batch: Batch) -> float:
    """FLOPs of the model in one step on this batch, see `jaxvla.models.flops`; shapes of parameters and batch do."""
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), (params, batch))
    trained, frozen = optimizer.split(shapes[0])
    key = jax.eval_shape(lambda: jax.random.key(0))
    return training_flops(functools.partial(loss_of, agent), trained, frozen, shapes[1], key)


def loss_of(agent: Agent, trained: Params, frozen: Params, batch: Batch, rng: jax.Array) -> Any:
    """The loss of parameters that lie in two parts, as `Optimizer.split` leaves them."""
    return agent.loss(combine(trained, frozen), batch, rng)[0]


def num_tokens(batch: Batch) -> int:
    """Columns of the texts of a batch, images and slots among them, or of its instructions; 0 where it has neither."""
    if "text" in batch:
        return sum(batch["text"][name].size for name in ("prefix", "slots", "suffix"))
    instruction = batch.get("instruction")
    return instruction.size if instruction is not None and np.issubdtype(instruction.dtype, np.integer) else 0


class Throughput:
    """The rates of a run, of steps whose batches all have the shapes that were counted last.

    Args:
        agent: what is trained.
        optimizer: tells what is frozen.
        mesh: of the devices, whose peak `jaxvla.parallel.devices` knows or not.
    """

    def __init__(self, agent: Agent, optimizer: Optimizer, mesh: Mesh) -> None:
        self._agent, self._optimizer = agent, optimizer
        device = of_kind(mesh.devices.flat[0].device_kind)
        self._peak = None if device is None else device.peak_flops * mesh.devices.size
        self._flops, self._tokens = 0.0, 0

    def count(self, params: Params, batch: Batch) -> None:
        """Takes the work of a step on a batch of these shapes; the loss is traced, and nothing is run."""
        self._flops = step_flops(self._agent, self._optimizer, params, batch)
        self._tokens = num_tokens(batch)

    def rates(self, values: Mapping[str, float]) -> dict[str, float]:
        """What follows from timer/step_ms, where it is there.

        timer/flops_per_s, of the model, over all devices; timer/tokens_per_s of batches with texts; and timer/mfu, the
        share of the devices' peak in bfloat16, where that is known.
        """
        if "timer/step_ms" not in values:
            return {}
        per_second = 1000 / values["timer/step_ms"]
        rates = {"timer/flops_per_s": self._flops * per_second}
        if self._tokens:
            rates["timer/tokens_per_s"] = self._tokens * per_second
        if self._peak is not None:
            rates["timer/mfu"] = rates["timer/flops_per_s"] / self._peak
        return rates
