"""A world in a process of its own, so that several draw at once."""

import multiprocessing
import signal
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from jaxvla.envs.rollout import Observation, World, WorldSpec
from jaxvla.errors import ConfigError, JaxvlaError


class RemoteWorld:
    """Plays a world that a process makes when it is first reset, and which ends with this one.

    Args:
        make: gives the world; picklable.
        spec: of that world.
    """

    def __init__(self, make: Callable[[], World], spec: WorldSpec) -> None:
        self.spec = spec
        self._make = make
        self._process: multiprocessing.process.BaseProcess | None = None
        self._connection: Connection

    def reset(self, *, seed: int, task: str | None = None) -> tuple[Observation, dict[str, Any]]:
        """As that of the world."""
        return self._ask("reset", seed=seed, task=task)

    def step(self, action: np.ndarray) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """As that of the world."""
        return self._ask("step", action=np.asarray(action))

    def close(self) -> None:
        """Ends the process."""
        if self._process is not None:
            self._connection.close()
            self._process.join()
            self._process = None

    def _ask(self, method: str, **arguments: Any) -> Any:
        if self._process is None:
            self._start()
        try:
            self._connection.send((method, arguments))
            answer, error = self._connection.recv()
        except (EOFError, OSError):
            raise ConfigError(
                "the process of a world was killed, perhaps for lack of memory: play fewer side by side, --parallel"
            ) from None
        if error is not None:
            raise error
        return answer

    def _start(self) -> None:
        # Spawned: an OpenGL context, and threads of XLA, do not outlive a fork.
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._make), daemon=True)
        self._process.start()
        theirs.close()


def _serve(connection: Connection, make: Callable[[], World]) -> None:
    """Does what is asked until nobody asks any more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    world: World | None = None
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            world = world or make()
            answer = getattr(world, method)(**arguments), None
        except (JaxvlaError, ValueError) as error:
            answer = None, error
        except Exception:  # which may not be one that can be sent
            answer = None, RuntimeError(traceback.format_exc())
        try:
            connection.send(answer)
        except OSError:  # killed meanwhile
            return
