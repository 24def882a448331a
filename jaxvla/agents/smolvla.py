"""SmolVLA (Shukor et al., 2025) as LeRobot trains it; see `jaxvla.models.smolvla.model`.

An instruction, the images of all cameras and the robot's state of the present moment are read once; an action expert
then draws a chunk of actions by flow matching. Instructions come as token ids, `jaxvla.agents.language` makes them.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jaxvla.agents.agent import Start
from jaxvla.agents.executed import action_mse, mask_keys
from jaxvla.agents.language import check_tokens
from jaxvla.config import from_mapping, local_path
from jaxvla.data.schema import CAMERA_MASK, NO_TOKEN, PROPRIO, Batch, BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.flow_matching import Guide, draw_known, known_of
from jaxvla.models.layers import cast_matrices
from jaxvla.models.lora import LoraConfig, adapt, adapted_paths, add_lora, read_base
from jaxvla.models.module import Params, bind, compute_dtype, graph_of, init_params
from jaxvla.models.smolvla.config import LORA_TARGETS, SmolVLAConfig
from jaxvla.models.smolvla.expert import Context
from jaxvla.models.smolvla.loss import reduce_errors, sample_losses
from jaxvla.models.smolvla.model import SmolVLA, draw_time, pad_last, prepare_images
from jaxvla.models.smolvla.weight_table import param_shapes
from jaxvla.models.smolvla.weights import load_vlm, vlm_report
from jaxvla.ops.dimensions import only_present

# What came with the vision-language model, and what computes in the compute dtype: the projections are float32.
VLM = ("vision", "connector", "text")
_CAST = (*VLM, "expert")


@dataclasses.dataclass(frozen=True)
class SmolVLAAgentConfig:
    """The `agent_kwargs` of smolvla.

    Attributes:
        model: sizes and options; its chunks are as long as config.data.action_horizon.
        max_delay: for chunks that go on where others were (arXiv 2512.05964), which LeRobot's SmolVLA does not learn:
            training gives up to so many first actions of a chunk as they are, at their own time, and without a loss;
            how many is drawn for each draw of noise, all numbers alike. 0 gives none.
        repeated_diffusion_steps: draws of noise and time that share one pass over images and text in training.
        vlm_path: the folder of a SmolVLM2 in Hugging Face's layout, whose weights training starts from, with an expert
            that is drawn at random; empty where all is drawn.
        lora: adapters that train in place of all parameters, whatever the model says of them. LeRobot leaves `alpha`
            to PEFT, which has 8.

    Raises:
        ConfigError: a value out of range.
    """

    model: SmolVLAConfig
    max_delay: int = 0
    repeated_diffusion_steps: int = 1
    vlm_path: str = ""
    lora: LoraConfig = dataclasses.field(default_factory=lambda: LoraConfig(alpha=8.0, targets=LORA_TARGETS))

    def __post_init__(self) -> None:
        if self.repeated_diffusion_steps < 1:
            raise ConfigError(f"repeated_diffusion_steps must be at least 1, not {self.repeated_diffusion_steps}")
        if not 0 <= self.max_delay < self.model.chunk_size:
            raise ConfigError(f"max_delay must lie in [0, {self.model.chunk_size}), the chunk, not {self.max_delay}")


@dataclasses.dataclass(frozen=True)
class SmolVLAAgent:
    """The agent, see `jaxvla.agents.agent.Agent`; made by `make_smolvla`. Its parameters are those of the model."""

    targets: ClassVar[None] = None

    config: SmolVLAAgentConfig
    spec: BatchSpec
    graphdef: nnx.GraphDef

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Observations, instructions, and actions with their masks."""
        return ("observations", "actions", "action_pad_mask", *mask_keys(self.spec), "instruction")

    @property
    def frozen_modules(self) -> tuple[str, ...]:
        """Those that the model's configuration names; with LoRA all but the adapters."""
        model = self.config.model
        return tuple(param_shapes(model)) if self.config.lora.rank else model.frozen_modules

    def init(self, rng: Key[Array, ""]) -> Params:
        """Draws the parameters. Those that are frozen, and compute in a narrower dtype, are held in that."""
        params = self.narrowed(init_params(lambda rngs: SmolVLA(self.config.model, rngs), rng))
        return add_lora(jax.random.fold_in(rng, 1), params, self.config.lora)

    def narrowed(self, params: Params) -> Params:
        """Some of the parameters as training holds them, see `init`."""
        frozen, dtype = self.frozen_modules, compute_dtype(self.config.model.dtype)

        def held(name: str, part: Params) -> Params:
            narrow = name in frozen and name in _CAST
            return jax.tree.map(lambda x: x.astype(dtype), part) if narrow else part

        return {name: held(name, part) for name, part in params.items()}

    def loss(
        self, params: Params, batch: Batch, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """flow_loss, the squared error of the velocity, reduced as `config.model.loss_reduction` says.

        `rng` is split in two: for noise and times, and for dropout of adapters.
        """
        draw_rng, dropout_rng = jax.random.split(rng)
        model, draws = self._model(params, dropout_rng), self.config.repeated_diffusion_steps
        context = self._look(model, batch["observations"], batch["instruction"])
        errors = jax.vmap(lambda key: self._errors(model, context, batch, key))(jax.random.split(draw_rng, draws))
        errors_mad, counts_ma = (x.reshape(-1, *x.shape[2:]) for x in errors)
        present_md = jnp.tile(self._present(batch), (draws, 1))
        loss = reduce_errors(errors_mad, counts_ma, present_md, self.config.model.loss_reduction)
        return loss, {"flow_loss": loss}

    def evaluate(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> dict[str, Float[Array, " b"]]:
        """ "mse" of the actions of `act`, and "flow_loss", of the noise and the time that `rng` draws."""
        model = self._model(params)
        context = self._look(model, batch["observations"], batch["instruction"])
        actions_bad = self._sample(model, context)
        errors_bad, counts_ba = self._errors(model, context, batch, rng)
        return {
            "mse": action_mse(actions_bad, batch, self.spec, 1),
            "flow_loss": sample_losses(errors_bad, counts_ba, self._present(batch)),
        }

    def act(
        self,
        params: Params,
        observations: Mapping[str, Any],
        task: Mapping[str, Any],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
        guide: Guide | None = None,
    ) -> Float[Array, "b a d"]:
        """Normalized action chunks for task["instruction"]; what is read is read once for all steps of Euler's method.

        Without `rng` they are made of the likeliest noise, which is none: near the mean of what would be sampled.
        LeRobot always draws it: that is `temperature` 1. With `guide` they go on where the chunk of before was.
        """
        model = self._model(params)
        return self._sample(model, self._look(model, observations, task["instruction"]), rng, temperature, guide)

    def _model(self, params: Params, rng: Key[Array, ""] | None = None) -> SmolVLA:
        """The model with its adapters, whose dropout `rng` draws in training."""
        if rng is None:  # to act, where a loop would read kernels in float32 at every step
            dtype = compute_dtype(self.config.model.dtype)
            params = params | {name: cast_matrices(params[name], dtype) for name in _CAST}
        return bind(self.graphdef, adapt(params, self.config.lora, rng))

    def _look(self, model: SmolVLA, observations: Mapping[str, Any], tokens_bl: Array) -> Context:
        config, cameras = self.config.model, self.spec.cameras
        images = [prepare_images(observations[camera][:, -1], config) for camera in cameras]
        present_bn = jnp.ones((len(tokens_bl), len(cameras)), bool)
        if CAMERA_MASK in observations:
            present_bn = observations[CAMERA_MASK][:, -1]
        is_token_bl = tokens_bl != NO_TOKEN
        state_bp = pad_last(observations[PROPRIO][:, -1], config.max_state_dim, PROPRIO)
        words = jnp.where(is_token_bl, tokens_bl, 0), is_token_bl
        return model.look(jnp.stack(images, axis=1), present_bn, *words, state_bp)

    def _errors(
        self, model: SmolVLA, context: Context, batch: Batch, rng: Key[Array, ""]
    ) -> tuple[Float[Array, "b a d"], Bool[Array, "b a"]]:
        """Squared errors, and which actions they count of: those inside the trajectory that were not given."""
        noise_rng, time_rng = jax.random.split(rng)
        shown_bad = only_present(batch["actions"], batch.get("action_dim_mask"))
        actions_bad = pad_last(shown_bad, self.config.model.max_action_dim, "actions")
        noise_bad = jax.random.normal(noise_rng, actions_bad.shape)
        given = (context, actions_bad, noise_bad, draw_time(time_rng, len(actions_bad)))
        counts_ba, most = jnp.asarray(batch["action_pad_mask"]), self.config.max_delay
        if not most:
            return model.errors(*given), counts_ba
        known_ba = draw_known(jax.random.fold_in(rng, 2), *counts_ba.shape, most)
        return model.errors(*given, known_ba), counts_ba & ~known_ba

    def _sample(
        self,
        model: SmolVLA,
        context: Context,
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
        guide: Guide | None = None,
    ) -> Float[Array, "b a d"]:
        width = self.config.model.max_action_dim
        shape = (len(context.length_b), self.spec.action_horizon, width)
        noise_bad = jnp.zeros(shape) if rng is None else temperature * jax.random.normal(rng, shape)
        if guide is not None:  # dimensions that only fill up weigh nothing
            actions_bad, weight_bad = (pad_last(x, width, "actions") for x in (guide.actions_bad, guide.weight_bad))
            known_ba = known_of(guide, self.config.max_delay)
            guide = Guide(actions_bad, weight_bad, guide.limit_b, known_ba)
        return model.sample(context, noise_bad, guide=guide)[..., : self.spec.action_dim]

    def _present(self, batch: Batch) -> Bool[Array, "b d"]:
        """True in the dimensions that a sample's actions have, of all that the model has."""
        all_bd = jnp.ones((len(batch["actions"]), self.spec.action_dim), bool)
        more = self.config.model.max_action_dim - self.spec.action_dim
        return jnp.pad(batch.get("action_dim_mask", all_bd), ((0, 0), (0, more)))


def make_smolvla(agent_kwargs: Mapping[str, Any], spec: BatchSpec) -> SmolVLAAgent:
    """The agent of a configuration's `agent_kwargs`.

    Raises:
        ConfigError: see `SmolVLAAgentConfig` and the model that it configures; no cameras, no instructions or ones that
            are no token ids of its vocabulary, a history of observations, more values of state or actions than it
            takes, chunks of another length, or adapters of what is no kernel.
    """
    plain = dict(agent_kwargs)
    if isinstance(plain.get("model"), Mapping):
        plain["model"] = {"chunk_size": spec.action_horizon, **plain["model"]}
    config = from_mapping(SmolVLAAgentConfig, plain, "config.agent_kwargs")
    _check(config.model, spec)
    if config.lora.rank:
        adapted_paths(param_shapes(config.model), config.lora)
    return SmolVLAAgent(config, spec, graph_of(lambda rngs: SmolVLA(config.model, rngs)))


def _check(model: SmolVLAConfig, spec: BatchSpec) -> None:
    if not spec.cameras:
        raise ConfigError("smolvla needs at least one camera, and the data has none: name some in its configuration")
    if spec.instruction is None or not spec.instruction.vocab_size:
        raise ConfigError("smolvla reads instructions as token ids: set config.language.encoder to 'tokens'")
    if spec.instruction.vocab_size > model.text.vocab_size:
        raise ConfigError(
            f"the tokenizer has {spec.instruction.vocab_size} tokens, more than the {model.text.vocab_size} that the "
            "model has embeddings for: set config.language.path to the folder of its own tokenizer, or "
            "config.agent_kwargs.model.text.vocab_size"
        )
    if spec.obs_horizon != 1:
        raise ConfigError(f"smolvla sees the present alone: set config.data.obs_horizon to 1, not {spec.obs_horizon}")
    if model.chunk_size != spec.action_horizon:
        raise ConfigError(
            f"config.agent_kwargs.model.chunk_size is {model.chunk_size}, but config.data.action_horizon "
            f"{spec.action_horizon}: leave the former out, or set the latter to it"
        )
    for what, width in (("state", spec.proprio_dim), ("action", spec.action_dim)):
        most = getattr(model, f"max_{what}_dim")
        if width > most:
            raise ConfigError(
                f"the {what} of the data has {width} values, but this model takes {most} at most: raise "
                f"config.agent_kwargs.model.max_{what}_dim, for which there are no published weights"
            )


def start_of(agent: SmolVLAAgent) -> Start | None:
    """The weights that `vlm_path` names; None where it is empty.

    Raises:
        ConfigError, WeightsError, CheckpointError: it is no local path, there are no weights of this model, or
            instructions are in the tokens of another one.
    """
    if not agent.config.vlm_path:
        return None
    path, model = local_path(agent.config.vlm_path, "config.agent_kwargs.vlm_path"), agent.config.model
    report = vlm_report(path, model)
    check_tokens(path, agent.spec)

    def load(shardings: Params) -> Params:
        own = {name: shardings[name] for name in VLM}
        return read_base(lambda at: agent.narrowed(load_vlm(path, model, at)[0]), own, agent.config.lora)

    return Start(load, (f"SmolVLM2 from {path}", *report.lines()))
