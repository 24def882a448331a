"""The straight way between noise and actions (Lipman et al., 2023; Liu et al., 2023), and its integration.

Integration can go by actions that are known already: real-time chunking (Black et al., 2025), where a robot plays the
rest of the chunk before while the next one is made. It is drawn towards them, with any network; or the first ones are
given as they are, to a network that has learned to go on from there. The share of the way that lies behind runs from
0, noise, to 1, actions, whatever time a network is told.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key, Shaped

from jaxvla.errors import ConfigError


class Guide(NamedTuple):
    """What actions that are made are to be like.

    Attributes:
        actions_bad: normalized, the first of them for the same moment as the first that is made.
        weight_bad: how much each counts, in [0, 1], for what is made to be drawn towards it; 0 where there is none.
        limit_b: of the strength, `max_guidance_weight` of the original; 0 draws nothing. None where nothing is drawn,
            whatever the weights.
        known_ba: the ones that are given as they are, the first of each chunk; None for none.
    """

    actions_bad: Float[Array, "b a d"]
    weight_bad: Float[Array, "b a d"]
    limit_b: Float[Array, " b"] | None
    known_ba: Bool[Array, "b a"] | None = None


def guide_weights(
    delay_b: Int[Array, " b"], left_b: Int[Array, " b"], action_horizon: int, schedule: str
) -> Float[Array, "b a"]:
    """How much each action of the chunk before counts for the chunk that is made.

    Args:
        delay_b: so many are played before the new chunk is there: they weigh 1.
        left_b: so many there are: those behind weigh 0.
        action_horizon: of the chunk.
        schedule: how weights fall in between: "linear", "exp" (linear w to w (e^w - 1) / (e - 1)), "ones" (not at all)
            or "zeros" (at once).
    """
    i_1a, left_b1 = jnp.arange(action_horizon)[None], left_b[:, None]
    start_b1 = jnp.minimum(delay_b[:, None], left_b1)
    linear_ba = jnp.clip((start_b1 - 1 - i_1a) / (left_b1 - start_b1 + 1) + 1, 0, 1)
    falls = {
        "linear": lambda: linear_ba,
        "exp": lambda: linear_ba * jnp.expm1(linear_ba) / np.expm1(1),
        "ones": lambda: jnp.ones_like(linear_ba),
        "zeros": lambda: jnp.where(i_1a < start_b1, 1.0, 0.0),
    }
    return jnp.where(i_1a < left_b1, falls[schedule](), 0.0)


def draw_known(rng: Key[Array, ""], rows: int, action_horizon: int, most: int) -> Bool[Array, "b a"]:
    """For each row of training, which first actions are given as they are: 0 to `most`, all numbers alike."""
    return jnp.arange(action_horizon) < jax.random.randint(rng, (rows, 1), 0, most + 1)


def known_of(guide: Guide | None, most: int) -> Bool[Array, "b a"] | None:
    """What a guide gives as it is, of the first `most` actions, which is what training gave; None for nothing.

    Raises:
        ConfigError: it gives something, but `most` is 0: the network has not learned to go on from there.
    """
    if guide is None or guide.known_ba is None:
        return None
    if not most:
        raise ConfigError("with max_delay 0 a network has not learned to go on from actions that are given")
    return guide.known_ba & (jnp.arange(guide.known_ba.shape[1]) < most)


def between(
    noise_bad: Float[Array, "b a d"], actions_bad: Float[Array, "b a d"], share_b: Float[Array, " b"]
) -> Float[Array, "b a d"]:
    """The point at which so much of the way from noise, 0, to actions, 1, lies behind."""
    share_b11 = share_b[:, None, None]
    return (1 - share_b11) * noise_bad + share_b11 * actions_bad


def euler(
    velocity: Callable[[Array, Array], Array],
    noise_bad: Float[Array, "b a d"],
    times: Shaped[Array, " n"],
    guide: Guide | None = None,
) -> Float[Array, "b a d"]:
    """Euler's method from noise to actions, in steps of equal length.

    Args:
        velocity: (actions [b, a, d], time [b]) -> how actions change over the whole way [b, a, d]; of those that are
            known nobody asks it.
        noise_bad: standard normal.
        times: at the beginning of each step, as `velocity` takes them.
        guide: what the actions are to be like; None for nothing.
    """
    known_ba1 = None if guide is None or guide.known_ba is None else guide.known_ba[..., None]
    draws = guide is not None and guide.limit_b is not None
    if known_ba1 is not None:
        noise_bad = jnp.where(known_ba1, guide.actions_bad, noise_bad)

    def step(actions_bad: Array, at: tuple[Array, Array]) -> tuple[Array, None]:
        time, share = at
        time_b = jnp.full(len(actions_bad), time)

        def change(x_bad: Array) -> Array:
            change_bad = velocity(x_bad, time_b)
            return change_bad if known_ba1 is None else jnp.where(known_ba1, 0, change_bad)

        change_bad = _drawn(change, actions_bad, share, guide) if draws else change(actions_bad)
        return actions_bad + change_bad / len(times), None

    return jax.lax.scan(step, noise_bad, (times, jnp.arange(len(times)) / len(times)))[0]


def _drawn(
    velocity: Callable[[Array], Array], x_bad: Float[Array, "b a d"], share: Float[Array, ""], guide: Guide
) -> Float[Array, "b a d"]:
    """The velocity, and what brings the actions at which it would arrive nearer to the guide (Song et al., 2023).

    That is the weighted error of these actions, through the transposed Jacobian of how they depend on `x_bad`.
    """

    def arrival(x_bad: Array) -> tuple[Array, Array]:
        velocity_bad = velocity(x_bad)
        return x_bad + (1 - share) * velocity_bad, velocity_bad

    arrival_bad, transposed, velocity_bad = jax.vjp(arrival, x_bad, has_aux=True)
    (pull_bad,) = transposed((guide.actions_bad - arrival_bad) * guide.weight_bad)
    spread = (share**2 + (1 - share) ** 2) / (1 - share) ** 2
    strength = jnp.where(share > 0, (1 - share) / share * spread, jnp.inf)
    return velocity_bad + jnp.minimum(strength, guide.limit_b)[:, None, None] * pull_bad
