import re

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from parallel.preset_shapes import mesh

from jaxvla.parallel.table import Share, shares, table
from jaxvla.training.state import TrainState


def tree():
    return {
        "text": {
            "layers": {"mlp": {"up_proj": {"kernel": jax.ShapeDtypeStruct((4, 8, 16), jnp.float32)}}},
            "norm": {"scale": jax.ShapeDtypeStruct((8,), jnp.bfloat16)},
        },
        "head": {"kernel": jax.ShapeDtypeStruct((2**20, 4), jnp.float32)},
    }


def test_shares_count_each_module():
    found = shares(tree(), mesh(1, 2, 4), depth=1)
    assert found == {
        "head": Share(2**22, 2**24 // 2, {}),
        "text": Share(512 + 8, 2048 // 8 + 16, {"under 4 MiB": 16}),
    }
    assert shares(tree(), mesh(8, 1, 1), depth=1)["head"] == Share(2**22, 2**24, {})
    meant = shares(tree(), mesh(1, 2, 4), (("head/", P()),), depth=1)
    assert meant["head"] == Share(2**22, 2**24, {"as its rule says": 2**24})


def test_the_parts_of_a_mesh_of_one_are_all_there_is():
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree()))
    assert shares(tree(), mesh(1, 1, 1), depth=0)[""].per_device == held


def test_a_table_says_what_is_copied_and_why():
    params = tree()
    state = TrainState(jax.ShapeDtypeStruct((), jnp.int32), params, {"mu": params}, None, params)
    lines = table(state, mesh(1, 2, 4))
    cells = [re.split(r"\s{2,}", line) for line in lines]
    assert cells == [
        ["module", "numbers", "per device", "replicated"],
        ["head/kernel", "4.19 M", "8.0 MiB"],
        ["2 smaller ones", "0.00 M", "0.0 MiB", "0.0 MiB under 4 MiB"],
        ["optimizer", "4.19 M", "8.0 MiB", "0.0 MiB under 4 MiB"],
        ["average", "4.19 M", "8.0 MiB", "0.0 MiB under 4 MiB"],
        ["all", "24.0 MiB"],
    ]
    alone = table(TrainState(state.step, params, {"mu": params}, None), mesh(1, 1, 1))
    assert re.split(r"\s{2,}", alone[0]) == ["module", "numbers", "per device"]
    every = table(TrainState(state.step, params, {"mu": params}, None), mesh(8, 1, 1))
    assert every == (f"{alone[0]}  all is replicated: fsdp=1 tensor=1", *alone[1:])
    assert [line.split()[0] for line in alone[1:]] == ["head/kernel", "2", "optimizer", "all"]
