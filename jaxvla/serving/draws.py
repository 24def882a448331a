"""What robots draw from: the randomness of their decisions, each robot's own.

Axis letters: n for the robots of a call.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Key, UInt32

from jaxvla.errors import PolicyError


class Draw(NamedTuple):
    """Says which draw is meant, of each of n robots.

    Attributes:
        seed_n: of its stream.
        decision_n: how many the stream gave before.
    """

    seed_n: UInt32[np.ndarray, " n"]
    decision_n: UInt32[np.ndarray, " n"]


class Draws:
    """A stream of draws for each robot. Streams begin from seed 0, and restart where a robot is given a seed."""

    def __init__(self, robots: int) -> None:
        self._seeds, self._decisions = (np.zeros(robots, np.uint32) for _ in range(2))

    def restart(self, robots: Sequence[int], seeds: Sequence[int]) -> None:
        """Begins the streams of `robots` anew, each from its seed.

        Raises:
            PolicyError: not one seed for each, or a seed outside of [0, 2**32).
        """
        if len(seeds) != len(robots) or not all(0 <= seed < 2**32 for seed in seeds):
            raise PolicyError(f"robots {list(robots)} need one seed each, 0 to {2**32 - 1}, not {list(seeds)}")
        self._seeds[robots], self._decisions[robots] = seeds, 0

    def next(self, robots: Sequence[int]) -> Draw:
        """The next draw of each of these robots."""
        draw = Draw(self._seeds[robots], self._decisions[robots])
        self._decisions[robots] += 1
        return draw


def key_of(draw: Draw) -> Key[Array, ""]:
    """The random key of a draw of one robot, whose arrays have no axis."""
    return jax.random.fold_in(jax.random.key(draw.seed_n), draw.decision_n)
