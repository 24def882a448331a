"""The one device mesh: axes "data" (replicas), "fsdp" (sharded parameters), "tensor" (sharded matrices)."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from jaxvla.errors import ConfigError

AXES = ("data", "fsdp", "tensor")
# One without devices says as well where arrays would live.
AnyMesh = jax.sharding.Mesh | jax.sharding.AbstractMesh


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis spans; -1, on one axis at most, takes the devices that the others leave."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        if any(size < 1 and size != -1 for size in sizes):
            raise ConfigError(
                f"mesh sizes must be positive or -1, not data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]}"
            )
        if sizes.count(-1) > 1:
            raise ConfigError(f"only one mesh size may be -1, not data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]}")


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> jax.sharding.Mesh:
    """Arranges `devices` (default: all of all processes) in a mesh with the axes ("data", "fsdp", "tensor").

    The batch is split over "data" and "fsdp"; the last axes vary fastest, so that "tensor" stays inside a machine.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    sizes = list(dataclasses.astuple(config))
    fixed = int(np.prod([size for size in sizes if size != -1]))
    asked = " x ".join(f"{axis}={size}" for axis, size in zip(AXES, sizes))
    if -1 in sizes:
        if len(devices) % fixed:
            raise ConfigError(
                f"mesh {asked} does not fit {len(devices)} devices: {len(devices)} / {fixed} is not whole"
            )
        sizes[sizes.index(-1)] = len(devices) // fixed
    elif fixed != len(devices):
        raise ConfigError(f"mesh {asked} needs {fixed} devices, but there are {len(devices)}; set one size to -1")
    return jax.make_mesh(sizes, AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES), devices=devices)
