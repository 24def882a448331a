"""The training configuration, read once from configs/train_config.py."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxvla.config import local_path
from jaxvla.contract import Execution
from jaxvla.errors import ConfigError
from jaxvla.ops.augmentation import AugmentConfig
from jaxvla.parallel.mesh import MeshConfig

COSINES = ("after_warmup", "start")
# How the optimizer keeps its moments.
MOMENTS = ("float32", "bfloat16", "int8", "factored")
# What becomes of a step whose loss or gradient is not finite.
ON_NAN = ("raise", "skip", "roll_back")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam with a warmup-cosine learning rate; the zeros switch parts of it off.

    Attributes:
        learning_rate: the peak.
        warmup_steps: linear from 0 to the peak.
        decay_steps: the step at which the cosine reaches its end; 0 for a constant rate after the warmup.
        final_learning_rate: where the cosine ends.
        cosine: where it counts from: "after_warmup"; or as in LeRobot's preset of SmolVLA from the "start", so that the
            rate drops a little where the warmup ends. That warmup begins at learning_rate / (warmup_steps + 1), and in
            runs of fewer steps than `decay_steps` it and the cosine are shortened alike, see `for_run`.
        learning_rates: path prefix of parameters, such as "backbone" or "backbone/visual", to their own peak, which
            follows the same schedule; the longest prefix counts, and 0 freezes, without gradients or optimizer state.
        undecayed: path prefixes of parameters whose rate stays at its peak after the warmup.
        b2: decay of the second moment; "factored" has a schedule of its own.
        moments: how they are kept, by bytes for each trained parameter. "float32" 8; "bfloat16" 6, the first moment
            in bfloat16; "int8" 2.03, see `moments.scale_by_adam_8bit`; "factored" 2 and a row and a column of each
            matrix, see `moments.scale_by_factored`.
        weight_decay: of kernels, or their adapters, decoupled (AdamW); 0 for plain Adam.
        clip_norm: largest global norm of the gradient; 0 for no clipping.
    """

    learning_rate: float
    warmup_steps: int = 0
    decay_steps: int = 0
    final_learning_rate: float = 0.0
    cosine: str = "after_warmup"
    learning_rates: Mapping[str, float] = dataclasses.field(default_factory=dict)
    undecayed: tuple[str, ...] = ()
    b2: float = 0.999
    moments: str = "float32"
    weight_decay: float = 0.0
    clip_norm: float = 0.0

    def __post_init__(self) -> None:
        where = "config.optimizer"
        if not 0 < self.learning_rate < math.inf:
            raise ConfigError(f"{where}.learning_rate must be positive, not {self.learning_rate}")
        checked = ("warmup_steps", "decay_steps", "final_learning_rate", "weight_decay", "clip_norm")
        values = {name: getattr(self, name) for name in checked}
        for name, value in values.items() | {f"learning_rates.{k}": v for k, v in self.learning_rates.items()}.items():
            if not 0 <= value < math.inf:
                raise ConfigError(f"{where}.{name} must be 0 or more, not {value}")
        if self.cosine not in COSINES:
            raise ConfigError(f"{where}.cosine must be one of {', '.join(COSINES)}, not {self.cosine!r}")
        if self.moments not in MOMENTS:
            raise ConfigError(f"{where}.moments must be one of {', '.join(MOMENTS)}, not {self.moments!r}")
        if not 0 < self.b2 < 1:
            raise ConfigError(f"{where}.b2 must lie in (0, 1), not {self.b2}")
        if self.final_learning_rate > self.learning_rate:
            raise ConfigError(f"{where}.final_learning_rate {self.final_learning_rate} is above the peak")
        if 0 < self.decay_steps <= self.warmup_steps:
            raise ConfigError(
                f"{where}.decay_steps ({self.decay_steps}) must lie after warmup_steps ({self.warmup_steps}), or be 0"
            )

    def for_run(self, num_steps: int) -> "OptimizerConfig":
        """What a run of so many steps is trained with."""
        if self.cosine != "start" or num_steps >= self.decay_steps:
            return self
        warmup = self.warmup_steps * num_steps // self.decay_steps
        return dataclasses.replace(self, warmup_steps=warmup, decay_steps=num_steps)


