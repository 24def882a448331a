"""One pass over validation data: exact averages over examples, on any number of processes."""

import collections
import math
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxvla.agents.agent import PartialMetric
from jaxvla.data.schema import Batch
from jaxvla.errors import TrainingError
from jaxvla.parallel.feed import process_rows, to_global
from jaxvla.training.step import EvalStep

# Batches in flight: enough to hide the host's work, few enough to bound the memory of waiting batches.
_IN_FLIGHT = 2


def evaluate(
    eval_step: EvalStep, params: Any, batches: Iterator[Batch], batch_size: int, sharding: NamedSharding, seed: int
) -> dict[str, float]:
    """Averages each metric of `eval_step` over the examples of `batches` that have a value of it, if any has.

    Args:
        eval_step: from `make_eval_step`.
        params: on device.
        batches: this process's rows of each global batch (numpy). The last batch may be short, even empty on some
            processes, but every process gives the same number of batches.
        batch_size: rows of a global batch.
        sharding: of the batch.
        seed: of the agent's random numbers; the same seed gives the same metrics.

    Raises:
        TrainingError: there is no example.
    """
    count = len(np.arange(batch_size)[process_rows(sharding, batch_size)])
    key = jax.random.key(seed)
    sums: list[dict[str, tuple[jax.Array, jax.Array]]] = []
    pending: collections.deque[Any] = collections.deque()
    for index, batch in enumerate(batches):
        padded, valid = _pad(batch, count)
        device_batch, device_valid = to_global(padded, sharding), to_global({"valid": valid}, sharding)["valid"]
        metrics = eval_step(params, device_batch, device_valid, jax.random.fold_in(key, index))
        sums.append(_totals(metrics))
        pending.append(sums[-1])
        if len(pending) > _IN_FLIGHT:
            jax.block_until_ready(pending.popleft())
    fetched = jax.device_get(sums)
    known = {name: sum(int(batch[name][1]) for batch in fetched) for batch in fetched[:1] for name in batch}
    if not any(known.values()):
        raise TrainingError("the validation data gave no example; look at the val split, or at config.eval_batches")
    return {n: math.fsum(float(batch[n][0]) for batch in fetched) / count for n, count in known.items() if count}


@jax.jit
def _totals(metrics: dict[str, PartialMetric]) -> dict[str, tuple[jax.Array, jax.Array]]:
    """The sum of each metric, and of how many examples."""
    return {name: (metric.value_b.sum(), metric.known_b.sum()) for name, metric in metrics.items()}


def _pad(batch: Batch, rows: int) -> tuple[Batch, np.ndarray]:
    """Fills a short batch with zeros up to `rows`, and says which rows are real."""
    have = len(jax.tree.leaves(batch)[0])
    if have == rows:
        return batch, np.ones(rows, bool)

    def pad(x: np.ndarray) -> np.ndarray:
        return np.concatenate([x, np.zeros((rows - have, *x.shape[1:]), x.dtype)])

    return jax.tree.map(pad, dict(batch)), np.arange(rows) < have
