import threading

import jax
import numpy as np
import pytest

from jaxvla.errors import ConfigError, DataError
from jaxvla.parallel.feed import DeviceFeed, process_rows
from jaxvla.parallel.mesh import MeshConfig, make_mesh
from jaxvla.parallel.sharding import batch_sharding

SHARDING = batch_sharding(make_mesh(MeshConfig(data=2, fsdp=4)))


class Counting:
    """Batches whose values are their position; raises `error` after `length` of them."""

    def __init__(self, length, error=StopIteration):
        self.position, self.length, self.error = 0, length, error
        self.pulled = threading.Semaphore(0)

    def __next__(self):
        if self.position == self.length:
            raise self.error
        self.position += 1
        self.pulled.release()
        return {"x": np.full((8, 2), self.position), "views": {"images0": np.zeros((8, 1, 1, 3), np.uint8)}}

    def get_state(self):
        return {"position": self.position}

    def set_state(self, state):
        self.position = state["position"]


def feed_threads():
    return [thread for thread in threading.enumerate() if thread.name == "DeviceFeed"]


def test_batches_arrive_in_order_with_the_state_after_them():
    with DeviceFeed(Counting(5), SHARDING) as feed:
        assert feed.state == {"position": 0}
        seen = [(int(batch["x"][0, 0]), feed.state["position"]) for batch in feed]
    assert seen == [(i, i) for i in range(1, 6)]


def test_batches_are_global_arrays():
    with DeviceFeed(Counting(1), SHARDING) as feed:
        batch = next(feed)
    for array in jax.tree.leaves(batch):
        assert array.sharding == SHARDING
        assert len(array.addressable_shards) == 8


def test_depth_bounds_what_is_read_ahead():
    source = Counting(100)
    with DeviceFeed(source, SHARDING, depth=3) as feed:
        for expected in (3, 4, 5):
            for _ in range(3 if expected == 3 else 1):
                assert source.pulled.acquire(timeout=10)
            assert not source.pulled.acquire(timeout=0.05)
            assert source.position == expected
            next(feed)
        assert feed.state == {"position": 3}


def test_an_error_of_the_thread_comes_after_the_batches_before_it():
    with DeviceFeed(Counting(2, DataError("frame 7 is damaged")), SHARDING) as feed:
        assert [int(next(feed)["x"][0, 0]) for _ in range(2)] == [1, 2]
        for _ in range(2):
            with pytest.raises(DataError, match="frame 7 is damaged"):
                next(feed)


def test_a_batch_that_does_not_divide_reaches_the_consumer():
    class Odd(Counting):
        def __next__(self):
            return {"x": np.zeros((7, 2))}

    with DeviceFeed(Odd(1), SHARDING) as feed, pytest.raises(ValueError, match="evenly divide"):
        next(feed)


@pytest.mark.parametrize("length", [0, 2, 100])
def test_no_thread_is_left_after_close(length):
    feed = DeviceFeed(Counting(length), SHARDING)
    assert len(feed_threads()) == 1 or length < 2
    feed.close()
    feed.close()
    assert not feed_threads()
    with pytest.raises(StopIteration):
        next(feed)


def test_waiting_is_measured():
    class Slow(Counting):
        def __next__(self):
            go.wait(timeout=10)
            return super().__next__()

    go = threading.Event()
    with DeviceFeed(Slow(1), SHARDING) as feed:
        assert feed.waited == 0
        threading.Timer(0.05, go.set).start()
        next(feed)
        assert feed.waited > 0.02


def test_a_feed_needs_depth():
    with pytest.raises(ConfigError, match="depth of at least 1, not 0"):
        DeviceFeed(Counting(1), SHARDING, depth=0)


def test_one_process_loads_all_rows():
    assert process_rows(SHARDING, 16) == slice(0, 16)


@pytest.mark.parametrize(
    ("sizes", "owned", "expected"),
    [
        ((2, 4, 1), range(4), slice(0, 8)),
        ((2, 4, 1), range(4, 8), slice(8, 16)),
        ((2, 1, 4), range(2), slice(0, 8)),
        ((1, 1, 8), range(4), slice(0, 16)),
    ],
)
def test_rows_of_one_of_several_processes(monkeypatch, sizes, owned, expected):
    own_only(monkeypatch, owned)
    assert process_rows(batch_sharding(make_mesh(MeshConfig(*sizes))), 16) == expected


def test_scattered_rows(monkeypatch):
    own_only(monkeypatch, (0, 1, 4))
    np.testing.assert_array_equal(process_rows(SHARDING, 16), [0, 1, 2, 3, 8, 9])


def own_only(monkeypatch, owned):
    """From now on shardings answer as in a process that owns these devices of the mesh."""

    def addressable(sharding, shape):
        devices = {sharding.mesh.devices.flat[i] for i in owned}
        return {device: i for device, i in sharding.devices_indices_map(shape).items() if device in devices}

    monkeypatch.setattr(jax.sharding.NamedSharding, "addressable_devices_indices_map", addressable)
