"""Where arrays live on the mesh: batches by their leading axis, parameters by rules on their path."""

import math
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvla.errors import ConfigError

# (regex searched in a parameter's path "a/b/c", its PartitionSpec); the first match wins.
Rules = tuple[tuple[str, PartitionSpec], ...]

BATCH_AXES = ("data", "fsdp")
MIN_SHARD_BYTES = 4 * 2**20


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """The leading axis of every array of a batch over ("data", "fsdp"), the others whole."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A whole copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def gather(tree: Any) -> Any | None:
    """A pytree of arrays, whole, on the first device of process 0; None on the others. A collective.

    What lies there already is not copied. Between processes it goes leaf by leaf through the memory of the host.
    """
    place = jax.local_devices()[0]
    if jax.process_count() == 1:
        return jax.device_put(tree, place)
    first = jax.process_index() == 0

    def whole(x: jax.Array) -> jax.Array | None:
        on_host = multihost_utils.process_allgather(x, tiled=True)
        return jax.device_put(on_host, place) if first else None

    gathered = jax.tree.map(whole, tree)
    return gathered if first else None


def check_batch_size(batch_size: int, mesh: Mesh) -> None:
    """Raises ConfigError, with the nearest sizes that work, if `batch_size` does not divide over the batch axes."""
    shards = math.prod(mesh.shape[axis] for axis in BATCH_AXES)
    if batch_size < 1 or batch_size % shards:
        below = batch_size // shards * shards
        near = f"{below} or {below + shards}" if below > 0 else str(shards)
        raise ConfigError(
            f"batch_size {batch_size} does not divide over {shards} batch shards "
            f"(mesh data={mesh.shape['data']} x fsdp={mesh.shape['fsdp']}); use {near}"
        )


def path_string(path: tuple[Any, ...]) -> str:
    """A jax key path as "a/b/c". The path of a parameter ends the path of its optimizer moments: "0/mu/a/b/c"."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def tree_shardings(
    tree: Any, mesh: Mesh, rules: Rules = (), stacked: str = "layers/", min_bytes: int = MIN_SHARD_BYTES
) -> Any:
    """A NamedSharding for every leaf of `tree`, found by its path; the same rules serve parameters and optimizer state.

    A leaf that no rule names is sharded over "fsdp" along its largest axis that divides, if it holds at least
    `min_bytes`, and is else replicated. Axis 0 of layer stacks is never chosen: a scan over it would gather the stack.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`s (from `jax.eval_shape`), nested in any pytree.
        mesh: axes ("data", "fsdp", "tensor").
        rules: first match wins; an empty PartitionSpec replicates.
        stacked: regex of the paths whose axis 0 is the layer axis of a scan.
        min_bytes: the size from which the default rule shards.

    Raises:
        ConfigError: a rule names an axis that the array or the mesh does not have, or that does not divide.
    """

    def sharding(path: tuple[Any, ...], leaf: Any) -> NamedSharding:
        name = path_string(path)
        for pattern, spec in rules:
            if re.search(pattern, name):
                _check_spec(name, leaf.shape, pattern, spec, mesh)
                return NamedSharding(mesh, spec)
        size = math.prod(leaf.shape) * leaf.dtype.itemsize
        first = 1 if re.search(stacked, name) else 0
        return NamedSharding(mesh, _largest_axis(leaf.shape, first, mesh) if size >= min_bytes else PartitionSpec())

    return jax.tree_util.tree_map_with_path(sharding, tree)


def _largest_axis(shape: tuple[int, ...], first: int, mesh: Mesh) -> PartitionSpec:
    shards = mesh.shape["fsdp"]
    axes = [axis for axis in range(first, len(shape)) if shape[axis] % shards == 0]
    if shards == 1 or not axes:
        return PartitionSpec()
    largest = max(axes, key=lambda axis: shape[axis])
    return PartitionSpec(*(None,) * largest, "fsdp")


def _check_spec(name: str, shape: tuple[int, ...], pattern: str, spec: PartitionSpec, mesh: Mesh) -> None:
    rule = f"sharding rule {pattern!r} -> {spec}"
    if len(spec) > len(shape):
        raise ConfigError(f"{rule} has {len(spec)} axes, but {name} has shape {shape}")
    for size, entry in zip(shape, spec):
        axes = entry if isinstance(entry, tuple) else () if entry is None else (entry,)
        unknown = [axis for axis in axes if axis not in mesh.shape]
        if unknown:
            raise ConfigError(f"{rule} names {unknown[0]!r}, but the mesh has {', '.join(mesh.shape)}")
        shards = math.prod(mesh.shape[axis] for axis in axes)
        if size % shards:
            raise ConfigError(f"{rule} splits {size} of {name} {shape} into {shards} parts, which is not whole")
