"""What the methods that imitate with a Gaussian share: losses, validation metrics and actions from (mean, log_std).

Axis letters as in `jaxvla.data.schema`. `tanh` says whether actions are squashed, see `jaxvla.ops.gaussian`.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxvla.agents.executed import action_mse, mask_keys
from jaxvla.data.schema import Batch, BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.module import Params, bind, compute_dtype, graph_of, init_params
from jaxvla.models.policy_head import GaussianPolicy, PolicyConfig
from jaxvla.ops import gaussian
from jaxvla.ops.dimensions import mean_present, sum_present
from jaxvla.ops.losses import masked_mean

# Of the error of a mode in one dimension; Huber's is quadratic up to 1.
_ERRORS = {"l1": jnp.abs, "huber": optax.huber_loss}
LOSSES = ("likelihood", *_ERRORS)


@runtime_checkable
class ActorSettings(Protocol):
    """Those of an agent's settings that say how features become actions.

    Attributes:
        hidden_dims: layers between features and actions.
        dropout_rate: in these layers, in [0, 1).
        policy: distribution of the actions.
        dtype: in which the layers compute.
    """

    hidden_dims: tuple[int, ...]
    dropout_rate: float
    policy: PolicyConfig
    dtype: str


def check_actor(hidden_dims: tuple[int, ...], dropout_rate: float, dtype: str) -> None:
    """Raises ConfigError unless these can be the settings of an actor."""
    if not all(dim > 0 for dim in hidden_dims):
        raise ConfigError(f"hidden_dims must be positive, not {hidden_dims}")
    if not 0 <= dropout_rate < 1:
        raise ConfigError(f"dropout_rate must lie in [0, 1), not {dropout_rate}")
    compute_dtype(dtype)


def check_loss(loss: str, policy: PolicyConfig) -> None:
    """Raises ConfigError unless `loss` is one of `LOSSES` and teaches all of this policy."""
    if loss not in LOSSES:
        raise ConfigError(f"loss must be one of {', '.join(LOSSES)}, not {loss!r}")
    if loss != "likelihood" and policy.std != "fixed":
        raise ConfigError(f"loss {loss} teaches no deviation: policy.std must be fixed, not {policy.std}")


def make_actor(width: int, settings: ActorSettings, spec: BatchSpec, rngs: nnx.Rngs) -> GaussianPolicy:
    """The head that gives action chunks, for features of this width."""
    return GaussianPolicy(
        width,
        (spec.action_horizon, spec.action_dim),
        hidden_dims=settings.hidden_dims,
        dropout_rate=settings.dropout_rate,
        config=settings.policy,
        dtype=compute_dtype(settings.dtype),
        rngs=rngs,
    )


def actor_loss(
    mean_bad: Float[Array, "b a d"],
    log_std_bad: Float[Array, "b a d"],
    batch: Batch,
    spec: BatchSpec,
    tanh: bool,
    loss: str = "likelihood",
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """How far the actions are off, summed over d, averaged over the slots inside the trajectories.

    Where datasets differ in their dimensions, here as in all metrics only those count that a sample's dataset has.

    Args:
        mean_bad, log_std_bad: of the Gaussian.
        batch: of data.
        spec: its sizes.
        tanh: whether actions are squashed.
        loss: "likelihood", the negative log of the actions' density; or of the modes' errors "l1" or "huber".

    Returns:
        The loss, and metrics of these slots: actor_loss, log_probs, mse of the executed modes, pi_actions the mean
        mode, mean_std and max_std the mean and the largest of their deviations, each averaged over d.
    """
    mask, dims = batch["action_pad_mask"], batch.get("action_dim_mask")
    log_prob = masked_mean(log_prob_of(batch, mean_bad, log_std_bad, tanh), mask)
    actions, std_ba = gaussian.mode(mean_bad, tanh), mean_present(gaussian.deviation(log_std_bad, tanh), dims)
    if loss == "likelihood":
        value = -log_prob
    else:
        value = masked_mean(sum_present(_ERRORS[loss](actions - batch["actions"]), dims), mask)
    metrics = {
        "actor_loss": value,
        "log_probs": log_prob,
        "mse": action_mse(actions, batch, spec),
        "pi_actions": masked_mean(mean_present(actions, dims), mask),
        "mean_std": masked_mean(std_ba, mask),
        "max_std": jnp.where(mask, std_ba, 0).max(),
    }
    return value, metrics


def actor_metrics(
    mean_bad: Float[Array, "b a d"], log_std_bad: Float[Array, "b a d"], batch: Batch, spec: BatchSpec, tanh: bool
) -> dict[str, Float[Array, " b"]]:
    """Metrics of each example: "mse" of the executed mode, "log_probs", and "pi_actions", the mean mode."""
    mask, actions = batch["action_pad_mask"], gaussian.mode(mean_bad, tanh)
    return {
        "mse": action_mse(actions, batch, spec, 1),
        "log_probs": masked_mean(log_prob_of(batch, mean_bad, log_std_bad, tanh), mask, 1),
        "pi_actions": masked_mean(mean_present(actions, batch.get("action_dim_mask")), mask, 1),
    }


def log_prob_of(
    batch: Batch,
    mean_bad: Float[Array, "b a d"],
    log_std_bad: Float[Array, "b a d"],
    tanh: bool,
    actions_bad: Float[Array, "b a d"] | None = None,
) -> Float[Array, "b a"]:
    """The log density of the batch's actions, or of others, over the dimensions that each sample's dataset has."""
    actions_bad = batch["actions"] if actions_bad is None else actions_bad
    return sum_present(gaussian.log_densities(actions_bad, mean_bad, log_std_bad, tanh), batch.get("action_dim_mask"))


def choose_actions(
    mean_bad: Float[Array, "b a d"],
    log_std_bad: Float[Array, "b a d"],
    tanh: bool,
    rng: Key[Array, ""] | None,
    temperature: float | Float[Array, ""],
) -> Float[Array, "b a d"]:
    """The mode, or with `rng` a draw whose deviation is multiplied by `temperature`."""
    if rng is None:
        return gaussian.mode(mean_bad, tanh)
    return gaussian.sample(rng, mean_bad, log_std_bad, tanh, temperature)


@dataclasses.dataclass(frozen=True)
class GaussianBC:
    """Behavioural cloning by a network that gives a Gaussian; an agent, see `jaxvla.agents.agent.Agent`.

    Attributes:
        config: settings of the network, of which `policy` says how actions are distributed and `loss` how they are
            learned.
        spec: sizes of the batches.
        network: (config, spec, rngs) to a module that maps (observations, what it is told, rng of dropout or None) to
            (mean, log_std) of the action chunk.
        told: the batch key that holds what it is told, such as "goals".
        graphdef: of the network.
    """

    frozen_modules: ClassVar[tuple[str, ...]] = ()
    targets: ClassVar[None] = None

    config: Any
    spec: BatchSpec
    network: Callable[[Any, BatchSpec, nnx.Rngs], nnx.Module]
    told: str
    graphdef: nnx.GraphDef

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Observations, what the network is told, and actions with their mask."""
        return ("observations", self.told, "actions", "action_pad_mask", *mask_keys(self.spec))

    def init(self, rng: Key[Array, ""]) -> Params:
        """Draws the parameters."""
        return init_params(lambda rngs: self.network(self.config, self.spec, rngs), rng)

    def loss(
        self, params: Params, batch: Batch, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """See `actor_loss`; which one, `config.loss` says."""
        mean_bad, log_std_bad = bind(self.graphdef, params)(batch["observations"], batch[self.told], rng)
        return actor_loss(mean_bad, log_std_bad, batch, self.spec, self.config.policy.tanh, self.config.loss)

    def evaluate(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> dict[str, Float[Array, " b"]]:
        """Metrics of each example, see `actor_metrics`; `rng` is not needed."""
        mean_bad, log_std_bad = bind(self.graphdef, params)(batch["observations"], batch[self.told])
        return actor_metrics(mean_bad, log_std_bad, batch, self.spec, self.config.policy.tanh)

    def act(
        self,
        params: Params,
        observations: Mapping[str, Any],
        task: Mapping[str, Any],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b a d"]:
        """Normalized action chunks for task[self.told]: the mode, or with `rng` a draw."""
        mean_bad, log_std_bad = bind(self.graphdef, params)(observations, task[self.told])
        return choose_actions(mean_bad, log_std_bad, self.config.policy.tanh, rng, temperature)


def make_gaussian_bc(
    config: Any, spec: BatchSpec, network: Callable[[Any, BatchSpec, nnx.Rngs], nnx.Module], told: str
) -> GaussianBC:
    """The agent with these attributes."""
    return GaussianBC(config, spec, network, told, graph_of(lambda rngs: network(config, spec, rngs)))
