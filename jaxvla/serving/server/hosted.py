"""A checkpoint that is served, and what it holds for one connection."""

import asyncio
import collections
import concurrent.futures
import dataclasses
import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from jaxvla.contract import Contract
from jaxvla.data.schema import PROPRIO
from jaxvla.errors import ConfigError
from jaxvla.serving.policy import Policy
from jaxvla.serving.server.batcher import Batcher, Work
from jaxvla.serving.server.keys import Needs, Reading, fit, flatten
from jaxvla.serving.server.metrics import Metrics
from jaxvla.serving.server.request import Answer, BusyError, Request, RequestError, check_contract
from jaxvla_client.chunks import Timing


@dataclasses.dataclass(frozen=True)
class Hosting:
    """How checkpoints are served.

    Attributes:
        keys: of clients, see `keys.CLIENT_KEYS`; empty to find out.
        cameras: paths of clients by the policy's names, for those that cannot be found out.
        any_image_size: images that are smaller than the frames of training are taken.
        gripper: (closed, open) of the actions as clients take them; None for as they were trained.
        window_ms: how long a request waits for others.
        queue: requests that may wait.
    """

    keys: str = ""
    cameras: Mapping[str, str] = dataclasses.field(default_factory=dict)
    any_image_size: bool = False
    gripper: tuple[float, float] | None = None
    window_ms: float = 3.0
    queue: int = 64


class Hosted:
    """A policy, its robots that are free, and who decides for them.

    Args:
        name: of the checkpoint.
        policy: loaded, for as many robots as may act at once.
        datasets: names of those that it was trained on.
        hosting: how.

    Raises:
        ConfigError: the policy has no such camera, or its gripper's ends are not known.
    """

    def __init__(self, name: str, policy: Policy, datasets: Sequence[str], hosting: Hosting) -> None:
        self.name, self.policy, self.datasets, self.hosting = name, policy, tuple(datasets), hosting
        self.contract: Contract = policy.contract
        looks = [each for each in policy.needed["observation"] if each != PROPRIO]
        unknown = [camera for camera in hosting.cameras if camera not in policy.spec.cameras]
        if unknown:
            raise ConfigError(f"{name} has no camera {unknown[0]!r}; it has {', '.join(policy.spec.cameras)}")
        self.needs = Needs(
            cameras=tuple(looks),
            goals=policy.needed["goals"],
            proprio=PROPRIO in policy.needed["observation"],
            told=policy.told,
            contract=self.contract,
            overrides=hosting.cameras,
            any_size=hosting.any_image_size,
        )
        convention = policy.action_convention
        if hosting.gripper is not None and (convention is None or not convention.gripper):
            raise ConfigError(f"{name} does not say which of its actions is a gripper: its ends cannot be changed")
        self._free = list(range(policy.robots))

    def start(self, thread: concurrent.futures.Executor, metrics: Metrics) -> asyncio.Task[None]:
        """Begins to decide; in the event loop."""
        hosting = self.hosting
        self.batcher = Batcher(self.name, self.policy, thread, metrics, hosting.window_ms / 1000, hosting.queue)
        free = self._free
        metrics.gauge("robots", "that act", lambda: self.policy.robots - len(free), policy=self.name)
        return asyncio.create_task(self.batcher.run())

    def take(self, count: int) -> list[int]:
        """Numbers of robots that nobody else has.

        Raises:
            BusyError: there are not as many.
        """
        if count > len(self._free):
            raise BusyError(
                f"{self.name} drives {self.policy.robots} robots, of which {len(self._free)} are free, and {count} are "
                "asked for: close a connection, or start the server with more --robots"
            )
        taken, self._free[:] = self._free[:count], self._free[count:]
        return taken

    def give_back(self, robots: Sequence[int]) -> None:
        """The inverse of `take`."""
        self.batcher.forget(robots)
        self._free.extend(robots)

    def as_taken(self, actions: np.ndarray) -> np.ndarray:
        """Actions [a, d] as clients take them."""
        if self.hosting.gripper is None:
            return actions
        convention, (closed, opened) = self.policy.action_convention, self.hosting.gripper
        own = list(convention.gripper)
        share = (actions[:, own] - convention.closed) / (convention.open - convention.closed)
        actions = actions.copy()
        actions[:, own] = closed + share * (opened - closed)
        return actions

    def to_json(self) -> dict[str, Any]:
        """What a client is told of it, as plain values."""
        needs = self.needs
        needed = [*needs.cameras, *([PROPRIO] if needs.proprio else []), *(["language"] if needs.told else [])]
        return {
            "contract": self.contract.to_json(),
            "needed": [*needed, *(f"goals/{goal}" for goal in needs.goals)],
            "datasets": list(self.datasets),
            "gripper": list(self.hosting.gripper) if self.hosting.gripper else None,
            "robots": self.policy.robots,
        }


