"""What the server costs beside the policy: round trips, batching, clients that misbehave, malformed frames, long runs.

    python benchmarks/serving.py
    python benchmarks/serving.py --parts throughput --checkpoint runs/<run>
    python benchmarks/serving.py --parts fuzz --frames 10000
    python benchmarks/serving.py --parts soak --requests 1000000

The server is a process of its own, started as people start it, with a small gc_bc of random weights or the checkpoint
that is named; the clients share one other process, so that on few cores they take time from it. A request has what the
policy needs: two images for gc_bc, the observation and the goal, 301 KB at 224 pixels a side. Overhead is what a client
waits beyond the computation of its batch, as the server says it.
"""

import asyncio
import contextlib
import dataclasses
import itertools
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import msgpack
import numpy as np
from absl import flags
from serving_frames import malformed
from websockets.asyncio.client import connect

from jaxvla import cli
from jaxvla.agents import make_agent
from jaxvla.assets import Assets
from jaxvla.config import local_path
from jaxvla.data.schema import BatchSpec
from jaxvla.data.transforms.normalization import FieldStatistics, Statistics
from jaxvla.training.checkpointer import Checkpointer
from jaxvla.training.config import CheckpointConfig
from jaxvla.training.state import TrainState
from jaxvla_client.codec import pack, unpack

# Of throughput, each of one client and of many.
TURNS = 9
PARTS = ("overhead", "throughput", "misbehaving", "fuzz", "soak")
FLAGS = flags.FLAGS
flags.DEFINE_list("parts", ["overhead", "throughput", "misbehaving"], f"What to measure, of {', '.join(PARTS)}.")
flags.DEFINE_string("checkpoint", None, "The policy that is served; a small one of random weights if not given.")
flags.DEFINE_integer("image_size", 224, "Pixels a side of the images of overhead and misbehaving.", lower_bound=8)
flags.DEFINE_integer("policy_size", 32, "Pixels a side of what the random policy sees.", lower_bound=8)
flags.DEFINE_integer("rounds", 500, "Requests of one client.", lower_bound=10)
flags.DEFINE_integer("clients", 16, "Of throughput.", lower_bound=2)
flags.DEFINE_float("seconds", 9.0, "Of throughput, of each number of clients.", lower_bound=0.1)
flags.DEFINE_integer("frames", 1000, "Malformed frames of each protocol.", lower_bound=1)
flags.DEFINE_integer("requests", 10_000, "Of soak.", lower_bound=20)

ROOT = pathlib.Path(__file__).resolve().parents[1]
GC_BC = {"encoder": {"name": "resnetv1-tiny"}, "hidden_dims": (8,), "dropout_rate": 0.0}


