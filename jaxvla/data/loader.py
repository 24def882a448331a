"""Batches from a mixture of datasets: a Grain pipeline whose elements are whole batches.

Batch i of the stream depends on (mixture, seed, i) and nothing else: the order is computed (order.py), the random
numbers are counted (Philox), and every process makes its own rows of it. So data is the same for any number of threads
and processes, and resumes from one integer. Reading is vectorised over the rows of each dataset in a batch: one call
per sample would be the bottleneck.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import grain
import numpy as np
from absl import flags

from jaxvla.data.mixture import Mixture
from jaxvla.data.order import Order, uniforms
from jaxvla.data.rows import Rows, scatter
from jaxvla.data.schema import BATCH_KEYS, CAMERA_MASK, PROPRIO, Batch, BatchSpec
from jaxvla.data.text.instructions import InstructionTable
from jaxvla.data.transforms.tasks import TASK_UNIFORMS, TaskConfig
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
            trajectory: int64 [b], numbers through all datasets, end to end.
            step: int64 [b], transitions of these trajectories as they are stored, those that a run drops counted.
            instruction: int32 [b], entries of the mixture's `annotations()`; -1 where unlabelled.
            uniforms: float64 [b, n], random numbers of these samples.
        """


@dataclasses.dataclass(frozen=True, eq=False)
class BatchSource:
    """Random access to the batches of a stream.

    Args:
        mixture: what to draw from.
        order: the stream of transitions, over groups that go through all datasets, end to end.
        batch_size: rows of a global batch.
        keys: the top-level keys of a batch to make.
        rows: which rows of each global batch to make, such as `parallel.feed.process_rows` says.
        length: how many transitions the stream has; the last batch may be short.
        text: makes the batch key `text`; None where it is not asked for.
        instructions: has the batch key `instruction` of every annotation; None where it is not asked for.
        tasks: what becomes of the tasks; nothing in validation.
    """

    mixture: Mixture
    order: Order
    batch_size: int
    keys: tuple[str, ...]
    rows: slice | np.ndarray
    length: int
    text: TextSource | None = None
    instructions: InstructionTable | None = None
    tasks: TaskConfig = dataclasses.field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        if "text" in self.keys and self.text is None:
            raise ConfigError("batches with texts need a source of texts: pass `text`")
        if "instruction" in self.keys and self.instructions is None:
            raise ConfigError("batches with instructions need a table of them: pass `instructions`")
        unknown = set(self.keys) - set(BATCH_KEYS)
        if unknown:
            raise ConfigError(f"no batch keys {sorted(unknown)}; there are {', '.join(BATCH_KEYS)}")
        sizes = np.array(self.order.sizes)
        object.__setattr__(self, "_group_starts", np.cumsum(sizes) - sizes)
        object.__setattr__(self, "_spec", self.mixture.spec)

    def __len__(self) -> int:
        return -(-self.length // self.batch_size)

    def __getitem__(self, i: int) -> Batch:
        """This process's rows of batch `i`; keys, shapes and dtypes as in schema.py."""
        start = i * self.batch_size
        positions = start + np.arange(self.batch_size)[self.rows]
        positions = positions[positions < self.length]
        random = self._uniforms(i, 3, len(positions), stream=0)
        group, index = self.order.at(positions)
        number, transition = self.mixture.locate(self._group_starts[group] + index)
        parts = [(rows, self._of(n, transition[rows], random[rows])) for n, rows in _members(number)]
        if self.tasks.active:
            own = self._uniforms(i, TASK_UNIFORMS, len(positions), stream=2)
            parts = [(rows, part.augmented(self.tasks, own[rows])) for rows, part in parts]
        batch = {}
        for key in self.keys:
            if key == "text":
                own = self._uniforms(i, TEXT_UNIFORMS, len(positions), stream=1)
                trajectory = scatter([(rows, part.trajectories()) for rows, part in parts])
                step = scatter([(rows, part.stored_steps()) for rows, part in parts])
                batch[key] = self.text(i, trajectory, step, _join("language", parts, self._spec), own)
            elif key == "instruction":
                batch[key] = self.instructions.take(_join("language", parts, self._spec))
            else:
                batch[key] = _join(key, parts, self._spec)
        return batch

    def _uniforms(self, i: int, columns: int, count: int, stream: int) -> np.ndarray:
        """The random numbers of this process's `count` rows of batch `i`: [count, columns]."""
        return uniforms(self.order.seed, i, (self.batch_size, columns), stream)[self.rows][:count]

    def _of(self, number: int, transition: np.ndarray, random: np.ndarray) -> Rows:
        """The rows of one dataset, by what was drawn of it."""
        starts = int(self.mixture.trajectory_starts[number]), int(self.mixture.text_starts[number])
        return Rows.draw(self.mixture.members[number].dataset, number, starts, transition, random)


def _members(number: np.ndarray) -> list[tuple[int, np.ndarray]]:
    """The members in a batch, each with its rows; the first where there is no row, so that shapes are known."""
    return [(n, np.flatnonzero(number == n)) for n in np.unique(number).tolist() or [0]]


def _join(key: str, parts: Sequence[tuple[np.ndarray, Rows]], spec: BatchSpec) -> Any:
    """The value of a batch key from the rows of each dataset: 0 where a dataset lacks a dimension, black a camera."""
    if key not in ("observations", "next_observations", "goals"):
        width = spec.action_dim if key == "actions" else None
        return scatter([(rows, part.make(key, spec)) for rows, part in parts], width)
    made = [(rows, part.views(key)) for rows, part in parts]
    joined = {PROPRIO: scatter([(rows, views[PROPRIO]) for rows, views in made], spec.proprio_dim)}
    if spec.several_camera_sets:
        masks = [(rows, np.array([camera in views for camera in spec.cameras])) for rows, views in made]
        lead = made[0][1][PROPRIO].shape[1:-1]
        joined[CAMERA_MASK] = scatter(
            [(rows, np.broadcast_to(mask, (len(rows), *lead, len(mask)))) for rows, mask in masks]
        )
    for camera in spec.cameras:
        black = np.zeros((1, *spec.size_of(camera), 3), np.uint8)
        pixels = [
            (rows, views.get(camera, np.broadcast_to(black, (*views[PROPRIO].shape[:-1], *black.shape[1:]))))
            for rows, views in made
        ]
        joined[camera] = scatter(pixels)
    return joined


def training_batches(
    mixture: Mixture,
    batch_size: int,
    seed: int,
    keys: Sequence[str],
    rows: slice | np.ndarray = slice(None),
    text: TextSource | None = None,
    instructions: InstructionTable | None = None,
) -> grain.DatasetIterator:
    """The endless training stream.

    The iterator's `get_state` and `set_state` hold its position; `close` ends its threads. Reading goes on ahead in
    `config.num_threads` threads, at most `config.prefetch` batches.
    """
    order = mixture.order(seed)
    tasks = mixture.config.tasks
    source = BatchSource(mixture, order, batch_size, tuple(keys), rows, _END_OF_STREAM, text, instructions, tasks)
    return _iterate(source, mixture.config.num_threads, mixture.config.prefetch)


def validation_batches(
    mixture: Mixture,
    batch_size: int,
    keys: Sequence[str],
    rows: slice | np.ndarray = slice(None),
    max_batches: int = 0,
    text: TextSource | None = None,
    instructions: InstructionTable | None = None,
) -> Iterator[Batch]:
    """One pass over the split, in a fixed random order with fixed goals; the last batch may be short.

    Args:
        mixture: usually the "val" split.
        batch_size: rows of a global batch.
        keys: as in `BatchSource`.
        rows: as in `BatchSource`.
        max_batches: stop after so many; 0 for the whole split.
        text, instructions: as in `BatchSource`.
    """
    # The order runs through all groups as one, so that every transition counts once whatever the weights.
    order = Order((mixture.num_transitions,), (1.0,), _VALIDATION_SEED)
    length = min(mixture.num_transitions, max_batches * batch_size or mixture.num_transitions)
    source = BatchSource(mixture, order, batch_size, tuple(keys), rows, length, text, instructions)
    with contextlib.closing(_iterate(source, mixture.config.num_threads, mixture.config.prefetch)) as batches:
        yield from batches


def _iterate(source: BatchSource, num_threads: int, prefetch: int) -> grain.DatasetIterator:
    if not flags.FLAGS.is_parsed():
        # Grain reads absl flags of its own; in a notebook nobody has parsed them, and their defaults are right.
        flags.FLAGS.mark_as_parsed()
    options = grain.ReadOptions(num_threads=num_threads, prefetch_buffer_size=prefetch)
    return iter(grain.MapDataset.source(source).to_iter_dataset(options))
