"""The product of activations and a parameter, and that of two activations."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


@jax.custom_vjp
def project(x_btd: Float[Array, "b t d"], kernel_df: Float[Array, "d f"]) -> Float[Array, "b t f"]:
    """x kernel, computed in the dtype of `x_btd`.

    The gradient of the kernel is a product [d, f] in the kernel's own precision: JAX alone would round it to the dtype
    of `x_btd`, and compute its transpose, which takes XLA 1.6 times as long on CPU.
    """
    return _product(x_btd, kernel_df)


def _product(x_btd: Array, kernel_df: Array) -> Array:
    return jax.lax.dot_general(x_btd, kernel_df.astype(x_btd.dtype), (((2,), (0,)), ((), ())))


def _forward(x_btd: Array, kernel_df: Array) -> tuple[Array, tuple[Array, Array]]:
    # Not `project` itself: remat policies that keep products look for dot_general, not for calls that hide one.
    return _product(x_btd, kernel_df), (x_btd, kernel_df)


def _backward(residuals: tuple[Array, Array], grad_btf: Array) -> tuple[Array, Array]:
    x_btd, kernel_df = residuals
    x_grad_btd = jax.lax.dot_general(grad_btf, kernel_df.astype(x_btd.dtype), (((2,), (1,)), ((), ())))
    kernel_grad_df = jax.lax.dot_general(
        x_btd,
        grad_btf,
        (((0, 1), (0, 1)), ((), ())),
        preferred_element_type=jnp.promote_types(x_btd.dtype, jnp.float32),
    )
    return x_grad_btd, kernel_grad_df.astype(kernel_df.dtype)


project.defvjp(_forward, _backward)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def contract(equation: str, x: Float[Array, "*x"], y: Float[Array, "*y"]) -> Float[Array, "*out"]:
    """The einsum of two arrays, float32; every index of either one is in the other one, or in what comes out.

    Its gradients are products in the dtype of `x` and `y`, and have it, too: JAX alone would make float32 copies of
    both factors, and an accelerator multiplies these at a fraction of the rate of bfloat16.
    """
    return _contraction(equation, x, y)


def _contraction(equation: str, x: Array, y: Array) -> Array:
    return jnp.einsum(equation, x, y, preferred_element_type=jnp.float32)


def _contract_forward(equation: str, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _contraction(equation, x, y), (x, y)


def _contract_backward(equation: str, residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, y = residuals
    of_x, of_y, out = equation.replace("->", ",").split(",")
    grad = grad.astype(jnp.promote_types(x.dtype, y.dtype))
    x_grad = jnp.einsum(f"{out},{of_y}->{of_x}", grad, y)
    y_grad = jnp.einsum(f"{of_x},{out}->{of_y}", x, grad)
    return x_grad.astype(x.dtype), y_grad.astype(y.dtype)


contract.defvjp(_contract_forward, _contract_backward)
