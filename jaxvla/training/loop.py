"""The one training loop."""

import contextlib
import dataclasses
import functools
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding

from jaxvla.agents.agent import Agent
from jaxvla.assets import Assets
from jaxvla.checkpoint import FOLDER, METRICS_FILE, damaged, first_line, is_run_folder
from jaxvla.config import local_path
from jaxvla.data.schema import Batch
from jaxvla.errors import CheckpointError, ConfigError, TrainingError
from jaxvla.ops.augmentation import augment_batch
from jaxvla.parallel.feed import BatchIterator, DeviceFeed
from jaxvla.parallel.sharding import Rules, batch_sharding, check_batch_size
from jaxvla.training.checkpointer import Checkpointer, resume
from jaxvla.training.config import SUCCESS, TrainConfig
from jaxvla.training.interrupt import Interrupt
from jaxvla.training.interval import Interval
from jaxvla.training.loggers import Loggers
from jaxvla.training.optimizer import check_learning_rates, make_optimizer
from jaxvla.training.plots import plot_losses
from jaxvla.training.progress import Progress
from jaxvla.training.resuming import candidates, whole_checkpoint
from jaxvla.training.rollouts import Play, Played, Rollouts
from jaxvla.training.state import Pretrained, TrainState, abstract_state, create_state, state_shardings
from jaxvla.training.step import TrainStep, make_eval_step, make_train_step
from jaxvla.training.throughput import Throughput
from jaxvla.training.validation import evaluate


@dataclasses.dataclass(frozen=True)
class Summary:
    """How a run ended.

    Attributes:
        step: the last one.
        interrupted: whether it was asked to stop before its last step.
        train_loss: averaged over the last log interval.
        validation: the metrics of the last pass over the validation data; empty if there was none.
        rollout: the last one; None if there was none, and on other processes than 0.
        checkpoint: the folder of the last checkpoint.
        plot: the loss curves.
    """

    step: int
    interrupted: bool
    train_loss: float
    validation: dict[str, float]
    rollout: Played | None
    checkpoint: pathlib.Path
    plot: pathlib.Path

    @property
    def mse_ratio(self) -> float | None:
        """Validation mse over that of always predicting the mean action; None if there was no validation."""
        if not self.validation:
            return None
        return self.validation["mse"] / max(self.validation["mse_mean_action"], 1e-12)


def run_folder(config: TrainConfig, name: str = "") -> pathlib.Path:
    """The folder that a run writes to: the one that it resumes, else a new one, `save_dir/<name>_<date>_<time>` (UTC).

    Args:
        config: gives `resume_path` and `save_dir`.
        name: of the run; the agent's where it is empty.

    Raises:
        CheckpointError: there is nothing to resume, or the folder cannot be made.
    """
    if config.resume_path:
        checkpoint = candidates(config.resume_path)[0]
        if is_run_folder(config.resume_path):
            return checkpoint.parents[1]
    root = local_path(config.save_dir).absolute()
    started, copy = int(time.time()), 0
    if jax.process_index() == 0:
        while not _make_folder(_run_name(root, name or config.agent, started, copy)):
            copy += 1
    if jax.process_count() > 1:
        started, copy = multihost_utils.broadcast_one_to_all(np.array([started, copy], np.uint32)).tolist()
    return _run_name(root, name or config.agent, started, copy)


def check_paths(config: TrainConfig) -> None:
    """Says at once, before data is opened, that there is nothing to resume or no place for the run folder.

    Raises:
        CheckpointError: the one or the other.
    """
    if config.resume_path:
        candidates(config.resume_path)
    root = local_path(config.save_dir).absolute()
    there = next(folder for folder in (root, *root.parents) if os.path.lexists(folder))
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "is no folder that can be written"
        raise CheckpointError(f"cannot make a run folder in {root}: {there} {reason}; set config.save_dir to one")


def _run_name(root: pathlib.Path, name: str, started: int, copy: int) -> pathlib.Path:
    stamp = time.strftime("%Y%m%d_%H%M%S", time.gmtime(started))
    return root / (f"{name}_{stamp}" + (f"_{copy}" if copy else ""))


def _make_folder(path: pathlib.Path) -> bool:
    """Makes `path`; False if another run has it already."""
    try:
        path.mkdir(parents=True)
    except FileExistsError:
        return False
    except OSError as error:
        raise CheckpointError(f"cannot make the run folder {path}: {first_line(error)}") from error
    return True


