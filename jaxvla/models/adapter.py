"""A kernel with a low-rank adapter, in a tree of parameters at the place of the kernel alone; see `lora`."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float, Int

from jaxvla.models.quantization import QuantizedKernel, is_quantized
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
        kernel: [in, out], or [L, in, out] of a stack; an array or a `QuantizedKernel`.
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
        return matrix(self.kernel) + self.scale * product


# What stands in a tree of parameters where a linear layer has its kernel.
Kernel = Array | QuantizedKernel | AdaptedKernel


def project(x_btd: Float[Array, "b t d"], kernel: Kernel) -> Float[Array, "b t f"]:
    """x kernel, or x kernel + scale (x a) b of an adapted one, computed in the dtype of `x_btd`.

    In two factors an adapter costs a small share of the kernel's product, and the kernel has no gradient to compute.
    """
    if is_quantized(kernel):
        return kernel.product(x_btd)
    if not isinstance(kernel, AdaptedKernel):
        return matmul.project(x_btd, kernel)
    adapted_btr = matmul.project(dropout(x_btd, kernel.rate, kernel.key), kernel.a)
    return project(x_btd, kernel.kernel) + kernel.scale * matmul.project(adapted_btr, kernel.b)


def matrix(kernel: Kernel) -> Array:
    """A kernel for whoever needs the matrix itself: an adapted one is merged, a quantized one made floats."""
    if is_quantized(kernel):
        return kernel.matrix(kernel.dtype)
    return kernel.merged() if isinstance(kernel, AdaptedKernel) else kernel


# What of the adapted kernels of a tree of parameters has no gradient, by path: dropout keys, and quantized kernels.
Still = dict[str, dict[str, Any]]


def take_still(params: dict[str, Any]) -> tuple[dict[str, Any], Still]:
    """The parameters without dropout keys and quantized kernels, which have no gradient; `put_still` joins them."""
    still = {path: found for path, leaf in _flat(params).items() if (found := _still(leaf))}
    return _replace(params, {path: dict.fromkeys(found) for path, found in still.items()}), still


def put_still(params: dict[str, Any], still: Still, run: int | Int[Array, ""]) -> dict[str, Any]:
    """The parameters whole again, with other dropout keys for each `run`, a pass over tokens of its own."""
    fold = functools.partial(jax.random.fold_in, data=run)

    def folded(found: dict[str, Any]) -> dict[str, Any]:
        if "key" not in found:
            return found
        return found | {"key": jax.vmap(fold)(found["key"]) if found["key"].ndim else fold(found["key"])}

    return _replace(params, {path: folded(found) for path, found in still.items()})


def _replace(params: dict[str, Any], parts: dict[str, dict[str, Any]]) -> dict[str, Any]:
    flat = _flat(params)
    flat |= {path: dataclasses.replace(flat[path], **part) for path, part in parts.items()}
    return traverse_util.unflatten_dict(flat, sep="/")


def _flat(params: dict[str, Any]) -> dict[str, Any]:
    return traverse_util.flatten_dict(params, sep="/")


def _still(leaf: Any) -> dict[str, Any]:
    if not isinstance(leaf, AdaptedKernel):
        return {}
    quantized = {"kernel": leaf.kernel} if is_quantized(leaf.kernel) else {}
    return quantized | ({} if leaf.key is None else {"key": leaf.key})
