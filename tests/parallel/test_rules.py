"""Where the parameters of the package's models live."""

import json
import math
import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import PartitionSpec as P
from parallel.preset_shapes import GOLDEN, PRESETS, agent_of, golden_mesh, layout, mesh, params_of

from jaxvla.errors import ConfigError
from jaxvla.parallel.rules import COLUMNS, MODELS, ROWS, STACKED, Split
from jaxvla.parallel.sharding import Placement, path_string, tree_placements
from jaxvla.training.config import OptimizerConfig
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.state import abstract_state

COMMAND = "PYTHONPATH=.:configs python tests/parallel/preset_shapes.py"
F32 = jnp.float32


def place(path, shape, on, rules=(), dtype=F32):
    (name, *rest), tree = path.split("/")[::-1], jax.ShapeDtypeStruct(shape, dtype)
    for key in (name, *rest):
        tree = {key: tree}
    return jax.tree.leaves(tree_placements(tree, on, rules))[0]


@pytest.mark.parametrize("name", PRESETS)
def test_parameters_of_large_presets_live_where_they_did(name):
    """A change of a path, a shape, a dtype or a place is seen in the diff of the golden file; `COMMAND` writes it."""
    golden = json.loads((GOLDEN / f"{name}.json").read_text())
    assert layout(params_of(*PRESETS[name]), golden_mesh()) == golden, f"where this is meant: {COMMAND}"


