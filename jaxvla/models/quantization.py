"""Kernels of linear layers in 8 or 4 bits, weights alone: they are held as integers and made floats inside the product.

    params = quantize(params, paths, "int8")    a `QuantizedKernel` in the place of each kernel of these paths

An output head stays as it is: rounding it moves the logits themselves.

"int8" has a scale for each output, "int4" one for each output and each `GROUP` inputs; both are symmetric and rounded
to the nearest (the weights-only schemes of Dettmers et al., 2022, and Frantar et al., 2023, without their corrections).
JAX holds int4 arrays in half a byte for each number, though their `nbytes` counts a whole one: see `num_bytes`.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util
from jaxtyping import Array, Float

from jaxvla.errors import ConfigError
from jaxvla.models.module import Params
from jaxvla.ops.matmul import contract

MODES = {"int8": jnp.int8, "int4": jnp.int4}
GROUP = 64
_HEAD = "lm_head/kernel"
# Of a width without a larger divisor, scales would take a good part of what the integers save.
_MIN_GROUP = 8


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class QuantizedKernel:
    """values * scale, not computed yet. A pytree, so that a scan over a stack slices both.

    Attributes:
        values: int8 or int4 [in, out], or [L, in, out] of a stack.
        scale: [groups, out] or [L, groups, out]; one group, or runs of in / groups inputs. Its dtype is that of the
            kernel that was quantized.
    """

    values: Any
    scale: Any

    @property
    def shape(self) -> tuple[int, ...]:
        """Of the kernel that it stands for."""
        return self.values.shape

    @property
    def dtype(self) -> Any:
        """Of the kernel that it stands for."""
        return self.scale.dtype

    def matrix(self, dtype: jax.typing.DTypeLike) -> Float[Array, "*layers in out"]:
        """The kernel that it stands for."""
        *layers, in_dim, out_dim = self.shape
        groups = self.scale.shape[-2]
        grouped = self.values.astype(dtype).reshape(*layers, groups, in_dim // groups, out_dim)
        return (grouped * self.scale.astype(dtype)[..., None, :]).reshape(self.shape)

    def product(self, x_btd: Float[Array, "b t d"]) -> Float[Array, "b t f"]:
        """x kernel in the dtype of `x_btd`, which alone has a gradient."""
        if self.scale.shape[-2] > 1:
            return jax.lax.dot_general(x_btd, self.matrix(x_btd.dtype), (((x_btd.ndim - 1,), (0,)), ((), ())))
        # A scale of a whole output leaves the sum: the integers need no product of their own.
        leading = "abc"[: x_btd.ndim - 1]
        y_btf = contract(f"{leading}d,df->{leading}f", x_btd, self.values.astype(x_btd.dtype))
        return (y_btf * self.scale[0]).astype(x_btd.dtype)


def check_mode(mode: str, name: str) -> None:
    """Raises ConfigError unless `mode` is empty or one of `MODES`; `name` is the setting's."""
    if mode and mode not in MODES:
        raise ConfigError(f"{name} must be empty or one of {', '.join(MODES)}, not {mode!r}")


def quantize(params: Params, paths: Iterable[str], mode: str) -> Params:
    """`params` with a `QuantizedKernel` at each of `paths`, made one after the other.

    Args:
        params: nested dict of arrays.
        paths: "a/b/kernel", of kernels [in, out] or [L, in, out]; those of output heads are passed over.
        mode: of `MODES`.

    Raises:
        ConfigError: an unknown mode, or a kernel whose inputs do not fall into groups.
    """
    check_mode(mode, "the mode of quantization")
    flat = traverse_util.flatten_dict(params, sep="/")
    for path in paths:
        if path.endswith(_HEAD):
            continue
        if mode == "int4" and group_of(flat[path].shape[-2]) < _MIN_GROUP:
            raise ConfigError(
                f"{path} {flat[path].shape} has inputs that fall into no groups of {_MIN_GROUP} to {GROUP}: leave it "
                "out of what is quantized, or take int8"
            )
        flat[path] = quantize_kernel(flat[path], mode)
    return traverse_util.unflatten_dict(flat, sep="/")


@functools.partial(jax.jit, static_argnames="mode")
def quantize_kernel(kernel: Float[Array, "*layers in out"], mode: str) -> QuantizedKernel:
    """One kernel in the integers of `mode`, each weight half a step away at most."""
    dtype, largest = MODES[mode], jnp.iinfo(MODES[mode]).max
    *layers, in_dim, out_dim = kernel.shape
    size = in_dim if mode == "int8" else group_of(in_dim)
    grouped = kernel.astype(jnp.float32).reshape(*layers, in_dim // size, size, out_dim)
    # The largest weight may be half a step beyond the largest integer: all steps are finer for it.
    scale = (jnp.abs(grouped).max(-2) / (largest + 0.5)).astype(kernel.dtype)
    # Of the scale as it is held, not as it was before it was rounded itself.
    steps = grouped / jnp.where(scale > 0, scale, 1).astype(jnp.float32)[..., None, :]
    values = jnp.clip(jnp.round(steps), -largest, largest).astype(dtype)
    return QuantizedKernel(values.reshape(kernel.shape), scale)


def group_of(in_dim: int) -> int:
    """How many inputs share a scale in "int4": the most, up to `GROUP`, that divide a width."""
    return max(size for size in range(1, min(GROUP, in_dim) + 1) if in_dim % size == 0)


def is_quantized(leaf: Any) -> bool:
    """Whether it is a `QuantizedKernel`; where a tree's leaves are to be whole ones."""
    return isinstance(leaf, QuantizedKernel)


def num_bytes(params: Params) -> int:
    """What the arrays of a tree take in the memory of a device."""

    def bits(dtype: Any) -> int:
        return jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else 8 * dtype.itemsize

    return sum(math.ceil(leaf.size * bits(leaf.dtype) / 8) for leaf in jax.tree.leaves(params))
