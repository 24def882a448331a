import jax
import pytest

from jaxvla.errors import ConfigError
from jaxvla.parallel.distributed import initialize
from jaxvla.parallel.mesh import MeshConfig, make_mesh


@pytest.mark.parametrize(
    ("sizes", "shape"),
    [
        ((-1, 1, 1), (8, 1, 1)),
        ((1, -1, 2), (1, 4, 2)),
        ((2, 2, 2), (2, 2, 2)),
    ],
)
def test_minus_one_takes_the_devices_that_are_left(sizes, shape):
    mesh = make_mesh(MeshConfig(*sizes))
    assert mesh.axis_names == ("data", "fsdp", "tensor")
    assert mesh.devices.shape == shape
    assert set(mesh.devices.flat) == set(jax.devices())


def test_a_mesh_of_some_devices():
    assert make_mesh(MeshConfig(), jax.devices()[:3]).shape == {"data": 3, "fsdp": 1, "tensor": 1}


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ((2, 2, 1), "needs 4 devices, but there are 8"),
        ((-1, 3, 1), r"8 / 3 is not whole"),
        ((-1, 16, 1), r"8 / 16 is not whole"),
    ],
)
def test_sizes_that_do_not_fit(sizes, message):
    with pytest.raises(ConfigError, match=message):
        make_mesh(MeshConfig(*sizes))


@pytest.mark.parametrize("sizes", [(-1, -1, 1), (0, 1, 1), (1, -2, 1)])
def test_sizes_that_make_no_sense(sizes):
    with pytest.raises(ConfigError, match=f"data={sizes[0]} fsdp={sizes[1]} tensor={sizes[2]}"):
        MeshConfig(*sizes)


def test_one_process_needs_no_initialization():
    initialize()
    assert not jax.distributed.is_initialized()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("127.0.0.1:1234",), "go together"),
        (("", 2, 0), "go together"),
        (("auto", 2), "go together"),
        (("127.0.0.1:1234", 2, 2), "process_id must be 0 to 1, not 2"),
    ],
)
def test_contradictory_processes(arguments, message):
    with pytest.raises(ConfigError, match=message):
        initialize(*arguments)
