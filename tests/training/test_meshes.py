"""The same training on any mesh, and from one mesh to another."""

import jax
import numpy as np
import pytest
from training.mesh_cases import MESHES, METHODS, make, steps

from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.state import create_state

# Those of ecot compile for long; `test_methods.py` has it over "fsdp", and tools/mesh_equality.py on all of them.
CHOSEN = {"gc_bc": MESHES, "openvla": ((2, 4, 1), (2, 2, 2)), "ecot": ((1, 2, 4),)}


@pytest.mark.parametrize("method", METHODS)
def test_every_mesh_gives_the_losses_of_one_device(method):
    alone = steps(method, (1, 1, 1), devices=1)
    assert alone["first"] != alone["last"]
    for mesh in CHOSEN[method]:
        found = steps(method, mesh)
        assert found["first"] == alone["first"], f"{mesh}: other initial parameters"
        np.testing.assert_allclose(found["losses"], alone["losses"], rtol=1e-4, err_msg=str(mesh))


def test_a_state_is_made_in_shards():
    mesh = make_mesh(MeshConfig(1, 2, 4))
    state = create_state(make("ecot"), make_optimizer(OptimizerConfig(1e-2)), 5, mesh)
    text = state.params["backbone"]["text"]
    for tree in (state.params, state.opt_state):
        split = [leaf for leaf in jax.tree.leaves(tree) if not leaf.is_fully_replicated]
        assert len(split) > 20
    vocabulary = text["embed_tokens"]["embedding"]
    assert {shard.data.shape for shard in vocabulary.addressable_shards} == {(1008 // 4, vocabulary.shape[1] // 2)}
    heads = text["layers"]["self_attn"]["q_proj"]["kernel"]
    assert {shard.data.shape for shard in heads.addressable_shards} == {(2, heads.shape[1] // 2, heads.shape[2] // 4)}


def test_a_run_goes_on_on_another_mesh(tmp_path):
    saved = steps("gc_bc", (8, 1, 1), save=str(tmp_path / "run"))
    here = steps("gc_bc", (8, 1, 1), restore=str(tmp_path / "run"))
    there = steps("gc_bc", (2, 4, 1), restore=str(tmp_path / "run"))
    assert saved["last"] == here["first"] == there["first"]
    np.testing.assert_allclose(there["losses"], here["losses"], rtol=1e-5)
