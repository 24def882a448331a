"""Goal-conditioned behavioural cloning: the gc_bc of BridgeData V2 (Walke et al., 2023), for chunks of actions."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from flax import nnx
from jaxtyping import Array, Float, Key

from jaxvla.agents.gaussian_actor import GaussianBC, check_actor, check_loss, make_actor, make_gaussian_bc
from jaxvla.agents.goal_vision import check_fusion, make_fusion
from jaxvla.config import from_mapping
from jaxvla.data.schema import BatchSpec
from jaxvla.models.policy_head import PolicyConfig
from jaxvla.models.resnet import EncoderConfig


@dataclasses.dataclass(frozen=True)
class GCBCConfig:
    """The `agent_kwargs` of gc_bc.

    Attributes:
        encoder: of the images.
        early_goal_concat: stack observation and goal as channels of one image, instead of encoding them apart.
        shared_goal_encoder: where they are encoded apart, by the same encoder.
        use_proprio: proprio of the observations joins the features.
        hidden_dims: layers between features and actions.
        dropout_rate: in these layers, in [0, 1).
        policy: distribution of the actions.
        loss: "likelihood" of the actions, or "l1" or "huber" of the errors of its modes, for a fixed deviation.
        dtype: in which the networks compute, "float32" or "bfloat16"; parameters and loss stay float32.

    Raises:
        ConfigError: a value out of range, a loss that leaves the deviation unlearned, or separate encoders with early
            fusion.
    """

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    early_goal_concat: bool = True
    shared_goal_encoder: bool = True
    use_proprio: bool = False
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    dropout_rate: float = 0.1
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    loss: str = "likelihood"
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_fusion(self.early_goal_concat, self.shared_goal_encoder)
        check_actor(self.hidden_dims, self.dropout_rate, self.dtype)
        check_loss(self.loss, self.policy)


class GoalConditionedPolicy(nnx.Module):
    """Image encoder and policy head."""

    def __init__(self, config: GCBCConfig, spec: BatchSpec, rngs: nnx.Rngs) -> None:
        self.encoder = make_fusion(config, spec, rngs)
        self.policy = make_actor(self.encoder.out_dim, config, spec, rngs)

    def __call__(
        self, observations: Mapping[str, Any], goals: Mapping[str, Any], rng: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b a d"], Float[Array, "b a d"]]:
        """(mean, log_std) of the action chunk; without `rng`, dropout is off."""
        return self.policy(self.encoder(observations, goals), rng)


def make_gc_bc(agent_kwargs: Mapping[str, Any], spec: BatchSpec) -> GaussianBC:
    """The agent of a configuration's `agent_kwargs`.

    Raises:
        ConfigError: see `GCBCConfig` and the models that it configures.
    """
    config = from_mapping(GCBCConfig, agent_kwargs, "config.agent_kwargs")
    return make_gaussian_bc(config, spec, GoalConditionedPolicy, "goals")
