"""What a mesh makes of the parameters: bytes per device by module, and what every device holds a copy of."""

import collections
import dataclasses
import functools
import math
from typing import Any

import jax

from jaxvla.parallel.mesh import AnyMesh
from jaxvla.parallel.rules import Rules
from jaxvla.parallel.sharding import Placement, path_string, splits, tree_placements

# The share of all bytes from which a module has a line of its own.
_LEAST = 0.01
# What a state has beside the parameters, by its name.
_KEPT = {"opt_state": "optimizer", "ema": "average"}


@dataclasses.dataclass(frozen=True)
class Share:
    """Of a part of a tree.

    Attributes:
        size: how many numbers it holds, on all devices together.
        per_device: bytes on each.
        copied: by the reason why, the bytes of what every device holds a copy of; empty on a mesh that splits nothing.
    """

    size: int
    per_device: int
    copied: dict[str, int]


def shares(tree: Any, mesh: AnyMesh, rules: Rules = (), depth: int = 2) -> dict[str, Share]:
    """The share of each part of `tree`, a module or what its path begins with.

    Args:
        tree: arrays or their shapes.
        mesh: axes ("data", "fsdp", "tensor"), abstract or not.
        rules: see `tree_placements`.
        depth: names of a path that tell parts apart.

    Raises:
        ConfigError: see `tree_placements`.
    """
    placed = jax.tree.leaves(tree_placements(tree, mesh, rules))
    parts = collections.defaultdict(list)
    for (path, leaf), place in zip(jax.tree_util.tree_leaves_with_path(tree), placed):
        parts["/".join(path_string(path).split("/")[:depth])].append((leaf, place))
    return {name: _share(leaves, mesh) for name, leaves in parts.items()}


def _share(leaves: list[tuple[Any, Placement]], mesh: AnyMesh) -> Share:
    size, per_device, copied = 0, 0, collections.Counter()
    for leaf, place in leaves:
        count, parts = math.prod(leaf.shape), place.shards(mesh)
        num_bytes = count * leaf.dtype.itemsize
        size, per_device = size + count, per_device + num_bytes // parts
        if parts == 1 and splits(mesh):
            copied[place.reason or "as its rule says"] += num_bytes
    return Share(size, per_device, dict(copied))


def table(state: Any, mesh: AnyMesh, rules: Rules = ()) -> tuple[str, ...]:
    """Lines on a training state: of each module parameters, bytes per device, and what is replicated and why.

    Modules of less than a hundredth of the whole are one line together.

    Args:
        state: `training.state.TrainState` of arrays or of their shapes.
        mesh, rules: as they are trained on.

    Raises:
        ConfigError: see `tree_placements`.
    """
    modules, rest = {}, {}
    for name, share in shares(state, mesh, rules, 3).items():  # with the paths by which rules find them in training
        kind, _, module = name.partition("/")
        if kind == "params":
            modules[module] = share
        elif kind in _KEPT:
            rest[_KEPT[kind]] = _together(rest.get(_KEPT[kind], Share(0, 0, {})), share)
    total = sum(share.per_device for share in (*modules.values(), *rest.values()))
    large = {name: share for name, share in modules.items() if share.per_device >= _LEAST * total}
    small = [share for name, share in modules.items() if name not in large]
    if len(small) > 1:
        modules = large | {f"{len(small)} smaller ones": functools.reduce(_together, small)}
    replicated = "replicated" if splits(mesh) else "" if mesh.size == 1 else "all is replicated: fsdp=1 tensor=1"
    lines = [_line("module", "numbers", "per device", replicated)]
    for name, share in (modules | rest).items():
        why = ", ".join(f"{_mib(n)} {reason}" for reason, n in share.copied.items())
        lines.append(_line(name, f"{share.size / 1e6:.2f} M", _mib(share.per_device), why))
    return (*lines, _line("all", "", _mib(total), ""))


def _together(a: Share, b: Share) -> Share:
    copied = collections.Counter(a.copied)
    copied.update(b.copied)
    return Share(a.size + b.size, a.per_device + b.per_device, dict(copied))


def _line(name: str, numbers: str, per_device: str, replicated: str) -> str:
    return f"{name:<28}{numbers:>10}{per_device:>13}  {replicated}".rstrip()


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.2f} GiB"
