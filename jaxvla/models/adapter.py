"""A kernel with a low-rank adapter, in a tree of parameters at the place of the kernel alone; see `lora`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@functools.partial(jax.tree_util.register_dataclass, data_fields=["kernel", "a", "b"], meta_fields=["scale"])
@dataclasses.dataclass(frozen=True)
class AdaptedKernel:
    """kernel + scale * a @ b, not computed yet. A pytree, so that a scan over a stack slices all three.

    Attributes:
        kernel: [in, out], or [L, in, out] of a stack.
        a: [in, rank] or [L, in, rank].
        b: [rank, out] or [L, rank, out].
        scale: of the product.
    """

    kernel: Any
    a: Any
    b: Any
    scale: float

    def merged(self) -> Float[Array, "*layers in out"]:
        """The sum, in the wider dtype of kernel and adapter, so that small adapters are not rounded away."""
        product = jnp.matmul(self.a, self.b, precision=jax.lax.Precision.HIGHEST)
        return self.kernel + self.scale * product


def merge_adapters(params: Any, stacks: bool) -> Any:
    """A tree in which adapted kernels are plain arrays.

    Args:
        params: any pytree.
        stacks: whether those with a layer axis are merged too, or stay for the scan over their layers.
    """

    def merge(leaf: Any) -> Any:
        return leaf.merged() if _is_adapted(leaf) and (stacks or leaf.kernel.ndim == 2) else leaf

    return jax.tree.map(merge, params, is_leaf=_is_adapted)


def _is_adapted(leaf: Any) -> bool:
    return isinstance(leaf, AdaptedKernel)
