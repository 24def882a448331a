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
    """The einsum of two arrays, float32, of factors in the dtype of `x`; so are its gradients.

    JAX alone would multiply the float32 gradient with a float32 copy of the other factor, which takes an accelerator
    several times as long. Every index of either array must be in the other one, or in what comes out. A `y` of higher
    precision, such as a parameter, has a gradient that is not rounded.
    """
    return _contraction(equation, x, y)


def _contraction(equation: str, x: Array, y: Array) -> Array:
    return jnp.einsum(equation, x, y.astype(x.dtype), preferred_element_type=jnp.float32)


def _contract_forward(equation: str, x: Array, y: Array) -> tuple[Array, tuple[Array, Array]]:
    return _contraction(equation, x, y), (x, y)


def _contract_backward(equation: str, residuals: tuple[Array, Array], grad: Array) -> tuple[Array, Array]:
    x, y = residuals
    of_x, of_y, out = equation.replace("->", ",").split(",")
    grad = grad.astype(x.dtype)
    x_grad = jnp.einsum(f"{out},{of_y}->{of_x}", grad, y.astype(x.dtype))
    return x_grad, jnp.einsum(f"{of_x},{out}->{of_y}", x, grad, preferred_element_type=y.dtype)


contract.defvjp(_contract_forward, _contract_backward)
