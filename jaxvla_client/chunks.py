"""The scheduler of action chunks: when a robot's next decision begins, and what it plays of those that were made.

A decision begins with an observation and gives a chunk of actions, the first of which is for the moment of that
observation. Some control steps may pass until the chunk is there; meanwhile the earlier ones are played, and the
actions whose steps have passed are left out. So one scheduler serves robots that wait for every decision, and robots
that go on while the next one is made.

Time is counted in actions: where there is nothing to play a robot stands still, and what was decided for the moment at
which it stopped is still right when it goes on.

Axis letters: c actions of a chunk, d numbers of an action.
"""

import collections
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

# How the predictions of a moment are weighed: by their age, as in ACT (Zhao et al., 2023), or by how much they agree
# with the newest one, as in CogACT (Li et al., 2024).
AVERAGES = ("age", "agreement")
# Decisions over which the longest delay is remembered.
WINDOW = 100


@dataclass(frozen=True)
class Plan:
    """How chunks are played.

    Attributes:
        steps: control steps from the beginning of a decision to that of the next; 0 for as many as a chunk has actions.
        ensemble: of temporal ensembling, which plays an average of all that was predicted for a moment. By "age", the
            i-th prediction from the oldest on weighs exp(-ensemble * i); by "agreement", one weighs
            exp(ensemble * cosine of it and the newest one). None where the newest chunk alone is played.
        ensemble_by: one of `AVERAGES`.
        ensemble_last: how many predictions an average is of, the newest ones; 0 for all that there are.

    Raises:
        ValueError: a value that makes no sense.
    """

    steps: int = 0
    ensemble: float | None = None
    ensemble_by: str = "age"
    ensemble_last: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "ensemble_last"):
            value = getattr(self, name)
            if type(value) is not int or value < 0:
                raise ValueError(f"{name} must be 0 or a whole number above it, not {value!r}")
        if self.ensemble_by not in AVERAGES:
            raise ValueError(f"ensemble_by must be one of {', '.join(AVERAGES)}, not {self.ensemble_by!r}")
        if self.ensemble is not None and (type(self.ensemble) not in (int, float) or not 0 <= self.ensemble < math.inf):
            raise ValueError(f"ensemble must be 0 or a positive number, or None, not {self.ensemble!r}")

    @classmethod
    def of_contract(cls, contract: Mapping[str, Any]) -> "Plan":
        """What the metadata of a policy server says under "contract": these names, but "execute_steps" for `steps`.

        Keys that are missing have the values that they have here.

        Raises:
            ValueError: a value that makes no sense.
        """
        names = {"steps": "execute_steps"} | {name: name for name in ("ensemble", "ensemble_by", "ensemble_last")}
        return cls(**{own: contract[theirs] for own, theirs in names.items() if theirs in contract})

    def average(self, predictions: Sequence[np.ndarray]) -> np.ndarray:
        """The action [d], float32, of what was predicted for one moment, [d] each, oldest first."""
        predicted = list(predictions)[-self.ensemble_last :]
        if self.ensemble_by == "age":
            weights = np.exp(-self.ensemble * np.arange(len(predicted)))
        else:
            weights = np.exp(self.ensemble * np.array([cosine(one, predicted[-1]) for one in predicted]))
        return np.average(predicted, axis=0, weights=weights).astype(np.float32)


class Timing(NamedTuple):
    """When a decision begins and when it is expected, as whoever makes it needs to know.

    Attributes:
        played: actions since the last decision began: of its chunk, action `played` is for the present moment. None
            where there is no last decision, or its chunk never came.
        delay: control steps after which the chunk is expected.
    """

    played: int | None
    delay: int


