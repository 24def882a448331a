"""Embodied chain of thought: a vision-language model reasons, in words or in latent slots, and a head acts on it.

Reasoning in words is that of ECoT (Zawalski et al., 2024); slots that take their place, and a flow-matching head behind
them, are LaRA-VLA's. The layout of the texts is in `jaxvla.data.schema` under `text`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxvla.agents.agent import ExampleMetrics, PartialMetric
from jaxvla.agents.executed import action_mse, mask_keys
from jaxvla.config import from_mapping
from jaxvla.data.schema import CAMERA_MASK, TURN_TOKENS, Batch, BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.action_head.config import ActionHeadConfig
from jaxvla.models.action_head.head import ActionHead
from jaxvla.models.flow_matching import Guide
from jaxvla.models.generation import Sampling, continue_text
from jaxvla.models.latent_thinking import Thought, check_latent_hidden, prefill, think
from jaxvla.models.layers import cast_matrices
from jaxvla.models.lora import LoraConfig, adapt, adapted_paths, add_lora
from jaxvla.models.module import Params, bind, compute_dtype, graph_of, init_params
from jaxvla.models.qwen3_vl.config import Qwen3VLConfig
from jaxvla.models.qwen3_vl.model import Qwen3VL
from jaxvla.models.qwen3_vl.positions import Grids, of_tokens
from jaxvla.models.qwen3_vl.weight_table import param_shapes
from jaxvla.ops.losses import IGNORE, masked_mean
from jaxvla.ops.patches import patchify

# What a training mode leaves as it is.
FROZEN = {"full": (), "reasoning_only": ("action_head",), "action_only": ("backbone",)}
# And LoRA, which puts "backbone/lora" in their place.
BASE = ("backbone/text", "backbone/visual")
INFERENCE_MODES = ("implicit", "explicit", "none")
CONTEXTS = ("pre_norm", "post_norm")


@dataclasses.dataclass(frozen=True)
class ECoTConfig:
    """The `agent_kwargs` of ecot.

    Attributes:
        backbone: sizes and options of the vision-language model.
        action_head: of the head.
        stop_token, pad_token: ids that end a text and that fill up short ones.
        training_mode: "full"; "reasoning_only", the language loss alone, with the head frozen; or "action_only", the
            action loss alone, with the backbone frozen, except for adapters, which learn from it.
        language_loss_weight: of the language loss beside the action loss; 0 does not compute it.
        latent_hidden: what a slot is fed, see `jaxvla.models.latent_thinking`.
        context_hidden: what the head looks at: hidden states before the final norm, "pre_norm", or after it.
        hide_words: share of the training samples whose head does not see the words, only what comes before them and the
            end of thinking. A policy that is to act without generating words needs some.
        inference: "implicit", with latent slots; "explicit", generating the words first; or "none".
        max_new_tokens: when to stop generating words.
        lora: adapters of the backbone, which train in its place.

    Raises:
        ConfigError: an unknown option, or a value out of range.
    """

    backbone: Qwen3VLConfig
    action_head: ActionHeadConfig
    stop_token: int
    pad_token: int
    training_mode: str = "full"
    language_loss_weight: float = 0.1
    latent_hidden: str = "pre_norm"
    context_hidden: str = "pre_norm"
    hide_words: float = 0.0
    inference: str = "implicit"
    max_new_tokens: int = 256
    lora: LoraConfig = dataclasses.field(default_factory=LoraConfig)

    def __post_init__(self) -> None:
        check_latent_hidden(self.latent_hidden)
        choices = {"training_mode": tuple(FROZEN), "context_hidden": CONTEXTS, "inference": INFERENCE_MODES}
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be one of {', '.join(known)}, not {getattr(self, name)!r}")
        if self.language_loss_weight < 0:
            raise ConfigError(f"language_loss_weight must be 0 or more, not {self.language_loss_weight}")
        if not 0 <= self.hide_words <= 1:
            raise ConfigError(f"hide_words must lie in [0, 1], not {self.hide_words}")
        if self.max_new_tokens < 1:
            raise ConfigError(f"max_new_tokens must be at least 1, not {self.max_new_tokens}")

    @property
    def learns_language(self) -> bool:
        """Whether the language loss is computed."""
        return self.training_mode != "action_only" and self.language_loss_weight > 0


class Sampled(NamedTuple):
    """What a policy decides.

    Attributes:
        actions_bad: normalized.
        tokens_bm: the words that were generated in mode "explicit", padded; None in the others.
    """

    actions_bad: Float[Array, "b a d"]
    tokens_bm: Int[Array, "b m"] | None


@dataclasses.dataclass(frozen=True)
class ECoT:
    """The agent, see `jaxvla.agents.agent.Agent`; made by `make_ecot`. Its parameters: backbone and action_head."""

    targets: ClassVar[None] = None

    config: ECoTConfig
    spec: BatchSpec
    backbone: nnx.GraphDef
    action_head: nnx.GraphDef

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Observations, texts, and actions with their masks."""
        return ("observations", "actions", "action_pad_mask", *mask_keys(self.spec), "text")

    @property
    def frozen_modules(self) -> tuple[str, ...]:
        """What the training mode does not train; with LoRA all of the backbone but the adapters."""
        frozen = FROZEN[self.config.training_mode]
        if not self.config.lora.rank:
            return frozen
        return (*(name for name in frozen if name != "backbone"), *BASE)

    @property
    def grids(self) -> Grids:
        """Rows and columns of patches of the image of each camera."""
        patch, sizes = self.config.backbone.vision.patch_size, map(self.spec.size_of, self.spec.cameras)
        return tuple((height // patch, width // patch) for height, width in sizes)

    def init(self, rng: Key[Array, ""]) -> Params:
        """Draws the parameters of both modules. Those that LoRA freezes are in the compute dtype."""
        backbone_key, head_key = jax.random.split(rng)
        backbone, lora = init_params(lambda rngs: Qwen3VL(self.config.backbone, rngs), backbone_key), self.config.lora
        if lora.rank:
            frozen_dtype = compute_dtype(self.config.backbone.dtype)
            frozen = jax.tree.map(lambda x: x.astype(frozen_dtype), backbone)
            backbone = add_lora(jax.random.fold_in(backbone_key, 1), frozen, lora)
        return {
            "backbone": backbone,
            "action_head": init_params(lambda rngs: _make_head(self.config, self.spec, rngs), head_key),
        }

    def loss(
        self, params: Params, batch: Batch, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """Action loss and weighted language loss, as far as the training mode has them.

        The action loss is a mean over samples, the language loss one over the target tokens of the batch.
        """
        config, text = self.config, batch["text"]
        hide_key, head_key = jax.random.split(rng)
        model = self._model(params, jax.random.fold_in(rng, 2))
        thought = self._think(model, batch)
        total = jnp.zeros((), jnp.float32)
        # The stage does not tell: by LaRA's rule a sample of stage 0 may have neither.
        reasons_b = text["slots"].any(1) | text["labels"].any(1)
        metrics = {
            "n_latents": text["slots"].sum(1).astype(jnp.float32).mean(),
            "stage": text["stage"].max().astype(jnp.float32),
            "without_reasoning": (~reasons_b).astype(jnp.float32).mean(),
            "truncated": text["truncated"].astype(jnp.float32).mean(),
        }
        if config.learns_language:
            losses_bs, hits_bs = _language(model, thought, text)
            metrics["lm_loss"] = masked_mean(losses_bs, text["labels"])
            metrics["token_accuracy"] = masked_mean(hits_bs, text["labels"])
            weight = 1.0 if config.training_mode == "reasoning_only" else config.language_loss_weight
            total += weight * metrics["lm_loss"]
        if config.training_mode != "reasoning_only":
            hidden_b = jax.random.bernoulli(hide_key, config.hide_words, thought.valid_bt.shape[:1])
            losses_b = self._head(params).losses(
                *self._context(model, thought, text, hidden_b),
                batch["actions"],
                batch["action_pad_mask"],
                head_key,
                self._state(batch["observations"]),
                present_bd=batch.get("action_dim_mask"),
            )
            metrics["action_loss"] = losses_b.mean()
            total += metrics["action_loss"]
        return total, metrics | {"total_loss": total}

    def evaluate(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> ExampleMetrics:
        """Errors of the actions of `act`, and of the words where there are any; `rng` is not needed.

        "mse" is that of acting without the demonstrated words, which a policy does not have: of modes implicit and none
        exactly, of explicit without the words that it would generate. "mse_with_words" is that of acting on the
        demonstrated ones. "lm_loss" and "token_accuracy" are means over the words of an example that has any.
        """
        text = batch["text"]
        model = self._model(params)
        thought = self._think(model, batch)

        def error(thought: Thought, hidden: bool) -> Float[Array, " b"]:
            hidden_b = jnp.full(len(thought.valid_bt), hidden)
            context = self._context(model, thought, text, hidden_b)
            return action_mse(
                self.act_on(params, *context, batch["observations"], batch.get("action_dim_mask")), batch, self.spec, 1
            )

        # As in `sample_actions`: the head looks at the end of the turn where it was not trained to do without.
        hides = self.config.hide_words > 0
        silent = thought if hides else self._think(model, {**batch, "text": _without_words(text)})
        losses_bs, hits_bs = _language(model, thought, text)
        return {
            "mse": error(silent, hides),
            "mse_with_words": error(thought, False),
            "lm_loss": PartialMetric(masked_mean(losses_bs, text["labels"], 1), text["labels"].any(1)),
            "token_accuracy": PartialMetric(masked_mean(hits_bs, text["labels"], 1), text["labels"].any(1)),
        }

    def look(self, params: Params, batch: Batch) -> tuple[Float[Array, "b t c"], Bool[Array, "b t"]]:
        """What the head of a policy looks at that says nothing, and which of it; for those who look into one.

        The columns are those of prefix and slots, then of the ends of thinking and of the turn.
        """
        text, model = batch["text"], self._model(params)
        thought = self._think(model, {**batch, "text": _without_words(text)})
        return self._context(model, thought, text, jnp.full(len(thought.valid_bt), self.config.hide_words > 0))

    def act_on(
        self,
        params: Params,
        context_btc: Float[Array, "b t c"],
        visible_bt: Bool[Array, "b t"],
        observations: Mapping[str, Any],
        present_bd: Bool[Array, "b d"] | None = None,
    ) -> Float[Array, "b a d"]:
        """The likeliest normalized actions for what `look` gives, or became of it; `present_bd` is action_dim_mask."""
        given = (context_btc, visible_bt, self._no_noise(context_btc), self._state(observations))
        return self._head(params).sample(*given, present_bd=present_bd)

    def looks_at(
        self,
        params: Params,
        context_btc: Float[Array, "b t c"],
        visible_bt: Bool[Array, "b t"],
        observations: Mapping[str, Any],
    ) -> Float[Array, "l b t"]:
        """How much of its attention the head has at each column of what `look` gives, by its pairs of layers."""
        noise_bad = self._no_noise(context_btc)
        return self._head(params).looks_at(context_btc, visible_bt, noise_bad, self._state(observations))

    def _no_noise(self, context_btc: Array) -> Array:
        return jnp.zeros((len(context_btc), self.spec.action_horizon, self.spec.action_dim), jnp.float32)

    def act(
        self,
        params: Params,
        observations: Mapping[str, Any],
        task: Mapping[str, Any],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
        guide: Guide | None = None,
    ) -> Float[Array, "b a d"]:
        """Normalized action chunks for task["text"], see `sample_actions`."""
        return self.sample_actions(params, observations, task, rng, temperature, guide).actions_bad

    def sample_actions(
        self,
        params: Params,
        observations: Mapping[str, Any],
        task: Mapping[str, Any],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
        guide: Guide | None = None,
    ) -> Sampled:
        """Thinks as `config.inference` says, then samples actions.

        Args:
            params: from `init` or training.
            observations: as in a batch.
            task: {"text": ...} as `jaxvla.reasoning.prompt` makes it for the inference mode; labels are not needed.
            rng: of the noise that actions are made of; None for the likeliest noise, which is none. What flow matching
                makes of that is near the mean of the actions that it would sample.
            temperature: multiplies the noise.
            guide: what the actions are drawn towards, with flow matching alone; None for nothing.
        """
        config, text = self.config, task["text"]
        cast = cast_matrices(params["backbone"], compute_dtype(config.backbone.dtype))
        model = self._model({"backbone": cast})
        seen, tokens_bm = self._seen(observations), None
        if config.inference == "explicit":
            sampling = Sampling(config.max_new_tokens, stop_tokens=(config.stop_token,), pad_token=config.pad_token)
            thought, cache = prefill(model, text, room=config.max_new_tokens, **seen)
            words = continue_text(model.text, cache, thought.last_b1d, jax.random.key(0), sampling=sampling)
            tokens_bm = words.tokens_bm
            is_word_bm = jnp.arange(config.max_new_tokens) < words.length_b[:, None]
            thought = thought._replace(
                hidden_btd=jnp.concatenate([thought.hidden_btd, words.hidden_bmd], axis=1),
                valid_bt=jnp.concatenate([thought.valid_bt, is_word_bm], axis=1),
            )
        else:
            thought = think(model, text, **seen)
        without_words = config.inference != "explicit" and config.hide_words > 0
        context = self._context(model, thought, text, jnp.full(len(thought.valid_bt), without_words))
        none_bad = self._no_noise(context[0])
        noise_bad = none_bad if rng is None else temperature * jax.random.normal(rng, none_bad.shape, jnp.float32)
        given = (*context, noise_bad, self._state(observations), task.get("action_dim_mask"))
        actions_bad = self._head(params).sample(*given, rng=rng, guide=guide)
        return Sampled(actions_bad, tokens_bm)

    def _model(self, params: Params, rng: Key[Array, ""] | None = None) -> Qwen3VL:
        """The backbone with its adapters; `rng` draws their dropout."""
        return bind(self.backbone, adapt(params["backbone"], self.config.lora, rng))

    def _head(self, params: Params) -> ActionHead:
        return bind(self.action_head, params["action_head"])

    def _think(self, model: Qwen3VL, batch: Batch) -> Thought:
        return think(model, batch["text"], **self._seen(batch["observations"]))

    def _seen(self, observations: Mapping[str, Any]) -> dict[str, Any]:
        """What `think` is told of the newest images of all cameras, one after the other; and how it thinks."""
        vision = self.config.backbone.vision
        sizes = (vision.patch_size, vision.temporal_patch_size, vision.spatial_merge_size)
        images = [patchify(observations[camera][:, -1], *sizes) for camera in self.spec.cameras]
        seen = {"patches_bpf": jnp.concatenate(images, axis=1), "grids": self.grids}
        if CAMERA_MASK in observations:
            seen["shown_bi"] = of_tokens(observations[CAMERA_MASK][:, -1], self.grids, vision)
        return {**seen, "latent_hidden": self.config.latent_hidden}

    def _state(self, observations: Mapping[str, Any]) -> Float[Array, "b p"] | None:
        return observations["proprio"][:, -1] if self.config.action_head.use_state else None

    def _context(
        self, model: Qwen3VL, thought: Thought, text: Mapping[str, Any], hidden_b: Bool[Array, " b"]
    ) -> tuple[Float[Array, "b t d"], Bool[Array, "b t"]]:
        """What the head looks at, and which of it; where hidden, of the suffix only the end of thinking."""
        states_btd = thought.hidden_btd
        if self.config.context_hidden == "post_norm":
            states_btd = model.text.norm(states_btd)
        before = text["prefix"].shape[1] + text["slots"].shape[1]
        columns_t = jnp.arange(states_btd.shape[1])
        kept_bt = (columns_t < before) | ((columns_t == before) & text["slots"].any(1)[:, None])
        return states_btd, thought.valid_bt & (kept_bt | ~hidden_b[:, None])


def make_ecot(agent_kwargs: Mapping[str, Any], spec: BatchSpec) -> ECoT:
    """The agent of a configuration's `agent_kwargs`.

    Raises:
        ConfigError: see `ECoTConfig` and the models that it configures; images that do not divide into patches, a
            history of observations, or adapters of what is no kernel.
    """
    config = from_mapping(ECoTConfig, agent_kwargs, "config.agent_kwargs")
    unit = config.backbone.vision.patch_size * config.backbone.vision.spatial_merge_size
    if wrong := [size for size in map(spec.size_of, spec.cameras) if size[0] % unit or size[1] % unit]:
        raise ConfigError(
            f"ecot needs images whose sides are multiples of {unit} pixels, not {wrong[0][0]} x {wrong[0][1]}: set "
            "config.data.image_size, such as (224,224), or camera_sizes"
        )
    if config.lora.rank:
        adapted_paths(param_shapes(config.backbone), config.lora)
    if spec.obs_horizon != 1:
        raise ConfigError(f"ecot looks at one time step: set config.data.obs_horizon to 1, not {spec.obs_horizon}")
    return ECoT(
        config,
        spec,
        graph_of(lambda rngs: Qwen3VL(config.backbone, rngs)),
        graph_of(lambda rngs: _make_head(config, spec, rngs)),
    )


def _make_head(config: ECoTConfig, spec: BatchSpec, rngs: nnx.Rngs) -> ActionHead:
    state_dim = spec.proprio_dim if config.action_head.use_state else 0
    width = config.backbone.text.hidden_size
    return ActionHead(config.action_head, width, spec.action_horizon, spec.action_dim, state_dim, rngs)


def _without_words(text: Mapping[str, Any]) -> dict[str, Any]:
    """The texts with suffixes as a policy reads them that says nothing: the ends of thinking and of the turn."""
    has_slots_b, stop_b = text["slots"].any(1), text["suffix_stop"]
    stop = jnp.where(has_slots_b, 1 + TURN_TOKENS, TURN_TOKENS)
    columns = jnp.arange(1 + TURN_TOKENS)
    from_end_bs = (stop_b - stop)[:, None] + columns
    source_bs = jnp.where((columns == 0) & has_slots_b[:, None], 0, from_end_bs)
    suffix_bs = jnp.take_along_axis(text["suffix"], source_bs, axis=1, mode="clip")
    return {**text, "suffix": suffix_bs, "suffix_stop": stop}


def _language(
    model: Qwen3VL, thought: Thought, text: Mapping[str, Any]
) -> tuple[Float[Array, "b s"], Float[Array, "b s"]]:
    """Cross entropy, and 1 at a hit, of each target token."""
    labels_bs = jnp.where(text["labels"], text["suffix"], IGNORE)
    return model.token_losses(thought.predictors_bsd, labels_bs)
