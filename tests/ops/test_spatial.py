import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.ops.spatial import coordinate_grid, max_pool, spatial_softmax


def test_coordinates_are_row_then_column():
    grid = np.asarray(coordinate_grid(3, 5))
    assert grid.shape == (3, 5, 2)
    np.testing.assert_allclose(grid[:, 0, 0], [-1, 0, 1])
    np.testing.assert_allclose(grid[0, :, 1], [-1, -0.5, 0, 0.5, 1])
    assert (grid[0, :, 0] == -1).all()


@pytest.mark.parametrize("size", [(8, 6), (7, 9), (1, 2)])
def test_max_pool_and_its_gradient_are_those_of_reduce_window(size):
    x = jax.random.normal(jax.random.key(0), (2, *size, 3))
    weights = jax.random.normal(jax.random.key(1), max_pool(x).shape)

    def reference(x):
        return jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "SAME")

    @functools.partial(jax.jit, static_argnums=0)
    def weighted_sum(pool, x):
        return jax.value_and_grad(lambda x: (pool(x) * weights).sum())(x)

    assert (max_pool(x) == reference(x)).all()
    np.testing.assert_allclose(weighted_sum(max_pool, x)[1], weighted_sum(reference, x)[1], rtol=1e-6)


def test_max_pool_with_as_much_padding_at_every_edge():
    x = jax.random.normal(jax.random.key(0), (1, 8, 7, 2))
    padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-jnp.inf)
    expected = jax.lax.reduce_window(padded, -jnp.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), "VALID")
    assert expected.shape == (1, 4, 4, 2)
    assert (max_pool(x, padding=1) == expected).all()


def test_spatial_softmax_finds_peaks():
    x = np.zeros((1, 5, 7, 2), np.float32)
    x[0, 0, 6, 0] = 50
    x[0, 2, 3, 1] = 50
    np.testing.assert_allclose(spatial_softmax(jnp.asarray(x)), [[-1, 0, 1, 0]], atol=1e-6)


def test_spatial_softmax_of_a_flat_map_is_its_centre():
    np.testing.assert_allclose(spatial_softmax(jnp.ones((2, 4, 6, 3))), np.zeros((2, 6)), atol=1e-6)
