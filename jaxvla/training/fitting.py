"""What would make a step fit that does not: each change of the settings by itself, with the memory that it leaves."""

import copy
import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

from jaxvla.errors import ConfigError
from jaxvla.parallel.mesh import AXES, MeshConfig, make_mesh
from jaxvla.training.memory import Memory, activation_bytes, memory_of
from jaxvla.training.plan import Plan
from jaxvla.training.sketch import Robot, Sketch, sketch

MOST_REMAT = "block"


@dataclasses.dataclass(frozen=True)
class Change:
    """Another way to run a step.

    Attributes:
        flags: what to add to the command line.
        memory: bytes of a device that follow from shapes.
        extra: bytes that the compiled program of the plan takes beyond its own `memory`; of the change's own program
            nothing is known.
    """

    flags: str
    memory: Memory
    extra: int

    def fits(self, limit: float) -> str:
        """Whether it fits into so many bytes."""
        if self.memory.total + self.extra <= limit:
            return "fits"
        return "may fit" if self.memory.total <= limit else "does not fit"


def changes(settings: Mapping[str, Any], robot: Robot, plan: Plan, limit: float) -> list[Change]:
    """Accumulation, a smaller batch, remat and a larger fsdp axis, each only as far as it has to go, then all of them.

    Args:
        settings: of the plan's run.
        robot: what is assumed of its data.
        plan: of the run, on as many devices as jax has.
        limit: bytes of a device.
    """
    extra = max(0, plan.compiled.total - plan.memory.total)
    found, together = [], {}
    for steps in _variants(settings, plan):
        best = None
        for flags in steps:
            memory = _memory(settings, robot, plan, flags)
            if memory is None:
                continue
            best = flags, Change(_words(flags), memory, extra)
            if best[1].fits(limit) == "fits":
                break
        if best is not None:
            found.append(best[1])
            if "config.batch_size" not in best[0]:
                together |= best[0]
    memory = _memory(settings, robot, plan, together) if together else None
    if memory is not None and len(found) > 1:
        found.append(Change(_words(together), memory, extra))
    return found


def _variants(settings: Mapping[str, Any], plan: Plan) -> Iterator[list[dict[str, Any]]]:
    """Lists of flags, from small changes to large ones."""
    doublings = [2**n for n in range(1, int(math.log2(max(plan.batch_size, 2))) + 1)]
    steps = settings["accumulate_steps"]
    yield [{"config.accumulate_steps": steps * factor} for factor in doublings]
    yield [{"config.batch_size": plan.batch_size // factor} for factor in doublings if plan.batch_size % factor == 0]
    remat = {
        path: MOST_REMAT
        for path, value in _leaves(settings, "config")
        if path.endswith(".remat") and value != MOST_REMAT
    }
    yield [remat] if remat else []
    fsdp, data = plan.mesh["fsdp"], plan.mesh["data"]
    larger = [factor for factor in doublings if data % factor == 0]
    yield [{"mesh": {**plan.mesh, "data": data // factor, "fsdp": fsdp * factor}} for factor in larger]


def _leaves(settings: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in settings.items():
        path = f"{prefix}.{key}"
        yield from _leaves(value, path) if isinstance(value, Mapping) else [(path, value)]


def _words(flags: Mapping[str, Any]) -> str:
    return " ".join(
        f"--mesh {','.join(f'{axis}={value[axis]}' for axis in AXES)}" if name == "mesh" else f"--{name}={value}"
        for name, value in flags.items()
    )


def _memory(settings: Mapping[str, Any], robot: Robot, plan: Plan, flags: Mapping[str, Any]) -> Memory | None:
    """The memory of the run with other flags; None where its batch does not divide."""
    run, mesh = changed(settings, robot, flags)
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if run.config.batch_size % (shards * run.config.accumulate_steps):
        return None
    same = not any(name.endswith(".remat") for name in flags)
    rows = plan.batch_size // (plan.mesh["data"] * plan.mesh["fsdp"])
    before = settings["accumulate_steps"]
    row_bytes = plan.memory.activations * before // rows if same else activation_bytes(run)
    return memory_of(run, run.state(mesh), row_bytes)


def changed(settings: Mapping[str, Any], robot: Robot, flags: Mapping[str, Any]) -> tuple[Sketch, Any]:
    """The run of settings with other flags, and its mesh of all devices that jax has."""
    settings = copy.deepcopy(dict(settings))
    for name, value in flags.items():
        place, keys = settings, name.split(".")[1:] or [name]
        for key in keys[:-1]:
            place = place[key]
        if keys[-1] not in place:
            raise ConfigError(f"no setting named {name}")
        place[keys[-1]] = value
    return sketch(settings, robot), make_mesh(MeshConfig(**settings["mesh"]))