# The metric of rollouts that can rank checkpoints.
SUCCESS = "success"


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """Which checkpoints stay.

    Attributes:
        keep_last: the latest n.
        keep_best: and the best n of those that were saved at a validation, or at a rollout.
        best_metric: what ranks them: a validation metric, the lower the better, or the "success" of rollouts, the
            higher the better.
    """

    keep_last: int = 3
    keep_best: int = 1
    best_metric: str = "mse"

    def __post_init__(self) -> None:
        if self.keep_last < 1:
            raise ConfigError(f"config.checkpoint.keep_last must be at least 1, not {self.keep_last}")
        if self.keep_best < 0:
            raise ConfigError(f"config.checkpoint.keep_best must be 0 or more, not {self.keep_best}")

    def score(self, metrics: Mapping[str, float]) -> float:
        """How good a checkpoint of these metrics is, the higher the better; without `best_metric` it is the worst."""
        if self.best_metric not in metrics:
            return -math.inf
        value = metrics[self.best_metric]
        return value if self.best_metric == SUCCESS else -value


@dataclasses.dataclass(frozen=True)
class RolloutConfig:
    """Episodes that the served parameters play in closed loop during training, the same ones every time.

    Attributes:
        world: where, such as "tabletop"; empty for no rollouts.
        level: how much there is to tell apart in a scene, a level of the world.
        tasks: of the world, in turn from episode to episode; empty for those that the scenes draw.
        episodes: of a rollout.
        last_episodes: of the one after the last step, the same ones and others.
        interval: steps between two rollouts.
        parallel: episodes that are played side by side.
        camera_size: pixels a side of what the world's cameras see; 0 for the size at which the frames of the training
            data are stored. Where their cameras saw another size, it is that size.
        dataset: in whose units the policy acts, of a mixture of several; empty for the only one.
    """

    world: str = ""
    level: str = "full"
    tasks: tuple[str, ...] = ()
    episodes: int = 20
    last_episodes: int = 50
    interval: int = 5000
    parallel: int = 10
    camera_size: int = 0
    dataset: str = ""

    def __post_init__(self) -> None:
        for name in ("episodes", "last_episodes", "interval", "parallel"):
            if getattr(self, name) < 1:
                off = '; config.rollout.world "" plays none' if name != "parallel" else ""
                raise ConfigError(f"config.rollout.{name} must be at least 1, not {getattr(self, name)}{off}")
        if self.camera_size and self.camera_size < 16:
            raise ConfigError(f"config.rollout.camera_size must be at least 16, or 0, not {self.camera_size}")


@dataclasses.dataclass(frozen=True)
class WatchdogConfig:
    """When a step is said to hang, see `Watchdog`.

    Attributes:
        factor: it took so many times the median of the last steps; 0 to watch nothing.
        at_least_s: and so many seconds.
        end: the process ends then, and the others of its job with it, so that a launcher can start them again.
    """

    factor: float = 20.0
    at_least_s: float = 60.0
    end: bool = False

    def __post_init__(self) -> None:
        if not (self.factor == 0 or 1 < self.factor < math.inf):
            raise ConfigError(f"config.watchdog.factor must be above 1, or 0 for none, not {self.factor}")
        if not 0 < self.at_least_s < math.inf:
            raise ConfigError(f"config.watchdog.at_least_s must be positive, not {self.at_least_s}")


@dataclasses.dataclass(frozen=True)
class ProfileConfig:
    """Which steps are traced for TensorBoard, XProf or Perfetto, into RUN/profile.

    Attributes:
        start: the first of them, counted from where the process starts or resumes, so that 1 has the compilation; 0 for
            none.
        steps: how many.
    """

    start: int = 0
    steps: int = 3

    def __post_init__(self) -> None:
        if self.start < 0:
            raise ConfigError(f"config.profile.start must be 0 (none) or more, not {self.start}")
        if self.steps < 1:
            raise ConfigError(f"config.profile.steps must be at least 1, not {self.steps}")


