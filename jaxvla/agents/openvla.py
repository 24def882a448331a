"""OpenVLA (Kim et al., 2024): a Prismatic model that says actions as tokens; see `jaxvla.models.prismatic.model`.

A sequence is [first token][images][prompt][space][token of each action value][end], padded on the right. Prompts come
as token ids, `jaxvla.agents.language` makes them; the tokens around them are put in here. Axis letters: l columns of a
prompt, n values of a chunk of actions, m = n + 1 with the end, t tokens of text.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx, traverse_util
from jaxtyping import Array, Bool, Float, Int, Key

from jaxvla.agents.agent import Start
from jaxvla.agents.executed import action_mse, mask_keys
from jaxvla.agents.language import check_tokens
from jaxvla.config import from_mapping, local_path
from jaxvla.data.schema import NO_TOKEN, Batch, BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.cache import extend, start_cache
from jaxvla.models.layers import cast_matrices
from jaxvla.models.lora import LORA, LoraConfig, adapt, adapted_paths, add_lora, read_base
from jaxvla.models.module import Params, bind, compute_dtype, graph_of, init_params
from jaxvla.models.prismatic.config import PrismaticConfig
from jaxvla.models.prismatic.model import Prismatic
from jaxvla.models.prismatic.weight_table import param_shapes
from jaxvla.models.prismatic.weights import load_hf, read_hf
from jaxvla.models.torch_file import SUFFIX
from jaxvla.ops.action_tokens import NUM_BINS, to_actions, to_tokens
from jaxvla.ops.losses import masked_mean

# The modules that training leaves as they are, by what it is asked to train; with "lora" all but the adapters.
_FROZEN = {
    "full": (),
    "frozen_vision": ("vision",),
    "last_layer": ("vision", "projector", "llm/layers", "llm/norm"),
    "sandwich": ("llm/layers", "llm/norm"),
    "projector": ("vision", "llm"),
    "lora": ("vision", "projector", "llm"),
}
# Every linear layer that computes something; the patches' too, whose convolution is one here.
LORA_TARGETS = r"^(?!.*/unread/).*/kernel$"


@dataclasses.dataclass(frozen=True)
class TokenIds:
    """Tokens with a meaning of their own, those of Llama-2 by default.

    Attributes:
        first: begins every sequence.
        space: what a tokenizer makes of the space between prompt and actions.
        end: follows the last action.
        actions_end: one above the highest token of an action; the 256 below it are those of the bins.
    """

    first: int = 1
    space: int = 29871
    end: int = 2
    actions_end: int = 32000


@dataclasses.dataclass(frozen=True)
class OpenVLAConfig:
    """The `agent_kwargs` of openvla.

    Attributes:
        model: sizes and options.
        tokens: see `TokenIds`.
        num_cameras: how many the data must have, 1 of the published model; 0 for any number, whose images stand one
            after the other.
        train_what: "full"; "lora", adapters alone; "frozen_vision", all but the towers; "last_layer", the embeddings,
            the last layer and the head of the language model; "sandwich", these with towers and projector; "projector".
        path: a folder of OpenVLA in Hugging Face's layout, or a .pt checkpoint of the original training, whose weights
            training starts from; empty where all is drawn.
        lora: the adapters of "lora".

    Raises:
        ConfigError: an unknown `train_what`, or adapters that it does not go with.
    """

    model: PrismaticConfig
    tokens: TokenIds = dataclasses.field(default_factory=TokenIds)
    num_cameras: int = 1
    train_what: str = "full"
    path: str = ""
    lora: LoraConfig = dataclasses.field(default_factory=lambda: LoraConfig(targets=LORA_TARGETS))

    def __post_init__(self) -> None:
        if self.train_what not in _FROZEN:
            raise ConfigError(f"train_what must be one of {', '.join(_FROZEN)}, not {self.train_what!r}")
        if self.lora.rank and self.train_what != "lora":
            raise ConfigError(f"train_what {self.train_what!r} has no adapters: set it to 'lora', or lora.rank to 0")
        apart = self.train_what in ("last_layer", "sandwich")
        if self.model.last_layer_apart and not apart:
            raise ConfigError(f"train_what {self.train_what!r} decides on model.last_layer_apart: leave that out")
        object.__setattr__(self, "model", dataclasses.replace(self.model, last_layer_apart=apart))


class _Text(NamedTuple):
    """Tokens around and behind the prompts, where padding begins, and where the space before the actions stands."""

    tokens_bt: Array
    stop_b: Array
    space_b: Array


@dataclasses.dataclass(frozen=True)
class OpenVLA:
    """The agent, see `jaxvla.agents.agent.Agent`; made by `make_openvla`. Its parameters are those of the model."""

    targets: ClassVar[None] = None

    config: OpenVLAConfig
    spec: BatchSpec
    graphdef: nnx.GraphDef

    @property
    def batch_keys(self) -> tuple[str, ...]:
        """Observations, prompts, and actions with their masks."""
        return ("observations", "actions", "action_pad_mask", *mask_keys(self.spec), "instruction")

    @property
    def frozen_modules(self) -> tuple[str, ...]:
        """What `train_what` leaves as it is, and what of the towers computes nothing."""
        towers = self.config.model.towers
        return (*_FROZEN[self.config.train_what], *(f"vision/{name}/unread" for name in towers))

    @property
    def num_values(self) -> int:
        """Values of a chunk of actions, each of which has a token."""
        return self.spec.action_horizon * self.spec.action_dim

    def init(self, rng: Key[Array, ""]) -> Params:
        """Draws the parameters. Those that are frozen are held in the compute dtype."""
        params = self.narrowed(init_params(lambda rngs: Prismatic(self.config.model, rngs), rng))
        return add_lora(jax.random.fold_in(rng, 1), params, self.config.lora)

    def narrowed(self, params: Params) -> Params:
        """Parameters as training holds them, see `init`."""
        dtype, flat = compute_dtype(self.config.model.dtype), traverse_util.flatten_dict(params, sep="/")
        frozen = tuple(f"{module}/" for module in self.frozen_modules)
        flat = {path: leaf.astype(dtype) if path.startswith(frozen) else leaf for path, leaf in flat.items()}
        return traverse_util.unflatten_dict(flat, sep="/")

    def loss(
        self, params: Params, batch: Batch, rng: Key[Array, ""]
    ) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
        """token_loss, the cross entropy of actions and end, with action_accuracy and l1; `rng` draws adapters' dropout.

        l1 is the error of the likeliest tokens' values, each with the true ones before it.
        """
        losses_bn, metrics = self._judge(self._model(params, rng), batch)
        loss = masked_mean(losses_bn, self._labelled(batch))
        shown_bn = self._shown(batch)
        return loss, {"token_loss": loss} | {name: masked_mean(x_bn, shown_bn) for name, x_bn in metrics.items()}

    def evaluate(self, params: Params, batch: Batch, rng: Key[Array, ""]) -> dict[str, Float[Array, " b"]]:
        """ "mse" of the actions of `act`; action_accuracy and l1 as of `loss`."""
        model = self._model(params)
        actions_bad = self._say(model, batch["observations"], batch["instruction"])
        _, metrics = self._judge(model, batch)
        shown_bn = self._shown(batch)
        own = {name: masked_mean(x_bn, shown_bn, 1) for name, x_bn in metrics.items()}
        return {"mse": action_mse(actions_bad, batch, self.spec, 1)} | own

    def act(
        self,
        params: Params,
        observations: Mapping[str, Any],
        task: Mapping[str, Any],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b a d"]:
        """Normalized action chunks for task["instruction"], one token after the other; the likeliest without `rng`.

        As published, all tokens can be said: see `jaxvla.ops.action_tokens.to_actions`. There are always as many as
        actions have values, whatever they are.
        """
        return self._say(self._model(params), observations, task["instruction"], rng, temperature)

    def _model(self, params: Params, rng: Key[Array, ""] | None = None) -> Prismatic:
        """The model with its adapters, whose dropout `rng` draws in training."""
        if rng is None:  # to act, where a loop would read kernels in float32 at every step
            params = params | cast_matrices(
                {name: part for name, part in params.items() if name != LORA}, compute_dtype(self.config.model.dtype)
            )
        return bind(self.graphdef, adapt(params, self.config.lora, rng))

    def _encode(self, model: Prismatic, observations: Mapping[str, Any]) -> Float[Array, "b p d"]:
        images_bnhwc = jnp.stack([observations[camera][:, -1] for camera in self.spec.cameras], axis=1)
        return model.encode_images(images_bnhwc)

    def _text(self, prompt_bl: Int[Array, "b l"], actions_bn: Int[Array, "b n"] | None) -> _Text:
        """Prompts with what stands around them; without actions they end in the space."""
        tokens, b = self.config.tokens, len(prompt_bl)

        def column(token: int) -> Int[Array, "b 1"]:
            return jnp.full((b, 1), token, jnp.int32)

        before = jnp.concatenate([column(tokens.first), jnp.maximum(prompt_bl, 0)], axis=1)
        behind = [column(tokens.space)]
        behind += [] if actions_bn is None else [actions_bn, column(tokens.end)]
        behind = jnp.concatenate(behind, axis=1)
        space_b = 1 + (prompt_bl != NO_TOKEN).sum(1)
        place_t = jnp.arange(before.shape[1] + behind.shape[1])
        own = jnp.pad(before, ((0, 0), (0, behind.shape[1])))
        shifted = jnp.clip(place_t - space_b[:, None], 0, behind.shape[1] - 1)
        later = jnp.take_along_axis(behind, shifted, axis=1)
        return _Text(jnp.where(place_t < space_b[:, None], own, later), space_b + behind.shape[1], space_b)

    def _judge(self, model: Prismatic, batch: Batch) -> tuple[Float[Array, "b m"], dict[str, Float[Array, "b n"]]]:
        """Cross entropy of each token of the actions and of the end; hits and errors of the actions' values."""
        actions_bn = batch["actions"].reshape(len(batch["actions"]), -1)
        end = self.config.tokens.actions_end
        truth_bn = to_tokens(actions_bn, end)
        images_bpd = self._encode(model, batch["observations"])
        text = self._text(batch["instruction"], truth_bn)
        hidden_btd = model.read(text.tokens_bt, images_bpd, text.stop_b).hidden_btd
        # What stands at the space predicts the first value, what stands at the last value the end.
        places_bm = text.space_b[:, None] + images_bpd.shape[1] + jnp.arange(self.num_values + 1)
        hidden_bmd = jnp.take_along_axis(hidden_btd, places_bm[..., None], axis=1)
        logits_bmv = model.llm.logits(model.llm.norm(hidden_bmd))
        labels_bm = jnp.pad(truth_bn, ((0, 0), (0, 1)), constant_values=self.config.tokens.end)
        is_label_bmv = labels_bm[..., None] == jnp.arange(logits_bmv.shape[-1])
        chosen_bm = jnp.where(is_label_bmv, logits_bmv, 0).sum(-1)
        losses_bm = jax.nn.logsumexp(logits_bmv, axis=-1) - chosen_bm
        said_bn = logits_bmv[:, :-1].argmax(-1)
        errors_bn = jnp.abs(to_actions(said_bn, end) - to_actions(truth_bn, end))
        return losses_bm, {"action_accuracy": (said_bn == truth_bn).astype(jnp.float32), "l1": errors_bn}

    def _shown(self, batch: Batch) -> Bool[Array, "b n"]:
        """True at values inside the trajectory, of dimensions that the sample has."""
        shown_bad = jnp.broadcast_to(batch["action_pad_mask"][..., None], batch["actions"].shape)
        if "action_dim_mask" in batch:
            shown_bad &= batch["action_dim_mask"][:, None]
        return shown_bad.reshape(len(shown_bad), -1)

    def _labelled(self, batch: Batch) -> Bool[Array, "b m"]:
        """True at the tokens that have a share in the loss; the end has one where the last action is shown."""
        shown_bn = self._shown(batch)
        return jnp.concatenate([shown_bn, batch["action_pad_mask"][:, -1:]], axis=1)

    def _say(
        self,
        model: Prismatic,
        observations: Mapping[str, Any],
        prompt_bl: Int[Array, "b l"],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b a d"]:
        """One pass over image and prompt, then one for each value but the last, in a loop over a cache."""
        images_bpd = self._encode(model, observations)
        text = self._text(prompt_bl, None)
        output = model.read(text.tokens_bt, images_bpd, text.stop_b, keep_keys=True)
        stop_b = text.stop_b + images_bpd.shape[1]
        cache = start_cache(output, stop_b, output.hidden_btd.shape[1] + self.num_values)
        hidden_b1d = jnp.take_along_axis(output.hidden_btd, stop_b[:, None, None] - 1, axis=1)

        def choose(hidden_b1d: Array, step: int | Array) -> Int[Array, "b 1"]:
            logits_b1v = model.llm.logits(model.llm.norm(hidden_b1d))
            if rng is None:
                return logits_b1v.argmax(-1).astype(jnp.int32)
            drawn = jax.random.categorical(jax.random.fold_in(rng, step), logits_b1v / temperature)
            return drawn.astype(jnp.int32)

        def step(carry: tuple[Array, Any], i: Array) -> tuple[tuple[Array, Any], Array]:
            token_b1, cache = carry
            hidden_b1d, cache = extend(model.llm, cache, model.llm.embed_tokens(token_b1))
            token_b1 = choose(hidden_b1d, i)
            return (token_b1, cache), token_b1

        first_b1 = choose(hidden_b1d, 0)
        _, later_nb1 = jax.lax.scan(step, (first_b1, cache), jnp.arange(1, self.num_values))
        tokens_bn = jnp.concatenate([first_b1[None], later_nb1])[..., 0].T
        actions_bn = to_actions(tokens_bn, self.config.tokens.actions_end)
        return actions_bn.reshape(-1, self.spec.action_horizon, self.spec.action_dim)


def make_openvla(agent_kwargs: Mapping[str, Any], spec: BatchSpec) -> OpenVLA:
    """The agent of a configuration's `agent_kwargs`.

    Raises:
        ConfigError: see `OpenVLAConfig` and the model that it configures; another number of cameras, images of another
            size, no prompts or ones that are no token ids of its vocabulary, a history of observations, or
            adapters of what is no kernel.
    """
    config = from_mapping(OpenVLAConfig, dict(agent_kwargs), "config.agent_kwargs")
    if LORA in agent_kwargs and config.train_what == LORA and not config.lora.rank:
        raise ConfigError("train_what 'lora' trains adapters, and there are none: set config.agent_kwargs.lora.rank")
    _check(config, spec)
    if config.lora.rank:
        adapted_paths(param_shapes(config.model), config.lora)
    return OpenVLA(config, spec, graph_of(lambda rngs: Prismatic(config.model, rngs)))


def _check(config: OpenVLAConfig, spec: BatchSpec) -> None:
    size, vocab_size = config.model.image_size, config.model.text.vocab_size
    if not spec.cameras or config.num_cameras not in (0, len(spec.cameras)):
        raise ConfigError(
            f"config.agent_kwargs.num_cameras is {config.num_cameras}, and the data has "
            f"{', '.join(spec.cameras) or 'no camera'}: name others in its configuration, or change the number, for "
            "which there are no published weights"
        )
    if spec.several_camera_sets:
        raise ConfigError("openvla hides no missing cameras: mix datasets that have the same ones")
    for camera in spec.cameras:
        if spec.size_of(camera) != (size, size):
            raise ConfigError(
                f"images of {camera} are {spec.size_of(camera)}, but this model sees {(size, size)}: set "
                "config.data.image_size to it"
            )
    if spec.instruction is None or not spec.instruction.vocab_size:
        raise ConfigError("openvla reads prompts as token ids: set config.language.encoder to 'openvla'")
    if spec.instruction.vocab_size > vocab_size:
        raise ConfigError(
            f"the tokenizer has {spec.instruction.vocab_size} tokens, more than the {vocab_size} that the model has "
            "embeddings for: set config.language.path to the folder of its own tokenizer, or "
            "config.agent_kwargs.model.text.vocab_size"
        )
    if spec.obs_horizon != 1:
        raise ConfigError(f"openvla sees the present alone: set config.data.obs_horizon to 1, not {spec.obs_horizon}")
    tokens = config.tokens
    if not NUM_BINS <= tokens.actions_end <= vocab_size:
        raise ConfigError(
            f"tokens.actions_end {tokens.actions_end} leaves no {NUM_BINS} tokens of a vocabulary of {vocab_size} below"
        )
    for name in ("first", "space", "end"):
        if not 0 <= getattr(tokens, name) < vocab_size:
            raise ConfigError(f"tokens.{name} {getattr(tokens, name)} is no token of a vocabulary of {vocab_size}")


def start_of(agent: OpenVLA) -> Start | None:
    """The weights that `path` names; None where it is empty.

    Raises:
        ConfigError, WeightsError, CheckpointError: it is no local path, there are no weights of this model, or prompts
            are in the tokens of another one.
    """
    if not agent.config.path:
        return None
    path, model = local_path(agent.config.path, "config.agent_kwargs.path"), agent.config.model
    # What a checkpoint of the original training holds is not said there; its training has this epsilon.
    trained = dataclasses.replace(model, text=dataclasses.replace(model.text, rms_norm_eps=1e-5))
    found = trained if path.suffix == SUFFIX else read_hf(path)
    # The one value that is a choice: the published folder runs at another than it was trained at.
    text = dataclasses.replace(found.text, rms_norm_eps=model.text.rms_norm_eps)
    for part, own in (("text", text), ("dino", found.dino), ("siglip", found.siglip), ("projector", found.projector)):
        if own != getattr(model, part):
            raise ConfigError(f"config.agent_kwargs.model.{part} is {getattr(model, part)}, but {path} has {own}")
    check_tokens(path, agent.spec)
    shapes = param_shapes(model)
    # Where adapters alone are trained, no wider copy is made on the way.
    dtype = compute_dtype(model.dtype) if agent.config.lora.rank else "float32"

    def load(shardings: Params) -> Params:
        own = {name: shardings[name] for name in shapes}
        return read_base(lambda at: agent.narrowed(load_hf(path, model, at, dtype)), own, agent.config.lora)

    return Start(load, (f"OpenVLA from {path}", *_differing(found, model)))


def _differing(found: PrismaticConfig, model: PrismaticConfig) -> tuple[str, ...]:
    """Lines on settings that change what the folder computes, though its weights fit."""
    settings = {
        "text.rms_norm_eps": (found.text.rms_norm_eps, model.text.rms_norm_eps),
        **{
            f"{name}_pixels": (getattr(found, f"{name}_pixels"), getattr(model, f"{name}_pixels"))
            for name in model.towers
        },
    }
    return tuple(
        f"config.agent_kwargs.model.{name} is {own}, where the weights have {theirs}"
        for name, (theirs, own) in settings.items()
        if theirs != own
    )
