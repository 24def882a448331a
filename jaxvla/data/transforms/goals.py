"""Goal relabelling: which later frame of its own trajectory a transition is asked to reach.

A trajectory of T transitions has frames 0..T; transition t leads from frame t to frame t + 1. bridge_data_v2 takes
goals from next observations, so its goal index j of transition t is frame j + 1 here. Every strategy maps uniform
random numbers to frames, for a whole batch at once; which numbers they are is decided by the loader.
"""

import dataclasses

import numpy as np

from jaxvla.errors import ConfigError

STRATEGIES = ("uniform", "last_state_upweighted", "geometric", "delta_goals")


@dataclasses.dataclass(frozen=True)
class GoalConfig:
    """How goals are drawn.

    uniform                with probability `reached_proportion` the next frame, else any frame after it
    last_state_upweighted  ... else the next frame plus 1..T-1 more, capped at the last frame
    geometric              ... else frame j with probability proportional to discount^j
    delta_goals            `delta[0]` to `delta[1] - 1` frames ahead; transitions with fewer frames ahead are left out

    The last transition of a trajectory has only the last frame ahead and always reaches it.
    """

    strategy: str = "uniform"
    reached_proportion: float = 0.0
    discount: float = 0.98
    delta: tuple[int, int] = (0, 24)

    def __post_init__(self) -> None:
        where = "config.data.goal_relabeling"
        if self.strategy not in STRATEGIES:
            raise ConfigError(f"{where}.strategy must be one of {', '.join(STRATEGIES)}, not {self.strategy!r}")
        if not 0 <= self.reached_proportion <= 1:
            raise ConfigError(f"{where}.reached_proportion must lie in [0, 1], not {self.reached_proportion}")
        if not 0 < self.discount < 1:
            raise ConfigError(f"{where}.discount must lie in (0, 1), not {self.discount}")
        if not 0 <= self.delta[0] < self.delta[1]:
            raise ConfigError(f"{where}.delta must be (a, b) with 0 <= a < b, not {self.delta}")

    @property
    def nearest(self) -> int:
        """How many transitions a goal of this strategy needs behind the observation's own."""
        return self.delta[0] if self.strategy == "delta_goals" else 0

    def has_goal(self, step: np.ndarray, length: np.ndarray) -> np.ndarray:
        """Which transitions `step` [b] of trajectories of `length` [b] transitions can have a goal, bool [b]."""
        return step < length - self.nearest

    def draw(self, step: np.ndarray, length: np.ndarray, uniforms: np.ndarray) -> np.ndarray:
        """Goal frames for transitions `step` [b] of trajectories of `length` [b]; `uniforms` float64 [b, 2] in [0, 1).

        Returns:
            int64 [b], in [step + 1, length]; for delta_goals in [step + delta[0], length].
        """
        if self.strategy == "delta_goals":
            high = np.minimum(length + 1, step + self.delta[1])
            return _uniform_int(step + self.delta[0], high, uniforms[:, 1])
        first, after = step + 1, step + 2
        if self.strategy == "uniform":
            goal = _uniform_int(after, length + 1, uniforms[:, 1])
        elif self.strategy == "last_state_upweighted":
            goal = first + _uniform_int(np.ones_like(step), length, uniforms[:, 1])
        else:
            # Inverse of the distribution function of a geometric law cut off at the last frame.
            count = np.maximum(length - first, 1)
            mass = uniforms[:, 1] * -np.expm1(count * np.log(self.discount))
            goal = after + np.floor(np.log1p(-mass) / np.log(self.discount)).astype(np.int64)
        reached = (uniforms[:, 0] < self.reached_proportion) | (step >= length - 1)
        return np.where(reached, first, np.minimum(goal, length))


def _uniform_int(low: np.ndarray, high: np.ndarray, uniform: np.ndarray) -> np.ndarray:
    """Uniform integers in [low, high), for `uniform` in [0, 1)."""
    drawn = low + np.floor(uniform * (high - low)).astype(np.int64)
    return np.minimum(drawn, high - 1)
