"""A client of policy servers, in openpi's protocol: msgpack on a websocket, the server's metadata first.

with Client("192.168.0.7", 8000, token="...") as client:
    actions = client.act({"images0": pixels, "proprio": state, "prompt": "pick up the cup"})["actions"]
"""

import contextlib
import ssl
import time
import types
from collections.abc import Mapping
from typing import Any

import websockets.exceptions
from websockets.sync.client import ClientConnection, connect

from jaxvla_client.codec import Bounds, pack, unpack
from jaxvla_client.errors import AccessError, ClientError, CodecError, ConnectionLost, ServerError, TooLate

# The key under which servers of jaxvla are told more than openpi's protocol can say, and what their metadata say.
OPTIONS, SERVER = "jaxvla", "jaxvla"
# Before the names of what goals must hold, in what such a server says is needed.
GOALS = "goals/"

# Seconds between tries to reach a server: the first pause, and the longest.
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0

# Seconds for the other end to say that it has closed.
CLOSING = 0.3

# Of an error page that is shown.
_SHOWN = 300


class Client:
    """One connection to one policy, which it keeps up: a server that restarts is reached again at the next request.

    Not to be used by several threads at once.

    Args:
        host, port: of the server.
        policy: name of the checkpoint, of a server of several.
        token: that the server asks for; None for none.
        tls: None for a plain connection, or what makes it a secret one: `ssl.create_default_context(cafile=...)`.
        timeout: seconds that a request may take, where it says nothing else.
        patience: seconds for which a server is tried that is not reached; 0 for one try.
        bounds: of what the server may send.

    Attributes:
        metadata: what the server said of its policy when it was reached last.

    Raises:
        ClientError: as `act`.
    """

    def __init__(
        self,
        host: str = "127.0.0.1",
        port: int = 8000,
        *,
        policy: str = "",
        token: str | None = None,
        tls: ssl.SSLContext | None = None,
        timeout: float = 10.0,
        patience: float = 10.0,
        bounds: Bounds | None = None,
    ) -> None:
        shown = f"[{host}]" if ":" in host else host
        self.address = f"{'ws' if tls is None else 'wss'}://{shown}:{port}" + (f"/{policy}" if policy else "")
        self._headers = {} if token is None else {"Authorization": f"Api-Key {token}"}
        self._tls, self._timeout, self._patience = tls, timeout, patience
        self._bounds = Bounds() if bounds is None else bounds
        self._connection: ClientConnection | None = None
        self._ending = contextlib.ExitStack()  # closes the connection
        self._policy = policy
        self.metadata: dict[str, Any] = {}
        self._reach()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: types.TracebackType | None
    ) -> None:
        self.close()

    @property
    def facts(self) -> dict[str, Any] | None:
        """What a server of jaxvla says of the policy: its "contract", what is "needed"; None for other servers.

        Raises:
            ClientError: it serves several, and none of them was named.
        """
        policies = self.metadata.get("policies")
        if self.metadata.get("server") != SERVER or not isinstance(policies, dict):
            return None
        name = self._policy or (next(iter(policies)) if len(policies) == 1 else "")
        if not isinstance(policies.get(name), dict):
            said = f"has no policy {name!r}" if name else "serves several policies"
            raise ClientError(f"{self.address} {said}; name one of {', '.join(map(str, policies))}")
        return policies[name]

    @property
    def needed(self) -> dict[str, tuple[str, ...]] | None:
        """The names that an observation and a goal must hold, by "observation" and "goals"; None for other servers.

        Raises:
            ClientError: as `facts`.
        """
        if self.facts is None:
            return None
        names = [str(name) for name in self.facts["needed"]]
        own = tuple(name for name in names if "/" not in name and name != "language")
        goals = tuple(name.removeprefix(GOALS) for name in names if name.startswith(GOALS))
        return {"observation": own, "goals": goals}

    def act(
        self, observation: Mapping[str, Any], timeout: float | None = None, options: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """What the policy answers: at least "actions", [a, d], soonest first. Its arrays are read-only.

        A connection that is found lost is made again, once, and the request goes out again. What the server knew of the
        episode is then lost: its policy sees the first observation.

        Args:
            observation: numbers, text and arrays, by the names that the policy reads.
            timeout: seconds for all of it, where it is another one than that of the client.
            options: for servers of jaxvla, such as {"reset": True} as an episode begins; others do not see them. The
                time that is left is told them, too: they decide nothing that nobody waits for.

        Raises:
            ServerError: the server says that it cannot: what is missing or wrong. The next request may be another one.
            TooLate: no answer in time.
            ConnectionLost: the server is not reached, or not there any more.
            AccessError: it does not admit this client.
            CodecError: something cannot be sent, or what came is damaged.
        """
        seconds = self._timeout if timeout is None else timeout
        if self.metadata.get("server") == SERVER:
            observation = {**observation, OPTIONS: {"deadline_ms": 1000.0 * seconds, **(options or {})}}
        request, end = pack(observation), time.monotonic() + seconds
        kept = self._connection is not None
        try:
            return self._exchange(request, end)
        except ConnectionLost:
            if not kept:
                raise
            return self._exchange(request, end)

    def close(self) -> None:
        """Ends the connection; the next request makes another."""
        self._connection = None
        self._ending.close()

    def _exchange(self, request: bytes, end: float) -> dict[str, Any]:
        if self._connection is None:
            self._reach(end)
        try:
            self._connection.send(request)
            reply = self._connection.recv(timeout=max(end - time.monotonic(), 0))
        except TimeoutError:
            self.close()  # the answer would be taken for that of the next request
            raise TooLate(f"{self.address} has not answered in time; is it overloaded?") from None
        except websockets.exceptions.ConnectionClosed as error:
            self.close()
            raise ConnectionLost(f"{self.address} has closed the connection ({_reason(error)})") from None
        except BaseException:  # a keyboard's, between request and answer
            self.close()
            raise
        try:
            return self._read(reply)
        except CodecError:
            self.close()
            raise

    def _read(self, reply: str | bytes) -> dict[str, Any]:
        """The message of a frame; a frame of text is an error, behind which openpi's servers close."""
        if isinstance(reply, str):
            raise ServerError(reply.strip() or f"{self.address} sent an error without a word")
        try:
            message = unpack(reply, self._bounds)
        except CodecError as error:
            raise CodecError(f"what {self.address} sent: {error}") from error
        if not isinstance(message, dict):
            raise CodecError(f"{self.address} sent a {type(message).__name__}; expected names and values")
        return message

    def _reach(self, end: float | None = None) -> None:
        """Connects, and reads the metadata; tries again while nobody is there."""
        start, pause = time.monotonic(), FIRST_PAUSE
        until = start + self._patience if end is None else min(start + self._patience, end)
        while True:
            try:
                self._open(max(until - time.monotonic(), 1.0))
                return
            except ConnectionLost as error:
                if time.monotonic() + pause > until:
                    tried = f"after {time.monotonic() - start:.1f} s: is it running, and is that its address?"
                    raise ConnectionLost(f"{self.address} is not reached ({error}) {tried}") from None
            time.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    def _open(self, seconds: float) -> None:
        """Connects, and reads the metadata.

        Raises:
            ConnectionLost: nobody is there, yet; may be tried again.
            ClientError: it will not go better at the next try.
        """
        with contextlib.ExitStack() as stack:
            connection = stack.enter_context(self._connect(seconds))
            try:
                self.metadata = self._read(connection.recv(timeout=seconds))
            except TimeoutError:
                raise ConnectionLost("it says nothing of its policy: is it a policy server?") from None
            except websockets.exceptions.ConnectionClosed as error:
                raise ConnectionLost(_reason(error)) from None
            self._connection, self._ending = connection, stack.pop_all()

    def _connect(self, seconds: float) -> contextlib.AbstractContextManager[ClientConnection]:
        try:
            return connect(
                self.address,
                ssl=self._tls,
                additional_headers=self._headers,
                open_timeout=seconds,
                close_timeout=CLOSING,
                ping_interval=None,  # servers of openpi do not answer while they compute
                max_size=self._bounds.nbytes,
                compression=None,
                proxy=None,
            )
        except websockets.exceptions.InvalidStatus as error:
            raise _refusal(self.address, error.response.status_code, error.response.body) from None
        except ssl.SSLCertVerificationError as error:
            raise AccessError(f"the certificate of {self.address} is not trusted: {error.verify_message}") from None
        except ssl.SSLError as error:
            raise AccessError(f"{self.address} does not speak TLS, or not this one: {error.reason or error}") from None
        except (websockets.exceptions.InvalidURI, ValueError) as error:
            raise ClientError(f"{self.address} is no address of a server: {error}") from None
        except (OSError, EOFError, websockets.exceptions.InvalidHandshake) as error:
            raise ConnectionLost(_reason(error)) from None


def _refusal(address: str, status: int, body: bytes | None) -> ClientError:
    """The error of a server that answers, but not with a websocket."""
    said = " ".join((body or b"").decode("utf-8", "replace").split())[:_SHOWN]
    shown = f"{address} answers {status}" + (f": {said}" if said else "")
    if status in (401, 403):
        return AccessError(f"{shown}. Give the token that the server was started with")
    if status >= 500:
        return ConnectionLost(shown)
    return ClientError(shown)


def _reason(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
