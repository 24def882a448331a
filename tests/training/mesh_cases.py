"""Some steps of small agents on any mesh, and checkpoints of them; as a script, in one of several processes:

    mesh_cases.py '{"job": [HOST:PORT, 2, 0], "out": FILE, "runs": [{"method": "ecot", "mesh": [1, 2, 2]}, ...]}'

writes what `steps` gives for each of the runs. tools/mesh_equality.py compares whole presets.
"""

import hashlib
import json
import pathlib
import sys

import jax
import numpy as np
from agents import ecot_cases, openvla_cases
from training.positional_batches import make_assets, rows_of

from jaxvla.agents import make_agent
from jaxvla.data.schema import BatchSpec, InstructionSpec
from jaxvla.models.resnet import ARCHITECTURES, Architecture
from jaxvla.parallel.distributed import initialize
from jaxvla.parallel.feed import process_rows, to_global
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.parallel.sharding import batch_sharding, gather
from jaxvla.training.checkpointer import Checkpointer, resume
from jaxvla.training.config import CheckpointConfig, OptimizerConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.resuming import whole_checkpoint
from jaxvla.training.state import abstract_state, create_state, state_shardings
from jaxvla.training.step import make_train_step

ARCHITECTURES["mesh-small"] = Architecture((1,), num_filters=8)
MESHES = ((8, 1, 1), (2, 4, 1), (2, 2, 2), (1, 2, 4))
BATCH = 16
# That of the small presets. A constant 1e-2 makes ecot chaotic: what is 1e-7 away after 3 steps is 3e-2 after 20.
OPTIMIZER = OptimizerConfig(1e-3, warmup_steps=100, clip_norm=1.0)
SPEC = BatchSpec(("images0",), (8, 8), 4, 2, action_horizon=2, instruction=InstructionSpec(5, vocab_size=9))
# Widths that divide by four, but for the two key heads of ecot.
HEAD = ecot_cases.HEAD | {"hidden_size": 32, "output_dim": 32}
METHODS = {
    "gc_bc": ({"encoder": {"name": "mesh-small"}, "hidden_dims": (8,)}, SPEC),
    "openvla": (openvla_cases.agent_kwargs(), SPEC),
    "ecot": (ecot_cases.agent_kwargs() | {"action_head": HEAD}, ecot_cases.SPEC),
}


def make(method):
    kwargs, spec = METHODS[method]
    return make_agent(method, kwargs, spec)


def batch_at(agent, position):
    """Batch `position`, all rows of it."""
    rng = np.random.default_rng((11, position))
    keys = tuple(key for key in agent.batch_keys if key != "text")
    batch = agent.spec.fake_batch(BATCH, keys, rng)
    if agent.spec.text is None:
        return batch
    lengths = rng.integers(5, 11, BATCH), rng.integers(0, 3, BATCH), rng.integers(1, 7, BATCH)
    return batch | {"text": ecot_cases.text(rng, *lengths)}


def digest(params):
    """A hash of all bits of all parameters, on process 0; a collective."""
    whole = gather(params)
    found = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(whole):
        found.update(f"{path} {leaf.shape} {leaf.dtype}".encode())
        found.update(np.ascontiguousarray(leaf))
    return found.hexdigest()


def steps(method, mesh, count=3, devices=None, order=None, restore="", save=""):
    """Trains `count` steps.

    Args:
        method: a key of `METHODS`.
        mesh: sizes of its axes.
        count: of steps.
        devices: how many; None for all.
        order: of the devices; None for that in which jax gives them.
        restore: a run to go on from.
        save: a run to save the last state to.

    Returns:
        losses, and digests of the parameters before the first step and after the last one.
    """
    agent = make(method)
    chosen = jax.devices()[:devices] if order is None else [jax.devices()[i] for i in order]
    placed = make_mesh(MeshConfig(*mesh), chosen)
    optimizer, sharding = make_optimizer(OPTIMIZER), batch_sharding(placed)
    abstract = abstract_state(agent, optimizer, placed)
    if restore:
        state, position = resume(whole_checkpoint(restore), make_assets(), abstract)
    else:
        state, position = create_state(agent, optimizer, 5, placed), {"position": 0}
    train_step = make_train_step(agent, optimizer, None, state_shardings(abstract), sharding)
    first, losses, rows = digest(state.params), [], process_rows(sharding, BATCH)
    for i in range(position["position"], position["position"] + count):
        state, metrics = train_step(state, to_global(rows_of(batch_at(agent, i), rows), sharding))
        losses.append(float(metrics["loss"]))
    last = digest(state.params)
    if save:
        with Checkpointer(pathlib.Path(save), CheckpointConfig(), make_assets()) as checkpointer:
            checkpointer.save(state, {"position": int(state.step)}, None)
    return {"losses": losses, "first": first, "last": last}


def main(options):
    initialize(*options["job"])
    found = [steps(**run) for run in options["runs"]]
    if jax.process_index() == 0:
        pathlib.Path(options["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
