"""Bytes of collectives against those that a layer-wise sharded model must move."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from jaxvla.errors import ConfigError
from jaxvla.parallel.collectives import collectives, total
from jaxvla.parallel.mesh import MeshConfig, make_mesh

LAYERS, WIDTH, ROWS = 5, 256, 16
STACK = LAYERS * WIDTH * WIDTH


def compiled(dtype, mesh):
    """The gradient of a stack of layers whose kernels are sharded over fsdp, with activations kept by rows."""
    rows = NamedSharding(mesh, P(("data", "fsdp")))
    kernels = NamedSharding(mesh, P(None, "fsdp"))

    def loss(kernels_ldd, x_bd):
        def layer(x_bd, kernel_dd):
            return jax.lax.with_sharding_constraint(jnp.tanh(x_bd @ kernel_dd.astype(dtype)), rows), None

        return jax.lax.scan(jax.checkpoint(layer), x_bd.astype(dtype), kernels_ldd)[0].astype(jnp.float32).sum()

    step = jax.jit(jax.grad(loss), in_shardings=(kernels, rows), out_shardings=kernels)
    shapes = (LAYERS, WIDTH, WIDTH), (ROWS, WIDTH)
    return step.lower(*(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes)).compile().as_text()


@pytest.mark.parametrize(("dtype", "size"), [(jnp.float32, 4), (jnp.bfloat16, 2)])
def test_sharded_layers_are_gathered_twice_and_their_gradients_scattered(dtype, size):
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    rows = collectives(compiled(dtype, mesh), mesh.shape, 8)
    found = {(row.kind, row.axes): row for row in rows if row.payload > 1000}
    gathered = found.pop(("all-gather", ("fsdp",)))
    assert gathered.count == 2 * LAYERS
    assert gathered.payload == 2 * STACK * size
    assert gathered.wire == pytest.approx(2 * STACK * size * 3 / 4)
    scattered = found.pop(("reduce-scatter", ("fsdp",)))
    summed = found.pop(("all-reduce", ("data",)))
    assert not found
    assert (scattered.payload, scattered.count) == (STACK * size, LAYERS)
    assert summed.payload == STACK * size / 4
    assert summed.wire == pytest.approx(STACK * size / 4)
    assert total(rows) >= gathered.wire + scattered.wire + summed.wire


def test_which_links_a_group_goes_over():
    mesh = make_mesh(MeshConfig(data=2, fsdp=4))
    rows = collectives(compiled(jnp.float32, mesh), mesh.shape, 4)
    assert {row.axes: row.local for row in rows if row.payload > 1000} == {("fsdp",): True, ("data",): False}


_LINE = """
ENTRY %main (p: f32[8]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  ROOT %r = f32[8]{{0}} all-reduce(%p), channel_id=1, {groups}, use_global_device_ids=true, to_apply=%add
}}
"""


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("fsdp",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=[1,8]<=[8]", ("data", "fsdp")),
        ("replica_groups={}", ("data", "fsdp")),
        ("replica_groups=mesh['axis_0'=4,'axis_1'=2], device_ids=([2,4]T(1,0)) {'axis_1'}", ("data",)),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=4] {'axis_0','axis_1'}", ("data", "fsdp")),
        ("replica_groups={{0,1},{2,3},{4,5},{6,7}}", ("other",)),
    ],
)
def test_groups_as_xla_writes_them(groups, axes):
    (row,) = collectives(_LINE.format(groups=groups), {"data": 2, "fsdp": 4, "tensor": 1}, 8)
    assert (row.kind, row.axes, row.payload) == ("all-reduce", axes, 32)


_ON_A_GPU = """
ENTRY %main (p: f32[8], q: f32[16]) -> f32[8] {{
  %p = f32[8]{{0}} parameter(0)
  %q = f32[16]{{0}} parameter(1)
  %r = {started}, replica_groups={{{{0,1,2,3}},{{4,5,6,7}}}}, dimensions={{0}}, to_apply=%add
}}
"""


@pytest.mark.parametrize(
    ("started", "count", "payload"),
    [
        ("f32[2]{0} reduce-scatter(%p)", 1, 32),
        ("((f32[8]{0}, f32[16]{0}), (f32[2]{0}, f32[4]{0})) reduce-scatter-start(%p, %q)", 2, 32 + 64),
        ("((f32[8]{0}, f32[16]{0}), (f32[32]{0}, f32[64]{0})) all-gather-start(%p, %q)", 2, 128 + 256),
        ("(f32[8]{0}, f32[16]{0}) all-reduce-start(%p, %q)", 2, 32 + 64),
        ("((f32[8]{0}), f32[8]{0}) all-to-all-start(%p)", 1, 32),
        ("(f32[16]{0}, f32[16]{0}, u32[], u32[]) collective-permute-start(%q)", 1, 64),
    ],
)
def test_collectives_as_xla_starts_them_on_gpus(started, count, payload):
    (row,) = collectives(_ON_A_GPU.format(started=started), {"data": 2, "fsdp": 4, "tensor": 1}, 8)
    assert row.kind == started.partition("(%")[0].split()[-1].removesuffix("-start")
    assert (row.axes, row.count, row.payload) == (("fsdp",), count, payload)


def test_groups_of_an_unknown_form_are_refused():
    with pytest.raises(ConfigError, match=r"groups of r are written in a way that is not known: .*rings"):
        collectives(_LINE.format(groups="replica_groups=rings(8)"), {"data": 2, "fsdp": 4, "tensor": 1}, 8)
