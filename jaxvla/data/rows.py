"""The rows that one dataset has in a batch, made by vectorised calls, and how rows of several datasets become a batch.

Axis letters as in the schema; n are the rows of one dataset.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from jaxvla.data.dataset import Dataset
from jaxvla.data.schema import PROPRIO, BatchSpec
from jaxvla.data.transforms.actions import chunk_steps, history_steps
from jaxvla.data.transforms.tasks import TaskConfig


@dataclasses.dataclass(frozen=True, eq=False)
class Rows:
    """Transitions of one dataset, with all that was drawn for them.

    Attributes:
        dataset: whose.
        number: of the dataset in its mixture.
        starts: where the trajectories and the annotations of the dataset begin among those of the mixture.
        trajectory, step, length: int64 [n], which transitions, and of how long trajectories.
        goal: int64 [n], the frame that is the goal.
        annotation: int32 [n], of the dataset's annotations; -1 for none.
        without_goal: bool [n], which of them show no goal; None for none of them.
    """

    dataset: Dataset
    number: int
    starts: tuple[int, int]
    trajectory: np.ndarray
    step: np.ndarray
    length: np.ndarray
    goal: np.ndarray
    annotation: np.ndarray
    without_goal: np.ndarray | None = None

    @classmethod
    def draw(
        cls, dataset: Dataset, number: int, starts: tuple[int, int], transition: np.ndarray, uniforms: np.ndarray
    ) -> "Rows":
        """Of transitions int64 [n], rows of the dataset's `actions`; uniforms [n, 3] choose goals and annotations."""
        trajectory, step = dataset.source.locate(transition)
        length = dataset.source.lengths[trajectory]
        goal = dataset.config.goal_relabeling.draw(step, length, uniforms[:, :2])
        annotation = dataset.source.draw_annotations(trajectory, step, uniforms[:, 2])
        return cls(dataset, number, starts, trajectory, step, length, goal, annotation)

    def augmented(self, tasks: TaskConfig, uniforms: np.ndarray) -> "Rows":
        """These rows with other tasks; uniforms [n, TASK_UNIFORMS] choose which."""
        told, rephrasings = self.annotation, self.dataset.source.rephrasings
        if rephrasings is not None:
            told = rephrasings.draw(told, tasks.rephrase, uniforms[:, 1:])
        told = np.where(tasks.drops_language(uniforms), np.int32(-1), told)
        without_goal = tasks.drops_goal(uniforms) if tasks.drop_goal else None
        return dataclasses.replace(self, annotation=told, without_goal=without_goal)

    def trajectories(self) -> np.ndarray:
        """int64 [n], numbers among the trajectories of the mixture."""
        return self.trajectory + self.starts[0]

    def stored_steps(self) -> np.ndarray:
        """int32 [n], the steps of the stored episodes that the transitions begin at."""
        source = self.dataset.source
        return source.stored_steps(source.action_starts[self.trajectory] + self.step)

    def language(self) -> np.ndarray:
        """The batch key `language`: int32 [n], of the mixture's annotations; -1 for none."""
        return np.where(self.annotation < 0, -1, self.annotation + np.int32(self.starts[1])).astype(np.int32)

    def make(self, key: str, spec: BatchSpec) -> np.ndarray:
        """The value of a batch key that is one array, with the dataset's own action dimensions."""
        source, horizon = self.dataset.source, self.dataset.config.action_horizon
        start = source.action_starts[self.trajectory]
        match key:
            case "actions":
                return self.dataset.actions[start[:, None] + chunk_steps(self.step, self.length, horizon)]
            case "action_pad_mask":
                return np.arange(horizon) < self.dataset.learned_ahead(start + self.step)[:, None]
            case "action_dim_mask":
                return self._repeat(np.arange(spec.action_dim) < self.dataset.actions.shape[1])
            case "rewards":
                return np.where(self.goal - self.step <= 1, 0, -1).astype(np.float32)
            case "masks":
                # Demonstrations are cut off, they do not terminate: every return bootstraps, as in bridge_data_v2.
                return np.ones(len(self.step), np.float32)
            case "goal_distances":
                return (self.goal - self.step).astype(np.int32)
            case "dataset":
                return np.full(len(self.step), self.number, np.int32)
            case "language":
                return self.language()
        raise ValueError(f"{key!r} is no batch key of one array")

    def views(self, key: str) -> dict[str, np.ndarray]:
        """The value of "observations", "next_observations" or "goals": the dataset's own cameras and proprio."""
        if key == "goals":
            return self._views(self.trajectory, self.goal, self.without_goal)
        frame = self.step if key == "observations" else self.step + 1
        return self._views(self.trajectory[:, None], history_steps(frame, self.dataset.config.obs_horizon))

    def _views(
        self, trajectory: np.ndarray, steps: np.ndarray, hidden: np.ndarray | None = None
    ) -> dict[str, np.ndarray]:
        """The views of frames; those that are hidden are black and 0, and are not read."""
        if hidden is not None:
            shown = np.flatnonzero(~hidden)
            views = self._views(trajectory[shown], steps[shown])
            return {name: _filled(x, shown, len(steps)) for name, x in views.items()}
        source = self.dataset.source
        trajectory = np.broadcast_to(trajectory, steps.shape)
        views = {PROPRIO: self.dataset.proprio[source.frame_starts[trajectory] + steps]}
        for camera, _ in source.cameras:
            size = source.size_of(camera)
            pixels = np.empty((steps.size, *size, 3), np.uint8)
            source.read_frames(trajectory.ravel(), steps.ravel(), camera, pixels)
            views[camera] = pixels.reshape(*steps.shape, *size, 3)
        return views

    def _repeat(self, row: np.ndarray) -> np.ndarray:
        return np.tile(row, (len(self.step), 1))


def _filled(values: np.ndarray, rows: np.ndarray, count: int) -> np.ndarray:
    """Values [n, ...] at n of `count` rows, 0 at the others."""
    filled = np.zeros((count, *values.shape[1:]), values.dtype)
    filled[rows] = values
    return filled


def scatter(parts: Sequence[tuple[np.ndarray, np.ndarray]], width: int | None = None) -> np.ndarray:
    """The rows of several datasets as one array.

    Args:
        parts: at least one; which rows of the batch, int64 [n], and their values [n, ...]. Together they fill a batch.
        width: of the last axis, which values that are narrower fill from the left, with 0 behind; None for their own.

    Returns:
        [b, ...]; the very values, where they are one part and wide enough.
    """
    values = parts[0][1]
    if len(parts) == 1 and width in (None, values.shape[-1]):
        return values
    shape = values.shape[1:] if width is None else (*values.shape[1:-1], width)
    joined = np.zeros((sum(len(rows) for rows, _ in parts), *shape), values.dtype)
    for rows, values in parts:
        if width is None:
            joined[rows] = values
        else:
            joined[rows, ..., : values.shape[-1]] = values
    return joined
