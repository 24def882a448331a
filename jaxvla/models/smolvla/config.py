"""Sizes and options of SmolVLA, with the field names of Hugging Face and LeRobot."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

from jaxvla.config import from_mapping
from jaxvla.errors import ConfigError
from jaxvla.models.decoder import LayerSizes
from jaxvla.models.stack import check_compute
from jaxvla.models.vision.siglip import SiglipConfig

# Of the fields of `SiglipConfig`, those that this model, and Hugging Face's config.json, can set.
VISION_KEYS = (
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "image_size",
    "patch_size",
    "num_channels",
    "layer_norm_eps",
)
# Of both streams, whatever rope_theta the config of the language model names.
ROPE_THETA = 10000.0
MODEL_TYPE = "smolvla"
# What LeRobot adapts where nothing else is said: queries and values of the expert, and the projections around it.
LORA_TARGETS = (
    r"^expert/layers/(joint|cross)/self_attn/(q|v)_proj/kernel$"
    r"|^(state_proj|action_in_proj|action_out_proj|action_time_mlp_in|action_time_mlp_out)/kernel$"
)
# How errors become a loss: as a mean over the slots inside the trajectory and the dimensions that actions have, as
# LeRobot does since 0.6; or over all slots and all dimensions, those that only fill up included.
REDUCTIONS = ("valid", "all")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the language model, a Llama of which the first layers are kept.

    Raises:
        ConfigError: sizes that contradict each other.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float = 1e-5

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError(f"text.{field.name} must be positive, not {getattr(self, field.name)}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"text.num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.num_hidden_layers % 2 or self.head_dim % 2:
            raise ConfigError(
                f"text.num_hidden_layers {self.num_hidden_layers} and head_dim {self.head_dim} must be even: layers "
                "come in pairs, and the features of a head turn in pairs"
            )

    @property
    def key_dim(self) -> int:
        """Width of the keys, or values, of all heads of a token."""
        return self.num_key_value_heads * self.head_dim


@dataclasses.dataclass(frozen=True)
class SmolVLAConfig:
    """The whole model.

    Attributes:
        scale_factor: side of the squares of patches that become one image token.
        expert_width_multiplier: width of the action expert, as a share of the language model's.
        chunk_size: actions of a chunk.
        max_state_dim, max_action_dim: widths that states and actions are filled up to with zeros.
        num_steps: of Euler's method.
        min_period, max_period: of the waves that tell the time.
        freeze_vision_encoder, train_expert_only, train_state_proj: what training leaves as it is, see
            `frozen_modules`.
        loss_reduction: one of `REDUCTIONS`.
        dtype: compute dtype, "float32" or "bfloat16"; parameters, norms, rope, softmax, the projections of state,
            actions and time, and all of the flow are float32.
        remat: what the forward pass keeps, see `jaxvla.models.stack.REMAT_POLICIES`.
        scan_layers: run layers in loops; False writes them out one by one.
        attention: see `jaxvla.ops.attention.IMPLEMENTATIONS`. "cudnn" is that of the vision tower, beside "xla" behind
            it, since a camera that is missing leaves keys that are no range.

    Raises:
        ConfigError: an unknown option, or sizes that contradict each other.
    """

    text: TextConfig
    vision: SiglipConfig
    scale_factor: int = 4
    expert_width_multiplier: float = 0.75
    chunk_size: int = 50
    max_state_dim: int = 32
    max_action_dim: int = 32
    num_steps: int = 10
    min_period: float = 4e-3
    max_period: float = 4.0
    freeze_vision_encoder: bool = True
    train_expert_only: bool = True
    train_state_proj: bool = True
    loss_reduction: str = "valid"
    dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool = True
    attention: str = "xla"

    def __post_init__(self) -> None:
        check_compute(self.dtype, self.remat, self.attention)
        if self.loss_reduction not in REDUCTIONS:
            raise ConfigError(f"loss_reduction must be one of {', '.join(REDUCTIONS)}, not {self.loss_reduction!r}")
        for field in dataclasses.fields(self.vision):
            if field.name not in VISION_KEYS and getattr(self.vision, field.name) != field.default:
                raise ConfigError(f"vision.{field.name} is {field.default} in this model: leave it out")
        for name in ("scale_factor", "chunk_size", "max_state_dim", "max_action_dim", "num_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, not {getattr(self, name)}")
        if not 1 / 255 <= self.min_period < self.max_period:
            raise ConfigError(f"min_period {self.min_period} must lie in [1 / 255, max_period {self.max_period})")
        side = self.vision.image_size // self.vision.patch_size
        if side % self.scale_factor:
            raise ConfigError(f"scale_factor {self.scale_factor} does not divide the {side} patches of a row")
        if self.expert_size < 2 or self.expert_size % 2:
            raise ConfigError(
                f"expert_width_multiplier {self.expert_width_multiplier} of {self.text.hidden_size} is "
                f"{self.expert_size}, which must be even and at least 2: time is told by sines and cosines"
            )

    @property
    def tokens_per_image(self) -> int:
        """How many tokens an image becomes."""
        return self.vision.num_patches // self.scale_factor**2

    @property
    def connector_dim(self) -> int:
        """Width of a square of patches."""
        return self.vision.hidden_size * self.scale_factor**2

    @property
    def expert_size(self) -> int:
        """Width of the action expert."""
        return int(self.text.hidden_size * self.expert_width_multiplier)

    @property
    def text_layer(self) -> LayerSizes:
        """A layer of the language model."""
        text = self.text
        heads = (text.num_attention_heads, text.num_key_value_heads, text.head_dim)
        return LayerSizes(text.hidden_size, text.intermediate_size, *heads, text.rms_norm_eps)

    @property
    def joint_layer(self) -> LayerSizes:
        """A layer of the expert that attends to prefix and suffix at once; its MLP is as wide as LeRobot makes it."""
        hidden = int(4 * int(2 * self.expert_size / 3))
        sizes = {"hidden_size": self.expert_size, "intermediate_size": 256 * -(-hidden // 256)}
        return dataclasses.replace(self.text_layer, **sizes)

    @property
    def cross_layer(self) -> LayerSizes:
        """A layer of the expert that makes its keys of the language model's."""
        return dataclasses.replace(self.joint_layer, key_input=self.text.key_dim, uniform_keys=True)

    @property
    def frozen_modules(self) -> tuple[str, ...]:
        """The modules of the parameters that training leaves as they are.

        Without `train_expert_only` the last layer of the language model is frozen, too: its slice of the stack has no
        gradient.
        """
        frozen = ("vision", "connector", "text") if self.train_expert_only else ()
        if self.freeze_vision_encoder and not self.train_expert_only:
            frozen = ("vision",)
        return frozen if self.train_state_proj else (*frozen, "state_proj")


