"""The server: one port, its routes and limits, and an end that answers what is in flight."""

import asyncio
import concurrent.futures
import dataclasses
import errno
import http
import json
import logging
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from websockets.asyncio.server import Server, ServerConnection, serve
from websockets.http11 import Request as Handshake
from websockets.http11 import Response

import jaxvla
from jaxvla.errors import ConfigError
from jaxvla.serving.server.access import Access
from jaxvla.serving.server.connection import Connection, Shared
from jaxvla.serving.server.dialects.table import DIALECTS
from jaxvla.serving.server.hosted import Hosted
from jaxvla.serving.server.metrics import Metrics
from jaxvla_client.codec import Bounds

# Messages of one connection that wait to be read, beside what its socket holds.
_UNREAD = 1
# How often connections are looked after, seconds.
_LOOK_S = 1.0
# Of a path, in an error.
_SHOWN = 60


@dataclasses.dataclass(frozen=True)
class Limits:
    """What clients may take.

    Attributes:
        message_bytes: of one message.
        connections: at once.
        idle_s: after which a silent connection is closed, seconds.
        handshake_s: in which a connection must have become one, seconds.
        ping_s: after which a connection that does not answer is closed, seconds.
        grace_s: how long the end waits for what is in flight, seconds.
    """

    message_bytes: int = 32 * 2**20
    connections: int = 64
    idle_s: float = 1800.0
    handshake_s: float = 10.0
    ping_s: float = 60.0
    grace_s: float = 30.0


def bind(host: str, port: int) -> socket.socket:
    """A socket that has the address, and does not listen yet.

    Raises:
        ConfigError: somebody else has it, or there is no such address.
    """
    own = None
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        own = socket.socket(family, kind, protocol)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(address)
    except OSError as error:
        if own is not None:
            own.close()
        raise _taken(host, port, error) from error
    return own


def _taken(host: str, port: int, error: OSError) -> ConfigError:
    mend = ": end what uses it, or give another --port" if error.errno == errno.EADDRINUSE else ""
    return ConfigError(f"port {port} of {host} cannot be had, {error.strerror or error}{mend}")


def run(
    policies: Sequence[Hosted],
    own: socket.socket,
    access: Access,
    limits: Limits,
    dialect: str,
    announce: Callable[[str], None],
) -> None:
    """Serves until SIGTERM or SIGINT, then answers what is in flight.

    Args:
        policies: warm, of different names.
        own: of `bind`.
        access, limits: see there.
        dialect: one of `DIALECTS`; empty for all of them.
        announce: is told the address once clients can connect.

    Raises:
        ConfigError: somebody else began to listen there meanwhile.
    """

    async def until_told() -> None:
        ended = asyncio.Event()
        for each in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(each, ended.set)
        await Service(policies, access, limits, dialect).run(own, announce, ended)

    asyncio.run(until_told())


