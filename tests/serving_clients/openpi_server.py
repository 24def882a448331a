"""A server that speaks as openpi's does: metadata first, an error as text and then the end. Its policy echoes."""

import asyncio
import threading
import time

import numpy as np
from websockets.asyncio.server import serve

from jaxvla_client.codec import pack, unpack

METADATA = {"reset_pose": [0.0, 1.0]}
# What a server of jaxvla says; the policy's actions are [x, step of the request].
JAXVLA = {
    "server": "jaxvla",
    "policies": {"echo": {"contract": {"execute_steps": 2, "obs_horizon": 1}, "needed": ["x", "language"]}},
}


class OpenpiServer:
    """Answers until the block is left; may be entered again, at the same port.

    Args:
        metadata: the first frame.
        chunk: actions of an answer.
        needed: without which a request is an error.
        decide: from a request to its actions; None to echo `needed`, with the number of the action.
        token: that is asked for.
        tls: of the server's side.
    """

    def __init__(self, metadata=METADATA, chunk=2, token=None, tls=None, needed="x", decide=None):
        self.metadata, self.chunk, self.token, self.tls = metadata, chunk, token, tls
        self.needed, self.decide = needed, decide or self._echo
        self.port, self.requests, self.delay = 0, [], 0.0

    def __enter__(self):
        self._started, self._loop = threading.Event(), asyncio.new_event_loop()
        self._thread = threading.Thread(target=lambda: self._loop.run_until_complete(self._run()))
        self._thread.start()
        assert self._started.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._ended.set)
        self._thread.join()
        self._loop.close()

    async def _run(self):
        self._ended = asyncio.Event()
        own = {"compression": None, "max_size": None, "process_request": self._admit, "ssl": self.tls}
        async with serve(self._handle, "127.0.0.1", self.port, **own) as server:
            self.port = server.sockets[0].getsockname()[1]
            self._started.set()
            await self._ended.wait()

    def _admit(self, connection, request):
        if self.token and request.headers.get("Authorization") != f"Api-Key {self.token}":
            return connection.respond(401, "the token is missing or wrong\n")
        return None

    async def _handle(self, websocket):
        await websocket.send(pack(self.metadata))
        async for frame in websocket:
            request = unpack(frame)
            self.requests.append(request)
            await asyncio.to_thread(time.sleep, self.delay)
            if self.needed not in request:
                await websocket.send(f"KeyError: the observation lacks {self.needed!r}")
                await websocket.close(1011, "Internal server error. Traceback included in previous frame.")
                return
            await websocket.send(pack({"actions": self.decide(request), "words": f"at {request.get('x')}"}))

    def _echo(self, request):
        return np.float32([[request["x"], step] for step in range(self.chunk)])
