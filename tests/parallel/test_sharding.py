import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import PartitionSpec as P

from jaxvla.errors import ConfigError
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.parallel.sharding import batch_sharding, check_batch_size, path_string, tree_shardings

MESH = make_mesh(MeshConfig(data=2, fsdp=4))


def shapes(**leaves):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()}


def specs(tree, **options):
    return jax.tree.map(lambda x: x.spec, tree_shardings(tree, MESH, **options))


def test_batch_rows_go_over_data_and_fsdp():
    x = jax.device_put(np.arange(32).reshape(16, 2), batch_sharding(MESH))
    assert {shard.data.shape for shard in x.addressable_shards} == {(2, 2)}


@pytest.mark.parametrize(
    ("batch_size", "message"), [(12, "use 8 or 16"), (3, "use 8$"), (0, "use 8$"), (17, "use 16 or 24")]
)
def test_batch_sizes_that_do_not_divide(batch_size, message):
    with pytest.raises(ConfigError, match=f"batch_size {batch_size} does not divide over 8.*{message}"):
        check_batch_size(batch_size, MESH)


def test_batch_sizes_that_divide():
    def passes(batch_size):
        try:
            check_batch_size(batch_size, MESH)
        except ConfigError:
            return False
        return True

    assert [batch_size for batch_size in range(-8, 33) if passes(batch_size)] == [8, 16, 24, 32]


def test_default_rule_takes_the_largest_axis_that_divides():
    tree = shapes(wide=(6, 8), tall=(12, 8), odd=(3, 5), scalar=())
    assert specs(tree, min_bytes=0) == {"wide": P(None, "fsdp"), "tall": P("fsdp"), "odd": P(), "scalar": P()}


def test_default_rule_leaves_small_arrays_whole():
    tree = shapes(large=(1024, 1024), small=(1024, 1023))
    assert specs(tree) == {"large": P("fsdp"), "small": P()}


def test_default_rule_never_takes_the_layer_axis():
    tree = {"layers": shapes(kernel=(64, 8, 6), scale=(64, 7))}
    assert specs(tree, min_bytes=0)["layers"] == {"kernel": P(None, "fsdp"), "scale": P()}
    assert specs(tree["layers"], min_bytes=0)["kernel"] == P("fsdp")
    for name in ("last_layer", "blocks", "deepstack_mergers", "rest"):
        assert specs({"visual": {name: tree["layers"]}}, min_bytes=0)["visual"][name]["kernel"] == P(None, "fsdp")


def test_first_rule_that_matches_wins():
    tree = {"head": shapes(kernel=(8, 4), bias=(4,))}
    rules = (("head/bias", P()), ("head/", P("fsdp")), (".*", P(None, "tensor")))
    assert specs(tree, rules=rules, min_bytes=0)["head"] == {"kernel": P("fsdp"), "bias": P()}


def test_optimizer_state_is_sharded_as_its_parameters():
    params = {"head": {"kernel": jnp.zeros((8, 4))}, "layers": {"kernel": jnp.zeros((4, 8, 2))}}
    rules = (("^params/head/kernel$|/mu/head/kernel$|/nu/head/kernel$", P("fsdp")),)
    state = {"params": params, "opt": optax.adam(1e-3).init(params)}
    leaves = jax.tree_util.tree_leaves_with_path(tree_shardings(state, MESH, rules, min_bytes=0))
    found = {path_string(path): sharding.spec for path, sharding in leaves}
    assert found == {
        "params/head/kernel": P("fsdp"),
        "params/layers/kernel": P(None, "fsdp"),
        "opt/0/count": P(),
        "opt/0/mu/head/kernel": P("fsdp"),
        "opt/0/nu/head/kernel": P("fsdp"),
        "opt/0/mu/layers/kernel": P(None, "fsdp"),
        "opt/0/nu/layers/kernel": P(None, "fsdp"),
    }


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (P(None, None, "fsdp"), r"has 3 axes, but head/kernel has shape \(8, 6\)"),
        (P("model"), "names 'model', but the mesh has data, fsdp, tensor"),
        (P(None, "fsdp"), r"splits 6 of head/kernel \(8, 6\) into 4 parts"),
    ],
)
def test_rules_that_do_not_fit(spec, message):
    with pytest.raises(ConfigError, match=message):
        tree_shardings({"head": shapes(kernel=(8, 6))}, MESH, (("kernel", spec),))
