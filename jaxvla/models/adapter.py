"""A kernel with a low-rank adapter, in a tree of parameters at the place of the kernel alone; see `lora`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float, Int

from jaxvla.ops import matmul
from jaxvla.ops.dropout import dropout


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["kernel", "a", "b", "key"],
    meta_fields=["scale", "rate"],
)
@dataclasses.dataclass(frozen=True)
class AdaptedKernel:
    """kernel + scale * a @ b, not computed yet. A pytree, so that a scan over a stack slices all of it.

    Attributes:
        kernel: [in, out], or [L, in, out] of a stack.
        a: [in, rank] or [L, in, rank].
        b: [rank, out] or [L, rank, out].
        key: of the dropout of what a is fed, [] or [L]; None for no dropout.
        scale: of the product.
        rate: of the dropout.
    """

    kernel: Any
    a: Any
    b: Any
    key: Any = None
    scale: float = 1.0
    rate: float = 0.0

    def merged(self) -> Float[Array, "*layers in out"]:
        """The sum, in the wider dtype of kernel and adapter, so that small adapters are not rounded away."""
        product = jnp.matmul(self.a, self.b, precision=jax.lax.Precision.HIGHEST)
        return self.kernel + self.scale * product


def project(x_btd: Float[Array, "b t d"], kernel: Array | AdaptedKernel) -> Float[Array, "b t f"]:
    """x kernel, or x kernel + scale (x a) b of an adapted one, computed in the dtype of `x_btd`.

    In two factors an adapter costs a small share of the kernel's product, and the kernel has no gradient to compute.
    """
    if not isinstance(kernel, AdaptedKernel):
        return matmul.project(x_btd, kernel)
    adapted_btr = matmul.project(dropout(x_btd, kernel.rate, kernel.key), kernel.a)
    return matmul.project(x_btd, kernel.kernel) + kernel.scale * matmul.project(adapted_btr, kernel.b)


def matrix(kernel: Array | AdaptedKernel) -> Array:
    """A kernel for whoever needs the matrix itself: an adapted one is merged."""
    return kernel.merged() if isinstance(kernel, AdaptedKernel) else kernel


# The dropout keys of a tree of parameters, by path.
Keys = dict[str, Array]


def take_keys(params: dict[str, Any]) -> tuple[dict[str, Any], Keys]:
    """The parameters without dropout keys, which have no gradient, and the keys; `put_keys` joins them."""
    keys = {path: leaf.key for path, leaf in _flat(params).items() if _has_key(leaf)}
    return _replace_keys(params, dict.fromkeys(keys)), keys


def put_keys(params: dict[str, Any], keys: Keys, run: int | Int[Array, ""]) -> dict[str, Any]:
    """The parameters with other keys for each `run`, a pass over tokens of its own."""
    fold = functools.partial(jax.random.fold_in, data=run)
    return _replace_keys(params, {path: jax.vmap(fold)(key) if key.ndim else fold(key) for path, key in keys.items()})


def _replace_keys(params: dict[str, Any], keys: dict[str, Any]) -> dict[str, Any]:
    flat = _flat(params)
    flat |= {path: dataclasses.replace(flat[path], key=key) for path, key in keys.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _flat(params: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, sep="/")


def _has_key(leaf: Any) -> bool:
    return isinstance(leaf, AdaptedKernel) and leaf.key is not None
