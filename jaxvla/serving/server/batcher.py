"""One policy for many robots that ask when they like: those that ask at about the same time are decided together.

All that touches the policy happens in one thread, which is not that of the event loop.
"""

import asyncio
import collections
import concurrent.futures
import contextlib
import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvla.errors import JaxvlaError
from jaxvla.serving.policy import Policy
from jaxvla.serving.server.metrics import Metrics
from jaxvla.serving.server.request import BusyError, LateError, RequestError
from jaxvla_client.chunks import Timing

# A robot that asked within so many seconds is one that will ask again soon, for which it is worth to wait.
_ACTING_S = 1.0


@dataclasses.dataclass(eq=False)
class Work:
    """What one client wants of the policy.

    Attributes:
        robots: numbers of its robots.
        observations, tasks: of each.
        fresh: robots of the client that are reset before, from `seed`; none to go on.
        observe: nothing is to be decided.
        timing: of each decision, where its robots go on meanwhile; None where they wait.
        deadline: `time.monotonic()` from which on nobody waits any more.
        arrived: when it was read.
        done: gets a `Decided`, or the error.
    """

    robots: Sequence[int]
    observations: Sequence[Mapping[str, Any]]
    tasks: Sequence[Mapping[str, Any]]
    fresh: Sequence[int] = ()
    seed: int = 0
    observe: bool = False
    timing: Timing | None = None
    deadline: float = math.inf
    arrived: float = dataclasses.field(default_factory=time.monotonic)
    done: asyncio.Future["Decided"] = dataclasses.field(default_factory=lambda: asyncio.Future())


@dataclasses.dataclass(frozen=True, eq=False)
class Decided:
    """The actions [a, d] and words of each robot, and how long the computation and the wait for it took, seconds."""

    actions: tuple[np.ndarray, ...]
    words: tuple[str, ...]
    infer_s: float
    queue_s: float


class Batcher:
    """Decides.

    Args:
        name: of the policy, for the metrics.
        policy: for as many robots as are served.
        thread: of one worker.
        metrics: where it counts.
        window_s: how long those that came wait for others that act.
        queue: how many may wait.
    """

    def __init__(
        self,
        name: str,
        policy: Policy,
        thread: concurrent.futures.Executor,
        metrics: Metrics,
        window_s: float,
        queue: int,
    ) -> None:
        self._name, self._policy, self._thread, self._metrics = name, policy, thread, metrics
        self._window_s, self._queue = window_s, queue
        self._waiting: collections.deque[Work] = collections.deque()
        self._came = asyncio.Event()
        self._asked = 0  # robots of those that wait
        self._last_asked: dict[int, float] = {}
        metrics.gauge("queue", "requests that wait", lambda: len(self._waiting), policy=name)

    async def decide(self, work: Work) -> Decided:
        """What the policy decides.

        Raises:
            BusyError: too many wait.
            LateError: the deadline passed before it was its turn.
            JaxvlaError: an observation or a task is not what the policy takes.
            RequestError: the computation failed; the log says how.
        """
        if len(self._waiting) >= self._queue:
            raise BusyError(f"the server is busy: {self._queue} requests wait; ask again later")
        for robot in work.robots:
            self._last_asked[robot] = work.arrived
        self._waiting.append(work)
        self._asked += len(work.robots)
        # Who collects is woken twice for a batch, not once for each request: that would take longer than to read one.
        if len(self._waiting) == 1 or self._all_asked():
            self._came.set()
        return await work.done

    def forget(self, robots: Sequence[int]) -> None:
        """These robots are gone."""
        for robot in robots:
            self._last_asked.pop(robot, None)

    async def run(self) -> None:
        """Decides until it is cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            works = [work for work in await self._collect() if self._in_time(work)]
            if not works:
                continue
            results = await loop.run_in_executor(self._thread, self._work, works)
            for work, result in zip(works, results):
                if work.done.done():  # whoever asked is gone
                    continue
                if isinstance(result, Exception):
                    work.done.set_exception(result)
                else:
                    work.done.set_result(result)
            self._count([work for work in works if not work.observe], results)

    def _count(self, works: Sequence[Work], results: Sequence["Decided | Exception"]) -> None:
        decided = [result for result in results if isinstance(result, Decided) and result.actions]
        if decided:
            self._metrics.observe("batch_robots", sum(len(work.robots) for work in works), policy=self._name)
            self._metrics.observe("infer_seconds", decided[0].infer_s, policy=self._name)

    async def _collect(self) -> list[Work]:
        """What came, once all who act have asked or the first has waited for `window_s`."""
        while not self._waiting:
            self._came.clear()
            await self._came.wait()
        if not self._all_asked():
            self._came.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._window_s):
                    await self._came.wait()
        works = list(self._waiting)
        self._waiting.clear()
        self._asked = 0
        return works

    def _all_asked(self) -> bool:
        """Whether nobody who acts is still to ask."""
        if self._asked >= len(self._last_asked):
            return True
        since = time.monotonic() - _ACTING_S
        return self._asked >= sum(asked > since for asked in self._last_asked.values())

    def _in_time(self, work: Work) -> bool:
        now = time.monotonic()
        if work.done.done():
            return False
        if now < work.deadline:
            return True
        waited, allowed = 1000 * (now - work.arrived), 1000 * (work.deadline - work.arrived)
        late = LateError(f"late: the request waited {waited:.0f} ms, and its deadline was {allowed:.0f} ms: dropped")
        work.done.set_exception(late)
        return False

    def _work(self, works: Sequence[Work]) -> list[Decided | Exception]:
        """In the thread: the results of all."""
        results: dict[int, Decided | Exception] = {}
        waiting = [work for work in works if not work.observe and work.timing is None]
        going_on = [work for work in works if not work.observe and work.timing is not None]
        for group in (*([work] for work in works if work.observe), waiting, going_on):
            together = self._try(group) if group else []
            if len(group) > 1 and isinstance(together[0], JaxvlaError) and not isinstance(together[0], RequestError):
                # One is at fault, nothing was done, and the others need not know.
                together = [self._try([work])[0] for work in group]
            results |= {id(work): result for work, result in zip(group, together)}
        return [results[id(work)] for work in works]

    def _try(self, works: Sequence[Work]) -> list[Decided | Exception]:
        start = time.monotonic()
        try:
            return self._decide(works, start)
        except JaxvlaError as error:
            return [error for _ in works]
        except Exception:
            logging.getLogger(__name__).exception("a decision of %s failed", self._name)
            return [RequestError("the server failed to decide; its log says more") for _ in works]

    def _decide(self, works: Sequence[Work], start: float) -> list[Decided | Exception]:
        for work in works:
            if work.fresh:
                self._policy.reset(work.fresh, [work.seed] * len(work.fresh))
        robots = [robot for work in works for robot in work.robots]
        observations = [observation for work in works for observation in work.observations]
        if works[0].observe:
            self._policy.observe_batch(observations, robots)
            actions, words = [], []
        else:
            tasks = [task for work in works for task in work.tasks]
            timings = [work.timing for work in works for _ in work.robots] if works[0].timing else None
            actions, words = self._policy.act_batch(observations, tasks, robots, timings)
        took = time.monotonic() - start
        results, first = [], 0
        for work in works:
            own = slice(first, first + len(work.robots))
            results.append(Decided(tuple(actions[own]), tuple(words[own]), took, start - work.arrived))
            first = own.stop
        return results
