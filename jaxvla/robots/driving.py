"""Who decides what a robot does next, one action at a time: a policy of this process, or one of a policy server."""

import collections
import dataclasses
import pathlib
import ssl
import types
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from jaxvla.errors import ConfigError, RobotError
from jaxvla.robots.addresses import host_and_port
from jaxvla.robots.service import ACTION_DIM, STATE_DIM
from jaxvla_client.client import Client
from jaxvla_client.errors import ClientError
from jaxvla_client.playing import Playing


@runtime_checkable
class Driver(Protocol):
    """A policy as an episode sees it.

    Attributes:
        needed: the names of what it looks at, by "observation" and "goals".
        contract: how the policy is to be played, as `jaxvla.contract.Contract.to_json` says it.
        said: what the policy said before the last action.
    """

    needed: Mapping[str, Sequence[str]]
    contract: Mapping[str, Any]
    said: str

    def begin(self, task: Mapping[str, Any]) -> None:
        """Begins an episode.

        Args:
            task: {"language": an instruction}, or {"goals": {camera: uint8 [h, w, 3]}}.
        """

    def next(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """The action of this time step, float [d] in robot units; None to stand still.

        Raises:
            RobotError: nobody decides any more.
        """


@runtime_checkable
class Policy(Protocol):
    """What of `jaxvla.serving.policy.Policy` is used here."""

    needed: Mapping[str, Sequence[str]]
    contract: Any
    words: str

    def act(self, observation: Mapping[str, Any], task: Mapping[str, Any]) -> np.ndarray:
        """Actions until the next decision."""

    def observe(self, observation: Mapping[str, Any]) -> None:
        """A time step at which nothing is decided."""

    def reset(self) -> None:
        """Forgets the observations so far."""


class PolicyDriver:
    """A policy of this process, which decides while the robot waits.

    Args:
        policy: for one robot.

    Attributes: see `Driver`.
    """

    def __init__(self, policy: Policy) -> None:
        self._policy, self.needed, self.said = policy, policy.needed, ""
        self.contract = policy.contract.to_json()
        self._actions: collections.deque[np.ndarray] = collections.deque()
        self._task: Mapping[str, Any] = {}

    def begin(self, task: Mapping[str, Any]) -> None:
        """See `Driver.begin`."""
        self._policy.reset()
        self._actions.clear()
        self._task, self.said = task, ""

    def next(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """See `Driver.next`."""
        if self._actions:
            self._policy.observe(observation)
        else:
            self._actions.extend(self._policy.act(observation, self._task))
            self.said = self._policy.words
        return self._actions.popleft()


@dataclasses.dataclass(frozen=True)
class Server:
    """Where a policy server is, as flags say it.

    Attributes:
        address: HOST:PORT, or HOST:PORT/NAME of one of several policies; ws:// may stand before it.
        token_file: path of a file that holds its token; empty for none.
        certificate: path of a PEM file of whom its certificate is from; empty for a plain connection.
    """

    address: str
    token_file: str = ""
    certificate: str = ""

    def connect(self) -> Client:
        """A client of it.

        Raises:
            ConfigError: the address is none, or a file cannot be read.
            RobotError: the server is not reached, or does not admit this client.
        """
        place, _, policy = self.address.rpartition("://")[2].partition("/")
        host, port = host_and_port(place, "--server")
        try:
            token = pathlib.Path(self.token_file).read_text().strip() if self.token_file else None
            tls = ssl.create_default_context(cafile=self.certificate) if self.certificate else None
        except (OSError, UnicodeDecodeError) as error:
            given = self.certificate if isinstance(error, ssl.SSLError) else self.token_file or self.certificate
            raise ConfigError(f"{given} cannot be read: {error}") from error
        try:
            return Client(host, port, policy=policy, token=token, tls=tls)
        except ClientError as error:
            raise RobotError(f"the policy server: {error}") from error


class ServerDriver:
    """A policy of a policy server, until the block is left.

    Args:
        client: of the server, which is one of jaxvla: its metadata say how the policy is played.
        asynchronous: whether the robot goes on while the next actions are decided.

    Attributes: see `Driver`.

    Raises:
        RobotError: the server does not say what its policy needs.
    """

    def __init__(self, client: Client, asynchronous: bool = False) -> None:
        try:
            facts = client.facts
            if facts is None:
                raise ClientError(f"{client.address} says nothing of its policy that a WidowX could be driven by")
            self._playing = Playing(client, asynchronous=asynchronous)
        except ClientError as error:
            raise RobotError(str(error)) from error
        self.needed, self.contract = client.needed, facts["contract"]
        self._client = client

    def __enter__(self) -> "ServerDriver":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self._playing.close()
        self._client.close()

    @property
    def said(self) -> str:
        """See `Driver`."""
        return self._playing.said

    def begin(self, task: Mapping[str, Any]) -> None:
        """See `Driver.begin`."""
        self._playing.begin(task)

    def next(self, observation: Mapping[str, np.ndarray]) -> np.ndarray | None:
        """See `Driver.next`."""
        try:
            return self._playing.next(observation)
        except ClientError as error:
            raise RobotError(f"the policy server: {error}") from error


def check_driver(driver: Driver, cameras: Sequence[str]) -> None:
    """Whether a policy can drive a WidowX.

    Args:
        driver: the policy's.
        cameras: names under which the robot's are known.

    Raises:
        ConfigError: it acts or feels in other numbers, or looks at cameras that the robot has not.
    """
    for what, own, expected in (("action", "action_dim", ACTION_DIM), ("proprio", "proprio_dim", STATE_DIM)):
        needed = what == "action" or "proprio" in driver.needed["observation"]
        if needed and driver.contract[own] != expected:
            raise ConfigError(
                f"the policy's {what} has {driver.contract[own]} numbers, a WidowX's {expected}: x, y, z, roll, pitch, "
                "yaw, gripper; give a policy of such data"
            )
    looks = {*driver.needed["observation"], *driver.needed["goals"]} - {"proprio"}
    missing = sorted(looks - {*cameras})
    if missing:
        raise ConfigError(
            f"the policy looks at {', '.join(sorted(looks))}, and --cameras names {', '.join(cameras)}: add "
            f"{missing[0]}=TOPIC, a topic of the robot's service"
        )
