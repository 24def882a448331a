"""A run folder with two checkpoints, of steps 10 and 20, and what may happen to their files."""

import dataclasses

import jax
import pytest
from training.linear_agent import LinearAgent
from training.positional_batches import SPEC, make_assets

from jaxvla import agents
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.serving.policy import load_policy
from jaxvla.training.checkpointer import Checkpointer
from jaxvla.training.config import CheckpointConfig, OptimizerConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.state import abstract_state, create_state

AGENT = LinearAgent(SPEC)
OPTIMIZER = make_optimizer(OptimizerConfig(1e-2))
ARRAYS = "ocdbt.process_0/d/*"


def one_device():
    return make_mesh(MeshConfig(), jax.devices()[:1])


def new_state():
    return create_state(AGENT, OPTIMIZER, 5, one_device())


def shapes():
    return abstract_state(AGENT, OPTIMIZER, one_device())


def at(state, step):
    return dataclasses.replace(state, step=state.step + step)


def save(state, run):
    with Checkpointer(run, CheckpointConfig(), make_assets()) as checkpointer:
        for step in (10, 20):
            checkpointer.save(at(state, step), {"position": step}, {"mse": 1 / step})
    return run


def served(path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(agents.agents, "linear", lambda kwargs, spec: LinearAgent(spec))
        return load_policy(path)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def remove(path):
    path.unlink()


def the_file(folder, pattern):
    """The largest of the files that fit: arrays, where nodes of their index lie beside them."""
    return max(folder.glob(pattern), key=lambda path: path.stat().st_size)
