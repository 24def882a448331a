import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.errors import ConfigError
from jaxvla.models.adapter import matrix, project
from jaxvla.models.quantization import MODES, QuantizedKernel, group_of, num_bytes, quantize, quantize_kernel

RNG = np.random.default_rng(0)
STACK = RNG.normal(size=(2, 96, 10)).astype(np.float32)
STACK[0, :, 3] = 0
X_BTD = RNG.normal(size=(2, 3, 96)).astype(np.float32)


def by_hand(kernel, size, largest):
    """Integers and scales of [in, out], one group and one output after the other."""
    values, scales = np.zeros(kernel.shape, int), np.zeros((len(kernel) // size, kernel.shape[1]), np.float32)
    for group, output in np.ndindex(scales.shape):
        own = kernel[group * size : (group + 1) * size, output]
        scales[group, output] = np.float32(max(abs(own)) / np.float32(largest + 0.5))
        if scales[group, output]:
            steps = np.clip(np.rint(own / scales[group, output]), -largest, largest)
            values[group * size : (group + 1) * size, output] = steps
    return values, scales


@pytest.mark.parametrize(("mode", "size", "largest"), [("int8", 96, 127), ("int4", 48, 7)])
def test_integers_and_scales_by_hand(mode, size, largest):
    found = quantize_kernel(STACK, mode)
    assert (found.shape, found.dtype, found.values.dtype) == (STACK.shape, np.float32, MODES[mode])
    for layer, kernel in enumerate(STACK):
        values, scales = by_hand(kernel, size, largest)
        np.testing.assert_array_equal(found.values[layer].astype(jnp.int32), values)
        np.testing.assert_allclose(found.scale[layer], scales, rtol=1e-6)
        whole = np.repeat(scales, size, axis=0) * values
        np.testing.assert_allclose(found.matrix(jnp.float32)[layer], whole, rtol=1e-6)
        # No weight is further away than half a step.
        assert (abs(whole - kernel) <= 0.5001 * np.repeat(scales, size, axis=0)).all()


@pytest.mark.parametrize("mode", MODES)
def test_the_product_and_its_gradient_are_those_of_the_matrix(mode):
    stack = quantize_kernel(STACK, mode)

    @jax.jit
    def run(stack, x):
        return jax.lax.scan(lambda _, kernel: (None, project(x, kernel)), None, stack)[1]

    plain = stack.matrix(jnp.float32)
    np.testing.assert_allclose(run(stack, X_BTD), run(plain, X_BTD), rtol=1e-5, atol=1e-5)
    found, expected = (jax.grad(lambda x: (run(s, x) ** 2).sum())(X_BTD) for s in (stack, plain))  # noqa: B023
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    layer = jax.tree.map(lambda x: x[1], stack)
    np.testing.assert_array_equal(matrix(layer), plain[1])
    assert project(jnp.asarray(X_BTD, jnp.bfloat16), layer).dtype == jnp.bfloat16


def test_scales_have_the_dtype_of_the_kernel_and_weights_are_multiples_of_them():
    narrow = STACK.astype(jnp.bfloat16)
    found = quantize_kernel(narrow, "int8")
    assert found.dtype == jnp.bfloat16
    error = abs(np.asarray(found.matrix(jnp.float32)) - np.asarray(narrow, np.float32))
    assert (error <= 0.51 * np.asarray(found.scale, np.float32)).all()


def test_what_is_held():
    assert num_bytes({"a": quantize_kernel(STACK, "int8"), "b": STACK}) == 2 * 96 * 10 + 4 * 2 * 10 + 4 * 2 * 96 * 10
    assert num_bytes({"a": quantize_kernel(STACK, "int4")}) == 2 * 96 * 10 // 2 + 4 * 2 * 2 * 10
    assert [group_of(width) for width in (4096, 4304, 588, 96, 40)] == [64, 16, 49, 48, 40]


def test_named_kernels_alone_and_never_the_head():
    params = {"a": {"kernel": STACK, "bias": STACK[0, 0]}, "lm_head": {"kernel": STACK[0]}, "b": {"kernel": STACK}}
    found = quantize(params, ["a/kernel", "lm_head/kernel"], "int8")
    assert isinstance(found["a"]["kernel"], QuantizedKernel)
    for module, name in (("b", "kernel"), ("lm_head", "kernel"), ("a", "bias")):
        assert found[module][name] is params[module][name]
    assert params["a"]["kernel"] is STACK


def test_bad_modes_and_widths():
    with pytest.raises(ConfigError, match="must be empty or one of int8, int4, not 'int2'"):
        quantize({"kernel": STACK}, ["kernel"], "int2")
    with pytest.raises(ConfigError, match=r"kernel \(2, 97, 10\) has inputs that fall into no groups of 8 to 64"):
        quantize({"kernel": np.zeros((2, 97, 10), np.float32)}, ["kernel"], "int4")
    assert quantize({"kernel": np.zeros((97, 10), np.float32)}, ["kernel"], "int8")["kernel"].shape == (97, 10)
