"""Saving a run, and going on from what was saved. The layout of a checkpoint is in jaxvla/checkpoint.py."""

import json
import logging
import pathlib
import time
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import AnyPreservationPolicy, BestN, LatestN
from orbax.checkpoint.utils import TMP_DIR_SUFFIX

from jaxvla.assets import Assets
from jaxvla.checkpoint import (
    ARRAY_ITEMS,
    FOLDER,
    JSON_ITEMS,
    damaged,
    first_line,
    not_from_orbax,
    read_assets,
    read_json,
    restore,
    saved_steps,
)
from jaxvla.config import leaves
from jaxvla.errors import CheckpointError
from jaxvla.manifest import write_manifest
from jaxvla.models.partition import replace, select
from jaxvla.parallel.distributed import is_lost
from jaxvla.training.config import CheckpointConfig
from jaxvla.training.state import TrainState

# What a resumed run may change; anything else would make it a run of another kind.
_FREE_KEYS = (
    "version",
    "train_config.num_steps",
    "train_config.log_interval",
    "train_config.eval_interval",
    "train_config.eval_batches",
    "train_config.save_interval",
    "train_config.save_dir",
    "train_config.resume_path",
    "train_config.on_nan",
    "train_config.max_bad_steps",
    "train_config.data_path",
    "train_config.backbone.path",
    "train_config.policy.path",
    "train_config.data.num_threads",
    "train_config.data.prefetch",
    "train_config.wandb.",
    "train_config.watchdog.",
    "train_config.profile.",
    "train_config.checkpoint.",
    "train_config.rollout.",
    "train_config.mesh.",
    "train_config.execution.",
    "data_config.data_path",
    "data_config.statistics_path",
    "data_config.statistics_name",
    "data_config.max_mismatched",
    "data_config.max_skipped",
    "data_config.actions.names",
    "data_config.control_frequency",
    "actions.names",
    "statistics.action_mask",  # which earlier statistics do not say; `action_mask` does
    "execution.",
    "control_frequency",
)
_ABSENT = "absent"
# What a checkpoint means that is older than the key.
_EARLIER = {
    "language.on_overflow": "error",
    "agent_kwargs.max_delay": 0,
    "agent_kwargs.action_head.max_delay": 0,
    "train_config.agent_kwargs.max_delay": 0,
    "train_config.agent_kwargs.action_head.max_delay": 0,
    "train_config.optimizer.cosine": "after_warmup",
    "train_config.optimizer.moments": "float32",
    "data_config.name": "",
    "data_config.balance": "weights",
    "data_config.max_trajectories": 0,
    "data_config.trajectory_share": 1.0,
    "data_config.subset_seed": 0,
    "data_config.drop_first": 0,
    "data_config.no_op_below": 0.0,
    "spec.several_camera_sets": False,
    "train_config.data.resize": "lanczos",
    "train_config.data.filters.max_action": 0.0,
    "train_config.data.filters.max_proprio": 0.0,
    "train_config.data.filters.max_steps": 0,
    "train_config.data.tasks.drop_language": 0.0,
    "train_config.data.tasks.drop_goal": 0.0,
    "train_config.data.tasks.rephrase": 0.0,
    "train_config.data.tasks.paraphrases": "",
    "train_config.data.learn_padding": False,
    "data_config.mixture": "",
    "data_config.leave_out": [],
    "data_config.several_encodings": False,
    "data_config.standardization": "",
    "data_config.variant": "",
    "data_config.views": ["primary", "secondary", "wrist"],
}


