"""Goal-conditioned implicit Q-learning: the gc_iql of BridgeData V2 (Walke et al., 2023; Kostrikov et al., 2021).

Three networks look at observation and goal: the actor pi(a | o, g), the value V(o, g) and the critic Q(o, g, a). With
reward r (0 where the goal is the next frame, else -1), mask m, next observation o' and the slow target V':

    critic   (Q(o, g, a) - [r + discount m V'(o', g)])^2
    value    expectile loss of Q(o, g, a) - V(o, g)
    actor    -min(exp(A / temperature), 100) log pi(a | o, g),  A = r + discount m V'(o', g) - V(o, g)

Each loss reaches its own network alone. For critic and value a share of the goals is taken from the next example of the
batch, with reward -1; the critic and the value draw theirs apart, and the actor keeps its goals.

One optimizer minimises the sum of the three, where the original has an optimizer per loss and adds up their updates.
With an encoder for each network that is the same. With one for all, the original's encoder gets the sum of three
updates that Adam has normalised apart, here one update of the summed gradients.

A chunk of actions is one action of the critic, rewarded and followed by the next frame as its first slot is. The critic
sees a 0 in its slots behind the end of a trajectory; it judges no actions but the data's.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jaxvla.agents.agent import Targets
from jaxvla.agents.executed import action_mse, mask_keys
from jaxvla.agents.gaussian_actor import actor_metrics, check_actor, choose_actions, log_prob_of, make_actor
from jaxvla.agents.goal_vision import check_fusion, make_fusion
from jaxvla.agents.target_networks import Networks, add_followers, bind_networks
from jaxvla.config import from_mapping
from jaxvla.data.schema import Batch, BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.critics import ValueHead, with_actions
from jaxvla.models.goal_encoder import Views
from jaxvla.models.module import Params, compute_dtype, graph_of, init_params
from jaxvla.models.policy_head import PolicyConfig
from jaxvla.models.resnet import EncoderConfig
from jaxvla.ops import gaussian
from jaxvla.ops.dimensions import only_present
from jaxvla.ops.losses import masked_mean
from jaxvla.ops.values import advantage_weights, expectile_loss

LARGEST_WEIGHT = 100.0

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class GCIQLConfig:
    """The `agent_kwargs` of gc_iql.

    Attributes:
        encoder: of the images.
        early_goal_concat: stack observation and goal as channels of one image, instead of encoding them apart.
        shared_goal_encoder: where they are encoded apart, by the same encoder.
        shared_encoder: actor, value and critic have one encoder together, which all losses reach.
        use_proprio: proprio of the observations joins the features.
        hidden_dims: layers between features and actions or values.
        dropout_rate: in these layers, in [0, 1).
        policy: distribution of the actions.
        discount: of the next value, in [0, 1).
        expectile: of the critic's values that the value learns, in (0, 1); the higher, the more hopeful.
        temperature: of the advantages; the higher, the closer to behavioural cloning.
        target_rate: share of the value that enters its target after each step, in (0, 1].
        negative_proportion: share of the goals of critic and value that come from another example.
        dropout_target_networks: dropout is on also where values enter a loss as numbers, as in the original.
        dtype: in which the networks compute, "float32" or "bfloat16"; parameters and losses stay float32.

    Raises:
        ConfigError: a value out of range, or separate encoders with early fusion.
    """

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    early_goal_concat: bool = True
    shared_goal_encoder: bool = True
    shared_encoder: bool = True
    use_proprio: bool = False
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    dropout_rate: float = 0.1
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    discount: float = 0.98
    expectile: float = 0.7
    temperature: float = 1.0
    target_rate: float = 0.002
    negative_proportion: float = 0.1
    dropout_target_networks: bool = True
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_fusion(self.early_goal_concat, self.shared_goal_encoder)
        check_actor(self.hidden_dims, self.dropout_rate, self.dtype)
        if not 0 <= self.discount < 1:
            raise ConfigError(f"discount must lie in [0, 1), not {self.discount}")
        if not 0 < self.expectile < 1:
            raise ConfigError(f"expectile must lie in (0, 1), not {self.expectile}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be positive, not {self.temperature}")
        if not 0 < self.target_rate <= 1:
            raise ConfigError(f"target_rate must lie in (0, 1], not {self.target_rate}")
        if not 0 <= self.negative_proportion <= 1:
            raise ConfigError(f"negative_proportion must lie in [0, 1], not {self.negative_proportion}")


class ActorValueCritic(nnx.Module):
    """The three networks, each a head on features; without a key, dropout is off."""

    def __init__(self, config: GCIQLConfig, spec: BatchSpec, rngs: nnx.Rngs) -> None:
        self.shared_encoder = config.shared_encoder
        if config.shared_encoder:
            self.encoder = make_fusion(config, spec, rngs)
            width = self.encoder.out_dim
        else:
            self.actor_encoder, self.value_encoder, self.critic_encoder = (
                make_fusion(config, spec, rngs) for _ in range(3)
            )
            width = self.actor_encoder.out_dim
        self.actor = make_actor(width, config, spec, rngs)
        options = {"hidden_dims": config.hidden_dims, "dropout_rate": config.dropout_rate}
        options |= {"dtype": compute_dtype(config.dtype), "rngs": rngs}
        self.value = ValueHead(width, **options)
        self.critic = ValueHead(width + spec.action_horizon * spec.action_dim, **options)

    def encode(self, observations: Views, goals: Views, *networks: str) -> tuple[Float[Array, "b f"], ...]:
        """The features that each of these networks looks at; those of a shared encoder are computed once."""
        if self.shared_encoder:
            return (self.encoder(observations, goals),) * len(networks)
        return tuple(getattr(self, f"{name}_encoder")(observations, goals) for name in networks)


@dataclasses.dataclass(frozen=True)
class GCIQL:
    """The agent, see `jaxvla.agents.agent.Agent`; made by `make_gc_iql`.

    Its parameters: actor, value, critic, target_value, and encoder, target_encoder; or with an encoder each
    actor_encoder, value_encoder, critic_encoder, target_value_encoder.
    """

    config: GCIQLConfig
    spec: BatchSpec
    graphdef: nnx.GraphDef

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Transitions with their rewards, goals, and actions with their masks."""
        actions = ("actions", "action_pad_mask", *mask_keys(self.spec))
        return ("observations", "next_observations", "goals", *actions, "rewards", "masks")

    @property
    def targets(self) -> Targets:
        """The value and its encoder have followers."""
        encoder = "encoder" if self.config.shared_encoder else "value_encoder"
        return Targets(((f"target_{encoder}", encoder), ("target_value", "value")), self.config.target_rate)

    @property
    def frozen_modules(self) -> tuple[str, ...]:
        """The followers."""
        return tuple(follower for follower, _ in self.targets.following)

    def init(self, rng: Key[Array, ""]) -> Params:
        """Draws the parameters; followers start equal to what they follow."""
        params = init_params(lambda rngs: ActorValueCritic(self.config, self.spec, rngs), rng)
        return add_followers(params, self.targets)

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """The sum of the losses of critic, value and actor, see the module docstring.

        `rng` is split between them in this order; the first part of what critic and value get draws their negatives.
        """
        networks = bind_networks(self.graphdef, params, self.targets)
        parts = (self._critic_loss, self._value_loss, self._actor_loss)
        losses, metrics = zip(*(part(networks, batch, key) for part, key in zip(parts, jax.random.split(rng, 3))))
        return sum(losses), {name: value for part in metrics for name, value in part.items()}

    def evaluate(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> dict[str, Float[Array, " b"]]:
        """Metrics of each example with its own goal; `rng` is not needed.

        Those of the actor, see `actor_metrics`; online_v is V, online_q is Q, and target_q what Q is trained on,
        [r + discount m V'(o', g)]; advantage and qf_advantage say how far target_q and Q lie above V; value_err is the
        expectile loss of the advantage, td_err the squared distance of Q from target_q.
        """
        networks = bind_networks(self.graphdef, params, self.targets)
        model, goals, tanh = networks.online, batch["goals"], self.config.policy.tanh
        to_act, to_value, to_judge = model.encode(batch["observations"], goals, "actor", "value", "critic")
        mean, log_std = model.actor(to_act)
        v, q = model.value(to_value), self._judge(model, to_judge, batch)
        target_q = self._target_q(networks, batch, goals, batch["rewards"], None)
        return actor_metrics(mean, log_std, batch, self.spec, tanh) | {
            "online_v": v,
            "online_q": q,
            "target_q": target_q,
            "value_err": expectile_loss(target_q - v, self.config.expectile),
            "td_err": (target_q - q) ** 2,
            "advantage": target_q - v,
            "qf_advantage": q - v,
        }

    def act(
        self,
        params: Params,
        observations: Mapping[str, Any],
        task: Mapping[str, Any],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b a d"]:
        """Normalized action chunks towards task["goals"]: the mode, or with `rng` a draw."""
        model = bind_networks(self.graphdef, params, self.targets).online
        mean, log_std = model.actor(*model.encode(observations, task["goals"], "actor"))
        return choose_actions(mean, log_std, self.config.policy.tanh, rng, temperature)

    def _critic_loss(self, networks: Networks, batch: Batch, rng: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        negative_key, target_key, key = jax.random.split(rng, 3)
        goals, rewards = with_negatives(batch["goals"], batch["rewards"], self._negatives(batch, negative_key))
        target_q = self._target_q(networks, batch, goals, rewards, self._dropout(target_key))
        (features,) = networks.online.encode(batch["observations"], goals, "critic")
        q = self._judge(networks.online, features, batch, key)
        loss = jnp.mean((q - target_q) ** 2)
        return loss, {"td_loss": loss, "q": q.mean()}

    def _value_loss(self, networks: Networks, batch: Batch, rng: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        negative_key, critic_key, key = jax.random.split(rng, 3)
        model = networks.online
        goals, _ = with_negatives(batch["goals"], batch["rewards"], self._negatives(batch, negative_key))
        to_value, to_judge = model.encode(batch["observations"], goals, "value", "critic")
        q = jax.lax.stop_gradient(self._judge(model, to_judge, batch, self._dropout(critic_key)))
        v = model.value(to_value, key)
        loss = expectile_loss(q - v, self.config.expectile).mean()
        return loss, {"value_loss": loss, "uncentered_loss": jnp.mean((q - v) ** 2), "v": v.mean()}

    def _actor_loss(self, networks: Networks, batch: Batch, rng: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        target_key, value_key, key = jax.random.split(rng, 3)
        model, goals, mask = networks.online, batch["goals"], batch["action_pad_mask"]
        to_act, to_value = model.encode(batch["observations"], goals, "actor", "value")
        v = jax.lax.stop_gradient(model.value(to_value, self._dropout(value_key)))
        target_q = self._target_q(networks, batch, goals, batch["rewards"], self._dropout(target_key))
        advantage = target_q - v
        weight = advantage_weights(advantage, self.config.temperature, LARGEST_WEIGHT)
        mean, log_std = model.actor(to_act, key)
        tanh = self.config.policy.tanh
        log_prob = log_prob_of(batch, mean, log_std, tanh)
        loss = -masked_mean(weight[:, None] * log_prob, mask)
        return loss, {
            "actor_loss": loss,
            "behavior_logprob": masked_mean(log_prob, mask),
            "behavior_mse": action_mse(gaussian.mode(mean, tanh), batch, self.spec),
            "adv_mean": advantage.mean(),
            "adv_max": advantage.max(),
            "adv_min": advantage.min(),
        }

    def _judge(
        self, model: ActorValueCritic, features: Float[Array, "b f"], batch: Batch, rng: Key[Array, ""] | None = None
    ) -> Float[Array, " b"]:
        """Q of the data's actions, for features of the critic."""
        actions = only_present(batch["actions"], batch.get("action_dim_mask"))
        return model.critic(with_actions(features, actions, batch["action_pad_mask"]), rng)

    def _target_q(
        self,
        networks: Networks,
        batch: Batch,
        goals: Views,
        rewards: Float[Array, " b"],
        rng: Key[Array, ""] | None,
    ) -> Float[Array, " b"]:
        """r + discount m V'(o', g), which no gradient reaches."""
        (features,) = networks.target.encode(batch["next_observations"], goals, "value")
        return rewards + self.config.discount * batch["masks"] * networks.target.value(features, rng)

    def _dropout(self, rng: Key[Array, ""]) -> Key[Array, ""] | None:
        """The key where networks that no gradient reaches have dropout, else None."""
        return rng if self.config.dropout_target_networks else None

    def _negatives(self, batch: Batch, rng: Key[Array, ""]) -> Bool[Array, " b"]:
        return jax.random.bernoulli(rng, self.config.negative_proportion, batch["rewards"].shape)


def with_negatives(
    goals: Views, rewards: Float[Array, " b"], negative_b: Bool[Array, " b"]
) -> tuple[dict[str, Array], Float[Array, " b"]]:
    """Goals and rewards; where `negative_b`, the goal of the next example and -1. The last is followed by the first."""

    def swap(x: Array) -> Array:
        return jnp.where(negative_b.reshape(-1, *[1] * (x.ndim - 1)), jnp.roll(x, -1, axis=0), x)

    return {name: swap(x) for name, x in goals.items()}, jnp.where(negative_b, -1.0, rewards)


def make_gc_iql(agent_kwargs: Mapping[str, Any], spec: BatchSpec) -> GCIQL:
    """The agent of a configuration's `agent_kwargs`.

    Raises:
        ConfigError: see `GCIQLConfig` and the models that it configures.
    """
    config = from_mapping(GCIQLConfig, agent_kwargs, "config.agent_kwargs")
    return GCIQL(config, spec, graph_of(lambda rngs: ActorValueCritic(config, spec, rngs)))
