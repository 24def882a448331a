import functools

import jax
import jax.numpy as jnp
import numpy as np

from jaxvla.ops.matmul import contract, project

RNG = np.random.default_rng(0)
X, KERNEL, GRAD = (RNG.standard_normal(shape).astype(np.float32) for shape in ((2, 300, 5), (5, 4), (2, 300, 4)))


def gradients(x, kernel):
    return jax.jit(lambda x, kernel: jax.vjp(project, x, kernel)[1](jnp.asarray(GRAD, x.dtype)))(x, kernel)


def test_product_and_gradients():
    np.testing.assert_allclose(jax.jit(project)(X, KERNEL), X @ KERNEL, rtol=1e-4, atol=1e-5)
    d_x, d_kernel = gradients(jnp.asarray(X), jnp.asarray(KERNEL))
    np.testing.assert_allclose(d_x, GRAD @ KERNEL.T, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(d_kernel, np.einsum("btd,btf->df", X, GRAD), rtol=1e-4, atol=1e-4)


def test_the_gradient_of_a_float32_kernel_is_not_rounded_to_bfloat16():
    x, kernel = jnp.asarray(X, jnp.bfloat16), jnp.asarray(KERNEL)
    assert project(x, kernel).dtype == jnp.bfloat16
    d_x, d_kernel = gradients(x, kernel)
    assert (d_x.dtype, d_kernel.dtype) == (jnp.bfloat16, jnp.float32)
    rounded = [np.asarray(jnp.asarray(a, jnp.bfloat16), np.float64) for a in (X, GRAD)]
    np.testing.assert_allclose(d_kernel, np.einsum("btd,btf->df", *rounded), rtol=1e-5, atol=1e-4)


def test_a_frozen_kernel_costs_no_product():
    def dots(argnums):
        loss = jax.grad(lambda x, kernel: (project(x, kernel) ** 2).sum(), argnums)
        return jax.jit(loss).lower(X, KERNEL).compile().as_text().count(" dot(")

    assert dots(0) == dots((0, 1)) - 1


def test_remat_policies_see_the_product():
    @functools.partial(jax.checkpoint, policy=jax.checkpoint_policies.dots_with_no_batch_dims_saveable)
    def layer(x, kernel):
        return jnp.sin(project(x, kernel))

    def dots(function):
        loss = jax.grad(lambda x, kernel: function(x, kernel).sum(), (0, 1))
        return str(jax.make_jaxpr(loss)(X, KERNEL)).count("dot_general")

    assert dots(layer) == dots(lambda x, kernel: jnp.sin(project(x, kernel))) == 3


def test_two_activations_and_their_gradients():
    x, y, grad = (RNG.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 4, 5), (2, 6, 4, 5), (2, 4, 3, 6)))

    def both(x, y):
        out, pull_back = jax.vjp(functools.partial(contract, "btnh,bsnh->bnts"), x, y)
        return out, *pull_back(jnp.asarray(grad))

    found = jax.jit(both)(x, y)
    equations = (("btnh,bsnh->bnts", x, y), ("bnts,bsnh->btnh", grad, y), ("bnts,btnh->bsnh", grad, x))
    for ours, equation in zip(found, equations):
        np.testing.assert_allclose(ours, np.einsum(*equation), rtol=1e-4, atol=1e-5)
    narrow = [jnp.asarray(a, jnp.bfloat16) for a in (x, y)]
    out, d_x, d_y = jax.jit(both)(*narrow)
    assert (out.dtype, d_x.dtype, d_y.dtype) == (jnp.float32, jnp.bfloat16, jnp.bfloat16)
    np.testing.assert_allclose(d_y.astype(jnp.float32), found[2], atol=0.05)
    assert "f32[2,6,4,5]" not in str(jax.make_jaxpr(both)(*narrow))


def test_the_gradient_of_a_float32_factor_is_not_rounded_to_bfloat16():
    x, grad = jnp.asarray(X, jnp.bfloat16), jnp.asarray(GRAD, jnp.bfloat16).astype(jnp.float32)
    out, pull_back = jax.vjp(functools.partial(contract, "btd,df->btf"), x, jnp.asarray(KERNEL))
    d_x, d_kernel = pull_back(grad)
    assert (out.dtype, d_x.dtype, d_kernel.dtype) == (jnp.float32, jnp.bfloat16, jnp.float32)
    np.testing.assert_allclose(d_kernel, np.einsum("btd,btf->df", x.astype(jnp.float32), grad), rtol=1e-5, atol=1e-4)
