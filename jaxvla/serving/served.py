"""A policy behind a server, played as one that was loaded: a connection for each robot.

Axis letters as in `jaxvla.serving.policy`.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from jaxvla.config import from_mapping
from jaxvla.contract import Contract
from jaxvla.errors import ConfigError, PolicyError
from jaxvla.serving.policy import Decisions
from jaxvla_client.chunks import Timing
from jaxvla_client.client import Client
from jaxvla_client.errors import ClientError

# Seconds that a decision may take: policies that reason in words think for a while.
PATIENCE = 120.0


class ServedPolicy:
    """Acts for several robots, each of which the server takes for a client of its own.

    Every request states the contract that the server told at first, so that none is answered by another policy.

    Args:
        connect: gives a client of the server.
        robots: how many there are; the server must drive as many.

    Attributes:
        address: of the server.
        contract: how the policy is to be played.
        needed, robots: as those of `Policy`.

    Raises:
        ConfigError: the server is of another kind, drives fewer robots, or says of its policy what makes no sense.
        PolicyError: it has several policies, and none was named.
    """

    def __init__(self, connect: Callable[[], Client], robots: int) -> None:
        self.robots = robots
        self._fresh: dict[int, dict[str, Any]] = {}
        self._tasks: dict[int, Mapping[str, Any]] = {}  # of each robot's last decision
        with contextlib.ExitStack() as stack:
            self._clients = [stack.enter_context(connect()) for _ in range(robots)]
            first = self._clients[0]
            self.address = first.address
            try:
                facts, needed = first.facts, first.needed
            except ClientError as error:
                raise PolicyError(str(error)) from error
            if facts is None or needed is None:
                raise ConfigError(
                    f"{self.address} is no server of experiments/serve.py: how its policy is played is not known"
                )
            if facts["robots"] < robots:
                raise ConfigError(
                    f"{self.address} drives {facts['robots']} robots, not {robots}: start it with more, or "
                    f"give --parallel={facts['robots']}"
                )
            self._told, self.needed = facts["contract"], needed
            self.contract = from_mapping(Contract, self._told, f"{self.address}: contract")
            self._threads = stack.enter_context(ThreadPoolExecutor(robots))
            self._ending = stack.pop_all()

    def act_batch(
        self,
        observations: Sequence[Mapping[str, Any]],
        tasks: Sequence[Mapping[str, Any]],
        robots: Sequence[int],
        timings: Sequence[Timing] | None = None,
    ) -> Decisions:
        """What these robots do next; see `Policy.act_batch`.

        Raises:
            PolicyError: the server does not answer, or refuses to.
        """
        asked = [{**self._fresh.pop(robot, {}), "contract": self._told} for robot in robots]
        if timings is not None:
            asked = [{**own, "timing": timing._asdict()} for own, timing in zip(asked, timings)]
        self._tasks |= dict(zip(robots, tasks))
        replies = self._ask(robots, observations, asked)
        actions = [reply["actions"] for reply in replies]
        return Decisions(np.stack(actions), tuple(str(reply.get("words", "")) for reply in replies))

    def observe_batch(self, observations: Sequence[Mapping[str, Any]], robots: Sequence[int]) -> None:
        """Shows time steps at which nothing is to be decided; those of policies that look back are sent.

        Raises:
            PolicyError: as `act_batch`.
        """
        if self.contract.obs_horizon > 1:
            self._ask(robots, observations, [{"observe": True}] * len(robots))

    def reset(self, robots: Sequence[int], seeds: Sequence[int]) -> None:
        """Episodes begin; the server is told so with the first observation of each."""
        self._fresh |= {robot: {"reset": True, "seed": seed} for robot, seed in zip(robots, seeds)}

    def warm_up(self) -> float:
        """As that of `Policy`: nothing is left to compile."""
        return 0.0

    def close(self) -> None:
        """Ends the connections."""
        self._ending.close()

    def _ask(
        self, robots: Sequence[int], observations: Sequence[Mapping[str, Any]], options: Sequence[Mapping[str, Any]]
    ) -> list[dict[str, Any]]:
        waiting = [
            self._threads.submit(self._clients[robot].act, {**seen, **self._tasks[robot]}, PATIENCE, said)
            for robot, seen, said in zip(robots, observations, options)
        ]
        try:
            return [each.result() for each in waiting]
        except ClientError as error:
            raise PolicyError(f"{self.address}: {error}") from error