class Player:
    """Plays the chunks of one robot. At every control step of the robot, in this order:

        if a chunk has come:  player.answer(chunk)
        if player.due:        timing = player.ask(), and have a decision made of what is seen now
        action = player.step(), None where the robot is to stand still

    Who waits for each decision asks, answers, and takes all `actions` until the next one.

    Args:
        plan: how chunks are played.
        delay: control steps after which the first chunk is expected.
    """

    def __init__(self, plan: Plan, delay: int = 0) -> None:
        self._plan = plan
        self._delays = collections.deque([delay], maxlen=WINDOW)
        self._longest = delay  # of these, for it is asked at every action
        self.reset()

    def reset(self) -> None:
        """Begins an episode: what was decided so far no longer counts, what is known of delays does."""
        self._now = 0
        self._begun: int | None = None  # when the last decision began
        self._waited: int | None = None
        # (when its decision began, the chunk), oldest first.
        self._chunks: collections.deque[tuple[int, np.ndarray]] = collections.deque()

    @property
    def delay(self) -> int:
        """Control steps after which a chunk is expected: the longest delay of the last `WINDOW` decisions."""
        return self._longest

    @property
    def waited(self) -> int | None:
        """Control steps since the decision that is being made began; None where none is."""
        return self._waited

    @property
    def left(self) -> int:
        """Actions of the newest chunk that are not past."""
        return max(self._chunks[-1][0] + len(self._chunks[-1][1]) - self._now, 0) if self._chunks else 0

    @property
    def due(self) -> bool:
        """Whether a decision is to begin: as planned, or earlier where what is left would not last until it is there.

        One decision is made at a time.
        """
        return self._waited is None and self._before_due() == 0

    def _before_due(self) -> int:
        """Actions that are still to be played until a decision is due, where none is being made."""
        if self._begun is None:
            return 0
        lasting = self.left - self._longest
        if self._plan.steps:
            lasting = min(lasting, self._begun + self._plan.steps - self._now)
        return max(lasting, 0)

    def ask(self, played: int | None = None) -> Timing:
        """A decision begins, of what is seen now.

        Args:
            played: actions that the robot has played since the last decision began, for who knows it better; None for
                as many as `step` gave.

        Raises:
            ValueError: one is being made already, or `played` is below 0.
        """
        if played is not None and played < 0:
            raise ValueError(f"played must be 0 or more actions, not {played}")
        if self._waited is not None:
            raise ValueError("a decision is being made: answer, or give it up, before the next one begins")
        if played is not None and self._begun is not None:
            self._now = self._begun + played
        since = None if self._begun is None else self._now - self._begun
        self._begun, self._waited = self._now, 0
        return Timing(since, self.delay)

    def answer(self, chunk: np.ndarray) -> None:
        """The chunk [c, d] of the decision that is being made is there.

        Raises:
            ValueError: none is being made, or this is no chunk of at least one action.
        """
        if self._waited is None:
            raise ValueError("a chunk came, but no decision is being made: ask first")
        if np.ndim(chunk) != 2 or not len(chunk):
            raise ValueError(f"a chunk is an array [c, d] of at least one action, not one of shape {np.shape(chunk)}")
        forgotten = self._delays[0] if len(self._delays) == WINDOW else -1
        self._delays.append(self._waited)
        if forgotten < self._longest:
            self._longest = max(self._longest, self._waited)
        else:
            self._longest = max(self._delays)
        if self._plan.ensemble is None:
            self._chunks.clear()
        self._chunks.append((self._begun, chunk))
        self._waited = None

    def give_up(self) -> None:
        """The decision that is being made will not come; the next one is due at once."""
        self._waited = self._begun = None

    @property
    def upcoming(self) -> np.ndarray | None:
        """What `step` plays next, [d], unless a chunk comes before; None where nothing is left."""
        predictions = [chunk[self._now - begun] for begun, chunk in self._chunks if self._now - begun < len(chunk)]
        if not predictions:
            return None
        return predictions[-1] if self._plan.ensemble is None else self._plan.average(predictions)

    def step(self) -> np.ndarray | None:
        """What is played at this control step, [d]; None where nothing is left, and the robot is to stand still."""
        if self._waited is not None:
            self._waited += 1
        while self._chunks and self._chunks[0][0] + len(self._chunks[0][1]) <= self._now:
            self._chunks.popleft()
        action = self.upcoming
        if action is not None:
            self._now += 1
        return action

    def actions(self) -> np.ndarray:
        """All that is played until the next decision is due, [a, d], by who waits for each decision.

        Raises:
            ValueError: a decision is being made, or is due at once.
        """
        count = 0 if self._waited is not None else self._before_due()
        if not count:
            raise ValueError("there is nothing to play before the next decision: ask, and answer, first")
        if self._plan.ensemble is not None:
            return np.stack([self.step() for _ in range(count)])
        begun, chunk = self._chunks[-1]
        first, self._now = self._now - begun, self._now + count
        return chunk[first : first + count]


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Of the angle between two actions [d]; 0 where one of them is 0."""
    length = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(np.dot(a, b)) / length if length else 0.0


def leftover(chunk: np.ndarray, played: int) -> tuple[np.ndarray, int]:
    """What is left of a chunk after some of its actions, as real-time chunking needs it.

    Args:
        chunk: [c, d].
        played: how many of its actions are past.

    Returns:
        The chunk [c, d] so shifted that its first action is for the present moment, zeros behind its end; and how many
        of its actions are left.
    """
    left = max(len(chunk) - played, 0)
    return np.concatenate([chunk[len(chunk) - left :], np.zeros_like(chunk[left:])]), left
