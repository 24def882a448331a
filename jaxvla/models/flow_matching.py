"""The straight way between noise and actions (Lipman et al., 2023; Liu et al., 2023), and its integration."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Shaped


def between(
    noise_bad: Float[Array, "b a d"], actions_bad: Float[Array, "b a d"], share_b: Float[Array, " b"]
) -> Float[Array, "b a d"]:
    """The point at which so much of the way from noise, 0, to actions, 1, lies behind."""
    share_b11 = share_b[:, None, None]
    return (1 - share_b11) * noise_bad + share_b11 * actions_bad


def euler(
    velocity: Callable[[Array, Array], Array], noise_bad: Float[Array, "b a d"], times: Shaped[Array, " n"]
) -> Float[Array, "b a d"]:
    """Euler's method from noise to actions, in steps of equal length.

    Args:
        velocity: (actions [b, a, d], time [b]) -> how actions change over the whole way [b, a, d].
        noise_bad: standard normal.
        times: at the beginning of each step, as `velocity` takes them.
    """

    def step(actions_bad: Array, time: Array) -> tuple[Array, None]:
        return actions_bad + velocity(actions_bad, jnp.full(len(actions_bad), time)) / len(times), None

    return jax.lax.scan(step, noise_bad, times)[0]
