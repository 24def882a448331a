"""One client, from its first frame to its last."""

import asyncio
import concurrent.futures
import dataclasses
import logging
import math
import time
import types
from collections.abc import Callable, Mapping
from typing import Any

from websockets.asyncio.server import ServerConnection
from websockets.exceptions import ConnectionClosed

from jaxvla.errors import JaxvlaError
from jaxvla.serving.server.dialects import table, wire
from jaxvla.serving.server.hosted import Hosted, Session
from jaxvla.serving.server.metrics import Metrics
from jaxvla.serving.server.request import Answer, BusyError, LateError, Request, RequestError
from jaxvla_client.codec import Bounds
from jaxvla_client.errors import CodecError

# How long a client may keep silent before it counts as one that waits for the server to speak, seconds.
SILENCE_S = 0.1
# Bytes of a frame that are read in a fraction of a millisecond, unless they are encoded images.
_SMALL = 2**20
# How long it may take for its frame, once sent, to leave, seconds.
_SEND_S = 30.0
_KINDS = {LateError: "late", BusyError: "busy"}


@dataclasses.dataclass(frozen=True, eq=False)
class Shared:
    """What all connections have.

    Attributes:
        policies: by name.
        facts: of them, for `dialects`.
        bounds: of a message.
        idle_s: after which a silent connection is closed.
        dialect: of all clients; None to find out.
        readers: threads that unpack messages.
        metrics: where they count.
    """

    policies: Mapping[str, Hosted]
    facts: Mapping[str, Any]
    bounds: Bounds
    idle_s: float
    dialect: types.ModuleType | None
    readers: concurrent.futures.Executor
    metrics: Metrics


class Connection:
    """Reads, asks and answers, one message after the other.

    Args:
        websocket: to the client, past the handshake.
        name: of the policy that its address names; empty where it names none.
        shared: of the server.
    """

    def __init__(self, websocket: ServerConnection, name: str, shared: Shared) -> None:
        self._websocket, self._shared = websocket, shared
        self._facts = {**shared.facts, "policy": name or _only(shared.policies)}
        self._dialect = shared.dialect
        self._sessions: dict[str, Session] = {}
        self._greeted, self._previous_ms = False, 0.0
        self._patient_until, self._closing = math.inf, None
        self.busy = False

    async def run(self, ending: Callable[[], bool]) -> None:
        """Until either side closes it, or it has answered and `ending` says that the server ends."""
        try:
            await self._run(ending)
        except ConnectionClosed:
            pass
        finally:
            for session in self._sessions.values():
                session.close()

    async def end(self) -> None:
        """Closes it, unless it is about to answer: then it closes itself."""
        if not self.busy:
            await self._websocket.close(1001, "the server ends")

    def look(self, now: float) -> None:
        """Closes it where its client keeps it waiting for too long, at this `time.monotonic()`."""
        if now < self._patient_until:
            return
        self._patient_until = math.inf
        if self._websocket.transport.get_write_buffer_size():
            self._websocket.transport.abort()  # a close frame would wait behind what the client does not take
        else:
            self._closing = asyncio.create_task(self._websocket.close(1001, "the client was silent for too long"))

    async def _run(self, ending: Callable[[], bool]) -> None:
        data = await self._first()
        while True:
            if data is not None:
                self.busy = True
                try:
                    await self._serve(data)
                finally:
                    self.busy = False
            if ending():
                await self.end()
            # A timeout of asyncio's would cost more than reading the frame: the server looks once in a while.
            self._patient_until = time.monotonic() + self._shared.idle_s
            data = await self._websocket.recv()
            self._patient_until = math.inf

    async def _first(self) -> bytes | str | None:
        """The first frame of a client that speaks first; all others are greeted."""
        data = None
        if self._dialect is None:
            try:
                async with asyncio.timeout(SILENCE_S):
                    data = await self._websocket.recv()
            except TimeoutError:
                await self._send(table.greeting(self._facts))
                self._greeted = True
        elif self._dialect.SPEAKS_FIRST:
            await self._greet()
        return data

    async def _greet(self) -> None:
        if not self._greeted:
            await self._send(self._dialect.greeting(self._facts))
        self._greeted = True

    async def _serve(self, data: bytes | str) -> None:
        """Answers one frame."""
        start, dialect = time.monotonic(), self._dialect or table.DIALECTS["openpi"]
        message = request = None
        try:
            if isinstance(data, str):
                raise RequestError("a message must be a binary frame of msgpack, not text")
            message = await self._read(data)
            if self._dialect is None:
                self._dialect = dialect = table.spoken(message)
                if dialect.SPEAKS_FIRST:
                    await self._greet()
            request = dialect.parse(message)
            answer = await self._answer(request)
            if request.what == "hello" and self._greeted:
                self._greeted = False  # it has its answer
            else:
                await self._send(dialect.reply(request, answer, self._facts))
            outcome = "ok"
        except (JaxvlaError, CodecError) as error:
            outcome = _KINDS.get(type(error), "refused")
            await self._send(dialect.error(message, str(error)))
        except ConnectionClosed:
            raise
        except Exception:
            logging.getLogger(__name__).exception("a request failed")
            outcome = "failed"
            await self._send(dialect.error(message, "the server failed to answer; its log says more"))
        took = time.monotonic() - start
        self._previous_ms = 1000 * took
        self._shared.metrics.count("requests_total", outcome=outcome, dialect=dialect.NAME)
        if request is not None and request.what == "act" and outcome == "ok":
            self._shared.metrics.observe("request_seconds", took, dialect=dialect.NAME)

    async def _read(self, data: bytes) -> Mapping[Any, Any]:
        """What a frame says; off the event loop, but where the way there takes longer than to read it here."""
        if len(data) <= _SMALL and wire.ENCODED not in data:
            return wire.read(data, self._shared.bounds)
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._shared.readers, wire.read, data, self._shared.bounds)

    async def _answer(self, request: Request) -> Answer | None:
        if request.what in ("hello", "nothing"):
            return None
        session = self._session(request.options.policy)
        if request.what == "reset":
            session.reset(request.options.seed)
            return None
        return await session.act(request, self._previous_ms)

    def _session(self, name: str) -> Session:
        policies, name = self._shared.policies, name or self._facts["policy"]
        if name is None or name not in policies:
            said = "no checkpoint is named" if name is None else f"there is no checkpoint {name!r:.60}"
            raise RequestError(
                f"{said}, of {', '.join(policies)}: name one by the address, ws://.../{next(iter(policies))}, or by "
                "jaxvla/policy in the message"
            )
        if name not in self._sessions:
            self._sessions[name] = Session(policies[name])
        return self._sessions[name]

    async def _send(self, data: bytes | str | None) -> None:
        if data is not None:
            self._patient_until = time.monotonic() + _SEND_S
            await self._websocket.send(data)
            self._patient_until = math.inf


def _only(policies: Mapping[str, Hosted]) -> str | None:
    return next(iter(policies)) if len(policies) == 1 else None
