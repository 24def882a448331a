import jax.numpy as jnp
import numpy as np

from jaxvla.ops.sinusoid import sinusoid_angles


def test_frequencies_fall_from_one_to_the_slowest():
    steps = jnp.array([0, 1, 750])
    # 1, 10, 100, 1000, 10000 steps per radian.
    np.testing.assert_allclose(sinusoid_angles(steps, 5, 4)[1], [1, 1e-1, 1e-2, 1e-3, 1e-4], rtol=1e-5)
    np.testing.assert_allclose(sinusoid_angles(steps, 4, 4)[2], [750, 75, 7.5, 0.75], rtol=1e-5)
    assert (sinusoid_angles(steps, 4, 4)[0] == 0).all()
