"""Where arrays live on the mesh: batches by their leading axis, parameters by rules on their path."""

import dataclasses
import math
import re
from typing import Any

import jax
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxvla.errors import ConfigError
from jaxvla.parallel.mesh import AnyMesh
from jaxvla.parallel.rules import MODELS, QUANTIZED, STACKED, MeshAxes, Rules, Split

BATCH_AXES = ("data", "fsdp")
MIN_SHARD_BYTES = 4 * 2**20
# What every device may hold a copy of. Beyond it a copy is an accident.
MAX_COPIED_BYTES = 64 * 2**20


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


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where an array lives.

    Attributes:
        spec: along which axes it is split.
        reason: why it is not split further; "" where a rule says so, or nothing is left to say.
    """

    spec: PartitionSpec
    reason: str = ""

    def shards(self, mesh: AnyMesh) -> int:
        """Into how many different parts the array is split."""
        return math.prod(mesh.shape[axis] for entry in self.spec for axis in _names(entry))


def tree_placements(tree: Any, mesh: AnyMesh, rules: Rules = (), min_bytes: int = MIN_SHARD_BYTES) -> Any:
    """A `Placement` for every leaf of `tree`, found by its path; the same rules serve parameters and optimizer state.

    A leaf that no rule names is split over "fsdp" along its largest axis that divides, if it holds at least
    `min_bytes`, and is else replicated. Axis 0 of layer stacks is never chosen: a scan over it would gather the stack.

    Args:
        tree: arrays or `jax.ShapeDtypeStruct`s (from `jax.eval_shape`), nested in any pytree.
        mesh: axes ("data", "fsdp", "tensor"), abstract or not.
        rules: first match wins, and those of `rules.MODELS` come after them; an empty PartitionSpec replicates.
        min_bytes: the size from which a leaf that no rule names is split.

    Raises:
        ConfigError: a rule names an axis that the array or the mesh does not have, or that does not divide; or an array
            of more than `MAX_COPIED_BYTES` would be replicated on a mesh that splits parameters, without a rule.
    """

    def placement(path: tuple[Any, ...], leaf: Any) -> Placement:
        name = path_string(path)
        first, kernel = 1 if re.search(STACKED, name) else 0, re.sub(QUANTIZED, "", name)
        found = [(pattern, rule) for pattern, rule in rules if re.search(pattern, name)]
        found += [(pattern, rule) for pattern, rule in MODELS if re.search(pattern, kernel)]
        for pattern, rule in found:
            if isinstance(rule, PartitionSpec):
                _check_spec(name, leaf.shape, pattern, rule, mesh)
                return Placement(rule)
            if len(leaf.shape) == first + len(rule.axes):
                placed = _split(leaf, first, rule, mesh, min_bytes)
                break
        else:
            placed = _split(leaf, first, Split((None,) * (len(leaf.shape) - first)), mesh, min_bytes)
        _check_copies(name, leaf, placed, mesh)
        return placed

    return jax.tree_util.tree_map_with_path(placement, tree)


def tree_shardings(tree: Any, mesh: AnyMesh, rules: Rules = (), min_bytes: int = MIN_SHARD_BYTES) -> Any:
    """A NamedSharding for every leaf of `tree`; see `tree_placements`."""
    placements = tree_placements(tree, mesh, rules, min_bytes)
    return jax.tree.map(lambda placed: NamedSharding(mesh, placed.spec), placements)


def splits(mesh: AnyMesh) -> bool:
    """Whether devices hold different parts of the parameters."""
    return mesh.shape["fsdp"] * mesh.shape["tensor"] > 1


def _split(leaf: Any, first: int, rule: Split, mesh: AnyMesh, min_bytes: int) -> Placement:
    """By the rule where its axes divide; what that leaves of "fsdp" goes to the largest axis that divides."""
    shape, wanted = leaf.shape, (*(None,) * first, *rule.axes)
    axes = [entry if size % _size(entry, mesh) == 0 else None for size, entry in zip(shape, wanted)]
    large = math.prod(shape) * leaf.dtype.itemsize >= min_bytes
    used = {axis for entry in axes for axis in _names(entry)}
    if "fsdp" not in used and large and mesh.shape["fsdp"] > 1:
        free = [i for i in range(first, len(shape)) if axes[i] is None and shape[i] % mesh.shape["fsdp"] == 0]
        if free:
            axes[max(free, key=lambda i: shape[i])] = "fsdp"
    while axes and axes[-1] is None:
        axes.pop()
    placed = Placement(PartitionSpec(*axes))
    if placed.shards(mesh) > 1 or not splits(mesh):
        return placed
    refused = [f"{size} by {_size(entry, mesh)}" for size, entry in zip(shape, wanted) if size % _size(entry, mesh)]
    if refused:
        return Placement(placed.spec, f"does not divide: {', '.join(refused)}")
    if not large:
        return Placement(placed.spec, f"under {min_bytes / 2**20:g} MiB")
    if mesh.shape["fsdp"] == 1:
        return Placement(placed.spec, 'no rule splits it over "tensor"')
    return Placement(placed.spec, f"no axis divides by fsdp={mesh.shape['fsdp']}")


def _check_copies(name: str, leaf: Any, placed: Placement, mesh: AnyMesh) -> None:
    size = math.prod(leaf.shape) * leaf.dtype.itemsize
    if placed.reason and size > MAX_COPIED_BYTES:
        raise ConfigError(
            f"every device would hold a copy of {name} {tuple(leaf.shape)} {leaf.dtype}, {size / 2**20:.0f} MiB, on a "
            f"mesh of fsdp={mesh.shape['fsdp']} tensor={mesh.shape['tensor']}: {placed.reason}. Choose mesh sizes "
            "that divide one of its axes (config.mesh), or name it in jaxvla/parallel/rules.py; an empty PartitionSpec "
            "there says that copies are meant"
        )


def _names(entry: MeshAxes) -> tuple[str, ...]:
    return entry if isinstance(entry, tuple) else () if entry is None else (entry,)


def _size(entry: MeshAxes, mesh: AnyMesh) -> int:
    return math.prod(mesh.shape[axis] for axis in _names(entry))


def _check_spec(name: str, shape: tuple[int, ...], pattern: str, spec: PartitionSpec, mesh: AnyMesh) -> None:
    rule = f"sharding rule {pattern!r} -> {spec}"
    if len(spec) > len(shape):
        raise ConfigError(f"{rule} has {len(spec)} axes, but {name} has shape {shape}")
    for size, entry in zip(shape, spec):
        unknown = [axis for axis in _names(entry) if axis not in mesh.shape]
        if unknown:
            raise ConfigError(f"{rule} names {unknown[0]!r}, but the mesh has {', '.join(mesh.shape)}")
        if size % _size(entry, mesh):
            raise ConfigError(
                f"{rule} splits {size} of {name} {shape} into {_size(entry, mesh)} parts, which is not whole"
            )
