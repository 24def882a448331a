"""Batches from a dataset: a Grain pipeline whose elements are whole batches.

Batch i of the stream depends on (dataset, seed, i) and nothing else: the order is computed (order.py), the random
numbers are counted (Philox), and every process makes its own rows of it. So data is the same for any number of threads
and processes, and resumes from one integer. Reading is vectorised over the batch: one call per sample would be the
bottleneck.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from jaxvla.data.dataset import Dataset
from jaxvla.data.order import Order, uniforms
from jaxvla.data.schema import BATCH_KEYS, PROPRIO, Batch
from jaxvla.data.text.instructions import InstructionTable
from jaxvla.data.transforms.actions import chunk_steps, history_steps
from jaxvla.errors import ConfigError

_VALIDATION_SEED = 0
_END_OF_STREAM = 1 << 40
# Random numbers that a source of texts gets for each sample.
TEXT_UNIFORMS = 16


@runtime_checkable
class TextSource(Protocol):
    """Makes the texts of batches; picklable, and safe to call from several threads."""

    def __call__(
        self,
        batch_index: int,
        trajectory: np.ndarray,
        step: np.ndarray,
        instruction: np.ndarray,
        uniforms: np.ndarray,
    ) -> dict[str, np.ndarray]:
        """The value of the batch key `text`, see schema.py.

        Args:
            batch_index: of the stream.
            trajectory: int64 [b].
            step: int64 [b], transitions of these trajectories.
            instruction: int32 [b], entries of the dataset's `annotations()`; -1 where unlabelled.
            uniforms: float64 [b, n], random numbers of these samples.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class BatchSource:
    """Random access to the batches of a stream.

    Args:
        dataset: what to draw from.
        order: the stream of transitions.
        batch_size: rows of a global batch.
        keys: the top-level keys of a batch to make.
        rows: which rows of each global batch to make, such as `parallel.feed.process_rows` says.
        length: how many transitions the stream has; the last batch may be short.
        text: makes the batch key `text`; None where it is not asked for.
        instructions: has the batch key `instruction` of every annotation; None where it is not asked for.
    """

    dataset: Dataset
    order: Order
    batch_size: int
    keys: tuple[str, ...]
    rows: slice
    length: int
    text: TextSource | None = None
    instructions: InstructionTable | None = None

    def __post_init__(self) -> None:
        if "text" in self.keys and self.text is None:
            raise ConfigError("batches with texts need a source of texts: pass `text`")
        if "instruction" in self.keys and self.instructions is None:
            raise ConfigError("batches with instructions need a table of them: pass `instructions`")
        unknown = set(self.keys) - set(BATCH_KEYS)
        if unknown:
            raise ConfigError(f"no batch keys {sorted(unknown)}; there are {', '.join(BATCH_KEYS)}")
        sizes = np.array(self.dataset.group_sizes)
        object.__setattr__(self, "_group_starts", np.cumsum(sizes) - sizes)

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __getitem__(self, i: int) -> Batch:
        """This process's rows of batch `i`; keys, shapes and dtypes as in schema.py."""
        start = i * self.batch_size
        positions = np.arange(start, min(start + self.batch_size, self.length))[self.rows]
        random = uniforms(self.order.seed, i, (self.batch_size, 3))[self.rows][: len(positions)]
        trajectory, step = self._transitions(positions)
        length = self.dataset.source.lengths[trajectory]
        goal = self.dataset.config.goal_relabeling.draw(step, length, random[:, :2])
        batch = {
            key: self._make(key, trajectory, step, length, goal, random[:, 2]) for key in self.keys if key != "text"
        }
        if self.text is not None and "text" in self.keys:
            shape = (self.batch_size, TEXT_UNIFORMS)
            own = uniforms(self.order.seed, i, shape, stream=1)[self.rows][: len(positions)]
            annotation = self.dataset.source.draw_annotations(trajectory, step, random[:, 2])
            batch["text"] = self.text(i, trajectory, step, annotation, own)
        return batch

    def _transitions(self, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        group, index = self.order.at(positions)
        return self.dataset.source.locate(self.dataset.drawable[self._group_starts[group] + index])

    def _make(
        self, key: str, trajectory: np.ndarray, step: np.ndarray, length: np.ndarray, goal: np.ndarray, u: np.ndarray
    ) -> Any:
        config, source = self.dataset.config, self.dataset.source
        if key in ("observations", "next_observations"):
            frame = step if key == "observations" else step + 1
            return self._views(trajectory[:, None], history_steps(frame, config.obs_horizon))
        if key == "goals":
            return self._views(trajectory, goal)
        start = source.action_starts[trajectory]
        if key == "actions":
            return self.dataset.actions[start[:, None] + chunk_steps(step, length, config.action_horizon)]
        if key == "action_pad_mask":
            # What follows a transition that is not taught answers to what happened in it, which nobody can foresee.
            return np.arange(config.action_horizon) < source.taught_ahead[start + step][:, None]
        if key == "rewards":
            return np.where(goal - step <= 1, 0, -1).astype(np.float32)
        if key == "masks":
            # Demonstrations are cut off, they do not terminate: every return bootstraps, as in bridge_data_v2.
            return np.ones(len(step), np.float32)
        if key == "goal_distances":
            return (goal - step).astype(np.int32)
        annotation = source.draw_annotations(trajectory, step, u)
        return annotation if key == "language" else self.instructions.take(annotation)

    def _views(self, trajectory: np.ndarray, steps: np.ndarray) -> dict[str, np.ndarray]:
        source = self.dataset.source
        trajectory = np.broadcast_to(trajectory, steps.shape)
        views = {PROPRIO: self.dataset.proprio[source.frame_starts[trajectory] + steps]}
        for camera, _ in source.cameras:
            pixels = np.empty((steps.size, *source.image_size, 3), np.uint8)
            source.read_frames(trajectory.ravel(), steps.ravel(), camera, pixels)
            views[camera] = pixels.reshape(*steps.shape, *source.image_size, 3)
        return views


def training_batches(
    dataset: Dataset,
    batch_size: int,
    seed: int,
    keys: Sequence[str],
    rows: slice = slice(None),
    text: TextSource | None = None,
    instructions: InstructionTable | None = None,
) -> grain.DatasetIterator:
    """The endless training stream.

    The iterator's `get_state` and `set_state` hold its position; `close` ends its threads. Reading goes on ahead in
    `config.num_threads` threads, at most `config.prefetch` batches.
    """
    order = Order(dataset.group_sizes, dataset.weights, seed)
    source = BatchSource(dataset, order, batch_size, tuple(keys), rows, _END_OF_STREAM, text, instructions)
    return _iterate(source, dataset.config.num_threads, dataset.config.prefetch)


def validation_batches(
    dataset: Dataset,
    batch_size: int,
    keys: Sequence[str],
    rows: slice = slice(None),
    max_batches: int = 0,
    text: TextSource | None = None,
    instructions: InstructionTable | None = None,
) -> Iterator[Batch]:
    """One pass over the split, in a fixed random order with fixed goals; the last batch may be short.

    Args:
        dataset: usually the "val" split.
        batch_size: rows of a global batch.
        keys: as in `BatchSource`.
        rows: as in `BatchSource`.
        max_batches: stop after so many; 0 for the whole split.
        text, instructions: as in `BatchSource`.
    """
    order = Order((dataset.num_transitions,), (1.0,), _VALIDATION_SEED)
    length = min(dataset.num_transitions, max_batches * batch_size or dataset.num_transitions)
    # The order runs through all groups as one, so that every transition counts once whatever the weights.
    whole = dataclasses.replace(dataset, group_sizes=order.sizes, weights=order.weights)
    source = BatchSource(whole, order, batch_size, tuple(keys), rows, length, text, instructions)
    with contextlib.closing(_iterate(source, dataset.config.num_threads, dataset.config.prefetch)) as batches:
        yield from batches


def _iterate(source: BatchSource, num_threads: int, prefetch: int) -> grain.DatasetIterator:
    if not flags.FLAGS.is_parsed():
        # Grain reads absl flags of its own; in a notebook nobody has parsed them, and their defaults are right.
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
