"""Between the simulator of a benchmark and the data that a policy learned from: pictures in, actions out."""

import dataclasses

import numpy as np
from jaxtyping import Float32, UInt8

from jaxvla.contract import Contract, Conventions
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.data.transforms.images import middle
from jaxvla.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Simulator:
    """What a policy does otherwise in a simulator; made by `simulator_of`.

    Attributes:
        conventions: of the benchmark.
        learned: what actions are in the data.
    """

    conventions: Conventions
    learned: ActionConvention

    @property
    def actions(self) -> ActionConvention:
        """What they are in the simulator."""
        closed, opened = self.conventions.gripper
        return dataclasses.replace(self.learned, closed=closed, open=opened)

    def upright(self, pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
        """A picture of the simulator as the data has it."""
        return np.ascontiguousarray(pixels[::-1, ::-1]) if self.conventions.upside_down else pixels

    def seen(self, pixels: UInt8[np.ndarray, "h w c"]) -> UInt8[np.ndarray, "h w c"]:
        """What the policy sees of a picture of its own size."""
        crop = self.conventions.crop
        return pixels if crop == 1 else middle(pixels[None], crop)[0]

    def commands(self, actions_nad: Float32[np.ndarray, "n a d"]) -> Float32[np.ndarray, "n a d"]:
        """Actions in the units of the data as the simulator takes them: grippers are open or closed."""
        commands_nad, (closed, opened) = actions_nad.copy(), self.conventions.gripper
        between, opens_up = (self.learned.closed + self.learned.open) / 2, self.learned.open > self.learned.closed
        for d in self.learned.gripper:
            is_open_na = (actions_nad[..., d] > between) == opens_up
            commands_nad[..., d] = np.where(is_open_na, opened, closed)
        return commands_nad


def simulator_of(contract: Contract) -> Simulator:
    """That of the benchmark whose data a checkpoint was trained on.

    Raises:
        ConfigError: there is none that is known, or nobody says what the gripper's actions are.
    """
    if contract.conventions is None:
        raise ConfigError(
            "the checkpoint was not trained on the data of a benchmark whose conventions are known, so it cannot be "
            "played as its simulator wants it: leave simulator out, and give observations as they are in the data"
        )
    if contract.actions is None or not contract.actions.gripper:
        raise ConfigError("the checkpoint does not say which of its actions is a gripper: leave simulator out")
    return Simulator(contract.conventions, contract.actions)