def main(_: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = FLAGS.checkpoint and local_path(FLAGS.checkpoint, "--checkpoint").absolute()
        measure(checkpoint or make_checkpoint(pathlib.Path(folder) / "tiny"))


def measure(checkpoint: pathlib.Path) -> None:
    """Prints all parts that are asked for."""
    with serving(checkpoint) as server:
        for part in FLAGS.parts:
            asyncio.run({name: globals()[name] for name in PARTS}[part](server))


@dataclasses.dataclass(frozen=True)
class Server:
    """The process that serves, and where."""

    process: int
    address: str

    @property
    def megabytes(self) -> float:
        """Of memory that is resident."""
        pages = int(pathlib.Path(f"/proc/{self.process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def make_checkpoint(run: pathlib.Path) -> pathlib.Path:
    """A checkpoint of random weights."""
    size = (FLAGS.policy_size, FLAGS.policy_size)
    spec = BatchSpec(("images0",), size, proprio_dim=7, action_dim=7, action_horizon=8)
    rng = np.random.default_rng(0)
    own = [FieldStatistics.of(rng.normal(size=(50, 7))) for _ in range(2)]
    data = {"data_path": "random", "name": "random"}
    assets = Assets("gc_bc", GC_BC, spec, Statistics(*own, 50, 5), "normal", "normal", (), {}, data)
    params = make_agent("gc_bc", GC_BC, spec).init(jax.random.key(0))
    with Checkpointer(run, CheckpointConfig(), assets) as checkpointer:
        checkpointer.save(TrainState(jnp.int32(1), params, {}, jnp.zeros(2, jnp.uint32)), {}, None)
    return run


@contextlib.contextmanager
def serving(checkpoint: pathlib.Path) -> Iterator[Server]:
    """The server, until the end of the context."""
    command = [sys.executable, "experiments/serve.py", "--checkpoint", checkpoint, "--port=0", "--robots=16"]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        line = next(line for line in process.stdout if line.startswith("serving at "))
        yield Server(process.pid, line.split()[-1])
        process.send_signal(signal.SIGTERM)
        process.wait(60)
    finally:
        process.kill()


def observation_for(policy: Mapping[str, Any], size: int | None) -> dict[str, Any]:
    """What a policy asks for by the server's metadata, of noise; images have its own size where none is given."""
    rng, values = np.random.default_rng(0), {"goals": {}}
    for name in policy["needed"]:
        camera = name.removeprefix("goals/")
        if name == "language":
            values[name] = "put the red block on the blue plate"
        elif name == "proprio":
            values[name] = np.zeros(policy["contract"]["proprio_dim"], np.float32)
        else:
            own = (size, size) if size else tuple(policy["contract"]["cameras"][camera]["policy_size"])
            image = rng.integers(0, 256, (*own, 3), np.uint8)
            (values if name == camera else values["goals"])[camera] = image
    return values


class Client:
    """One robot: the same request again and again, with images of `size`, or that of the policy."""

    def __init__(self, server: Server, size: int | None = None) -> None:
        self._address, self._size = server.address, size

    @property
    def kilobytes(self) -> float:
        """Of a request."""
        return len(self._frame) / 1000

    async def __aenter__(self) -> "Client":
        self._socket = await connect(self._address, compression=None)
        (policy,) = unpack(await self._socket.recv())["policies"].values()
        self._frame = pack(observation_for(policy, self._size))
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._socket.close()

    async def ask(self) -> tuple[float, float]:
        """Milliseconds of a round trip, and of the computation in it."""
        start = time.perf_counter()
        await self._socket.send(self._frame)
        answer = await self._socket.recv()
        took = 1000 * (time.perf_counter() - start)
        return took, unpack(answer)["policy_timing"]["infer_ms"]

    async def times(self, rounds: int) -> np.ndarray:
        """[rounds, 2] of `ask`, one behind the other."""
        return np.array([await self.ask() for _ in range(rounds)])


def row(name: str, times: np.ndarray) -> str:
    """Of a table: median and 99th percentile of the round trip, the computation, and the difference."""
    columns = times[:, 0], times[:, 1], times[:, 0] - times[:, 1]
    return f"{name:<34}" + "".join(f"{np.median(x):>9.2f}{np.quantile(x, 0.99):>9.2f}" for x in columns)


def head(name: str) -> str:
    """Of that table."""
    return f"{name:<34}" + "".join(f"{what:>18}" for what in ("round trip, ms", "policy, ms", "overhead, ms"))


async def overhead(server: Server) -> None:
    """One client."""
    async with Client(server, FLAGS.image_size) as client:
        await client.times(20)
        print(head("median and 99 % of"))
        print(row(f"1 client, {client.kilobytes:.0f} KB", await client.times(FLAGS.rounds)))


async def throughput(server: Server) -> None:
    """Many clients against one, by turns, since a machine is not as fast all the time."""
    counts = (1, FLAGS.clients)
    rates: dict[int, list[float]] = {count: [] for count in counts}
    for count in counts * TURNS:
        rates[count].append(await rate(server, count, FLAGS.seconds / TURNS))
    for count, own in rates.items():
        print(f"{count:>3} clients: {np.median(own):.0f} requests/s ({min(own):.0f} to {max(own):.0f})")
    one, many = map(np.array, rates.values())
    times = many / one
    print(f"    {np.median(times):.1f} times as many ({min(times):.1f} to {max(times):.1f}); medians of {TURNS} turns")


async def rate(server: Server, count: int, seconds: float) -> float:
    """Requests a second of so many clients."""
    async with contextlib.AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(Client(server)) for _ in range(count)]
        await asyncio.gather(*(client.ask() for client in clients))
        start = time.perf_counter()

        async def act(client: Client) -> int:
            asked = 0
            while time.perf_counter() < start + seconds:
                await client.ask()
                asked += 1
            return asked

        asked = sum(await asyncio.gather(*map(act, clients)))
        return asked / (time.perf_counter() - start)


async def misbehaving(server: Server) -> None:
    """One client beside others that do what they should not."""
    print(head("1 client beside"))
    for name, nuisance in NUISANCES.items():
        async with Client(server, FLAGS.image_size) as client:
            await client.times(20)
            before = server.megabytes
            tasks = [asyncio.create_task(nuisance(server)) for _ in range(4)]
            await asyncio.sleep(0.2)
            times = await client.times(FLAGS.rounds)
            grown = server.megabytes - before
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            print(f"{row(name, times)}   {grown:+.0f} MB")


async def _opened(server: Server, data: bytes) -> None:
    host, port = server.address.removeprefix("ws://").rsplit(":", 1)
    _, writer = await asyncio.open_connection(host, int(port))
    writer.write(data)
    await asyncio.sleep(3600)


async def _nobody(server: Server) -> None:
    await asyncio.sleep(3600)


async def _silent(server: Server) -> None:
    await _opened(server, b"")


async def _half_handshake(server: Server) -> None:
    await _opened(server, b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n")


async def _half_frame(server: Server) -> None:
    async with connect(server.address, compression=None) as socket:
        socket.transport.write(b"\x82\xff" + (20 * 2**20).to_bytes(8) + bytes(10 * 2**20))
        await asyncio.sleep(3600)


async def _huge(server: Server) -> None:
    """200 MB, again and again, in another process, since it takes long to make."""
    code = (
        "import sys\nfrom websockets.exceptions import ConnectionClosed\nfrom websockets.sync.client import connect\n"
        "data = bytes(200_000_000)\nwhile True:\n    with connect(sys.argv[1], compression=None) as socket:\n"
        "        try:\n            socket.recv()\n            socket.send(data)\n            socket.recv()\n"
        "            raise AssertionError('it was taken')\n        except (ConnectionClosed, OSError):\n"
        "            pass\n"
    )
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, server.address)
    try:
        await process.wait()
    finally:
        process.kill()


async def _garbage(server: Server) -> None:
    rng = np.random.default_rng(1)
    async with connect(server.address, compression=None) as socket:
        await socket.recv()
        for frame in malformed(rng, "openpi"):
            await socket.send(frame)
            await socket.recv()


NUISANCES = {
    "nobody": _nobody,
    "4 that connect and send nothing": _silent,
    "4 with half a handshake": _half_handshake,
    "4 with half a frame of 20 MB": _half_frame,
    "4 that send 200 MB": _huge,
    "4 that send malformed frames": _garbage,
}


async def fuzz(server: Server) -> None:
    """Malformed frames of each protocol, each of which must be answered, as must the hello behind one of vla-eval."""
    rng, probe = np.random.default_rng(0), {"type": "hello", "payload": {}, "seq": 123_456, "timestamp": 0.0}
    for dialect, first in (("openpi", {}), ("starvla", {"type": "ping"}), ("vla-eval", probe)):
        before, start, refused = server.megabytes, time.perf_counter(), 0
        async with connect(server.address, compression=None) as socket:
            await socket.send(msgpack.packb(first))
            for _ in range(1 if dialect == "vla-eval" else 2):
                await asyncio.wait_for(socket.recv(), 10)
            for frame in itertools.islice(malformed(rng, dialect), FLAGS.frames):
                await socket.send(frame)
                if dialect == "vla-eval":
                    await socket.send(msgpack.packb(probe))
                answer: Any = await asyncio.wait_for(socket.recv(), 10)
                while dialect == "vla-eval" and msgpack.unpackb(answer)["seq"] != probe["seq"]:
                    refused += msgpack.unpackb(answer)["type"] == "error"
                    answer = await asyncio.wait_for(socket.recv(), 10)
                if dialect != "vla-eval":
                    refused += isinstance(answer, str) or msgpack.unpackb(answer).get("status") == "error"
        async with Client(server) as client:
            await client.ask()
        print(
            f"{dialect:<9} {FLAGS.frames} malformed frames in {time.perf_counter() - start:.0f} s: {refused} refused, "
            f"all answered, memory {before:.0f} MB before and {server.megabytes:.0f} MB after"
        )


async def soak(server: Server) -> None:
    """Many requests of eight clients that come and go, and the memory of the server along them."""
    each, clients = FLAGS.requests // 20, 8
    print(f"{'requests':>10}{'requests/s':>12}{'memory, MB':>12}")
    for part in range(20):
        start = time.perf_counter()
        async with contextlib.AsyncExitStack() as stack:
            own = [await stack.enter_async_context(Client(server)) for _ in range(clients)]
            await asyncio.gather(*(client.times(each // clients) for client in own))
        rate = each / (time.perf_counter() - start)
        print(f"{(part + 1) * each:>10}{rate:>12.0f}{server.megabytes:>12.1f}", flush=True)


if __name__ == "__main__":
    cli.run(main)