def train(
    config: TrainConfig,
    agent: Agent,
    mesh: Mesh,
    batches: BatchIterator,
    validation: Callable[[int], Iterator[Batch]],
    assets: Assets,
    run: pathlib.Path,
    rules: Rules = (),
    pretrained: Pretrained | None = None,
    play: Play | None = None,
    drawn: Callable[[int, int], dict[str, float]] = lambda start, stop: {},
) -> Summary:
    """Trains `agent` until `config.num_steps`, or until it is interrupted, and leaves a checkpoint.

    Writes metrics.jsonl, tensorboard/, checkpoints/ and loss.png to the run folder. With `config.resume_path` it goes
    on from that checkpoint, bit for bit as if it had not stopped. Call it in the main thread (it listens to signals),
    and on every process of the job.

    Args:
        config: see `TrainConfig`.
        agent: what to train.
        mesh: from `make_mesh(config.mesh)`.
        batches: this process's rows (`process_rows(batch_sharding(mesh), config.batch_size)`) of endless training data.
        validation: gives, after so many steps, one pass over the validation data, rows likewise; see
            `validation.evaluate`.
        assets: saved with every checkpoint.
        run: the run folder, from `run_folder`.
        rules: where parameters live, see `tree_shardings`.
        pretrained: parameters that a new run reads from files, see `create_state`.
        play: the rollouts of `config.rollout`, see `Rollouts`; None for none.
        drawn: (start, stop) -> by name the share of each dataset in the batches between; logged as data/share/NAME.

    Raises:
        ConfigError: sizes that do not fit, or nothing left to do.
        CheckpointError: a checkpoint cannot be read or written.
        TrainingError: the loss is not finite, or the data ended.
    """
    sharding = batch_sharding(mesh)
    state, train_step = _prepare(config, agent, mesh, batches, assets, rules, pretrained)
    start = int(state.step)
    with contextlib.ExitStack() as stack:
        loop = _Loop(
            config=config,
            state=state,
            train_step=train_step,
            validate=_validator(config, agent, sharding, validation, assets),
            interrupt=stack.enter_context(Interrupt()),
            loggers=stack.enter_context(Loggers(run, start, config.wandb, assets.train_config)),
            checkpointer=stack.enter_context(Checkpointer(run, config.checkpoint, assets)),
            progress=stack.enter_context(Progress(start, config.num_steps)),
            feed=stack.enter_context(DeviceFeed(batches, sharding)),
            interval=Interval(config.batch_size),
            rollouts=Rollouts(config.rollout, play),
            drawn=drawn,
            throughput=Throughput(agent, make_optimizer(config.optimizer, agent.frozen_modules), mesh),
            logged=start,
        )
        interrupted = loop.run(start)
    return _summary(run, loop, interrupted)


