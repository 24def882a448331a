"""What a mesh makes of the parameters: bytes per device by module, and what every device holds a copy of."""

import collections
import dataclasses
import math
from typing import Any

import jax

from jaxvla.parallel.mesh import AnyMesh
from jaxvla.parallel.rules import Rules
from jaxvla.parallel.sharding import Placement, path_string, splits, tree_placements


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

    Args:
        state: `training.state.TrainState` of arrays or of their shapes.
        mesh, rules: as they are trained on.

    Raises:
        ConfigError: see `tree_placements`.
    """
    rows = {
        **shares(state.params, mesh, rules),
        "optimizer": shares(state.opt_state, mesh, rules, 0)[""],
        **({} if state.ema is None else {"average": shares(state.ema, mesh, rules, 0)[""]}),
    }
    replicated = "replicated" if splits(mesh) else "" if mesh.size == 1 else "all is replicated: fsdp=1 tensor=1"
    lines = [f"{'module':<28}{'numbers':>10}{'per device':>13}  {replicated}".rstrip()]
    for name, share in rows.items():
        why = "  " + ", ".join(f"{_mib(n)} {reason}" for reason, n in share.copied.items())
        lines.append(f"{name:<28}{_millions(share.size):>10}{_mib(share.per_device):>13}{why}".rstrip())
    total = sum(share.per_device for share in rows.values())
    return (*lines, f"{'all':<28}{'':>10}{_mib(total):>13}")


def _millions(count: int) -> str:
    return f"{count / 1e6:.2f} M"


def _mib(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:.1f} MiB" if num_bytes < 2**30 else f"{num_bytes / 2**30:.2f} GiB"
