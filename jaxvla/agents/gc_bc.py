"""Goal-conditioned behavioural cloning: the gc_bc of BridgeData V2 (Walke et al., 2023), for chunks of actions."""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxvla.config import from_mapping
from jaxvla.data.schema import Batch, BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.goal_encoder import EarlyFusion, LateFusion, ViewShape
from jaxvla.models.module import Params, bind, compute_dtype, graph_of, init_params
from jaxvla.models.policy_head import GaussianPolicy, PolicyConfig
from jaxvla.models.resnet import EncoderConfig
from jaxvla.ops import gaussian
from jaxvla.ops.losses import masked_mean


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
        if self.early_goal_concat and not self.shared_goal_encoder:
            raise ConfigError(
                "shared_goal_encoder=False has no effect with early_goal_concat=True, which has one encoder; change one"
            )
        if not all(dim > 0 for dim in self.hidden_dims):
            raise ConfigError(f"hidden_dims must be positive, not {self.hidden_dims}")
        if not 0 <= self.dropout_rate < 1:
            raise ConfigError(f"dropout_rate must lie in [0, 1), not {self.dropout_rate}")
        compute_dtype(self.dtype)


class GoalConditionedPolicy(nnx.Module):
    """Image encoder and policy head."""

    def __init__(self, config: GCBCConfig, spec: BatchSpec, rngs: nnx.Rngs) -> None:
        dtype = compute_dtype(config.dtype)
        shape = ViewShape(
            spec.cameras, spec.image_size, spec.obs_horizon, spec.proprio_dim if config.use_proprio else 0
        )
        if config.early_goal_concat:
            self.encoder = EarlyFusion(config.encoder, shape, dtype=dtype, rngs=rngs)
        else:
            shared = config.shared_goal_encoder
            self.encoder = LateFusion(config.encoder, shape, shared=shared, dtype=dtype, rngs=rngs)
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
        tanh, mask = self.config.policy.tanh, batch["action_pad_mask"]
        log_prob = masked_mean(gaussian.log_prob(batch["actions"], mean, log_std, tanh), mask)
        actions, std = gaussian.mode(mean, tanh), jnp.exp(log_std)
        metrics = {
            "actor_loss": -log_prob,
            "log_probs": log_prob,
            "mse": masked_mean(jnp.sum((actions - batch["actions"]) ** 2, -1), mask),
            "pi_actions": masked_mean(actions.mean(-1), mask),
            "mean_std": std.mean(),
            "max_std": std.max(),
        }
        return -log_prob, metrics

    def evaluate(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> dict[str, Float[Array, " b"]]:
        """Metrics "mse" and "log_probs" of each example; `rng` is not needed."""
        mean, log_std = bind(self.graphdef, params)(batch["observations"], batch["goals"])
        tanh, mask = self.config.policy.tanh, batch["action_pad_mask"]
        squared_error = jnp.sum((gaussian.mode(mean, tanh) - batch["actions"]) ** 2, -1)
        log_prob = gaussian.log_prob(batch["actions"], mean, log_std, tanh)
        return {"mse": masked_mean(squared_error, mask, 1), "log_probs": masked_mean(log_prob, mask, 1)}

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
        tanh = self.config.policy.tanh
        return gaussian.mode(mean, tanh) if rng is None else gaussian.sample(rng, mean, log_std, tanh, temperature)


def make_gc_bc(agent_kwargs: Mapping[str, Any], spec: BatchSpec) -> GCBC:
    """The agent of a configuration's `agent_kwargs`.

    Raises:
        ConfigError: see `GCBCConfig` and the models that it configures.
    """
    config = from_mapping(GCBCConfig, agent_kwargs, "config.agent_kwargs")
    return GCBC(config, spec, graph_of(lambda rngs: GoalConditionedPolicy(config, spec, rngs)))
