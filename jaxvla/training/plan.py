"""What a run will need, before anything is paid for: its real step, compiled for devices that are not there.

Shapes and shardings give the bytes of parameters, optimizer and gradients exactly. What is between them, and which
collectives the partitioner puts in, comes of the compiled program, which is that of XLA's CPU backend: an accelerator's
fuses more and keeps bfloat16 narrow, so that its temporary memory lies below. Layers are scanned, so that neither depth
nor the number of devices makes the program longer, and nothing has to be extrapolated.
"""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh

from jaxvla.models.flops import count
from jaxvla.parallel.collectives import Collective, collectives
from jaxvla.parallel.devices import Device
from jaxvla.training.memory import Memory, activation_bytes, memory_of
from jaxvla.training.sketch import Sketch
from jaxvla.training.throughput import num_tokens, step_flops


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What XLA plans for one device.

    Attributes:
        state: bytes of what a step is given and gives back, each once.
        temporary: bytes besides.
        seconds: it took to trace and to compile.
    """

    state: int
    temporary: int
    seconds: float

    @property
    def total(self) -> int:
        """All together."""
        return self.state + self.temporary


@dataclasses.dataclass(frozen=True)
class Plan:
    """A step on a mesh.

    Attributes:
        mesh: the size of each axis.
        batch_size: rows of a global batch.
        parameters, trained: how many.
        memory: bytes of a device that follow from shapes.
        compiled: what XLA's CPU backend makes of it.
        collectives: of a step.
        model_flops: of a step, over all devices, without what remat computes again.
        executed_flops: with it, and with what the optimizer and the augmentation multiply.
        tokens: columns of texts in a batch; 0 where there are none.
    """

    mesh: Mapping[str, int]
    batch_size: int
    parameters: int
    trained: int
    memory: Memory
    compiled: Compiled
    collectives: tuple[Collective, ...]
    model_flops: float
    executed_flops: float
    tokens: int

    @property
    def devices(self) -> int:
        """How many the mesh has."""
        return math.prod(self.mesh.values())


def make_plan(run: Sketch, mesh: Mesh, domain: int) -> Plan:
    """Lowers and compiles the step of a run.

    Args:
        run: on shapes.
        mesh: of as many devices as are planned for, simulated or not.
        domain: how many devices in a row are joined by fast links, see `jaxvla.parallel.devices`.

    Raises:
        ConfigError: the batch does not divide over the mesh.
    """
    state, batch = run.state(mesh), run.batch(run.config.batch_size)
    start = time.perf_counter()
    traced = run.step(state, mesh).trace(state, batch)
    # The code itself is never run, and writing it fast takes longest.
    compiled = traced.lower().compile(compiler_options={"xla_backend_optimization_level": 0})
    seconds = time.perf_counter() - start
    sizes = compiled.memory_analysis()
    held = sizes.argument_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    trained, frozen = run.optimizer.split(state.params)
    return Plan(
        mesh=dict(mesh.shape),
        batch_size=run.config.batch_size,
        parameters=_size(trained) + _size(frozen),
        trained=_size(trained),
        memory=memory_of(run, state, activation_bytes(run)),
        compiled=Compiled(held, sizes.temp_size_in_bytes, seconds),
        collectives=collectives(compiled.as_text(), mesh.shape, domain),
        model_flops=step_flops(run.agent, run.optimizer, state.params, batch),
        executed_flops=count(traced.jaxpr),
        tokens=num_tokens(batch),
    )


def _size(tree: Any) -> int:
    return sum(x.size for x in jax.tree.leaves(tree))


@dataclasses.dataclass(frozen=True)
class StepTime:
    """Seconds of a step on some device.

    Attributes:
        compute: of products, at a share of the device's peak.
        memory: of reading and writing the state and the activations once each way.
        communication: of the collectives, by the links that they go over.
    """

    compute: float
    memory: float
    communication: float

    @property
    def expected(self) -> float:
        """Products, then the rest of memory's work, with communication hidden behind the products as far as it goes."""
        return max(self.compute, self.communication) + self.memory

    @property
    def unhidden(self) -> float:
        """One after the other."""
        return self.compute + self.memory + self.communication


def step_time(plan: Plan, device: Device, efficiency: float) -> StepTime:
    """What the step takes on such devices.

    Args:
        plan: the step.
        device: see `jaxvla.parallel.devices`.
        efficiency: the share of the peak that products of matrices reach; benchmarks/train_step.py measures it.
    """
    memory = plan.memory
    # Parameters are read forwards and backwards and written, moments read and written, gradients written and read.
    moved = 3 * memory.parameters + 2 * (memory.optimizer + memory.gradients + memory.activations)
    links = (row.wire / (device.fast_link if row.local else device.slow_link) for row in plan.collectives)
    return StepTime(
        plan.executed_flops / plan.devices / (efficiency * device.peak_flops),
        moved / device.memory_bandwidth,
        sum(links),
    )


def mfu(plan: Plan, seconds: float, device: Device) -> float:
    """Model FLOPs of the step over what the devices could do in that time."""
    return plan.model_flops / (seconds * device.peak_flops * plan.devices)
