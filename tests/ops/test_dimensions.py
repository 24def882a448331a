import jax
import jax.numpy as jnp
import numpy as np

from jaxvla.ops.dimensions import mean_present, only_present, sum_present

X = jnp.asarray([[[1.0, 2.0, 6.0], [3.0, 4.0, 5.0]], [[5.0, 7.0, 9.0], [0.0, 1.0, 2.0]]])
PRESENT = jnp.asarray([[True, True, False], [True, True, True]])


def test_only_the_dimensions_that_a_sample_has_count():
    np.testing.assert_array_equal(sum_present(X, PRESENT), [[3, 7], [21, 3]])
    np.testing.assert_array_equal(mean_present(X, PRESENT), [[1.5, 3.5], [7, 1]])
    np.testing.assert_array_equal(only_present(X, PRESENT)[0], [[1, 2, 0], [3, 4, 0]])
    gradient = jax.grad(lambda x: sum_present(x**2, PRESENT).sum())(X)
    np.testing.assert_array_equal(gradient[0], [[2, 4, 0], [6, 8, 0]])


def test_a_row_that_fills_up_a_batch_gives_zero():
    np.testing.assert_array_equal(mean_present(X[1:], jnp.zeros((1, 3), bool)), [[0, 0]])


def test_without_a_mask_all_count():
    assert only_present(X, None) is X
    np.testing.assert_array_equal(sum_present(X[1:], None), [[21, 3]])
    np.testing.assert_array_equal(mean_present(X[1:], None), [[7, 1]])
