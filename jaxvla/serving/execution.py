"""What robots play of the chunks of actions that are decided for them.

Axis letters: n for the robots of a call, c for the actions of a chunk, a for those that are played, d action dimension.
"""

import collections
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from jaxvla.contract import Execution

Chunk = Float32[np.ndarray, "c d"]


class Schedule:
    """Cuts chunks, or averages those of the last decisions, each robot's own.

    With an ensemble a robot's time goes on by one step with each decision, and with each step that it skips.

    Args:
        execution: how chunks are played.
        action_horizon: actions of a chunk.
        robots: how many there are.

    Raises:
        ConfigError: chunks do not have as many actions as are to be played.
    """

    def __init__(self, execution: Execution, action_horizon: int, robots: int) -> None:
        self._steps, self._ensemble = execution.steps(action_horizon), execution.ensemble
        self._now = [0] * robots
        # (step of the decision, its chunk), oldest first; earlier chunks do not reach the present.
        self._chunks = [collections.deque[tuple[int, Chunk]](maxlen=action_horizon) for _ in range(robots)]

    def play(self, robots: Sequence[int], chunks_ncd: Float32[np.ndarray, "n c d"]) -> Float32[np.ndarray, "n a d"]:
        """What these robots play before their next decision, of what is decided now."""
        if self._ensemble is None:
            return chunks_ncd[:, : self._steps]
        return np.stack([self._average(robot, chunk_cd) for robot, chunk_cd in zip(robots, chunks_ncd)])[:, None]

    def skip(self, robots: Sequence[int]) -> None:
        """A time step of these robots at which nothing is decided."""
        for robot in robots:
            self._now[robot] += 1

    def forget(self, robots: Sequence[int]) -> None:
        """What was decided for these robots no longer counts."""
        for robot in robots:
            self._chunks[robot].clear()

    def _average(self, robot: int, chunk_cd: Chunk) -> Float32[np.ndarray, " d"]:
        now, chunks = self._now[robot], self._chunks[robot]
        chunks.append((now, chunk_cd))
        self.skip([robot])
        predicted = [chunk[now - decided] for decided, chunk in chunks if now - decided < len(chunk)]
        weights = np.exp(-self._ensemble * np.arange(len(predicted)))
        return np.average(predicted, axis=0, weights=weights).astype(np.float32)