class Checkpointer:
    """Writes the checkpoints of a run, in the background; a context manager, which waits for the last one.

    Every process takes part. A checkpoint appears under its name only when it is complete, with its manifest, and old
    ones are removed only after that, so a kill or a full disk costs no earlier checkpoint.

    Args:
        run: the run folder.
        config: which checkpoints stay.
        assets: saved with every checkpoint.

    Raises:
        CheckpointError: the folder cannot be made.
    """

    def __init__(self, run: pathlib.Path, config: CheckpointConfig, assets: Assets) -> None:
        self._run = run
        self._assets = assets.to_json()
        best = BestN(get_metric_fn=config.score, n=config.keep_best, keep_checkpoints_without_metrics=False)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=AnyPreservationPolicy([LatestN(config.keep_last), best]),
            # The policy decides; but without best_fn Orbax would not store the metrics that it decides by.
            best_fn=config.score,
            best_mode="max",
            cleanup_tmp_directories=True,
            # Called by one process, when all have written their files, before the checkpoint gets its name.
            async_options=ocp.AsyncOptions(post_finalization_callback=self._write_manifest),
        )
        registry = ocp.handlers.DefaultCheckpointHandlerRegistry()
        for item in ARRAY_ITEMS:
            registry.add(item, ocp.args.StandardSave, ocp.StandardCheckpointHandler())
        for item in JSON_ITEMS:
            registry.add(item, ocp.args.JsonSave, ocp.JsonCheckpointHandler(f"{item}.json"))
        self._folder, self._saving = (run / FOLDER).absolute(), 0
        self._started = 0.0
        self._written: list[tuple[int, float]] = []
        try:
            self._manager = ocp.CheckpointManager(self._folder, options=options, handler_registry=registry)
        except Exception as error:  # Orbax raises this very class
            _check_metrics(self._folder)
            raise CheckpointError(f"cannot write checkpoints to {self._folder}: {first_line(error)}") from error
        logging.getLogger("absl").addFilter(not_from_orbax)

    def save(self, state: TrainState, iterator_state: Mapping[str, Any], metrics: Mapping[str, float] | None) -> None:
        """Copies `state` to the host and starts to write it; returns once the state may be donated.

        Args:
            state: goes under the name of its step.
            iterator_state: this process's data position; the next batch is that of the next step.
            metrics: of the validation and the rollout at this step, None if there was none that ranks it.

        Raises:
            CheckpointError: this or the previous save failed.
        """
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(state.served),
            train=ocp.args.StandardSave(_training_only(state)),
            data=ocp.args.JsonSave(gather(iterator_state)),
            assets=ocp.args.JsonSave(self._assets),
        )
        self._wait()  # as Orbax would; until then the step that is being saved is the one before
        self._saving, self._started = int(state.step), time.perf_counter()
        try:
            self._manager.save(self._saving, args=items, metrics=None if metrics is None else dict(metrics))
        except Exception as error:  # Orbax raises this very class
            raise self._failure(error) from error

    def written(self) -> list[tuple[int, float]]:
        """The steps of checkpoints that were completed since this was asked last, and seconds from their beginnings.

        Known to the process that completes checkpoints, the first one; none on others.
        """
        written, self._written = self._written, []
        return written

    def wait(self) -> None:
        """Waits for the save in the background.

        Raises:
            CheckpointError: it failed.
        """
        self._wait()

    def check(self) -> None:
        """Raises CheckpointError if the save in the background has failed; does not wait for one that runs."""
        if not self._manager.is_saving_in_progress():
            self._wait()

    def close(self) -> None:
        """Waits for the save in the background.

        Raises:
            CheckpointError: it failed.
        """
        try:
            self._wait()
        finally:
            self._manager.close()
            logging.getLogger("absl").removeFilter(not_from_orbax)

    def _write_manifest(self) -> None:
        write_manifest(self._folder / f"{self._saving}{TMP_DIR_SUFFIX}")
        self._written.append((self._saving, time.perf_counter() - self._started))

    def _wait(self) -> None:
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # Orbax raises this very class
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> CheckpointError:
        steps = saved_steps(self._run)
        kept = f"the checkpoints of steps {', '.join(map(str, steps))} are whole" if steps else "no checkpoint was kept"
        where = f"cannot write a checkpoint to {self._run / FOLDER}: {_cause(error)}"
        return CheckpointError(f"{where}; {kept}; make room or mend the path, then resume")

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What lost another process cannot be waited for: that one would have to take part.
        if error is None or jax.process_count() == 1 or not is_lost(error):
            self.close()


def _check_metrics(folder: pathlib.Path) -> None:
    """Raises CheckpointError for a checkpoint whose metrics, by which it stays or goes, cannot be read."""
    for path in sorted(folder.glob("*/metrics/metrics")):
        try:
            json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({first_line(error)}): remove {path.parent}, and the step counts as one "
                "without a validation"
            ) from error


