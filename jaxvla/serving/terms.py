"""On what terms a policy is played: as its checkpoint says, but for what somebody makes otherwise.

Axis letters: d action dimension.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from jaxvla.contract import Contract, Deviation, Execution
from jaxvla.errors import ConfigError
from jaxvla.serving.execution import plan_of
from jaxvla_client.chunks import Plan

# Those that are real-time chunking, by what.
_CONTINUED = {"realtime": "guidance", "prefix": "prefix", "both": "both"}
CHUNKINGS = ("naive", "ensembled", *_CONTINUED)
# ACT's.
USUAL_ENSEMBLE = 0.01


@dataclasses.dataclass(frozen=True)
class Wishes:
    """What is to be otherwise than the checkpoint says; None and 0 for nothing.

    Attributes:
        execute_steps: actions to play before the next decision, 0 for all.
        ensemble: a number, or "none".
        image_size: pixels a side of what the cameras see.
        least_delay: of real-time chunking, see `jaxvla.contract.RealTime`.

    Raises:
        ConfigError: the ensemble is something else.
    """

    execute_steps: int | None = None
    ensemble: str | None = None
    image_size: int = 0
    least_delay: int | None = None

    def __post_init__(self) -> None:
        if self.ensemble not in (None, "none"):
            try:
                float(self.ensemble)
            except ValueError as error:
                raise ConfigError(f"--ensemble must be a number or none, not {self.ensemble!r}") from error

    def of(self, execution: Execution, chunking: str = "", alone: bool = True) -> Execution:
        """What is played.

        Args:
            execution: what the checkpoint says.
            chunking: one of `CHUNKINGS`; empty for the checkpoint's way.
            alone: whether this way is the only one, so that `execute_steps` is meant for it, whatever it is.

        Raises:
            ConfigError: as `Execution`.
        """
        ensemble, realtime, steps = execution.ensemble, execution.realtime, execution.execute_steps
        if self.ensemble is not None:
            ensemble = None if self.ensemble == "none" else float(self.ensemble)
        if chunking:
            by = _CONTINUED.get(chunking, realtime.by)
            realtime = dataclasses.replace(realtime, enabled=chunking in _CONTINUED, by=by)
            ensemble = (USUAL_ENSEMBLE if ensemble is None else ensemble) if chunking == "ensembled" else None
        if self.least_delay is not None and realtime.enabled:
            realtime = dataclasses.replace(realtime, least_delay=self.least_delay)
        if self.execute_steps is not None and (chunking != "ensembled" or alone):
            steps = self.execute_steps
        elif ensemble is not None:
            steps = 1
        return dataclasses.replace(execution, execute_steps=steps, ensemble=ensemble, realtime=realtime)


@dataclasses.dataclass(frozen=True, eq=False)
class Terms:
    """How a policy is played.

    Attributes:
        chunking: one of `CHUNKINGS`; empty for the checkpoint's way.
        image_size: pixels a side of what the cameras see.
        unit_d: what jumps of actions are measured in: their standard deviations in the training data; None where they
            are not known.
    """

    chunking: str
    contract: Contract
    execution: Execution
    image_size: int
    deviations: tuple[Deviation, ...]
    unit_d: Float[np.ndarray, " d"] | None

    @property
    def whole(self) -> Execution:
        """What the policy does: it gives whole chunks, and what is played of them is the world's part."""
        return dataclasses.replace(self.execution, execute_steps=0, ensemble=None)

    @property
    def plan(self) -> Plan:
        """Of who plays the chunks."""
        return plan_of(self.execution, self.contract.action_horizon)

    def __str__(self) -> str:
        return "\n".join([f"contract     {self.contract}", *(f"deviation    {each}" for each in self.deviations)])


def agree(
    contract: Contract,
    cameras: Sequence[str],
    control_frequency: float,
    usual_size: int,
    wishes: Wishes,
    chunking: str = "",
    alone: bool = True,
    std_d: Float[np.ndarray, " d"] | None = None,
) -> Terms:
    """The terms on which a policy is played in a world.

    Args:
        contract: of the policy.
        cameras, control_frequency: of the world.
        usual_size: pixels a side where nobody knows the size of the frames of training.
        wishes, chunking, alone: see `Wishes.of`.
        std_d: of the actions in the training data.

    Raises:
        ConfigError: it cannot be played so.
    """
    execution = wishes.of(contract.execution, chunking, alone)
    seen = [name for name in contract.cameras if name in cameras]
    known = [side for name in seen for side in contract.cameras[name].stored_size or ()]
    side = wishes.image_size or max(known, default=usual_size)
    deviations = contract.deviations(execution, dict.fromkeys(seen, (side, side)), control_frequency)
    unit_d = None if std_d is None else np.where(std_d > 0, std_d, 1)
    return Terms(chunking, contract, execution, side, deviations, unit_d)


def check_latencies(words: Sequence[str], action_horizon: int) -> list[int]:
    """The control steps of --latency.

    Raises:
        ConfigError: no different numbers, or chunks do not last until the next one is there.
    """
    found = []
    for word in words:
        if not word.strip().isdecimal():
            raise ConfigError(f"--latency must be control steps, such as 2, or 0,1,2, not {','.join(words)!r}")
        found.append(int(word))
        if 2 * found[-1] > action_horizon:
            raise ConfigError(
                f"--latency={found[-1]} does not go with chunks of {action_horizon} actions: {found[-1]} of them are "
                f"past when one is there, and the rest ends before the next one; {action_horizon // 2} is the most"
            )
    if not found or len({*found}) < len(found):
        raise ConfigError(f"--latency must be different numbers of control steps, not {','.join(words)!r}")
    return found


def check_chunkings(words: Sequence[str]) -> None:
    """Raises ConfigError unless these are different ways of --chunking."""
    if not {*words} <= {*CHUNKINGS} or len({*words}) < len(words):
        raise ConfigError(f"--chunking must be some of {', '.join(CHUNKINGS)}, not {', '.join(words)}")
