"""The one training loop."""

import contextlib
import dataclasses
import math
import pathlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxvla.agents.agent import Agent
from jaxvla.assets import Assets
from jaxvla.checkpoint import FOLDER, METRICS_FILE
from jaxvla.data.schema import Batch
from jaxvla.errors import TrainingError
from jaxvla.parallel.feed import BatchIterator, DeviceFeed
from jaxvla.parallel.sharding import Rules, batch_sharding
from jaxvla.training.ahead import Ahead
from jaxvla.training.checkpointer import Checkpointer
from jaxvla.training.config import TrainConfig
from jaxvla.training.guard import Guard
from jaxvla.training.interrupt import Interrupt
from jaxvla.training.interval import Interval
from jaxvla.training.loggers import Loggers
from jaxvla.training.optimizer import make_optimizer
from jaxvla.training.plots import plot_losses
from jaxvla.training.preparing import prepare, validator
from jaxvla.training.progress import Progress
from jaxvla.training.rollouts import Play, Played, Rollouts
from jaxvla.training.state import Pretrained, TrainState
from jaxvla.training.step import Metrics, TrainStep
from jaxvla.training.throughput import Throughput
from jaxvla.training.tracer import Tracer
from jaxvla.training.watchdog import Watchdog

# Processes ask each other so often whether one of them was told to stop.
_STOPS_WITHIN_MS = 5000


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
    stages: Sequence[Batch] = (),
) -> Summary:
    """Trains `agent` until `config.num_steps`, or until it is interrupted, and leaves a checkpoint.

    Writes metrics.jsonl, tensorboard/, checkpoints/ and loss.png to the run folder. With `config.resume_path` it goes
    on from there, bit for bit. Call it in the main thread (it listens to signals), on every process of the job.

    Args:
        config, agent: how to train, and what.
        mesh: from `make_mesh(config.mesh)`.
        batches: this process's rows (`process_rows(batch_sharding(mesh), config.batch_size)`) of endless training data.
        validation: gives, after so many steps, one pass over the validation data, rows likewise; see `evaluate`.
        assets: saved with every checkpoint.
        run: the run folder, from `run_folder`.
        rules: where parameters live, see `tree_shardings`.
        pretrained: parameters that a new run reads from files, see `create_state`.
        play: the rollouts of `config.rollout`, see `Rollouts`; None for none.
        drawn: the share of each dataset in the batches after one step, up to another; logged as data/share/NAME.
        stages: shapes and dtypes of the global batches of each stage of a curriculum, see `Ahead`.

    Raises:
        ConfigError: sizes that do not fit, or nothing left to do.
        CheckpointError: a checkpoint cannot be read or written.
        TrainingError: a loss is not finite and `config.on_nan` is not to go on, or the data ended.
    """
    state, train_step, abstract = prepare(config, agent, mesh, batches, assets, rules, pretrained)
    start, sharding = int(state.step), batch_sharding(mesh)
    with contextlib.ExitStack() as stack:
        loop = _Loop(
            config=config,
            state=state,
            ahead=stack.enter_context(Ahead(train_step, abstract, sharding, stages)),
            validate=validator(config, agent, sharding, validation, assets),
            interrupt=stack.enter_context(Interrupt()),
            loggers=stack.enter_context(Loggers(run, start, config.wandb, assets.train_config)),
            checkpointer=stack.enter_context(Checkpointer(run, config.checkpoint, assets)),
            progress=stack.enter_context(Progress(start, config.num_steps)),
            feed=stack.enter_context(DeviceFeed(batches, sharding)),
            interval=Interval(config.batch_size),
            guard=Guard(config, run, abstract),
            watchdog=stack.enter_context(Watchdog(config.watchdog)),
            tracer=stack.enter_context(Tracer(config.profile, run, start)),
            rollouts=Rollouts(config.rollout, play),
            drawn=drawn,
            throughput=Throughput(agent, make_optimizer(config.optimizer, agent.frozen_modules), mesh),
        )
        interrupted = loop.run(start)
    return _summary(run, loop, interrupted)


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
    ahead: Ahead
    validate: Callable[[Any, int], dict[str, float]]
    interrupt: Interrupt
    loggers: Loggers
    checkpointer: Checkpointer
    progress: Progress
    feed: DeviceFeed
    interval: Interval
    guard: Guard
    watchdog: Watchdog
    tracer: Tracer
    rollouts: Rollouts
    drawn: Callable[[int, int], dict[str, float]]
    throughput: Throughput
    logged: int = 0
    train_loss: float = math.nan
    metrics: dict[str, float] = dataclasses.field(default_factory=dict)
    validated_at: int = -1
    shapes: Any = None
    take: TrainStep | None = None
    # Steps between two questions whether to stop.
    patience: int = 1
    stood_ms: float = 0.0

    def run(self, start: int) -> bool:
        """Takes the steps after `start`; returns whether it was asked to stop before the last one."""
        config, self.logged = self.config, start
        for step in range(start + 1, config.num_steps + 1):
            self._step(step)
            last = step == config.num_steps
            log = last or step % config.log_interval == 0
            stop = (log or step % self.patience == 0) and self.interrupt.agreed()
            if log or stop:
                self._log(step)
            if last or (step % config.eval_interval == 0 and not stop):
                self._validate(step)
            if self.rollouts.due(step, last) and (last or not stop):
                stop |= not self._roll_out(step)
            if last or stop or step % config.save_interval == 0:
                self._save(step)
            if stop and not last:
                break
        with self._aside():
            self.checkpointer.wait()
        self._say_written()
        return step < config.num_steps

    def _step(self, step: int) -> None:
        position = self.feed.state
        try:
            batch = next(self.feed)
        except StopIteration:
            raise TrainingError(
                f"the training data ended before step {step}; a training loader must be endless"
            ) from None
        shapes = jax.tree.map(lambda x: x.shape, batch)
        self.tracer.before(step)
        if shapes == self.shapes:
            self.interval.add(step, self._take(batch), position)
        else:
            if not self.interval.empty:
                # Batches of another shape: a new stage of the curriculum. What was not logged yet belongs to the old.
                self._log(step - 1)
            self.shapes = shapes
            with self.watchdog.paused():
                self._take_first(step, batch, position)
        if traced := self.tracer.after(step, self.interval.newest):
            self.progress.say(traced)
        self.watchdog.beat(step)
        self.progress.advance()

    def _take(self, batch: Batch) -> Metrics:
        with jax.transfer_guard("disallow"):
            self.state, metrics = self.take(self.state, batch)
        return metrics

    def _take_first(self, step: int, batch: Batch, position: dict[str, Any]) -> None:
        """The first step of a shape: with its compilation, where that was not done ahead."""
        started = time.perf_counter()
        self.take, compiled = self.ahead.step_for(batch)
        self.interval.add(step, self._take(batch), position)
        if compiled:
            self.progress.say(f"step {step}: the first of its stage, compiled ahead")
        else:
            self.interval.leave_out(self.feed.waited)
            seconds = time.perf_counter() - started
            self.loggers.write(step, {"timer/compile_s": seconds})
            self.progress.say(f"step {step}, with compilation: {seconds:.1f} s")
        self.ahead.begin(batch)
        self.throughput.count(self.state.params, batch)

    def _log(self, step: int) -> None:
        self._judge(step)
        values = self.interval.fetch(self.feed.waited)
        self.train_loss = values.get("training/loss", math.nan)
        if self.guard.count:
            values["training/bad_steps"] = float(self.guard.count)
        values |= {f"data/share/{name}": share for name, share in self.drawn(self.logged, step).items()}
        values |= self.throughput.rates(values)
        self.logged = step
        self.loggers.write(step, values)
        self.progress.training(step, values)
        self.checkpointer.check()
        self._say_written()
        if jax.process_count() > 1 and "timer/step_ms" in values:
            # The processes of a job exchange their flags, which costs a round trip, so not at every step; but often
            # enough for who is about to take a machine away.
            slowest = multihost_utils.process_allgather(np.array(values["timer/step_ms"])).max()
            self.patience = max(1, int(_STOPS_WITHIN_MS / max(float(slowest), 1e-3)))

    def _say_written(self) -> None:
        for saved, seconds in self.checkpointer.written():
            self.loggers.write(saved, {"timer/save_written_s": seconds})
            self.progress.say(
                f"checkpoint of step {saved} written in {seconds:.2f} s; training stood {self.stood_ms:.0f} ms"
            )

    @contextlib.contextmanager
    def _aside(self) -> Iterator[None]:
        """Around what is no training step, neither for the clock nor for the watchdog."""
        with self.interval.paused(), self.watchdog.paused():
            yield

    def _judge(self, step: int) -> None:
        """Looks at the losses that were not looked at yet, and sees to it that the state is one to go on from."""
        bad = self.interval.bad_steps()
        rolls_back = self.config.on_nan == "roll_back"
        for each in bad[:1] if rolls_back else bad:
            self.progress.say(self.guard.note(each, self.feed))
        if bad and rolls_back:
            self.state = None  # or there would be two of them on the devices
            with self.watchdog.paused():
                self.state, name = self.guard.roll_back(step, self.checkpointer)
            self.interval.forget(bad[0].step)
            self.progress.say(
                f"rolled back to the checkpoint of step {name}; going on with the data of step {step + 1}"
            )

    def _validate(self, step: int) -> None:
        with self._aside():
            self._judge(step)
            start = time.perf_counter()
            self.metrics, self.validated_at = self.validate(self.state.served, step), step
            seconds = time.perf_counter() - start
            values = {f"validation/{name}": value for name, value in self.metrics.items()}
            self.loggers.write(step, values | {"timer/validation_s": seconds})
            shown = "  ".join(f"{name} {value:.4g}" for name, value in self.metrics.items())
            self.progress.say(f"validation at step {step}: {shown}  ({seconds:.1f} s)")

    def _roll_out(self, step: int) -> bool:
        """Plays with the served parameters; whether it came to its end."""
        with self._aside():
            self._judge(step)
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
        with self._aside():
            self._judge(step)
            start = time.perf_counter()
            self.checkpointer.save(self.state, self.feed.state, self._ranking(step))
            self.stood_ms = 1000 * (time.perf_counter() - start)
            self.loggers.write(step, {"timer/save_ms": self.stood_ms})

    def _ranking(self, step: int) -> dict[str, float] | None:
        """What was measured at this step; None without that by which checkpoints are ranked."""
        measured = self.metrics if self.validated_at == step else {}
        measured = measured | (self.rollouts.metrics if self.rollouts.step == step else {})
        return measured if math.isfinite(measured.get(self.config.checkpoint.best_metric, math.nan)) else None
