"""A plan as aligned text, and as plain JSON values."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from jaxvla.parallel.collectives import total
from jaxvla.parallel.devices import Device
from jaxvla.training.fitting import Change
from jaxvla.training.plan import Plan, mfu, step_time

_GB = 1e9


def lines(plan: Plan, device: Device, limit: float, efficiency: float, num_steps: int) -> list[str]:
    """What is printed."""
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    return [
        f"mesh         {plan.devices} devices: {mesh}; batch {plan.batch_size}, {plan.tokens} text columns",
        f"parameters   {plan.parameters / 1e6:.1f} M, {plan.trained / 1e6:.1f} M trained",
        f"compiled     in {plan.compiled.seconds:.0f} s by XLA's CPU backend for simulated devices, the whole step",
        "",
        *_memory(plan, limit),
        "",
        *_collectives(plan, device),
        "",
        f"FLOPs        {plan.model_flops:.4g} a step of the model, {plan.executed_flops:.4g} with what remat repeats",
        *_time(plan, device, efficiency, num_steps),
    ]


def _memory(plan: Plan, limit: float) -> list[str]:
    memory, compiled = plan.memory, plan.compiled
    rows = [
        ("parameters", memory.parameters, "exact, of shapes and shardings"),
        ("optimizer", memory.optimizer, "exact"),
        ("gradients", memory.gradients, "exact; XLA may free some early"),
        ("batch", memory.batch, "exact"),
        ("activations", memory.activations, "kept for the backward pass, by tracing; XLA fuses some away"),
        ("together", memory.total, "what an accelerator needs about"),
        (
            "compiled",
            compiled.total,
            f"CPU backend: state {compiled.state / _GB:.3f}, temporary {compiled.temporary / _GB:.3f}",
        ),
    ]
    head = f"{'GB a device':<16}{'':>10}"
    return [head, *(f"{name:<16}{size / _GB:>10.3f}   {note}" for name, size, note in rows), verdict(plan, limit)]


def verdict(plan: Plan, limit: float) -> str:
    """Whether it fits."""
    known = f"into {limit / _GB:.1f} GB"
    if plan.compiled.total <= limit:
        return f"fits {known}, as compiled"
    if plan.memory.total <= limit:
        return f"may fit {known}: by shapes yes, as the CPU backend compiles it no"
    return f"does not fit {known}"


def _collectives(plan: Plan, device: Device) -> list[str]:
    if not plan.collectives:
        return ["no collectives"]
    out = [f"{'collectives of a step':<22}{'axes':<14}{'arrays':>7}{'payload GB':>13}{'sent GB':>11}   link"]
    for row in plan.collectives:
        link = "fast" if row.local else "slow"
        axes = ",".join(row.axes)
        out.append(f"{row.kind:<22}{axes:<14}{row.count:>7}{row.payload / _GB:>13.4f}{row.wire / _GB:>11.4f}   {link}")
    out.append(f"{'a device sends':<56}{total(plan.collectives) / _GB:>11.4f}   links of {device.name}")
    return out


def _time(plan: Plan, device: Device, efficiency: float, num_steps: int) -> list[str]:
    time, ideal = step_time(plan, device, efficiency), step_time(plan, device, 1.0)
    bound = max(ideal.compute, ideal.communication)
    hours = time.expected * num_steps / 3600
    return [
        f"{device.name:<13}products {1000 * time.compute:.1f} ms at {efficiency:.0%} of the peak, memory "
        f"{1000 * time.memory:.1f} ms, links {1000 * time.communication:.1f} ms",
        f"step         {1000 * time.expected:.1f} ms expected, {1000 * time.unhidden:.1f} ms if no communication hides "
        f"behind products; MFU {mfu(plan, time.expected, device):.1%}, at most {mfu(plan, bound, device):.1%}",
        f"run          {num_steps} steps: {hours:.2f} hours, {hours * plan.devices:.1f} device-hours",
    ]


def mends(found: Sequence[Change], limit: float) -> list[str]:
    """What would make it fit."""
    out = [f"{'instead':<15}{'by shapes GB':>13}{'as compiled':>13}"]
    for one in found:
        sizes = f"{one.memory.total / _GB:>28.3f}{(one.memory.total + one.extra) / _GB:>13.3f}"
        out.append(f"{sizes}   {one.fits(limit):<13}{one.flags}")
    return out


def to_json(plan: Plan, device: Device, efficiency: float, num_steps: int) -> dict[str, Any]:
    """Plain values: all of the plan, and the times on such devices."""
    time = step_time(plan, device, efficiency)
    return dataclasses.asdict(plan) | {
        "device": dataclasses.asdict(device),
        "efficiency": efficiency,
        "step_seconds": dataclasses.asdict(time) | {"expected": time.expected, "unhidden": time.unhidden},
        "mfu": mfu(plan, time.expected, device),
        "hours": time.expected * num_steps / 3600,
    }
