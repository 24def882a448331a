"""FLOPs by the formula, for what differs: who is trained, loops, custom derivatives, convolutions."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxvla.models.flops import flops, training_flops
from jaxvla.ops.matmul import project

X = jax.ShapeDtypeStruct((2, 5, 7), jnp.float32)
A = jax.ShapeDtypeStruct((7, 11), jnp.float32)
B = jax.ShapeDtypeStruct((11, 7), jnp.float32)
FIRST = SECOND = 2 * 2 * 5 * 7 * 11


def two_layers(trained, frozen, x):
    kernels = trained | frozen
    return (project(jax.nn.relu(project(x, kernels["a"])), kernels["b"]) ** 2).sum()


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (("a", "b"), FIRST * 2 + SECOND * 3),  # nobody wants the gradient of x
        (("b",), FIRST + SECOND * 2),
        (("a",), FIRST * 2 + SECOND * 2),  # the gradient has to pass through the frozen layer
        ((), FIRST + SECOND),
    ],
)
def test_backward_passes_count_for_what_is_trained(trained, expected):
    kernels = {"a": A, "b": B}
    parts = [{k: v for k, v in kernels.items() if (k in trained) == chosen} for chosen in (True, False)]
    assert training_flops(two_layers, *parts, X) == expected


def test_what_remat_computes_again_is_no_part_of_the_model():
    def loss(kernels, x, remat):
        body = lambda x, kernel: (jnp.tanh(project(x, kernel)), None)  # noqa: E731
        return jax.lax.scan(jax.checkpoint(body) if remat else body, x, kernels)[0].sum()

    square = jax.ShapeDtypeStruct((6, 7, 7), jnp.float32)
    once = 2 * 2 * 5 * 7 * 7
    plain, again = (training_flops(functools.partial(loss, remat=r), square, X) for r in (False, True))
    # A scan's carry is one for all its passes, so the first counts as if it had something before it.
    assert plain == again == 6 * 3 * once
    gradient = jax.grad(functools.partial(loss, remat=True))
    assert flops(gradient, square, X) == 6 * 4 * once


def test_what_nobody_needs_is_not_counted():
    def gradient(kernels, x):
        return jax.grad(lambda x: two_layers(kernels, {}, x))(x)

    # Of the layers' own backward passes, which have gradients of kernels as well, those of x alone.
    assert flops(gradient, {"a": A, "b": B}, X) == 2 * (FIRST + SECOND)


def test_a_stopped_gradient_costs_nothing_backwards():
    assert training_flops(lambda a, x: jax.lax.stop_gradient(x @ a).sum(), A, X) == 2 * FIRST
    behind = training_flops(lambda a, b, x: (jax.lax.stop_gradient(x @ a) @ b).sum(), A, B, X)
    assert behind == 2 * FIRST + SECOND


@pytest.mark.parametrize("groups", [1, 4])
def test_a_convolution_sums_over_its_window_and_the_channels_of_its_group(groups):
    image, kernel = (
        jax.ShapeDtypeStruct((2, 8, 8, 4), jnp.float32),
        jax.ShapeDtypeStruct((3, 3, 4 // groups, 16), jnp.float32),
    )

    def convolve(image, kernel):
        return jax.lax.conv_general_dilated(
            image, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
        )

    assert flops(convolve, image, kernel) == 2 * (2 * 4 * 4 * 16) * 9 * 4 / groups


def test_the_count_is_that_of_xla():
    def product(a, b):
        return a @ b

    compiled = jax.jit(product).lower(A, B).compile()
    assert flops(product, A, B) == compiled.cost_analysis()["flops"]
