"""How a checkpoint is to be played: what a robot, or whoever drives one, must do to be what the policy was trained for.

Training decides it, every checkpoint says it (`jaxvla.checkpoint.Assets.contract`), serving and evaluation keep to it.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.data.transforms.images import size_text
from jaxvla.errors import ConfigError

PIXELS = "whole RGB frames, by Lanczos to the stored size where it is known, and from there to the policy's"


# How predictions of a moment are weighed, and how fast a chunk of before loses its weight, see `Execution`.
AVERAGES = ("age", "agreement")
SCHEDULES = ("exp", "linear", "ones", "zeros")
# By what real-time chunking makes chunks go on, see `RealTime`.
CONTINUATIONS = ("guidance", "prefix", "both")


@dataclasses.dataclass(frozen=True)
class RealTime:
    """Real-time chunking (Black et al., 2025): chunks go on where the ones before were.

    By "guidance", chunks are drawn towards what is left of the one before: actions that are played until the new one is
    there count in full, those behind them less and less. It needs actions that are made by flow matching. By "prefix",
    the former are given to the network as they are. It needs one that has learned to go on from there. By "both", the
    former are given, and what is made behind them is drawn.

    Attributes:
        enabled: whether it is done.
        schedule: of guidance, how the weights of actions fall that are not played any more: "exp" or "linear" to 0 at
            the end of the chunk, "ones" not at all, "zeros" at once.
        max_guidance_weight: of guidance, how strong the pull may be; LeRobot has 10 and "linear".
        by: one of `CONTINUATIONS`.
        least_delay: actions of the chunk before that count as being played until the new one is there, also where fewer
            are: with 0, a chunk that is there at once need not go on where the one before was.

    Raises:
        ConfigError: a value that makes no sense.
    """

    enabled: bool = False
    schedule: str = "exp"
    max_guidance_weight: float = 5.0
    by: str = "guidance"
    least_delay: int = 0

    def __post_init__(self) -> None:
        if self.by not in CONTINUATIONS:
            raise ConfigError(f"execution.realtime.by must be one of {', '.join(CONTINUATIONS)}, not {self.by!r}")
        if self.least_delay < 0:
            raise ConfigError(f"execution.realtime.least_delay must be 0 or more, not {self.least_delay}")
        if self.schedule not in SCHEDULES:
            raise ConfigError(
                f"execution.realtime.schedule must be one of {', '.join(SCHEDULES)}, not {self.schedule!r}"
            )
        if not 0 <= self.max_guidance_weight < math.inf:
            raise ConfigError(
                f"execution.realtime.max_guidance_weight must be 0 or positive, not {self.max_guidance_weight}"
            )

    def __str__(self) -> str:
        if not self.enabled:
            return "none"
        least = f" of {self.least_delay} or more" if self.least_delay else ""
        drawn = f"{self.schedule} up to {self.max_guidance_weight:g}"
        return {"guidance": drawn, "prefix": "prefix", "both": f"prefix, then {drawn}"}[self.by] + least


@dataclasses.dataclass(frozen=True)
class Execution:
    """How chunks of actions are played; the keys of config.execution in configs/train_config.py.

    Fewer actions than the chunk has, then the next decision, is a receding horizon. Temporal ensembling decides at
    every step, and plays the weighted average of all that was predicted for it: the i-th prediction, from the oldest
    on, weighs exp(-ensemble * i), as in ACT (Zhao et al., 2023), which has 0.01; or each weighs
    exp(ensemble * its cosine with the newest), as in CogACT (Li et al., 2024), which has 0.1 of the last 7.

    Attributes:
        execute_steps: actions to play before the next decision; 0 for all that there are: the chunk, or the one average
            of an ensemble.
        ensemble: how much less a prediction weighs than the one before it, or than one that agrees with the newest; 0
            for all the same, None for no ensemble.
        ensemble_by: "age" or "agreement": what predictions are weighed by.
        ensemble_last: how many predictions are averaged, the newest ones; 0 for all.
        realtime: whether chunks go on where the ones before were.

    Raises:
        ConfigError: a value that makes no sense, or an ensemble beside other than 1 action or real-time chunking.
    """

    execute_steps: int = 0
    ensemble: float | None = None
    ensemble_by: str = "age"
    ensemble_last: int = 0
    realtime: RealTime = dataclasses.field(default_factory=RealTime)

    def __post_init__(self) -> None:
        if self.execute_steps < 0:
            raise ConfigError(f"execution.execute_steps must be 0 (all) or more, not {self.execute_steps}")
        if self.ensemble_last < 0:
            raise ConfigError(f"execution.ensemble_last must be 0 (all) or more, not {self.ensemble_last}")
        if self.ensemble_by not in AVERAGES:
            raise ConfigError(f"execution.ensemble_by must be one of {', '.join(AVERAGES)}, not {self.ensemble_by!r}")
        if self.ensemble is None:
            return
        if not 0 <= self.ensemble < math.inf:
            raise ConfigError(f"execution.ensemble must be 0 or positive, or None, not {self.ensemble}")
        if self.execute_steps > 1:
            raise ConfigError(
                f"execution.ensemble={self.ensemble:g} decides at every step, so execution.execute_steps cannot be "
                f"{self.execute_steps}: set it to 1, or the ensemble to None"
            )
        if self.realtime.enabled:
            raise ConfigError(
                f"execution.ensemble={self.ensemble:g} averages chunks, and execution.realtime makes them go on: set "
                "the ensemble to None, or realtime.enabled to False"
            )

    def averaging(self) -> str:
        """What predictions of a moment are averaged by, in words; "none" where they are not."""
        if self.ensemble is None:
            return "none"
        last = f" of the last {self.ensemble_last}" if self.ensemble_last else ""
        return f"{self.ensemble:g}" + (" by agreement" if self.ensemble_by == "agreement" else "") + last

    def steps(self, action_horizon: int) -> int:
        """How many actions of a decision are played, of chunks of `action_horizon`.

        Raises:
            ConfigError: chunks do not have as many as `execute_steps`.
        """
        if self.execute_steps > action_horizon:
            raise ConfigError(
                f"execution.execute_steps must be 0 (all) to {action_horizon}, the action_horizon, not "
                f"{self.execute_steps}"
            )
        return 1 if self.ensemble is not None else self.execute_steps or action_horizon


@dataclasses.dataclass(frozen=True)
class Conventions:
    """How a benchmark plays policies, and in what its simulator differs from the data that was made in it.

    Attributes:
        benchmark: what it is called.
        upside_down: the pictures of the simulator are turned by 180 degrees against those of the data.
        crop: the share of a picture's area about its middle that a policy sees, enlarged to its size; 1 for all. Below
            1 it is for policies that were trained on random crops.
        gripper: (closed, open) of the simulator's actions, which know nothing in between.
        wait_action: what is played before the first decision, while what was set down settles.
        wait_steps: so many times.
        max_steps: after which an episode has failed, the waiting not counted.
        tasks: how many there are.
        episodes: of each.
        seed: of the evaluation.
        source: where it stands.
    """

    benchmark: str
    upside_down: bool
    crop: float
    gripper: tuple[float, float]
    wait_action: tuple[float, ...]
    wait_steps: int
    max_steps: int
    tasks: int
    episodes: int
    seed: int
    source: str

    def __str__(self) -> str:
        """One line for people."""
        turned = ", pictures turned by 180 degrees" if self.upside_down else ""
        cropped = "" if self.crop == 1 else f", middle {self.crop:.0%} of their area"
        closed, opened = self.gripper
        return (
            f"{self.benchmark}: {self.episodes} episodes of {self.tasks} tasks, at most {self.max_steps} steps after "
            f"{self.wait_steps} of waiting{turned}{cropped}, gripper {closed:g} closed, {opened:g} open"
        )


# LIBERO as OpenVLA and OpenVLA-OFT are evaluated on it, by the data sets of its suites.
CONVENTIONS = {
    f"libero_{suite}_no_noops": Conventions(
        f"libero_{suite}",
        upside_down=True,
        crop=0.9,
        gripper=(1.0, -1.0),
        wait_action=(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, -1.0),
        wait_steps=10,
        max_steps=max_steps,
        tasks=tasks,
        episodes=50,
        seed=7,
        source="openvla, experiments/robot/libero",
    )
    for suite, max_steps, tasks in (
        ("spatial", 220, 10),
        ("object", 280, 10),
        ("goal", 300, 10),
        ("10", 520, 10),
        ("90", 400, 90),
    )
}


@dataclasses.dataclass(frozen=True)
class CameraContract:
    """The way of a camera's pixels, each size (height, width).

    Attributes:
        stored_size: of the frames of training; None where nobody knows it.
        policy_size: what the policy looks at.
    """

    stored_size: tuple[int, int] | None
    policy_size: tuple[int, int]


@dataclasses.dataclass(frozen=True)
class Deviation:
    """Something that is done otherwise than the checkpoint says."""

    what: str
    used: str
    checkpoint: str

    def __str__(self) -> str:
        return f"{self.what} {self.used}, the checkpoint says {self.checkpoint}"


@dataclasses.dataclass(frozen=True, eq=False)
class Contract:
    """What a checkpoint says of how it is to be played.

    Attributes:
        control_frequency: of the actions, Hz; 0 where it is not known.
        execute_steps: how many actions are played before the next decision.
        action_horizon: of so many that a decision predicts.
        ensemble, ensemble_by, ensemble_last, realtime: of `Execution`.
        obs_horizon: time steps that a decision looks at.
        cameras: by the names in an observation.
        proprio_dim, action_dim: numbers of each.
        actions: what the numbers of an action are: units, gripper; None where the checkpoint is too old to say.
        pixels: what becomes of a frame before the policy sees it.
        conventions: of the benchmark whose data it was trained on; None where there are none.
    """

    control_frequency: float
    execute_steps: int
    action_horizon: int
    ensemble: float | None
    obs_horizon: int
    cameras: Mapping[str, CameraContract]
    proprio_dim: int
    action_dim: int
    actions: ActionConvention | None
    pixels: str = PIXELS
    ensemble_by: str = "age"
    ensemble_last: int = 0
    realtime: RealTime = dataclasses.field(default_factory=RealTime)
    conventions: Conventions | None = None

    @property
    def execution(self) -> Execution:
        """How chunks are played."""
        averaged = (self.ensemble, self.ensemble_by, self.ensemble_last)
        return Execution(self.execute_steps, *averaged, self.realtime)

    def __str__(self) -> str:
        """One line for people."""
        averaged = "" if self.ensemble is None else f" (ensemble {self.execution.averaging()})"
        averaged += f" (real time, {self.realtime})" if self.realtime.enabled else ""
        rate = f" at {self.control_frequency:g} Hz" if self.control_frequency else ""
        sizes: dict[str, list[str]] = {}
        for name, camera in self.cameras.items():
            sizes.setdefault(size_text(camera.policy_size), []).append(name)
        cameras = ", ".join(f"cameras {' '.join(names)} {size}" for size, names in sizes.items()) or "no cameras"
        return f"{self.execute_steps} of {self.action_horizon} actions a decision{averaged}{rate}, {cameras}"

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return dataclasses.asdict(self)

    def deviations(
        self, execution: Execution, image_sizes: Mapping[str, tuple[int, int]], control_frequency: float
    ) -> tuple[Deviation, ...]:
        """In what another way of playing differs; what either side does not know does not count.

        Args:
            execution: what is played of the chunks.
            image_sizes: (height, width) of what the cameras give.
            control_frequency: of the actions, Hz; 0 where it is not known.

        Raises:
            ConfigError: chunks do not have as many actions.
        """
        pairs = {
            "execute_steps": (execution.steps(self.action_horizon), self.execute_steps),
            "ensemble": (execution.averaging(), self.execution.averaging()),
            "realtime": (str(execution.realtime), str(self.realtime)),
        }
        for name, size in image_sizes.items():
            stored = self.cameras[name].stored_size if name in self.cameras else None
            if stored is not None:
                pairs[f"image_size of {name}"] = (size_text(size), size_text(stored))
        if control_frequency and self.control_frequency:
            pairs["control_frequency"] = (f"{control_frequency:g} Hz", f"{self.control_frequency:g} Hz")
        return tuple(Deviation(what, str(used), str(said)) for what, (used, said) in pairs.items() if used != said)