class Session:
    """What a connection has of one policy: its robots, how it is read, and the actions that are left to play."""

    def __init__(self, hosted: Hosted) -> None:
        self._hosted = hosted
        self._robots: list[int] = []
        self._readings: list[Reading] = []
        self._seed: int | None = 0  # from which the robots are to be reset
        self._left: collections.deque[np.ndarray] = collections.deque()
        self._words: tuple[str, ...] = ()

    def reset(self, seed: int = 0) -> None:
        """An episode begins."""
        self._seed, self._words = seed, ()
        self._left.clear()

    def close(self) -> None:
        """Its robots are free again."""
        if self._robots:
            self._hosted.give_back(self._robots)
        self._robots = []

    async def act(self, request: Request, previous_ms: float) -> Answer:
        """What its robots do; `previous_ms` of the answer is given.

        Raises:
            JaxvlaError: the request, or an observation of it, cannot be answered.
        """
        start, options = time.monotonic(), request.options
        self._check(request)
        if options.reset:
            self.reset(options.seed)
        if request.single and self._left:
            return await self._next(request, start, previous_ms)
        work = self._work(request, start)
        decided = await self._hosted.batcher.decide(work)
        self._seed = None
        timing = 1000 * decided.infer_s, 1000 * decided.queue_s
        actions = tuple(self._hosted.as_taken(own) for own in decided.actions)
        if request.single and actions:
            self._left.extend(actions[0])
            actions = (self._left.popleft(),)
        self._words = decided.words
        return Answer(actions, decided.words, *timing, previous_ms)

    async def _next(self, request: Request, start: float, previous_ms: float) -> Answer:
        """An action that was decided before; the policy sees what is seen now, where it looks back."""
        if self._hosted.policy.spec.obs_horizon > 1:
            work = self._work(request, start)
            work.observe = True
            await self._hosted.batcher.decide(work)
        return Answer((self._left.popleft(),), self._words, 0.0, 0.0, previous_ms)

    def _check(self, request: Request) -> None:
        datasets, stated = self._hosted.datasets, request.options.contract
        if request.dataset and request.dataset not in datasets:
            raise RequestError(
                f"{self._hosted.name} acts in the units of {', '.join(datasets)}, not of {request.dataset!r:.60}"
            )
        check_contract(stated, self._hosted.contract)

    def _work(self, request: Request, start: float) -> Work:
        flat = [flatten(example) for example in request.examples]
        hosted, known = self._hosted, self._readings
        readings = known + [fit(hosted.hosting.keys, hosted.needs, each) for each in flat[len(known) :]]
        pairs = [reading.read(each) for reading, each in zip(readings, flat)]
        if len(readings) > len(known):
            self._readings = readings
            logging.getLogger(__name__).info("%s: a robot is read by %s", hosted.name, readings[-1])
        if len(flat) > len(self._robots):
            self._robots += self._hosted.take(len(flat) - len(self._robots))
            self._seed = self._seed or 0  # whoever had them before
        observations, tasks = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
        late = request.options.deadline_ms
        said = request.options.timing
        return Work(
            self._robots[: len(flat)],
            observations,
            tasks,
            fresh=() if self._seed is None else tuple(self._robots),
            seed=self._seed or 0,
            observe=request.options.observe,
            timing=Timing(said.get("played"), said.get("delay", 0)) if said else None,
            deadline=start + late / 1000 if late else math.inf,
            arrived=start,
        )
