import jax
import jax.numpy as jnp
import numpy as np

from jaxvla.ops.sinusoid import grid_table, place_table, sinusoid_angles, time_waves


def test_frequencies_fall_from_one_to_the_slowest():
    steps = jnp.array([0, 1, 750])
    # 1, 10, 100, 1000, 10000 steps per radian.
    np.testing.assert_allclose(sinusoid_angles(steps, 5, 4)[1], [1, 1e-1, 1e-2, 1e-3, 1e-4], rtol=1e-5)
    np.testing.assert_allclose(sinusoid_angles(steps, 4, 4)[2], [750, 75, 7.5, 0.75], rtol=1e-5)
    assert (sinusoid_angles(steps, 4, 4)[0] == 0).all()


def test_waves_of_a_time_are_those_of_float64():
    times = np.concatenate([[0, 1, 0.001, 0.9], np.random.default_rng(0).uniform(0, 1, 500)]).astype(np.float32)
    phases = 2 * np.pi * times.astype(np.float64)[:, None] / np.geomspace(4e-3, 4.0, 360)
    found = jax.jit(lambda x: time_waves(x, 720, 4e-3, 4.0))(times)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, np.concatenate([np.sin(phases), np.cos(phases)], axis=1), atol=1e-6)
    plain = np.sin(phases.astype(np.float32))
    assert np.abs(plain - np.sin(phases)).max() > 2e-5, "which float32 alone does not reach"


def test_places_are_sine_and_cosine_in_turn():
    table = place_table(np.arange(3), 4)
    assert table.dtype == np.float32
    np.testing.assert_allclose(table[0], [0, 1, 0, 1])
    np.testing.assert_allclose(table[2], [np.sin(2), np.cos(2), np.sin(0.02), np.cos(0.02)], rtol=1e-6)


def test_a_pixel_is_its_row_then_its_column():
    """Rows at pi and 2 pi, columns at 2 pi / 3, 4 pi / 3 and 2 pi; the slower wave has a hundredth of these."""
    table = grid_table(2, 3, 8).reshape(2, 3, 8)
    rows, columns = np.pi * np.array([1, 2]), 2 * np.pi / 3 * np.array([1, 2, 3])
    for i, j in np.ndindex(2, 3):
        expected = [f(x / slow) for x in (rows[i], columns[j]) for slow in (1, 100) for f in (np.sin, np.cos)]
        np.testing.assert_allclose(table[i, j], expected, atol=1e-5)
