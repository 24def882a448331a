"""Parameters for tests: random, none of them zero, and made without compiling anything."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxvla.models.module import init_params


def random_params(make, seed=0):
    """Kernels that keep the scale of what they multiply, norms near 1, the rest near 0; float32."""
    rng = np.random.default_rng(seed)

    def fill(path, shape):
        noise = rng.standard_normal(shape.shape, dtype=np.float32)
        match path[-1].key:
            case "kernel":
                return noise / np.sqrt(np.prod(shape.shape[:-1]), dtype=np.float32)
            case "scale":
                return 1 + noise / 10
            case _:
                return noise / 10

    shapes = jax.eval_shape(lambda: init_params(make, jax.random.key(0)))
    return jax.tree.map(jnp.asarray, jax.tree_util.tree_map_with_path(fill, shapes))
