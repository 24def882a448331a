"""The actions of a policy server one by one, as a robot plays them: it waits for each decision, or goes on meanwhile.

playing = Playing(client)
playing.begin({"language": "pick up the cup"})
while True:  # at the robot's frequency
    action = playing.next({"images0": pixels, "proprio": state})
"""

import concurrent.futures
import types
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvla_client.chunks import Plan, Player, Timing
from jaxvla_client.client import Client
from jaxvla_client.errors import ClientError


class Playing:
    """Plays the chunks of one robot.

    Args:
        client: of the server, used by nobody else meanwhile.
        plan: how chunks are played; None for what the server says, or whole chunks where it says nothing.
        asynchronous: the next decision is made while what is left of the last one is played.

    Attributes:
        said: what the policy said before the last chunk.

    Raises:
        ClientError: the policy looks back at every step, which it would not see asynchronously; or what the server says
            of it makes no sense.
    """

    def __init__(self, client: Client, plan: Plan | None = None, asynchronous: bool = False) -> None:
        contract = (client.facts or {}).get("contract", {})
        self._looks_back = contract.get("obs_horizon", 1) > 1
        if asynchronous and self._looks_back:
            raise ClientError(
                f"the policy looks back at {contract['obs_horizon']} steps, and sees one a decision asynchronously: "
                "play it synchronously"
            )
        try:
            self._player = Player(Plan.of_contract(contract) if plan is None else plan)
        except ValueError as error:
            raise ClientError(f"{client.address} says of its policy: {error}") from error
        self._client, self._asynchronous = client, asynchronous
        self._thread = concurrent.futures.ThreadPoolExecutor(1) if asynchronous else None
        self._deciding: concurrent.futures.Future[dict[str, Any]] | None = None
        self._task: dict[str, Any] = {}
        self._first, self.said = True, ""

    def __enter__(self) -> "Playing":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    def begin(self, task: Mapping[str, Any]) -> None:
        """Begins an episode: nothing that was decided or seen before counts.

        Args:
            task: what goes along with every observation: "language", or "goals", by the policy's names.
        """
        self._wait()
        self._player.reset()
        self._task, self._first, self.said = dict(task), True, ""

    def next(self, observation: Mapping[str, Any]) -> np.ndarray | None:
        """The action [d] of this control step.

        Args:
            observation: what is seen now, by the policy's names.

        Returns:
            None where the next decision is not there, and the robot is to stand still; asynchronously alone.

        Raises:
            ClientError: as `Client.act`. The next step asks again.
        """
        if self._deciding is not None and self._deciding.done():
            self._answer(self._taken())
        if self._player.due:
            self._decide({**observation, **self._task}, self._player.ask())
        elif self._looks_back:
            self._client.act({**observation, **self._task}, options={"observe": True})
        return self._player.step()

    def close(self) -> None:
        """Waits for a decision that is being made; the client stays open."""
        self._wait()
        if self._thread is not None:
            self._thread.shutdown()

    def _decide(self, request: Mapping[str, Any], timing: Timing) -> None:
        options: dict[str, Any] = {"reset": True} if self._first else {}
        if self._thread is not None:
            options["timing"] = timing._asdict()
            self._deciding = self._thread.submit(self._client.act, request, options=options)
            return
        try:
            reply = self._client.act(request, options=options)
        except BaseException:
            self._player.give_up()
            raise
        self._answer(reply)

    def _taken(self) -> dict[str, Any]:
        deciding, self._deciding = self._deciding, None
        try:
            return deciding.result()
        except ClientError:
            self._player.give_up()
            raise

    def _answer(self, reply: Mapping[str, Any]) -> None:
        actions = reply.get("actions")
        if not isinstance(actions, np.ndarray) or actions.ndim != 2 or not len(actions):
            self._player.give_up()
            held = (
                f"{actions.dtype}{list(actions.shape)}" if isinstance(actions, np.ndarray) else type(actions).__name__
            )
            raise ClientError(f"the server's actions are {held}; expected an array [a, d] of at least one")
        self._first, self.said = False, str(reply.get("words", ""))
        self._player.answer(actions)

    def _wait(self) -> None:
        """Lets a decision that is being made come, and forgets it."""
        deciding, self._deciding = self._deciding, None
        if deciding is not None:
            concurrent.futures.wait([deciding])
