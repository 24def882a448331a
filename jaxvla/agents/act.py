"""ACT, the Action Chunking Transformer of Zhao et al. (2023), with LeRobot's values; see `jaxvla.models.act.model`.

It is told nothing: one policy, one task. Its observations are images and the robot's state of the present moment.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxvla.agents.agent import Start
from jaxvla.agents.executed import action_mse, mask_keys
from jaxvla.config import from_mapping, local_path
from jaxvla.data.schema import PROPRIO, Batch, BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.act.config import FeatureEncoderConfig, TransformerConfig
from jaxvla.models.act.model import ACT, Sizes
from jaxvla.models.act.weights import load_resnet, resnet_report, weight_table
from jaxvla.models.module import Params, bind, compute_dtype, graph_of, init_params
from jaxvla.models.vision import frozen_resnet
from jaxvla.models.vision.dinov2_weights import dinov2_report, load_dinov2
from jaxvla.models.weights import Weight
from jaxvla.ops.dimensions import only_present
from jaxvla.ops.losses import masked_mean


@dataclasses.dataclass(frozen=True)
class ACTConfig:
    """The `agent_kwargs` of act.

    Attributes:
        encoder: of the images.
        transformer: sizes.
        use_proprio: the robot's state is a token.
        use_latent: the demonstrated chunk is encoded into a latent that the policy is told in training; LeRobot's
            use_vae.
        kl_weight: of the divergence of this latent from a standard normal one, in the loss.
        dtype: in which the networks compute, "float32" or "bfloat16"; parameters and loss stay float32.

    Raises:
        ConfigError: a value out of range.
    """

    encoder: FeatureEncoderConfig = dataclasses.field(default_factory=FeatureEncoderConfig)
    transformer: TransformerConfig = dataclasses.field(default_factory=TransformerConfig)
    use_proprio: bool = True
    use_latent: bool = True
    kl_weight: float = 10.0
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not 0 <= self.kl_weight < float("inf"):
            raise ConfigError(f"kl_weight must be 0 or more, not {self.kl_weight}")
        compute_dtype(self.dtype)


@dataclasses.dataclass(frozen=True)
class ACTAgent:
    """The agent, see `jaxvla.agents.agent.Agent`; made by `make_act`."""

    targets: ClassVar[None] = None

    config: ACTConfig
    spec: BatchSpec
    graphdef: nnx.GraphDef

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Observations, and actions with their masks."""
        return ("observations", "actions", "action_pad_mask", *mask_keys(self.spec))

    @property
    def frozen_modules(self) -> tuple[str, ...]:
        """Every frozen BatchNorm of the image encoder."""
        encoder = self.config.encoder
        paths = (weight.path for weight in frozen_resnet.weight_table(encoder.name)) if encoder.is_frozen else ()
        return tuple(dict.fromkeys(f"backbone/{path.rpartition('/')[0]}" for path in paths if "/norm/" in path))

    def init(self, rng: Key[Array, ""]) -> Params:
        """Draws the parameters, as torch draws LeRobot's."""
        return init_params(lambda rngs: _network(self.config, self.spec, rngs), rng)

    def loss(
        self, params: Params, batch: Batch, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """l1_loss + kl_weight * kld_loss, and these two and mse as metrics.

        l1_loss is the mean absolute error over the dimensions of the slots inside the trajectories, kld_loss the
        divergence of the latent's Gaussian from the standard one, summed over z, averaged over the examples. `rng` is
        split in three, for the latent, and for dropout of its encoder and of the policy.
        """
        latent_rng, encoder_rng, dropout_rng = jax.random.split(rng, 3)
        model, observations = bind(self.graphdef, params), batch["observations"]
        latent_bz = jnp.zeros((len(batch["actions"]), self.config.transformer.latent_dim))
        divergence = jnp.zeros(())
        if model.latent_encoder is not None:
            seen = only_present(batch["actions"], batch.get("action_dim_mask")), batch["action_pad_mask"]
            mean_bz, log_var_bz = model.latent_encoder(observations[PROPRIO][:, -1], *seen, encoder_rng)
            latent_bz = mean_bz + jnp.exp(log_var_bz / 2) * jax.random.normal(latent_rng, mean_bz.shape)
            divergence = -0.5 * (1 + log_var_bz - mean_bz**2 - jnp.exp(log_var_bz)).sum(-1).mean()
        actions_bad = model(observations, latent_bz, dropout_rng)
        l1_loss = _l1(actions_bad, batch)
        metrics = {"l1_loss": l1_loss, "kld_loss": divergence, "mse": action_mse(actions_bad, batch, self.spec)}
        return l1_loss + self.config.kl_weight * divergence, metrics

    def evaluate(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> dict[str, Float[Array, " b"]]:
        """ "mse" and "l1_loss" of each example, of the actions of latent 0; `rng` is not needed."""
        actions_bad = self.act(params, batch["observations"], batch)
        return {"mse": action_mse(actions_bad, batch, self.spec, 1), "l1_loss": _l1(actions_bad, batch, 1)}

    def act(
        self,
        params: Params,
        observations: Mapping[str, Any],
        task: Mapping[str, Any],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b a d"]:
        """Normalized action chunks; `task` is not looked at.

        They are those of latent 0, as LeRobot's always are; or with `rng` those of a latent that is drawn from its
        prior, a standard normal one whose deviation is multiplied by `temperature`.
        """
        latent_bz = jnp.zeros((len(observations[self.spec.cameras[0]]), self.config.transformer.latent_dim))
        if rng is not None:
            latent_bz = temperature * jax.random.normal(rng, latent_bz.shape)
        return bind(self.graphdef, params)(observations, latent_bz)


def make_act(agent_kwargs: Mapping[str, Any], spec: BatchSpec) -> ACTAgent:
    """The agent of a configuration's `agent_kwargs`.

    Raises:
        ConfigError: see `ACTConfig` and the models that it configures; or batches without cameras, with cameras
            of several sizes or one that the image encoder does not see, or with a history.
    """
    config = from_mapping(ACTConfig, agent_kwargs, "config.agent_kwargs")
    if not spec.cameras:
        raise ConfigError("act needs at least one camera, and the data has none: name some in its configuration")
    if spec.camera_sizes:
        raise ConfigError(
            f"act sees all cameras at one size: empty config.data.camera_sizes, now {dict(spec.camera_sizes)}"
        )
    if spec.obs_horizon != 1:
        raise ConfigError(f"act sees the present alone: set config.data.obs_horizon to 1, not {spec.obs_horizon}")
    return ACTAgent(config, spec, graph_of(lambda rngs: _network(config, spec, rngs)))


def start_of(agent: ACTAgent) -> Start | None:
    """The image encoder's weights that `encoder.path` names; None where it is empty.

    Raises:
        ConfigError, WeightsError: it is no local path, or there are no weights of this image encoder.
    """
    encoder = agent.config.encoder
    if not encoder.path:
        return None
    path = local_path(encoder.path, "config.agent_kwargs.encoder.path")

    tower = encoder.tower(agent.spec.image_size) if encoder.is_dinov2 else None
    report = resnet_report(path, encoder.name) if tower is None else dinov2_report(path, tower)

    def load(shardings: Params) -> Params:
        where = shardings["backbone"]
        if tower is None:
            return {"backbone": load_resnet(path, encoder.name, where)[0]}
        return {"backbone": {"tower": load_dinov2(path, tower, where["tower"])[0]}}

    return Start(load, (f"{encoder.name} from {path}", *report.lines()))


def table_of(agent: ACTAgent) -> tuple[Weight, ...]:
    """Which tensor of LeRobot is which parameter.

    Raises:
        WeightsError: the image encoder is none that LeRobot has.
    """
    config = agent.config
    return weight_table(config.encoder, config.transformer, _sizes(config, agent.spec), config.use_latent)


def _sizes(config: ACTConfig, spec: BatchSpec) -> Sizes:
    proprio_dim = spec.proprio_dim if config.use_proprio else 0
    return Sizes(spec.cameras, spec.image_size, proprio_dim, spec.action_horizon, spec.action_dim)


def _network(config: ACTConfig, spec: BatchSpec, rngs: nnx.Rngs) -> ACT:
    sizes, dtype = _sizes(config, spec), compute_dtype(config.dtype)
    return ACT(config.encoder, config.transformer, sizes, use_latent=config.use_latent, dtype=dtype, rngs=rngs)


def _l1(actions_bad: Float[Array, "b a d"], batch: Batch, axis: int | None = None) -> Float[Array, "*b"]:
    """Mean absolute error over the slots to be learned and the dimensions that each example has."""
    present_bd = batch.get("action_dim_mask")
    mask_bad = jnp.broadcast_to(batch["action_pad_mask"][..., None], actions_bad.shape)
    if present_bd is not None:
        mask_bad &= present_bd[:, None]
    return masked_mean(jnp.abs(actions_bad - batch["actions"]), mask_bad, None if axis is None else (1, 2))