PUBLISHED = SmolVLAConfig(
    TextConfig(49280, 960, 2560, 16, 15, 5, 64), SiglipConfig(768, 3072, 12, 12, image_size=512, patch_size=16)
)
PRESETS = {
    "smolvla_base": PUBLISHED,
    "tiny": SmolVLAConfig(
        TextConfig(1024, 96, 192, 4, 3, 1, 32), SiglipConfig(64, 128, 2, 2, image_size=64, patch_size=8), chunk_size=8
    ),
}
# The language model that published policies were made of.
VLM = "HuggingFaceTB/SmolVLM2-500M-Video-Instruct"


def preset(name: str) -> SmolVLAConfig:
    """The configuration of the published size, or of one that is small enough for tests.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in PRESETS:
        raise ConfigError(f"no SmolVLA preset named {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]


_PAD_TOKEN = 2  # of SmolVLM2's tokenizer; where one stands is masked

# What LeRobot's config.json can say that this model does not have, and what it must say instead.
_REQUIRED = {
    "type": MODEL_TYPE,
    "attention_mode": "cross_attn",
    "self_attn_every_n_layers": 2,
    "add_image_special_tokens": False,
    "adapt_to_pi_aloha": False,
    "n_obs_steps": 1,
}
_TAKEN = (
    "expert_width_multiplier",
    "chunk_size",
    "max_state_dim",
    "max_action_dim",
    "num_steps",
    "min_period",
    "max_period",
    "freeze_vision_encoder",
    "train_expert_only",
    "train_state_proj",
)


def from_lerobot(
    values: Mapping[str, Any], where: str | pathlib.Path = "config.json", vlm: Mapping[str, Any] | None = None
) -> SmolVLAConfig:
    """The configuration that the config.json of a LeRobot policy describes.

    prefix_length, empty_cameras and pad_language_to change how many tokens are masked, not what is computed.

    Args:
        values: the parsed file.
        where: its path, for errors.
        vlm: the parsed config.json of its vision-language model, see `to_vlm`; None for the published one.

    Raises:
        ConfigError: another kind of policy, or a variant that this port does not have.
    """
    if vlm is None and values.get("vlm_model_name", VLM) != VLM:
        raise ConfigError(f"{where}: vlm_model_name is {values['vlm_model_name']!r}, but this model has {VLM!r}")
    for key, wanted in _REQUIRED.items():
        if values.get(key, wanted) != wanted:
            raise ConfigError(f"{where}: {key} is {values[key]!r}, but this model has {wanted!r}")
    layers, experts = values.get("num_vlm_layers", PUBLISHED.text.num_hidden_layers), values.get("num_expert_layers", 0)
    if experts != layers and not (isinstance(experts, int) and experts <= 0):
        raise ConfigError(
            f"{where}: num_expert_layers is {experts!r}, but this model has an expert of as many layers as "
            f"num_vlm_layers, {layers!r}"
        )
    plain = dataclasses.asdict(PUBLISHED) | ({} if vlm is None else _sizes_of(vlm, where))
    seen = plain["vision"]["image_size"]
    if values.get("resize_imgs_with_padding", [seen, seen]) not in ([seen, seen], (seen, seen)):
        raise ConfigError(
            f"{where}: resize_imgs_with_padding is {values['resize_imgs_with_padding']!r}, but this vision tower sees "
            f"{[seen, seen]}"
        )
    plain |= {key: values[key] for key in _TAKEN if key in values}
    plain["text"] |= {"num_hidden_layers": layers}
    return from_mapping(SmolVLAConfig, plain, str(where))


def to_vlm(config: SmolVLAConfig) -> dict[str, Any]:
    """The config.json of the vision-language model, as transformers reads it."""
    both = {"tie_word_embeddings": False, "pad_token_id": _PAD_TOKEN}
    return {
        "model_type": "smolvlm",
        "scale_factor": config.scale_factor,
        "vision_config": {"model_type": "smolvlm_vision", **{key: getattr(config.vision, key) for key in VISION_KEYS}},
        "text_config": {"model_type": "llama", **dataclasses.asdict(config.text), **both},
        **both,
    }


def _sizes_of(vlm: Mapping[str, Any], where: str | pathlib.Path) -> dict[str, Any]:
    """The sizes of a vision-language model, as plain values; its layers are counted by the policy."""
    text_keys = tuple(field.name for field in dataclasses.fields(TextConfig))
    parts = {"text": ("text_config", text_keys), "vision": ("vision_config", VISION_KEYS)}
    try:
        found = {
            part: {name: vlm[key][name] for name in names if name in vlm[key]} for part, (key, names) in parts.items()
        }
        return found | {"scale_factor": vlm["scale_factor"]}
    except (LookupError, TypeError) as error:
        raise ConfigError(f"{where}: the config.json of its vision-language model lacks {error}") from error