class Service:
    """What `run` runs, in an event loop that there is; arguments as there."""

    def __init__(self, policies: Sequence[Hosted], access: Access, limits: Limits, dialect: str) -> None:
        self._access, self._limits, self._metrics = access, limits, Metrics()
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "policy")
        self._shared = Shared(
            policies={policy.name: policy for policy in policies},
            facts=facts(policies),
            bounds=Bounds(nbytes=limits.message_bytes),
            idle_s=limits.idle_s,
            dialect=DIALECTS[dialect] if dialect else None,
            readers=concurrent.futures.ThreadPoolExecutor(2, "reader"),
            metrics=self._metrics,
        )
        self._connections: dict[Connection, asyncio.Task[Any]] = {}
        self._ending = False

    async def run(self, own: socket.socket, announce: Callable[[str], None], ended: asyncio.Event) -> None:
        """Serves until it is `ended`."""
        start = time.monotonic()
        self._metrics.gauge("connections", "that are open", lambda: len(self._connections))
        self._metrics.gauge("uptime_seconds", "since the port opened", lambda: time.monotonic() - start)
        batchers = [policy.start(self._thread, self._metrics) for policy in self._shared.policies.values()]
        host, port = own.getsockname()[:2]
        tls = self._access.tls()
        try:
            server = await self._listen(own, tls)
        except OSError as error:
            raise _taken(host, port, error) from error
        shown = f"[{host}]" if ":" in host else host
        announce(f"{'wss' if tls else 'ws'}://{shown}:{port}")
        tasks = [*batchers, asyncio.create_task(self._look())]
        await asyncio.wait([asyncio.create_task(ended.wait()), *tasks], return_when=asyncio.FIRST_COMPLETED)
        for task in tasks:
            if task.done():  # nothing that clients do ends one
                task.result()
        await self._end(server)
        for task in tasks:
            task.cancel()
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._shared.readers.shutdown(wait=False, cancel_futures=True)

    async def _listen(self, own: socket.socket, tls: Any) -> Server:
        limits = self._limits
        log = logging.getLogger("jaxvla.serving.websockets")
        log.setLevel(logging.CRITICAL)  # whatever a client does to its connection is no news
        return await serve(
            self._handle,
            sock=own,
            ssl=tls,
            process_request=self._admit,
            origins=[None],  # pages in a browser have one; robots do not
            compression=None,
            server_header=None,
            open_timeout=limits.handshake_s,
            ping_timeout=limits.ping_s,
            close_timeout=5,
            max_size=limits.message_bytes,
            max_queue=_UNREAD,
            logger=log,
        )

    async def _look(self) -> None:
        """Looks after the connections, until it is cancelled."""
        while True:
            await asyncio.sleep(min(_LOOK_S, self._limits.idle_s / 4))
            for connection in self._connections:
                connection.look(time.monotonic())

    async def _end(self, server: Server) -> None:
        """Nobody new is admitted, who waits for an answer gets it, and then all are closed."""
        self._ending = True
        server.close(close_connections=False)
        try:
            async with asyncio.timeout(self._limits.grace_s):
                await asyncio.gather(*(connection.end() for connection in self._connections), return_exceptions=True)
                while self._connections:
                    await asyncio.wait(self._connections.values(), return_when=asyncio.FIRST_COMPLETED)
        except TimeoutError:
            logging.getLogger(__name__).warning("after %g s requests are left unanswered", self._limits.grace_s)

    async def _handle(self, websocket: ServerConnection) -> None:
        connection = Connection(websocket, websocket.request.path.partition("?")[0].strip("/"), self._shared)
        self._connections[connection] = asyncio.current_task()
        try:
            await connection.run(lambda: self._ending)
        finally:
            del self._connections[connection]

    def _admit(self, websocket: ServerConnection, handshake: Handshake) -> Response | None:
        """The answer to a plain request, or to one that is refused; None for a client that may go on."""
        path = handshake.path.partition("?")[0]
        if path == "/healthz":
            return _respond(websocket, http.HTTPStatus.OK, "OK\n")
        if path == "/health":
            return _respond(websocket, http.HTTPStatus.OK, json.dumps({"status": "ok"}) + "\n", "application/json")
        header = handshake.headers.get_all("Authorization")
        if not self._access.admits(header[0] if len(header) == 1 else None):
            self._metrics.count("connections_refused_total", reason="token")
            text = "the token is missing or wrong: give it as the header 'Authorization: Bearer TOKEN'\n"
            return _respond(websocket, http.HTTPStatus.UNAUTHORIZED, text)
        if path == "/metrics":
            return _respond(websocket, http.HTTPStatus.OK, self._metrics.text(), "text/plain; version=0.0.4")
        name = path.strip("/")
        if name and name not in self._shared.policies:
            known = ", ".join(f"/{each}" for each in self._shared.policies)
            text = f"there is nothing at {path[:_SHOWN]!r}; there are {known}, /healthz, /health and /metrics\n"
            return _respond(websocket, http.HTTPStatus.NOT_FOUND, text)
        if len(self._connections) >= self._limits.connections:
            self._metrics.count("connections_refused_total", reason="limit")
            text = f"{self._limits.connections} connections are open, and no more are admitted\n"
            return _respond(websocket, http.HTTPStatus.SERVICE_UNAVAILABLE, text)
        return None


def facts(policies: Sequence[Hosted]) -> Mapping[str, Any]:
    """What clients are told of the server: the policies by name, with their contracts."""
    return {
        "server": "jaxvla",
        "version": jaxvla.__version__,
        "protocols": list(DIALECTS),
        "policies": {policy.name: policy.to_json() for policy in policies},
    }


def _respond(
    websocket: ServerConnection, status: http.HTTPStatus, text: str, kind: str = "text/plain; charset=utf-8"
) -> Response:
    response = websocket.respond(status, text)
    del response.headers["Content-Type"]
    response.headers["Content-Type"] = kind
    return response
