import dataclasses
import itertools

import jax
import numpy as np
import pytest

from jaxvla.errors import ConfigError
from jaxvla.parallel.distributed import initialize
from jaxvla.parallel.mesh import MeshConfig, arranged, make_mesh


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


@dataclasses.dataclass(frozen=True)
class Chip:
    id: int
    process_index: int
    coords: tuple[int, int, int]
    slice_index: int = 0
    platform: str = "tpu"
    device_kind: str = "TPU v5 lite"
    core_on_chip: int = 0


def slices(x, y, count=1):
    """Chips of slices, x by y each, whose machines have two by two."""
    corners = itertools.product(range(count), range(0, y, 2), range(0, x, 2))
    places = itertools.product(enumerate(corners), range(2), range(2))
    return [
        Chip(i, machine, (right + dx, up + dy, 0), slice_index)
        for i, ((machine, (slice_index, up, right)), dy, dx) in enumerate(places)
    ]


@pytest.mark.parametrize("sizes", [(64, 1, 1), (1, 64, 1), (16, 4, 1), (8, 8, 1), (16, 1, 4), (8, 2, 4), (1, 16, 4)])
def test_a_mesh_follows_the_torus_and_machines_share_rows_evenly(sizes):
    mesh = arranged(sizes, slices(8, 8))
    assert mesh.shape == sizes
    assert {chip.id for chip in mesh.flat} == set(range(64))
    rows = {}
    for row, chips in enumerate(mesh.reshape(64 // sizes[2], sizes[2])):
        for chip in chips:
            rows.setdefault(chip.process_index, set()).add(row)
    assert len({len(own) for own in rows.values()}) == 1
    # What jax.make_array_from_process_local_data asks for: machines have the same rows, or none in common.
    assert all(a == b or not a & b for a, b in itertools.combinations(rows.values(), 2))
    neighbours = [np.subtract(a.coords, b.coords) for a, b in itertools.pairwise(mesh.flat)]
    assert np.mean([np.abs(away).sum() == 1 for away in neighbours]) > 0.7


def test_only_data_lies_across_slices():
    mesh = arranged((4, 2, 4), slices(4, 4, count=2))
    assert [{chip.slice_index for chip in part.flat} for part in mesh] == [{0}, {0}, {1}, {1}]
    with pytest.raises(ConfigError, match=r"32 devices are 2 slices, .* mesh data=1 must be a multiple of 2"):
        arranged((1, 8, 4), slices(4, 4, count=2))
