"""The training step for the batches of the next stage of a curriculum, compiled while the present one trains."""

import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import jax
from jax.sharding import NamedSharding

from jaxvla.data.schema import Batch
from jaxvla.training.state import TrainState
from jaxvla.training.step import TrainStep


class Ahead:
    """Gives the step for batches of given shapes; a context manager, which waits for a compilation that runs.

    Args:
        train_step: from `make_train_step`.
        abstract: shapes and shardings of the state.
        sharding: of every array of a batch.
        stages: the shapes and dtypes of the global batches of each stage, in order. Batches of other shapes are
            compiled when they come.
    """

    def __init__(
        self, train_step: TrainStep, abstract: TrainState, sharding: NamedSharding, stages: Sequence[Batch]
    ) -> None:
        self._train_step, self._abstract, self._sharding = train_step, abstract, sharding
        self._stages = list(stages)
        self._thread: threading.Thread | None = None
        self._compiled: tuple[Any, Any] | None = None
        self._error: BaseException | None = None

    def step_for(self, batch: Batch) -> tuple[TrainStep, bool]:
        """The step for batches of these shapes, and whether it is compiled; waits for a compilation that runs.

        Raises:
            Exception: what the compiler raised for the batches of this stage.
        """
        self._join()
        if self._compiled is not None and self._compiled[0] == _shapes(batch):
            return self._compiled[1], True
        if self._error is not None:
            raise self._error
        return self._train_step, False

    def begin(self, batch: Batch) -> None:
        """Batches of these shapes are being trained on: begins to compile for those of the stage after theirs."""
        shapes = [_shapes(stage) for stage in self._stages]
        own = _shapes(batch)
        later = self._stages[shapes.index(own) + 1 :] if own in shapes else []
        following = next((stage for stage in later if _shapes(stage) != own), None)
        if following is not None:
            self._thread = threading.Thread(target=self._compile, args=(following,), name="Ahead", daemon=True)
            self._thread.start()

    def _compile(self, stage: Batch) -> None:
        where = self._sharding
        batch = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), dict(stage))
        try:
            self._compiled = _shapes(stage), self._train_step.lower(self._abstract, batch).compile()
        except BaseException as error:  # it belongs to who takes the step
            self._error = error

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._join()


def _shapes(batch: Batch) -> Any:
    return jax.tree.map(lambda x: (x.shape, str(x.dtype)), dict(batch))
