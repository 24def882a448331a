"""Goal-conditioned behavioural cloning: the gc_bc of BridgeData V2 (Walke et al., 2023), for chunks of actions."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

from flax import nnx
from jaxtyping import Array, Float, Key

from jaxvla.agents.gaussian_actor import actor_loss, actor_metrics, check_actor, choose_actions
from jaxvla.agents.goal_vision import check_fusion, make_fusion
from jaxvla.config import from_mapping
from jaxvla.data.schema import Batch, BatchSpec
from jaxvla.models.module import Params, bind, compute_dtype, graph_of, init_params
from jaxvla.models.policy_head import GaussianPolicy, PolicyConfig
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
        dtype: in which the networks compute, "float32" or "bfloat16"; parameters and loss stay float32.

    Raises:
        ConfigError: a value out of range, or separate encoders with early fusion.
    """

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    early_goal_concat: bool = True
    shared_goal_encoder: bool = True
    use_proprio: bool = False
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    dropout_rate: float = 0.1
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_fusion(self.early_goal_concat, self.shared_goal_encoder)
        check_actor(self.hidden_dims, self.dropout_rate, self.dtype)


class GoalConditionedPolicy(nnx.Module):
    """Image encoder and policy head."""

    def __init__(self, config: GCBCConfig, spec: BatchSpec, rngs: nnx.Rngs) -> None:
        dtype = compute_dtype(config.dtype)
        self.encoder = make_fusion(config, spec, rngs)
        self.policy = GaussianPolicy(
            self.encoder.out_dim,
            (spec.action_horizon, spec.action_dim),
            hidden_dims=config.hidden_dims,
            dropout_rate=config.dropout_rate,
            config=config.policy,
            dtype=dtype,
            rngs=rngs,
        )

    def __call__(
        self, observations: Mapping[str, Any], goals: Mapping[str, Any], rng: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b a d"], Float[Array, "b a d"]]:
        """(mean, log_std) of the action chunk; without `rng`, dropout is off."""
        return self.policy(self.encoder(observations, goals), rng)


@dataclasses.dataclass(frozen=True)
class GCBC:
    """The agent, see `jaxvla.agents.agent.Agent`; made by `make_gc_bc`."""

    batch_keys: ClassVar[tuple[str, ...]] = ("observations", "goals", "actions", "action_pad_mask")
    frozen_modules: ClassVar[tuple[str, ...]] = ()
    targets: ClassVar[None] = None

    config: GCBCConfig
    spec: BatchSpec
    graphdef: nnx.GraphDef

    def init(self, rng: Key[Array, ""]) -> Params:
        """Draws the parameters."""
        return init_params(lambda rngs: GoalConditionedPolicy(self.config, self.spec, rngs), rng)

    def loss(
        self, params: Params, batch: Batch, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Negative log likelihood of the actions, summed over d, averaged over the slots inside the trajectories."""
        mean, log_std = bind(self.graphdef, params)(batch["observations"], batch["goals"], rng)
        return actor_loss(mean, log_std, batch, self.config.policy.tanh)

    def evaluate(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> dict[str, Float[Array, " b"]]:
        """Metrics "mse" and "log_probs" of each example; `rng` is not needed."""
        mean, log_std = bind(self.graphdef, params)(batch["observations"], batch["goals"])
        return actor_metrics(mean, log_std, batch, self.config.policy.tanh)

    def act(
        self,
        params: Params,
        observations: Mapping[str, Any],
        task: Mapping[str, Any],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b a d"]:
        """Normalized action chunks towards task["goals"]: the mode, or with `rng` a draw."""
        mean, log_std = bind(self.graphdef, params)(observations, task["goals"])
        return choose_actions(mean, log_std, self.config.policy.tanh, rng, temperature)


def make_gc_bc(agent_kwargs: Mapping[str, Any], spec: BatchSpec) -> GCBC:
    """The agent of a configuration's `agent_kwargs`.

    Raises:
        ConfigError: see `GCBCConfig` and the models that it configures.
    """
    config = from_mapping(GCBCConfig, agent_kwargs, "config.agent_kwargs")
    return GCBC(config, spec, graph_of(lambda rngs: GoalConditionedPolicy(config, spec, rngs)))
