"""Whatever comes is answered, and the next robot is served; benchmarks/serving.py sends more of the same."""

import asyncio
import importlib.util
import itertools
import pathlib

import msgpack
import numpy as np
import pytest
from serving.server.hosts import make_hosted, serving
from websockets.asyncio.client import connect

PATH = pathlib.Path(__file__).parents[3] / "benchmarks" / "serving_frames.py"
SPEC = importlib.util.spec_from_file_location("serving_frames", PATH)
frames = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(frames)
COUNT = 300


def says(answer, dialect):
    """ "ok" or "error", of an answer of the protocol."""
    if isinstance(answer, str):
        return "error"
    values = msgpack.unpackb(answer)
    if dialect == "openpi":
        return "ok"
    return "error" if values["type"] == "error" else "ok"


@pytest.mark.parametrize("dialect", ["openpi", "vla-eval", "starvla"])
def test_malformed_frames_are_answered(dialect, caplog):
    async def scenario():
        rng, said = np.random.default_rng(0), {"ok": 0, "error": 0}
        async with serving(make_hosted(), dialect=dialect) as address, connect(address, max_size=None) as socket:
            if dialect != "vla-eval":
                await asyncio.wait_for(socket.recv(), 10)

            async def ask(frame):
                """What it is answered; frames of vla-eval may have no answer, but the hello behind them has."""
                await socket.send(frame)
                if dialect != "vla-eval":
                    return says(await asyncio.wait_for(socket.recv(), 10), dialect)
                await socket.send(msgpack.packb({"type": "hello", "payload": {}, "seq": 123_456, "timestamp": 0.0}))
                outcome = "ok"
                while msgpack.unpackb(answer := await asyncio.wait_for(socket.recv(), 10))["seq"] != 123_456:
                    outcome = says(answer, dialect)
                return outcome

            for frame in itertools.islice(frames.malformed(rng, dialect), COUNT):
                said[await ask(frame)] += 1
            whole = msgpack.packb(frames.observation(rng, dialect))
            assert await ask(whole) == "ok"
        return said

    said = asyncio.run(scenario())
    assert said["error"] > 0.6 * COUNT, "the frames are not as malformed as they should be"
    assert not caplog.records, "nothing went wrong inside"
