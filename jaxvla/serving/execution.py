"""What robots play of the chunks of actions that are decided for them, and what is left of those of before.

Axis letters: n for the robots of a call, c for the actions of a chunk, a for those that are played, d action dimension.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float32, Int32

from jaxvla.contract import Execution
from jaxvla.errors import PolicyError
from jaxvla_client.chunks import Plan, Player, Timing, leftover


def plan_of(execution: Execution, action_horizon: int) -> Plan:
    """The plan of a robot's player.

    Raises:
        ConfigError: chunks do not have as many actions as are to be played.
    """
    averaged = (execution.ensemble, execution.ensemble_by, execution.ensemble_last)
    return Plan(execution.steps(action_horizon), *averaged)


class Schedule:
    """Cuts chunks, or averages those of the last decisions, each robot's own: all that one plays before the next.

    Args:
        execution: how chunks are played.
        action_horizon: actions of a chunk.
        robots: how many there are.

    Raises:
        ConfigError: chunks do not have as many actions as are to be played.
    """

    def __init__(self, execution: Execution, action_horizon: int, robots: int) -> None:
        plan = plan_of(execution, action_horizon)
        self._players = [Player(plan) for _ in range(robots)]
        # Actions that were given out, and time steps that were seen, since the last decision; None before the first.
        self._given: list[int | None] = [None] * robots
        self._seen = [0] * robots

    def timings(self, robots: Sequence[int]) -> list[Timing]:
        """When decisions of these robots begin, where nobody says it: when all that was given out has been played.

        Steps that were seen beyond that count, too. Each decision is there at once.
        """
        return [
            Timing(None if (given := self._given[robot]) is None else max(given, self._seen[robot]), 0)
            for robot in robots
        ]

    def play(
        self, robots: Sequence[int], chunks_ncd: Float32[np.ndarray, "n c d"], timings: Sequence[Timing] | None = None
    ) -> Float32[np.ndarray, "n a d"]:
        """What these robots play before their next decision, of what is decided now.

        Args:
            robots: which.
            chunks_ncd: of each.
            timings: of each; None for `self.timings(robots)`.
        """
        timings = self.timings(robots) if timings is None else timings
        return np.stack([self._play(*each) for each in zip(robots, chunks_ncd, timings)])

    def skip(self, robots: Sequence[int]) -> None:
        """A time step of these robots at which nothing is decided."""
        for robot in robots:
            self._seen[robot] += 1

    def forget(self, robots: Sequence[int]) -> None:
        """What was decided for these robots no longer counts."""
        for robot in robots:
            self._players[robot].reset()
            self._given[robot] = None

    def _play(self, robot: int, chunk_cd: np.ndarray, timing: Timing) -> np.ndarray:
        player = self._players[robot]
        if timing.played is None:
            player.reset()
        player.ask(timing.played)
        player.answer(chunk_cd)
        played_ad = player.actions()
        self._given[robot], self._seen[robot] = len(played_ad), 1
        return played_ad


class Before(NamedTuple):
    """What real-time chunking needs to know of the chunks before, of n robots.

    Attributes:
        actions_ncd: normalized, what is left of each, the first action for the present moment; zeros behind the end.
        delay_n: how many of them are played before the new chunk is there.
        left_n: how many are left; 0 where there was no chunk before.
    """

    actions_ncd: Float32[np.ndarray, "n c d"]
    delay_n: Int32[np.ndarray, " n"]
    left_n: Int32[np.ndarray, " n"]


class Memory:
    """Keeps the last chunk of each robot, as the agent gave it.

    Args:
        robots: how many there are.
        shape: (actions of a chunk, numbers of an action).
    """

    def __init__(self, robots: int, shape: tuple[int, int]) -> None:
        self._chunks = np.zeros((robots, *shape), np.float32)
        self._known = np.zeros(robots, bool)

    def before(self, robots: Sequence[int], timings: Sequence[Timing]) -> Before:
        """What is left of the chunks of these robots when their decisions begin."""
        rows = []
        for robot, timing in zip(robots, timings):
            known = self._known[robot] and timing.played is not None
            rows.append(leftover(self._chunks[robot], timing.played if known else len(self._chunks[robot])))
        chunks, left = zip(*rows)
        delays = [timing.delay for timing in timings]
        return Before(np.stack(chunks), np.array(delays, np.int32), np.array(left, np.int32))

    def keep(self, robots: Sequence[int], chunks_ncd: Float32[np.ndarray, "n c d"]) -> None:
        """The chunks that were decided last."""
        self._chunks[robots], self._known[robots] = chunks_ncd, True

    def forget(self, robots: Sequence[int]) -> None:
        """What was decided for these robots no longer counts."""
        self._known[robots] = False


def check_timings(timings: Sequence[Timing], count: int) -> None:
    """Raises PolicyError where these are not the timings of `count` robots, whole numbers that are not negative."""
    if len(timings) != count:
        raise PolicyError(f"{count} observations came with {len(timings)} timings; give one for each robot")
    for i, timing in enumerate(timings):
        for name, value in zip(Timing._fields, timing):
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool) and 0 <= value < 2**31
            if not whole and not (name == "played" and value is None):
                raise PolicyError(f"timing {i}: {name} must be a whole number, 0 or more, not {value!r}")
