import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxvla.models.film import FiLM
from jaxvla.models.module import bind, graph_of, params_of


def make(rngs):
    return FiLM(2, 3, dtype=jnp.float32, rngs=rngs)


def test_starts_as_the_identity():
    x = jax.random.normal(jax.random.key(0), (2, 4, 5, 3))
    assert (make(nnx.Rngs(0))(x, jnp.ones((2, 2))) == x).all()


def test_scales_and_shifts_per_example_and_channel():
    params = params_of(make(nnx.Rngs(0)))
    params["scale"]["kernel"] = jnp.asarray([[1.0, 0, 0], [0, 2, 0]])
    params["shift"]["bias"] = jnp.asarray([0.0, 0, 5])
    cond = jnp.asarray([[1.0, 0], [0, 3]])
    y = np.asarray(bind(graph_of(make), params)(jnp.ones((2, 1, 1, 3)), cond))[:, 0, 0]
    np.testing.assert_allclose(y, [[2, 1, 6], [1, 7, 6]])
