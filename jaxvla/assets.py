"""What a checkpoint keeps beside the parameters."""

import dataclasses
import json
import math
from collections.abc import Mapping
from typing import Any

import jaxvla
from jaxvla.config import from_mapping
from jaxvla.contract import CameraContract, Contract, Execution
from jaxvla.data.schema import BatchSpec
from jaxvla.data.transforms.actions import ActionConvention
from jaxvla.data.transforms.normalization import Normalizer, Statistics


@dataclasses.dataclass(frozen=True, eq=False)
class Assets:
    """Everything beside the parameters that rebuilds the agent and speaks to the robot in its units.

    Attributes:
        agent: name of the method, such as "gc_bc".
        agent_kwargs: its keyword arguments, plain values.
        spec: sizes of the batches that it was trained on.
        statistics: of the training data, in robot units.
        action_normalization: kind of `Normalizer` of the actions.
        proprio_normalization: kind of `Normalizer` of the proprio.
        action_mask: which action dimensions are normalized; empty for all.
        train_config: the whole training configuration, as plain values.
        data_config: the whole data configuration, as plain values.
        text: how prompts become tokens (`reasoning.texts.Wording.to_json`); None where the agent reads none.
        language: how instructions are encoded (`agents.language.Language.to_json`); None where the agent follows none.
        actions: what the numbers of an action are; None where the checkpoint is too old to say.
        stored_sizes: (height, width) at which the training frames of a camera were stored, by camera: a camera's frame
            goes through it to `spec.image_size`. Cameras that it does not name, and those of older checkpoints, go
            straight there.
        execution: what is played of the chunks of actions; all of them where the checkpoint is too old to say.
        control_frequency: of the actions, Hz; 0 where it is not known.
        version: of jaxvla.
    """

    agent: str
    agent_kwargs: Mapping[str, Any]
    spec: BatchSpec
    statistics: Statistics
    action_normalization: str
    proprio_normalization: str
    action_mask: tuple[bool, ...]
    train_config: Mapping[str, Any]
    data_config: Mapping[str, Any]
    text: Mapping[str, Any] | None = None
    language: Mapping[str, Any] | None = None
    actions: ActionConvention | None = None
    stored_sizes: Mapping[str, tuple[int, int]] = dataclasses.field(default_factory=dict)
    execution: Execution = dataclasses.field(default_factory=Execution)
    control_frequency: float = 0.0
    version: str = jaxvla.__version__

    def action_normalizer(self) -> Normalizer:
        """Between robot units and the actions of a batch."""
        ends = () if self.actions is None else self.actions.gripper
        return Normalizer(self.action_normalization, self.statistics.actions, self.action_mask or None, ends)

    def proprio_normalizer(self) -> Normalizer:
        """Between robot units and the proprio of a batch."""
        return Normalizer(self.proprio_normalization, self.statistics.proprio)

    def contract(self) -> Contract:
        """How the policy is to be played.

        Raises:
            ConfigError: more actions are to be played than a chunk has.
        """
        spec = self.spec
        return Contract(
            control_frequency=self.control_frequency,
            execute_steps=self.execution.steps(spec.action_horizon),
            action_horizon=spec.action_horizon,
            ensemble=self.execution.ensemble,
            obs_horizon=spec.obs_horizon,
            cameras={name: CameraContract(self.stored_sizes.get(name), spec.image_size) for name in spec.cameras},
            proprio_dim=spec.proprio_dim,
            action_dim=spec.action_dim,
            actions=self.actions,
        )

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; tuples become lists, and limits that there are not, for which JSON has no number, null."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        spec = dataclasses.asdict(self.spec)
        spec["action_limits"] = [[x if math.isfinite(x) else None for x in pair] for pair in self.spec.action_limits]
        actions = None if self.actions is None else dataclasses.asdict(self.actions)
        execution = dataclasses.asdict(self.execution)
        fields |= {"spec": spec, "statistics": self.statistics.to_json(), "actions": actions, "execution": execution}
        return json.loads(json.dumps(fields))

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> "Assets":
        """The inverse of `to_json`; lists inside the configurations stay lists.

        Raises:
            ConfigError: an unknown or missing key, or a value of another type.
        """
        made: dict[str, Any] = {"statistics": Statistics.from_json(values["statistics"])}
        if isinstance(values["spec"], Mapping):
            limits = [
                (-math.inf if low is None else low, math.inf if high is None else high)
                for low, high in values["spec"].get("action_limits", ())
            ]
            made["spec"] = {**values["spec"], "action_limits": limits}
        return from_mapping(cls, {**values, **made}, "assets")
