"""A server in the event loop of a test, whose policy says in its actions what it saw."""

import asyncio
import contextlib
import dataclasses

import jax.numpy as jnp
import numpy as np
from serving.policies import Echo, gray
from training.positional_batches import SPEC, make_assets
from websockets.asyncio.client import connect

from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.serving.policy import Policy
from jaxvla.serving.server.access import Access
from jaxvla.serving.server.hosted import Hosted, Hosting
from jaxvla.serving.server.server import Limits, Service, bind
from jaxvla_client.codec import pack, unpack

CONVENTION = ActionConvention(gripper=(1,), open=1.0, closed=0.0)


def make_policy(robots=4, obs_horizon=1, agent=Echo, **assets):
    """Cameras of any size; chunks of two actions: (oldest frame, newest frame), (goal, proprio)."""
    spec = dataclasses.replace(SPEC, obs_horizon=obs_horizon)
    made = dataclasses.replace(make_assets(), spec=spec, **{"actions": CONVENTION, **assets})
    return Policy(agent(spec), {"scale": jnp.ones(())}, made, robots=robots, rows=(1,))


def make_hosted(name="echo", policy=None, **hosting):
    return Hosted(name, policy or make_policy(), ("set",), Hosting(**hosting))


def seen(actions):
    """[oldest frame, newest frame, goal] in pixel values, of a chunk."""
    return (make_assets().action_normalizer().forward(actions).reshape(-1)[:3] * 255).round().astype(int).tolist()


def shown(value, goal=0, size=(8, 8)):
    """An observation of an even image and goal, by the policy's own names."""
    return {
        "images0": gray(value, size),
        "proprio": np.zeros(4, np.float32),
        "goals": {"images0": gray(goal, size)},
    }


@contextlib.asynccontextmanager
async def serving(*hosted, access=Access(), limits=Limits(), dialect=""):  # noqa: B008
    """The address of a server that ends with the context."""
    address, ended = asyncio.get_running_loop().create_future(), asyncio.Event()
    service = Service(hosted, access, limits, dialect)
    task = asyncio.create_task(service.run(bind(access.host, 0), address.set_result, ended))
    await asyncio.wait([address, task], return_when=asyncio.FIRST_COMPLETED)
    try:
        yield await (address if address.done() else task)
    finally:
        ended.set()
        await asyncio.wait_for(task, 10)


@contextlib.asynccontextmanager
async def client(address, **options):
    """A client that has read the metadata: (what sends a message and gives the answer, the metadata, the socket)."""
    async with connect(address, compression=None, max_size=None, **options) as socket:
        metadata = unpack(await socket.recv())

        async def ask(message):
            await socket.send(message if isinstance(message, bytes | str) else pack(message))
            answer = await asyncio.wait_for(socket.recv(), 10)
            return answer if isinstance(answer, str) else unpack(answer)

        yield ask, metadata, socket


def stored_at(size):
    """The field of assets that says at what size the frames of training were stored."""
    return {"stored_sizes": {"images0": size}}
