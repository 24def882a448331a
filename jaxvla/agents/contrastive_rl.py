"""Contrastive reinforcement learning: the contrastive_rl_td of BridgeData V2 (Walke et al., 2023; Zheng et al., 2023).

Critics tell goals that follow a state and action from others: the logit of (o, a) and g is the inner product of their
representations. Two critics stand side by side on one encoder, and where a number is wanted the smaller logit counts.

TD     goals are the next frames, random goals those of the next example of the batch. With a' ~ pi(. | o', random goal)
       and w = p / (1 - p), at most 20, of the probability p that the target critics give (o', a', random goal):
           (1 - discount) BCE(logit of the next frame, 1) + discount w BCE(logit of the random goal, 1)
           + BCE(logit of the random goal, 0)
NCE    goals are those of the batch; binary cross entropy of every pair of an example and a goal.
actor  -(1 - c) logit of (o, g, a), a ~ pi(. | o, g), - c log pi(action of the data | o, g), with the batch's goals g

Critics learn from their own loss alone, and the actor's gradient goes through the critics without moving them. One
optimizer minimises the sum of both losses, where the original has an optimizer per loss and adds up their updates. With
an encoder for each network that is the same. With one for both, the original's encoder gets the sum of two updates that
Adam has normalised apart, here one update of the summed gradients.

Dropout, which the actor alone has, is off where a' is drawn: that is how the policy acts. A chunk of actions is one
action of the critics, followed by the next frame as its first slot is. They see a 0 in its slots behind the end of a
trajectory, so that of states near an end they know no whole chunks; the chunk that the policy draws for an example, a
or a', is judged in the slots that the example's own chunk has, and no others are pushed. Where a batch is cut into
parts, other examples are those of the same part.
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
from jaxvla.agents.goal_vision import view_shape
from jaxvla.agents.target_networks import Networks, add_followers, bind_networks
from jaxvla.config import from_mapping
from jaxvla.data.schema import Batch, BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.critics import ContrastiveCritic, all_logits, pair_logits
from jaxvla.models.goal_encoder import EarlyFusion, LateFusion, Views
from jaxvla.models.module import Params, compute_dtype, graph_of, init_params
from jaxvla.models.policy_head import PolicyConfig
from jaxvla.models.resnet import EncoderConfig
from jaxvla.ops import gaussian
from jaxvla.ops.dimensions import mean_present, only_present
from jaxvla.ops.losses import masked_mean
from jaxvla.ops.values import contrastive_nce_loss, contrastive_td_loss, pessimistic_odds

NUM_CRITICS = 2
LARGEST_ODDS = 20.0

Metrics = dict[str, Float[Array, ""]]


@dataclasses.dataclass(frozen=True)
class ContrastiveRLConfig:
    """The `agent_kwargs` of contrastive_rl_td.

    Attributes:
        encoder: of the images.
        shared_encoder: actor and critics have one encoder together, which both losses reach. Critics need observation
            and goal apart, so it does not stack them; an encoder of the actor's own does.
        shared_goal_encoder: where they are encoded apart, by the same encoder.
        use_proprio: proprio of the observations joins the features.
        hidden_dims: layers between features and actions or representations.
        dropout_rate: in the actor's, in [0, 1).
        policy: distribution of the actions.
        repr_dim: width of the representations.
        use_td: learn from next frames by bootstrapping, instead of from the goals of the batch.
        discount: of the next state, in [0, 1); with `use_td`.
        gcbc_coef: weight of imitation in the actor's loss, in [0, 1]; the critics have the rest.
        target_rate: share of the critics that enters their targets after each step, in (0, 1].
        dtype: in which the networks compute, "float32" or "bfloat16"; parameters and losses stay float32.

    Raises:
        ConfigError: a value out of range.
    """

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    shared_encoder: bool = False
    shared_goal_encoder: bool = True
    use_proprio: bool = False
    hidden_dims: tuple[int, ...] = (256, 256, 256)
    dropout_rate: float = 0.1
    policy: PolicyConfig = dataclasses.field(default_factory=PolicyConfig)
    repr_dim: int = 16
    use_td: bool = True
    discount: float = 0.98
    gcbc_coef: float = 0.2
    target_rate: float = 0.002
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_actor(self.hidden_dims, self.dropout_rate, self.dtype)
        if self.repr_dim < 1:
            raise ConfigError(f"repr_dim must be at least 1, not {self.repr_dim}")
        if not 0 <= self.discount < 1:
            raise ConfigError(f"discount must lie in [0, 1), not {self.discount}")
        if not 0 <= self.gcbc_coef <= 1:
            raise ConfigError(f"gcbc_coef must lie in [0, 1], not {self.gcbc_coef}")
        if not 0 < self.target_rate <= 1:
            raise ConfigError(f"target_rate must lie in (0, 1], not {self.target_rate}")


class ActorCritics(nnx.Module):
    """Actor and critics, with an encoder each or one together."""

    def __init__(self, config: ContrastiveRLConfig, spec: BatchSpec, rngs: nnx.Rngs) -> None:
        dtype = compute_dtype(config.dtype)
        shape = view_shape(spec, config.use_proprio)
        apart = LateFusion(config.encoder, shape, shared=config.shared_goal_encoder, dtype=dtype, rngs=rngs)
        self.shared_encoder = config.shared_encoder
        if config.shared_encoder:
            self.encoder = apart
        else:
            self.actor_encoder = EarlyFusion(config.encoder, shape, dtype=dtype, rngs=rngs)
            self.critic_encoder = apart
        width = apart.out_dim if config.shared_encoder else self.actor_encoder.out_dim
        self.actor = make_actor(width, config, spec, rngs)
        self.critic = ContrastiveCritic(
            apart.out_dim - apart.goal_dim,
            spec.action_horizon * spec.action_dim,
            apart.goal_dim,
            num_critics=NUM_CRITICS,
            hidden_dims=config.hidden_dims,
            repr_dim=config.repr_dim,
            dtype=dtype,
            rngs=rngs,
        )

    def policy(
        self, observations: Views, goals: Views, rng: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b a d"], Float[Array, "b a d"]]:
        """(mean, log_std) of the action chunk; without `rng`, dropout is off."""
        encoder = self.encoder if self.shared_encoder else self.actor_encoder
        return self.actor(encoder(observations, goals), rng)

    def encode_states(self, observations: Views) -> Float[Array, "b f"]:
        """What the critics look at beside actions."""
        return self._critic_encoder.encode_observations(observations)

    def represent(
        self, states_bf: Float[Array, "b f"], actions: Float[Array, "b a d"], visible: Bool[Array, "b a"], goals: Views
    ) -> tuple[Float[Array, "n b k"], Float[Array, "n b k"]]:
        """What the critics make of states, from `encode_states`, with visible actions, and of goals."""
        return self.critic(states_bf, actions, visible, self._critic_encoder.encode_goals(goals))

    @property
    def _critic_encoder(self) -> LateFusion:
        return self.encoder if self.shared_encoder else self.critic_encoder


@dataclasses.dataclass(frozen=True)
class ContrastiveRL:
    """The agent, see `jaxvla.agents.agent.Agent`; made by `make_contrastive_rl`.

    Its parameters: actor_encoder, actor, critic_encoder, critic, target_critic_encoder, target_critic; or with a shared
    encoder actor, encoder, critic, target_encoder, target_critic.
    """

    config: ContrastiveRLConfig
    spec: BatchSpec
    graphdef: nnx.GraphDef

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Next observations are needed where the critics bootstrap."""
        keys = ("observations", "goals", "actions", "action_pad_mask", *mask_keys(self.spec))
        return (*keys, "next_observations") if self.config.use_td else keys

    @property
    def targets(self) -> Targets:
        """The critics and their encoder have followers."""
        encoder = "encoder" if self.config.shared_encoder else "critic_encoder"
        return Targets(((f"target_{encoder}", encoder), ("target_critic", "critic")), self.config.target_rate)

    @property
    def frozen_modules(self) -> tuple[str, ...]:
        """The followers."""
        return tuple(follower for follower, _ in self.targets.following)

    def init(self, rng: Key[Array, ""]) -> Params:
        """Draws the parameters; followers start equal to what they follow."""
        params = init_params(lambda rngs: ActorCritics(self.config, self.spec, rngs), rng)
        return add_followers(params, self.targets)

    def loss(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """The sum of the losses of critics and actor, see the module docstring."""
        networks = bind_networks(self.graphdef, params, self.targets)
        critic_key, actor_key = jax.random.split(rng)
        states = networks.online.encode_states(batch["observations"])
        critic_loss, of_critics = self._critic_loss(networks, states, batch, critic_key)
        actor_loss, of_actor = self._actor_loss(networks, jax.lax.stop_gradient(states), batch, actor_key)
        return critic_loss + actor_loss, of_critics | of_actor

    def evaluate(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> dict[str, Float[Array, " b"]]:
        """Metrics of each example; `rng` is not needed.

        Those of the actor, see `actor_metrics`, and pi_std its mean deviation. Then what the critics make of the goals
        of the batch: logits_pos, logits_neg, binary_accuracy and categorical_accuracy, see `compare_goals`, and
        target_logits_pos and target_logits_neg of the target critics. With `use_td` the critics learn next frames,
        which the metrics of these names in training are of: here they are next_logits_pos, next_logits_neg,
        next_binary_accuracy and next_categorical_accuracy. Batches of validation hold few trajectories, so that many of
        the other goals do follow: accuracies there say less than those of training.
        """
        networks = bind_networks(self.graphdef, params, self.targets)
        mask, dims, tanh = batch["action_pad_mask"], batch.get("action_dim_mask"), self.config.policy.tanh
        mean, log_std = networks.online.policy(batch["observations"], batch["goals"])

        actions = only_present(batch["actions"], dims)

        def compared(model: ActorCritics, goals: Views) -> dict[str, Float[Array, " b"]]:
            states = model.encode_states(batch["observations"])
            # Rows that only fill up a batch have no action inside a trajectory; their goals are nobody's negatives.
            return compare_goals(all_logits(*model.represent(states, actions, mask, goals)), mask.any(-1))

        target = compared(networks.target, batch["goals"])
        learned = compared(networks.online, self._critic_goals(batch)) if self.config.use_td else {}
        return {
            **actor_metrics(mean, log_std, batch, self.spec, tanh),
            "pi_std": masked_mean(mean_present(gaussian.deviation(log_std, tanh), dims), mask, 1),
            **compared(networks.online, batch["goals"]),
            "target_logits_pos": target["logits_pos"],
            "target_logits_neg": target["logits_neg"],
            **{f"next_{name}": value for name, value in learned.items()},
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
        networks = bind_networks(self.graphdef, params, self.targets)
        mean, log_std = networks.online.policy(observations, task["goals"])
        return choose_actions(mean, log_std, self.config.policy.tanh, rng, temperature)

    def _critic_loss(
        self, networks: Networks, states: Float[Array, "b f"], batch: Batch, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        goals = self._critic_goals(batch)
        actions = only_present(batch["actions"], batch.get("action_dim_mask"))
        rows, columns = networks.online.represent(states, actions, batch["action_pad_mask"], goals)
        logits = all_logits(rows, columns)
        if self.config.use_td:
            positive, negative = pair_logits(rows, columns), pair_logits(rows, jnp.roll(columns, -1, axis=1))
            odds = self._odds(networks, batch, goals, rng)
            loss = contrastive_td_loss(positive, negative, odds, self.config.discount).mean()
        else:
            loss = contrastive_nce_loss(logits).mean()
        compared = compare_goals(logits, jnp.ones(logits.shape[-1], bool))
        averages = {name: value.mean() for name, value in compared.items()}
        return loss, {"critic_loss": loss, "logits": logits.mean()} | averages

    def _odds(self, networks: Networks, batch: Batch, goals: Views, rng: Key[Array, ""]) -> Float[Array, " b"]:
        """w of the module docstring, which no gradient reaches."""
        observations = batch["next_observations"]
        random_goals = {name: jnp.roll(x, -1, axis=0) for name, x in goals.items()}
        mean, log_std = networks.fixed.policy(observations, random_goals)
        actions = only_present(
            gaussian.sample(rng, mean, log_std, self.config.policy.tanh), batch.get("action_dim_mask")
        )
        states = networks.target.encode_states(observations)
        logits = pair_logits(*networks.target.represent(states, actions, batch["action_pad_mask"], random_goals))
        return pessimistic_odds(logits, LARGEST_ODDS)

    def _actor_loss(
        self, networks: Networks, states: Float[Array, "b f"], batch: Batch, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], Metrics]:
        dropout_key, sample_key = jax.random.split(rng)
        goals, mask, dims = batch["goals"], batch["action_pad_mask"], batch.get("action_dim_mask")
        mean, log_std = networks.online.policy(batch["observations"], goals, dropout_key)
        tanh, imitation = self.config.policy.tanh, self.config.gcbc_coef
        actions = gaussian.sample(sample_key, mean, log_std, tanh)
        logits = pair_logits(*networks.fixed.represent(states, only_present(actions, dims), mask, goals))
        q_action_loss = -logits.min(0).mean()
        log_prob = masked_mean(log_prob_of(batch, mean, log_std, tanh), mask)
        loss = (1 - imitation) * q_action_loss - imitation * log_prob
        return loss, {
            "actor_loss": loss,
            "q_action_loss": q_action_loss,
            "gcbc_loss": -log_prob,
            "log_probs": log_prob,
            "sampled_log_probs": masked_mean(log_prob_of(batch, mean, log_std, tanh, actions), mask),
            "mse": action_mse(gaussian.mode(mean, tanh), batch, self.spec),
            "pi_std": masked_mean(mean_present(gaussian.deviation(log_std, tanh), dims), mask),
        }

    def _critic_goals(self, batch: Batch) -> dict[str, Array]:
        """The goals that the critics learn: next frames, or those of the batch."""
        if not self.config.use_td:
            return dict(batch["goals"])
        return {name: x[:, -1] for name, x in batch["next_observations"].items()}


def compare_goals(logits_nbg: Float[Array, "n b b"], filled_b: Bool[Array, " b"]) -> dict[str, Float[Array, " b"]]:
    """How well each row finds its own goal, the one of its index, among those of the filled rows.

    Returns:
        Of the logits averaged over the critics: logits_pos, that of the row with its own goal; logits_neg, the mean
        over the goals of the others, 0 where there are none; binary_accuracy, the share of goals whose logit has the
        right sign; categorical_accuracy, 1 where the own goal has the largest logit.
    """
    own_bg, logits_bg = jnp.eye(len(filled_b), dtype=bool), logits_nbg.mean(0)
    shown_bg = own_bg | filled_b
    right_bg = (logits_bg > 0) == own_bg
    nearest_b = jnp.where(shown_bg, logits_bg, -jnp.inf).argmax(-1)
    return {
        "logits_pos": jnp.diagonal(logits_bg),
        "logits_neg": masked_mean(logits_bg, shown_bg & ~own_bg, 1),
        "binary_accuracy": masked_mean(right_bg.astype(jnp.float32), shown_bg, 1),
        "categorical_accuracy": (nearest_b == jnp.arange(len(filled_b))).astype(jnp.float32),
    }


def make_contrastive_rl(agent_kwargs: Mapping[str, Any], spec: BatchSpec) -> ContrastiveRL:
    """The agent of a configuration's `agent_kwargs`.

    Raises:
        ConfigError: see `ContrastiveRLConfig` and the models that it configures.
    """
    config = from_mapping(ContrastiveRLConfig, agent_kwargs, "config.agent_kwargs")
    return ContrastiveRL(config, spec, graph_of(lambda rngs: ActorCritics(config, spec, rngs)))