def _prepare(
    config: TrainConfig,
    agent: Agent,
    mesh: Mesh,
    batches: BatchIterator,
    assets: Assets,
    rules: Rules,
    pretrained: Pretrained | None,
) -> tuple[TrainState, TrainStep]:
    """The state to go on from, and the step; `batches` are at their place."""
    check_batch_size(config.batch_size // config.accumulate_steps, mesh)
    optimizer, ema = make_optimizer(config.optimizer, agent.frozen_modules), config.ema_decay > 0
    abstract = abstract_state(agent, optimizer, mesh, rules, ema=ema)
    check_learning_rates(config.optimizer, abstract.params, agent.frozen_modules)
    _check_best_metric(config, agent, abstract.params)
    if config.resume_path:
        state = _resume(config, batches, assets, abstract)
    else:
        state = create_state(agent, optimizer, config.seed, mesh, rules, ema=ema, pretrained=pretrained)
    train_step = make_train_step(
        agent,
        optimizer,
        functools.partial(augment_batch, config=config.augment),
        state_shardings(abstract),
        batch_sharding(mesh),
        accumulate_steps=config.accumulate_steps,
        ema_decay=config.ema_decay,
    )
    return state, train_step


def _resume(config: TrainConfig, batches: BatchIterator, assets: Assets, abstract: TrainState) -> TrainState:
    """The state of the checkpoint at `config.resume_path`; `batches` go to their place in it."""
    folder = whole_checkpoint(config.resume_path)
    state, position = resume(folder, assets, abstract)
    if int(state.step) >= config.num_steps:
        raise ConfigError(
            f"{config.resume_path} is at step {int(state.step)} of {config.num_steps}: raise config.num_steps"
        )
    try:
        batches.set_state(position)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise damaged(folder, "data/data.json", f"no position of this data: {first_line(error)}") from error
    return state


def _validator(
    config: TrainConfig,
    agent: Agent,
    sharding: NamedSharding,
    validation: Callable[[int], Iterator[Batch]],
    assets: Assets,
) -> Callable[[Any, int], dict[str, float]]:
    """Maps parameters and their step to validation metrics; the baseline is the mean action of the training data."""
    eval_step = make_eval_step(agent, assets.mean_action(), sharding)
    size, seed = config.batch_size, config.seed
    return lambda params, step: evaluate(eval_step, params, validation(step), size, sharding, seed)


def _check_best_metric(config: TrainConfig, agent: Agent, params: Any) -> None:
    """Fails now, not at the first validation or rollout, if there is no such metric."""
    best = config.checkpoint.best_metric
    if best == SUCCESS:
        if not config.rollout.world:
            raise ConfigError(f"config.checkpoint.best_metric {best!r} is of rollouts: set config.rollout.world")
        return
    batch = agent.spec.fake_batch(1, agent.batch_keys, np.random.default_rng(0))
    metrics = jax.eval_shape(agent.evaluate, params, batch, jax.random.key(0))
    if best not in metrics:
        raise ConfigError(
            f"config.checkpoint.best_metric {best!r} is no validation metric of {config.agent}; there are "
            f"{', '.join(sorted(metrics))}, and {SUCCESS} with config.rollout"
        )


def _summary(run: pathlib.Path, loop: "_Loop", interrupted: bool) -> Summary:
    plot = run / "loss.png"
    if jax.process_index() == 0:
        plot_losses(run / METRICS_FILE, plot)
    step = int(loop.state.step)
    last = loop.rollouts.last
    return Summary(step, interrupted, loop.train_loss, loop.metrics, last, run / FOLDER / str(step), plot)


@dataclasses.dataclass
class _Loop:
    """The moving parts of a run, and what happens at its intervals."""

    config: TrainConfig
    state: TrainState
    train_step: TrainStep
    validate: Callable[[Any, int], dict[str, float]]
    interrupt: Interrupt
    loggers: Loggers
    checkpointer: Checkpointer
    progress: Progress
    feed: DeviceFeed
    interval: Interval
    rollouts: Rollouts
    drawn: Callable[[int, int], dict[str, float]]
    throughput: Throughput
    logged: int
    train_loss: float = math.nan
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    validated_at: int = -1
    shapes: Any = None

    def run(self, start: int) -> bool:
        """Takes the steps after `start`; returns whether it was asked to stop before the last one."""
        config = self.config
        for step in range(start + 1, config.num_steps + 1):
            self._step(step)
            last = step == config.num_steps
            log = last or step % config.log_interval == 0
            # The processes of a job exchange their flags, which costs a round trip, so not at every step.
            stop = (log or jax.process_count() == 1) and self.interrupt.agreed()
            if log or stop:
                self._log(step)
            if last or (step % config.eval_interval == 0 and not stop):
                self._validate(step)
            if self.rollouts.due(step, last) and (last or not stop):
                stop |= not self._roll_out(step)
            if last or stop or step % config.save_interval == 0:
                self._save(step)
            if stop and not last:
                return True
        return False

    def _step(self, step: int) -> None:
        try:
            batch = next(self.feed)
        except StopIteration:
            raise TrainingError(
                f"the training data ended before step {step}; a training loader must be endless"
            ) from None
        shapes = jax.tree.map(lambda x: x.shape, batch)
        compiles = shapes != self.shapes
        if compiles and not self.interval.empty:
            # Batches of another shape: a new stage of the curriculum. What was not logged yet belongs to the old one.
            self._log(step - 1)
        if compiles:
            self.throughput.count(self.state.params, batch)
        self.shapes = shapes
        started = time.perf_counter()
        with jax.transfer_guard("disallow"):
            self.state, metrics = self.train_step(self.state, batch)
        self.interval.add(step, metrics)
        if compiles:
            self.interval.leave_out(self.feed.waited)
            seconds = time.perf_counter() - started
            self.loggers.write(step, {"timer/compile_s": seconds})
            self.progress.say(f"step {step}, with compilation: {seconds:.1f} s")
        self.progress.advance()

    def _log(self, step: int) -> None:
        values = self.interval.fetch(self.feed.waited)
        self.train_loss = values["training/loss"]
        values |= {f"data/share/{name}": share for name, share in self.drawn(self.logged, step).items()}
        values |= self.throughput.rates(values)
        self.logged = step
        self.loggers.write(step, values)
        self.progress.training(step, values)
        self.checkpointer.check()

    def _validate(self, step: int) -> None:
        with self.interval.paused():
            start = time.perf_counter()
            self.metrics, self.validated_at = self.validate(self.state.served, step), step
            seconds = time.perf_counter() - start
            values = {f"validation/{name}": value for name, value in self.metrics.items()}
            self.loggers.write(step, values | {"timer/validation_s": seconds})
            shown = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
            self.progress.say(f"validation at step {step}: {shown}  ({seconds:.1f} s)")

    def _roll_out(self, step: int) -> bool:
        """Plays with the served parameters; whether it came to its end."""
        with self.interval.paused():
            self.interval.check_finite()
            values = self.rollouts.play(self.state.served, step, self._played)
            if values:
                self.loggers.write(step, values)
                self.progress.say(f"rollout at step {step}: {self.rollouts.last}  ({values['timer/rollout_s']:.1f} s)")
            return bool(values)

    def _played(self, successes: int, played: int, episodes: int) -> bool:
        """After an episode of a rollout; whether to go on."""
        self.progress.rollout(successes, played, episodes)
        return not self.interrupt.requested

    def _save(self, step: int) -> None:
        with self.interval.paused():
            self.interval.check_finite()
            start = time.perf_counter()
            self.checkpointer.save(self.state, self.feed.state, self._ranking(step))
            self.loggers.write(step, {"timer/save_ms": 1000 * (time.perf_counter() - start)})

    def _ranking(self, step: int) -> dict[str, float] | None:
        """What was measured at this step; None without that by which checkpoints are ranked."""
        measured = self.metrics if self.validated_at == step else {}
        measured = measured | (self.rollouts.metrics if self.rollouts.step == step else {})
        return measured if math.isfinite(measured.get(self.config.checkpoint.best_metric, math.nan)) else None
