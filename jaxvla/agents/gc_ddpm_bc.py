"""Goal-conditioned behavioural cloning by diffusion: the gc_ddpm_bc of BridgeData V2 (Walke et al., 2023).

The parameters that act are meant to be an average over training, the original's target network: set `ema_decay` of the
training configuration, 1 - tau.

Slots of a chunk behind the end of a trajectory carry no loss, and the score network sees a 0 in them, neither action
nor noise. When it acts all slots are real. Dimensions that a sample's dataset lacks are treated likewise, and are so
when it acts, too.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxvla.agents.executed import action_mse, mask_keys
from jaxvla.agents.goal_vision import check_fusion, make_fusion
from jaxvla.config import from_mapping
from jaxvla.data.schema import Batch, BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models import diffusion
from jaxvla.models.diffusion import DiffusionConfig
from jaxvla.models.module import Params, bind, compute_dtype, graph_of, init_params
from jaxvla.models.resnet import EncoderConfig
from jaxvla.models.score_network import ScoreNetwork, ScoreNetworkConfig
from jaxvla.ops.dimensions import only_present, sum_present
from jaxvla.ops.losses import masked_mean


@dataclasses.dataclass(frozen=True)
class GCDDPMBCConfig:
    """The `agent_kwargs` of gc_ddpm_bc.

    Attributes:
        encoder: of the images.
        early_goal_concat: stack observation and goal as channels of one image, instead of encoding them apart.
        shared_goal_encoder: where they are encoded apart, by the same encoder.
        use_proprio: proprio of the observations joins the features.
        score_network: which predicts the noise.
        diffusion: noise levels and sampler.
        repeated_diffusion_steps: draws of noise and level per example and training step, of which only the score
            network sees more than one; the original has 1.
        dtype: in which the networks compute, "float32" or "bfloat16"; parameters, noise and loss stay float32.

    Raises:
        ConfigError: a value out of range, or separate encoders with early fusion.
    """

    encoder: EncoderConfig = dataclasses.field(default_factory=EncoderConfig)
    early_goal_concat: bool = True
    shared_goal_encoder: bool = True
    use_proprio: bool = False
    score_network: ScoreNetworkConfig = dataclasses.field(default_factory=ScoreNetworkConfig)
    diffusion: DiffusionConfig = dataclasses.field(default_factory=DiffusionConfig)
    repeated_diffusion_steps: int = 1
    dtype: str = "float32"

    def __post_init__(self) -> None:
        check_fusion(self.early_goal_concat, self.shared_goal_encoder)
        if self.repeated_diffusion_steps < 1:
            raise ConfigError(f"repeated_diffusion_steps must be at least 1, not {self.repeated_diffusion_steps}")
        compute_dtype(self.dtype)


class GoalConditionedDenoiser(nnx.Module):
    """Image encoder, and the network that predicts the noise in an action chunk from its features."""

    def __init__(self, config: GCDDPMBCConfig, spec: BatchSpec, rngs: nnx.Rngs) -> None:
        dtype = compute_dtype(config.dtype)
        self.encoder = make_fusion(config, spec, rngs)
        chunk = spec.action_horizon, spec.action_dim
        self.score = ScoreNetwork(self.encoder.out_dim, chunk, config.score_network, dtype=dtype, rngs=rngs)


@dataclasses.dataclass(frozen=True)
class GCDDPMBC:
    """The agent, see `jaxvla.agents.agent.Agent`; made by `make_gc_ddpm_bc`."""

    frozen_modules: ClassVar[tuple[str, ...]] = ()
    targets: ClassVar[None] = None

    config: GCDDPMBCConfig
    spec: BatchSpec
    graphdef: nnx.GraphDef

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Observations, goals, and actions with their masks."""
        return ("observations", "goals", "actions", "action_pad_mask", *mask_keys(self.spec))

    def init(self, rng: Key[Array, ""]) -> Params:
        """Draws the parameters."""
        return init_params(lambda rngs: GoalConditionedDenoiser(self.config, self.spec, rngs), rng)

    def loss(
        self, params: Params, batch: Batch, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Squared error of the predicted noise, summed over d, averaged over the slots inside the trajectories.

        `rng` is split in two, for noise and levels (see `diffusion.noised`) and for dropout.
        """
        noise_rng, dropout_rng = jax.random.split(rng)
        error_ba = self._errors(params, batch, noise_rng, dropout_rng)
        loss = masked_mean(error_ba, batch["action_pad_mask"])
        return loss, {"ddpm_loss": loss}

    def evaluate(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> dict[str, Float[Array, " b"]]:
        """Metrics of each example: "mse" of what `act` gives without a key, "ddpm_loss" with noise drawn from `rng`."""
        actions_bad = self.act(params, batch["observations"], batch)
        return {
            "mse": action_mse(actions_bad, batch, self.spec, 1),
            "ddpm_loss": masked_mean(self._errors(params, batch, rng), batch["action_pad_mask"], 1),
        }

    def act(
        self,
        params: Params,
        observations: Mapping[str, Any],
        task: Mapping[str, Any],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b a d"]:
        """Normalized action chunks towards task["goals"], within +-`diffusion.clip`.

        With `rng` a draw, whose noise, that it starts from and that the steps add, is multiplied by `temperature`.
        Without, what temperature 0 gives too: it starts from the likeliest noise, zero, and takes the mean of each
        step, so every link of the chain is the likeliest one.
        """
        model = bind(self.graphdef, params)
        features_bf = model.encoder(observations, task["goals"])
        noise_bad = jnp.zeros((len(features_bf), self.spec.action_horizon, self.spec.action_dim))
        steps_rng = None
        if rng is not None:
            start_rng, steps_rng = jax.random.split(rng)
            noise_bad = temperature * jax.random.normal(start_rng, noise_bad.shape)

        def predict(noisy_bad: Array, level_b: Array) -> Array:
            return model.score(features_bf, only_present(noisy_bad, task.get("action_dim_mask")), level_b)

        return diffusion.sample(self.config.diffusion, predict, noise_bad, steps_rng, temperature)

    def _errors(
        self, params: Params, batch: Batch, noise_rng: Key[Array, ""], dropout_rng: Key[Array, ""] | None = None
    ) -> Float[Array, "b a"]:
        """Squared error of the noise predicted in each slot, summed over d, averaged over the draws for an example."""
        model, draws = bind(self.graphdef, params), self.config.repeated_diffusion_steps
        features_bf = model.encoder(batch["observations"], batch["goals"])
        rows = features_bf, batch["actions"], batch["action_pad_mask"]
        features_mf, actions_mad, visible_ma = (jnp.repeat(x, draws, axis=0) for x in rows)
        noisy_mad, level_m, noise_mad = diffusion.noised(self.config.diffusion, noise_rng, actions_mad)
        dims = batch.get("action_dim_mask")
        present_md = None if dims is None else jnp.repeat(dims, draws, axis=0)
        seen_mad = only_present(noisy_mad, present_md)
        predicted_mad = model.score(features_mf, seen_mad, level_m, dropout_rng, visible_ma)
        error_ma = sum_present((predicted_mad - noise_mad) ** 2, present_md)
        return error_ma.reshape(len(features_bf), draws, -1).mean(1)


def make_gc_ddpm_bc(agent_kwargs: Mapping[str, Any], spec: BatchSpec) -> GCDDPMBC:
    """The agent of a configuration's `agent_kwargs`.

    Raises:
        ConfigError: see `GCDDPMBCConfig` and the models that it configures.
    """
    config = from_mapping(GCDDPMBCConfig, agent_kwargs, "config.agent_kwargs")
    return GCDDPMBC(config, spec, graph_of(lambda rngs: GoalConditionedDenoiser(config, spec, rngs)))
