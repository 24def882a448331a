"""Host batches to globally sharded device arrays, made ready ahead of the step by a background thread."""

import dataclasses
import itertools
import queue
import threading
import time
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxvla.data.schema import Batch
from jaxvla.errors import ConfigError
from jaxvla.parallel.sharding import check_batch_size


@runtime_checkable
class BatchIterator(Protocol):
    """An endless or finite source of host batches that knows its position."""

    def __next__(self) -> Batch:
        """This process's rows of the next global batch (numpy). The arrays are not written to again."""

    def get_state(self) -> dict[str, Any]:
        """The position after the last batch that was returned, as JSON values."""

    def set_state(self, state: dict[str, Any]) -> None:
        """Goes to a position that `get_state` gave: the batch that follows is the one that followed then."""


def process_rows(sharding: NamedSharding, batch_size: int) -> slice | np.ndarray:
    """The rows of a global batch that this process must load, in rising order.

    Two processes that hold the same rows (a tensor axis that spans them) get the same ones. They are a slice where they
    stand together, else int64 numbers: on a TPU's torus the neighbours of a chip may belong to other machines.

    Raises:
        ConfigError: the batch does not divide.
    """
    check_batch_size(batch_size, sharding.mesh)
    shards = {
        index[0].indices(batch_size)[:2] for index in sharding.addressable_devices_indices_map((batch_size,)).values()
    }
    ranges = sorted(shards)
    if any(stop != start for (_, stop), (start, _) in itertools.pairwise(ranges)):
        return np.concatenate([np.arange(start, stop) for start, stop in ranges])
    return slice(ranges[0][0], ranges[-1][1])


def to_global(batch: Batch, sharding: NamedSharding) -> Batch:
    """This process's rows of a host batch as global arrays, leading axis split by `sharding`."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, x), dict(batch))


@dataclasses.dataclass(frozen=True)
class _Ready:
    batch: Batch
    state: dict[str, Any]


class DeviceFeed:
    """An iterator of global device batches. Use it as a context manager; no thread is left after `close`.

    A thread pulls host batches, starts their transfer, and keeps `depth` of them ready. What the thread raises, the
    consumer gets from `next`, after the batches that were ready before it.

    Attributes:
        state: the iterator's position right after the batch that `next` returned last (prefetched ones do not count).
        waited: seconds that `next` has waited for batches so far.
    """

    def __init__(self, iterator: BatchIterator, sharding: NamedSharding, depth: int = 2) -> None:
        if depth < 1:
            raise ConfigError(f"a feed needs a depth of at least 1, not {depth}")
        self.state = iterator.get_state()
        self.waited = 0.0
        self._iterator, self._sharding, self._depth = iterator, sharding, depth
        self._start()

    def _start(self) -> None:
        self._free = threading.Semaphore(self._depth)
        self._ready: queue.SimpleQueue[_Ready | BaseException] = queue.SimpleQueue()
        self._error: BaseException | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._produce, name="DeviceFeed", daemon=True)
        self._thread.start()

    def _produce(self) -> None:
        try:
            while True:
                self._free.acquire()
                if self._stopping:
                    return
                batch = next(self._iterator)
                self._ready.put(_Ready(to_global(batch, self._sharding), self._iterator.get_state()))
        except BaseException as error:  # it belongs to the consumer, StopIteration too
            self._ready.put(error)

    def __iter__(self) -> "DeviceFeed":
        return self

    def __next__(self) -> Batch:
        """The next global batch.

        Raises:
            StopIteration: the iterator is exhausted, or the feed closed.
            Exception: whatever the iterator or the transfer raised.
        """
        if self._stopping:
            raise StopIteration
        if self._error is None:
            start = time.perf_counter()
            item = self._ready.get()
            self.waited += time.perf_counter() - start
            if isinstance(item, _Ready):
                self.state = item.state
                self._free.release()
                return item.batch
            self._error = item
        raise self._error

    def read_again(self, state: dict[str, Any]) -> Batch:
        """This process's rows, on the host, of the batch that follows the position `state`; `next` goes on as before.

        Batches that were ready are dropped, and made anew.
        """
        self.close()
        self._iterator.set_state(state)
        batch = next(self._iterator)
        self._iterator.set_state(self.state)
        self._start()
        return batch

    def close(self) -> None:
        """Stops the thread and waits for it; batches that were ready are dropped."""
        self._stopping = True
        self._free.release()
        self._thread.join()

    def __enter__(self) -> "DeviceFeed":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