@dataclasses.dataclass(frozen=True)
class WandbConfig:
    """Weights & Biases, beside metrics.jsonl and TensorBoard; `entity` may be empty."""

    enabled: bool = False
    project: str = "jaxvla"
    entity: str = ""


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """The keys of configs/train_config.py but `data` and `data_path`, which the experiment reads for the loader.

    Attributes:
        agent: name of the method.
        agent_kwargs: its keyword arguments, checked by the agent.
        batch_size: rows of a global batch, over all processes.
        num_steps: the run ends after so many.
        log_interval: steps between two log lines.
        eval_interval: steps between two passes over the validation data.
        save_interval: steps between two checkpoints.
        augment: image augmentation inside the step.
        optimizer: see `OptimizerConfig`.
        eval_batches: batches of a validation pass; 0 for the whole split.
        accumulate_steps: a batch goes through the model in so many parts, whose gradients are averaged: the step is the
            same (where the loss is a mean over examples), at the activation memory of a part.
        ema_decay: of the averaged parameters, which are validated, saved and served in place of the last ones; 0 for
            none.
        on_nan: what becomes of a step whose loss or gradient is not finite. "raise" ends the run; "skip" leaves the
            parameters and the optimizer as they were before it; "roll_back" takes both from the latest checkpoint, and
            goes on with the data behind the step at which this is noticed, the next one that is logged, validated or
            saved. The batch is kept in RUN/bad_batches in any case.
        max_bad_steps: so many of them are skipped, or rolled back, before the run ends with an error all the same.
        seed: of initial parameters, data order, augmentation and noise.
        save_dir: the folder of all runs.
        resume_path: a run folder, to go on in it from its latest checkpoint; or the folder of one checkpoint, to go on
            from it in a new run; or empty.
        mesh: see `MeshConfig`.
        execution: how checkpoints are to be played, which changes nothing of the training.
        checkpoint: see `CheckpointConfig`.
        rollout: see `RolloutConfig`.
        watchdog: see `WatchdogConfig`.
        profile: see `ProfileConfig`.
        wandb: see `WandbConfig`.
    """

    agent: str
    agent_kwargs: Mapping[str, Any]
    batch_size: int
    num_steps: int
    log_interval: int
    eval_interval: int
    save_interval: int
    augment: AugmentConfig
    optimizer: OptimizerConfig
    eval_batches: int = 0
    accumulate_steps: int = 1
    ema_decay: float = 0.0
    on_nan: str = "raise"
    max_bad_steps: int = 10
    seed: int = 0
    save_dir: str = "runs"
    resume_path: str = ""
    mesh: MeshConfig = dataclasses.field(default_factory=MeshConfig)
    execution: Execution = dataclasses.field(default_factory=Execution)
    checkpoint: CheckpointConfig = dataclasses.field(default_factory=CheckpointConfig)
    rollout: RolloutConfig = dataclasses.field(default_factory=RolloutConfig)
    watchdog: WatchdogConfig = dataclasses.field(default_factory=WatchdogConfig)
    profile: ProfileConfig = dataclasses.field(default_factory=ProfileConfig)
    wandb: WandbConfig = dataclasses.field(default_factory=WandbConfig)

    def __post_init__(self) -> None:
        positive = ("batch_size", "num_steps", "log_interval", "eval_interval", "save_interval", "accumulate_steps")
        for name in ("save_dir", "resume_path"):
            local_path(getattr(self, name), f"config.{name}")
        for name in positive:
            if getattr(self, name) < 1:
                raise ConfigError(f"config.{name} must be at least 1, not {getattr(self, name)}")
        if self.eval_batches < 0:
            raise ConfigError(f"config.eval_batches must be 0 (all) or more, not {self.eval_batches}")
        if self.batch_size % self.accumulate_steps:
            raise ConfigError(
                f"config.accumulate_steps {self.accumulate_steps} does not divide batch_size {self.batch_size}"
            )
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"config.ema_decay must lie in [0, 1), not {self.ema_decay}")
        if self.on_nan not in ON_NAN:
            raise ConfigError(f"config.on_nan must be one of {', '.join(ON_NAN)}, not {self.on_nan!r}")
        if self.max_bad_steps < 1:
            raise ConfigError(f"config.max_bad_steps must be at least 1, not {self.max_bad_steps}")
        if not 0 <= self.seed < 2**32:
            raise ConfigError(f"config.seed must be 0 to 2**32 - 1, not {self.seed}")