def resume(folder: pathlib.Path, assets: Assets, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
    """The state that a checkpoint holds, and this process's data position in it.

    Args:
        folder: of one checkpoint, from `jaxvla.training.resuming.whole_checkpoint`.
        assets: of the run that goes on; must agree with the saved ones but for keys that may change.
        abstract: shapes and shardings wanted, on any topology (`abstract_state`).

    Raises:
        CheckpointError: the configuration differs, the checkpoint cannot be read, or it was written by another number
            of processes with different data positions.
    """
    differences = config_differences(read_assets(folder).to_json(), assets.to_json())
    if differences:
        raise CheckpointError(
            f"{folder} is of another configuration: {'; '.join(differences)}; undo these changes, or start a new run"
        )
    state = restore_state(folder, abstract)
    positions = read_json(folder, "data")
    if not (isinstance(positions, list) and positions and all(isinstance(x, dict) for x in positions)):
        raise damaged(folder, "data/data.json", f"it holds no data positions but {_short(positions)}")
    if len(positions) == jax.process_count():
        return state, positions[jax.process_index()]
    if any(position != positions[0] for position in positions):
        raise CheckpointError(
            f"{folder} holds {len(positions)} different data positions; resume it with {len(positions)} processes, "
            f"not {jax.process_count()}"
        )
    return state, positions[0]


def restore_state(folder: pathlib.Path, abstract: TrainState) -> TrainState:
    """Reads a state straight into the shardings of `abstract`, which need not be those that it was saved from.

    Raises:
        CheckpointError: it does not fit, or cannot be read.
    """
    items = restore(folder, {"params": abstract.served, "train": _training_only(abstract)})
    served, train = items["params"], items["train"]
    params, ema = served, None
    if abstract.ema is not None:
        params, ema = replace(served, train["params"]), select(served, abstract.ema)
    return TrainState(train["step"], params, train["opt_state"], train["rng"], ema)


def _training_only(state: TrainState) -> dict[str, Any]:
    """What serving does not read; with an average, which is what is served, also the parameters that it is of."""
    train = {"opt_state": state.opt_state, "step": state.step, "rng": state.rng}
    return train if state.ema is None else train | {"params": select(state.params, state.ema)}


def config_differences(saved: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """What must not differ between two `Assets.to_json()` and does: each dataset, or key as "KEY: OLD -> NEW"."""
    before, after = saved["datasets"], new["datasets"]
    if before.keys() != after.keys():
        # With or without a name of its own: a single dataset is known by what it is, and may have moved.
        gone = [f"the dataset {name!r} is gone" for name in before if name not in after]
        added = [f"the dataset {name!r} was not there" for name in after if name not in before]
        return gone + added
    old, new = leaves(saved), leaves(new)
    pairs = {
        key: (old.get(key, _EARLIER.get(key, _ABSENT)), new.get(key, _EARLIER.get(key, _ABSENT)))
        for key in sorted(old.keys() | new.keys())
    }
    return [
        f"{key}: {_short(before)} -> {_short(after)}"
        for key, (before, after) in pairs.items()
        if before != after and not _may_change(key, saved["datasets"])
    ]


def _may_change(key: str, datasets: Iterable[str]) -> bool:
    """Whether a resumed run may have another value; of one of several datasets what any dataset may."""
    for name in datasets:
        for within, without in ((f"data_config.datasets.{name}.", "data_config."), (f"datasets.{name}.", "")):
            if key.startswith(within):
                key = without + key.removeprefix(within)
    return any(key == free or (free.endswith(".") and key.startswith(free)) for free in _FREE_KEYS)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def gather(value: Mapping[str, Any]) -> list[Any]:
    """The JSON value of every process, in their order, on every process."""
    if jax.process_count() == 1:
        return [dict(value)]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    sizes = multihost_utils.process_allgather(np.array(len(data)))
    padded = multihost_utils.process_allgather(np.pad(data, (0, int(sizes.max()) - len(data))))
    return [json.loads(row[:size].tobytes()) for row, size in zip(padded, sizes)]


def _cause(error: Exception) -> str:
    """The reason that the system gave, without the file names that Orbax and TensorStore wrap around it."""
    return str(error).strip().splitlines()[0].rsplit(": ", 1)[-1].split(" [")[0]