@pytest.mark.parametrize("sizes", [(1, 8, 1), (1, 1, 8), (1, 2, 4), (32, 8, 1), (8, 8, 4)])
@pytest.mark.parametrize("preset", [*PRESETS.values(), ("ecot", "qwen3_vl_8b", 64)], ids=[*PRESETS, "ecot_lora"])
def test_no_device_holds_much_more_than_its_part(preset, sizes):
    on, params = mesh(*sizes), params_of(*preset)
    placed = jax.tree.leaves(tree_placements(params, on))
    sizes_of = [math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(params)]
    held = sum(size // place.shards(on) for size, place in zip(sizes_of, placed))
    parts = on.shape["fsdp"] * on.shape["tensor"]
    # Small ones are copied; so is, with "tensor" alone, one of the two matrices of each adapter.
    assert held < (1.15 if len(preset) == 3 else 1) * sum(sizes_of) / parts + 64 * 2**20


@pytest.mark.parametrize("name", ["ecot_qwen3_vl_2b", "smolvla"])
def test_moments_live_where_their_parameters_do(name):
    agent, on = agent_of(*PRESETS[name]), golden_mesh()
    optimizer = make_optimizer(OptimizerConfig(1e-4), agent.frozen_modules)
    state = abstract_state(agent, optimizer, on, ema=True)
    own = jax.tree.map(lambda place: place.spec, tree_placements(params_of(*PRESETS[name]), on))
    assert jax.tree.map(lambda leaf: leaf.sharding.spec, state.params) == own
    places = {path_string(path): spec for path, spec in jax.tree_util.tree_leaves_with_path(own, is_leaf=is_spec)}
    kept = jax.tree_util.tree_leaves_with_path((state.opt_state, state.ema))
    of = [(leaf, next((p for p in places if path_string(path).endswith(f"/{p}")), "")) for path, leaf in kept]
    assert sum(bool(name) for _, name in of) == 3 * len(jax.tree.leaves(optimizer.split(state.params)[0]))
    assert all(leaf.sharding.spec == places[name] for leaf, name in of if name)


def is_spec(x):
    return isinstance(x, P)


def test_every_rule_has_a_parameter():
    paths = {
        path_string(path)
        for preset in (*PRESETS.values(), ("ecot", "qwen3_vl_8b", 8), ("act",))
        for path, _ in jax.tree_util.tree_leaves_with_path(params_of(*preset))
    }
    unused = [pattern for pattern, _ in MODELS if not any(re.search(pattern, path) for path in paths)]
    assert not unused
    stacks = {name for name in ("layers", "blocks", "deepstack_mergers") if any(f"/{name}/" in path for path in paths)}
    assert len(stacks) == 3
    assert all(re.search(STACKED, path) for path in paths if re.search("encoder/(attention|mlp)", path))


def test_matrices_are_split_both_ways():
    on = mesh(1, 2, 4)
    assert place("text/layers/self_attn/q_proj/kernel", (3, 64, 32), on) == Placement(P(None, "fsdp", "tensor"))
    assert place("text/layers/self_attn/o_proj/kernel", (3, 64, 32), on) == Placement(P(None, "tensor", "fsdp"))
    assert place("text/embed_tokens/embedding", (1000, 32), on) == Placement(P("tensor", "fsdp"))
    assert place("lm_head/kernel", (32, 1000), on) == Placement(P("fsdp", "tensor"))
    assert place("visual/blocks/attn/qkv/kernel", (3, 32, 96), on) == Placement(P(None, ("fsdp", "tensor")))
    assert place("lora/text/layers/mlp/down_proj/lora_a", (3, 64, 8), on) == Placement(P(None, "tensor"))
    assert place("lora/text/layers/mlp/down_proj/lora_b", (3, 8, 64), on) == Placement(P(None, None, "fsdp"))
    assert (COLUMNS.axes, ROWS.axes) == (("fsdp", "tensor"), ("tensor", "fsdp"))


@pytest.mark.parametrize("base", ["int8", "int4"])
def test_integers_are_split_as_the_kernels_that_they_stand_for(base):
    on = mesh(1, 2, 4)
    plain, quantized = (
        {
            path_string(path): placed.spec
            for path, placed in jax.tree_util.tree_leaves_with_path(tree_placements(of, on))
        }
        for of in (params_of("openvla_lora"), params_of("openvla_lora", base=base))
    )
    values = {path for path in quantized if path.endswith("/values")}
    assert len(values) == 20
    assert all(quantized[path] == plain[path.removesuffix("/values")] for path in values)
    assert quantized.keys() - values - plain.keys() == {f"{path.removesuffix('values')}scale" for path in values}
    assert all(quantized[path] == plain[path] for path in plain.keys() & quantized.keys())


def test_axes_that_do_not_divide_stay_whole():
    on = mesh(1, 2, 4)
    assert place("layers/self_attn/q_proj/kernel", (3, 64, 30), on).spec == P(None, "fsdp")
    assert place("layers/self_attn/q_proj/kernel", (3, 63, 32), on).spec == P(None, None, "tensor")
    # Large enough, what is left of "fsdp" goes elsewhere.
    assert place("embed_tokens/embedding", (2**18, 63), on).spec == P("tensor")
    assert place("embed_tokens/embedding", (2**18 + 2, 63), on).spec == P("fsdp")
    refused = place("layers/self_attn/q_proj/kernel", (3, 63, 30), on)
    assert refused == Placement(P(), "does not divide: 63 by 2, 30 by 4")


def test_a_moment_with_fewer_axes_is_no_matrix():
    on = mesh(1, 2, 4)
    assert place("v_row/layers/self_attn/q_proj/kernel", (3, 64), on) == Placement(P(), "under 4 MiB")
    assert place("v_row/layers/self_attn/q_proj/kernel", (32, 2**16), on).spec == P(None, "fsdp")


def test_what_every_device_holds_says_why():
    assert place("bias", (8,), mesh(1, 2, 1)) == Placement(P(), "under 4 MiB")
    assert place("kernel", (2**20 + 1, 3), mesh(1, 2, 1)) == Placement(P(), "no axis divides by fsdp=2")
    assert place("kernel", (2**20, 4), mesh(1, 1, 2)) == Placement(P(), 'no rule splits it over "tensor"')
    assert place("kernel", (2**20, 4), mesh(8, 1, 1)) == Placement(P())


def test_a_large_parameter_is_not_copied_by_accident():
    large = (2**12, 2**12 + 2)
    assert place("head/kernel", large, mesh(8, 1, 1)).spec == P()
    assert place("head/kernel", large, mesh(1, 8, 1)).spec == P("fsdp")
    with pytest.raises(ConfigError) as error:
        place("head/kernel", large, mesh(1, 1, 8))
    expected = (
        "every device would hold a copy of head/kernel (4096, 4098) float32, 64 MiB, on a mesh of fsdp=1 tensor=8"
    )
    assert str(error.value).startswith(f'{expected}: no rule splits it over "tensor". Choose mesh sizes that divide')
    with pytest.raises(ConfigError, match="no axis divides by fsdp=3"):
        place("head/kernel", (2**12, 2**12 + 1), mesh(1, 3, 1), dtype=jnp.float64)
    with pytest.raises(ConfigError, match=r"embedding .* does not divide: 64000001 by 8"):
        place("embed_tokens/embedding", (64_000_001, 3), mesh(1, 1, 8))
    assert place("head/kernel", large, mesh(1, 1, 8), ((".*", P()),)) == Placement(P())
    with pytest.raises(ConfigError, match="does not divide: 4098 by 8"):
        place("head/kernel", large, mesh(1, 1, 8), ((".*", Split((None, "tensor"))),))


def test_a_run_that_would_copy_a_large_parameter_does_not_start():
    agent, optimizer = agent_of("openvla"), make_optimizer(OptimizerConfig(1e-4))
    with pytest.raises(ConfigError, match="every device would hold a copy of"):
        abstract_state(agent, optimizer, mesh(1, 1, 37))
