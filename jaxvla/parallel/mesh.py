"""The one device mesh: axes "data" (replicas), "fsdp" (sharded parameters), "tensor" (sharded matrices)."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import mesh_utils

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

    The batch is split over "data" and "fsdp"; the last axes vary fastest, so that "tensor" stays inside a machine. On
    TPUs they follow the torus of a slice, whatever machines its chips belong to, and only "data" lies across slices.

    Raises:
        ConfigError: the sizes do not multiply to the number of devices, or a slice would be left before "data" is.
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
    return jax.sharding.Mesh(arranged(sizes, devices), AXES, axis_types=(jax.sharding.AxisType.Auto,) * len(AXES))


def arranged(sizes: Sequence[int], devices: Sequence[Any]) -> np.ndarray:
    """The devices in an array of these sizes, so that the last axes lie along the fastest links.

    Raises:
        ConfigError: they are several slices, over which "data" does not divide.
    """
    if devices[0].platform != "tpu":
        return np.array(devices).reshape(sizes)  # in order of processes: the links inside a machine are the fastest
    slices = len({device.slice_index for device in devices})
    if slices == 1:
        return mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    if sizes[0] % slices:
        raise ConfigError(
            f"{len(devices)} devices are {slices} slices, and only data lies across slices: mesh data={sizes[0]} must "
            f"be a multiple of {slices}"
        )
    within = (sizes[0] // slices, *sizes[1:])
    return mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), devices, allow_split_physical_axes=True)
