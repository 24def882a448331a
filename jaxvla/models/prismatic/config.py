"""Sizes and options of Prismatic models, with Hugging Face's field names, and the folders that describe them."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxvla.config import from_mapping
from jaxvla.errors import ConfigError
from jaxvla.models.decoder import LayerSizes
from jaxvla.models.stack import check_compute
from jaxvla.models.text_decoder import DecoderConfig
from jaxvla.models.vision.dinov2 import Dinov2Config
from jaxvla.models.vision.dinov2 import preset as dinov2
from jaxvla.models.vision.siglip import SiglipConfig

MODEL_TYPE = "openvla"
PROJECTORS = ("fused_gelu_mlp", "gelu_mlp", "linear")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the language model, a Llama; what is not given is that of transformers' LlamaConfig.

    Attributes:
        rms_norm_eps: 1e-6 in the published folder, whose config leaves it out; the training that it came from, and
            Llama-2 itself, have 1e-5.

    Raises:
        ConfigError: sizes that contradict each other.
    """

    vocab_size: int = 32000
    hidden_size: int = 4096
    intermediate_size: int = 11008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 10000.0

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError(f"text.{field.name} must be positive, not {getattr(self, field.name)}")
        for name in ("hidden_size", "num_key_value_heads"):
            more, fewer = sorted((getattr(self, name), self.num_attention_heads), reverse=True)
            if more % fewer:
                raise ConfigError(
                    f"text.{name} {getattr(self, name)} does not go with num_attention_heads {self.num_attention_heads}"
                )
        if self.head_dim % 2:
            raise ConfigError(f"text.hidden_size / num_attention_heads {self.head_dim} must be even, to turn in pairs")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_attention_heads


@dataclasses.dataclass(frozen=True)
class PixelScale:
    """What a tower takes from pixels in [0, 1], and divides them by, for each channel."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


@dataclasses.dataclass(frozen=True)
class HeadConfig:
    """Actions as numbers, all at once (OpenVLA-OFT), in place of tokens.

    Attributes:
        action_dim: numbers of an action.
        proprio_dim: numbers of the robot's state, which becomes a token behind the images; 0 for none.
        num_blocks: of the MLP with residuals that makes the actions.

    Raises:
        ConfigError: sizes that make no sense.
    """

    action_dim: int
    proprio_dim: int = 0
    num_blocks: int = 2

    def __post_init__(self) -> None:
        if self.action_dim < 1 or self.proprio_dim < 0 or self.num_blocks < 1:
            raise ConfigError(f"an action head needs action_dim and num_blocks of at least 1, proprio_dim of 0: {self}")


# As timm gives them. The published folder holds them rounded to bfloat16: `with_pixel_scales` takes those.
IMAGENET = PixelScale((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
HALF = PixelScale((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))


@dataclasses.dataclass(frozen=True)
class PrismaticConfig:
    """The whole model.

    Attributes:
        dino, siglip: the towers, of which one may be None. Of both the features of a patch stand side by side.
        projector: from features to the width of the language model: "fused_gelu_mlp" of three layers for two towers,
            "gelu_mlp" of two or "linear" for one.
        dino_pixels, siglip_pixels: how each tower's pixels are scaled.
        head: regresses actions, see `HeadConfig`; None where they are tokens.
        film: the words modulate the blocks of the towers, see `jaxvla.models.prismatic.continuous.Film`.
        last_layer_apart: the last layer of the language model is a stack of its own, see `DecoderConfig`.
        dtype: compute dtype, "float32" or "bfloat16"; parameters, norms, rope and softmax are float32.
        remat: what the forward pass keeps, see `jaxvla.models.stack.REMAT_POLICIES`.
        scan_layers: run layers in loops; False writes them out one by one.
        attention: see `jaxvla.ops.attention.IMPLEMENTATIONS`.

    Raises:
        ConfigError: an unknown option, or parts that do not fit each other.
    """

    text: TextConfig
    dino: Dinov2Config | None = None
    siglip: SiglipConfig | None = None
    projector: str = "fused_gelu_mlp"
    dino_pixels: PixelScale = IMAGENET
    siglip_pixels: PixelScale = HALF
    head: HeadConfig | None = None
    film: bool = False
    last_layer_apart: bool = False
    dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool = True
    attention: str = "xla"

    def __post_init__(self) -> None:
        check_compute(self.dtype, self.remat, self.attention)
        if self.projector not in PROJECTORS:
            raise ConfigError(f"projector must be one of {', '.join(PROJECTORS)}, not {self.projector!r}")
        towers = self.towers
        if not towers:
            raise ConfigError("a model needs a vision tower: give dino, siglip, or both")
        if (self.projector == "fused_gelu_mlp") != (len(towers) == 2):
            raise ConfigError(
                f"projector {self.projector!r} does not go with {len(towers)} tower{'s' * (len(towers) > 1)}: "
                "'fused_gelu_mlp' is for dino and siglip together, 'gelu_mlp' and 'linear' for one of them"
            )
        if len({(tower.image_size, tower.num_patches) for tower in towers.values()}) > 1:
            raise ConfigError("dino and siglip must have image_size and patch_size in common: each patch has one token")
        if self.last_layer_apart and self.text.num_hidden_layers < 2:
            raise ConfigError("last_layer_apart needs text.num_hidden_layers of at least 2")

    @property
    def towers(self) -> dict[str, Dinov2Config | SiglipConfig]:
        """By name, in the order of their features."""
        both = {"dino": self.dino, "siglip": self.siglip}
        return {name: tower for name, tower in both.items() if tower is not None}

    @property
    def published(self) -> "PrismaticConfig":
        """The part of the model that OpenVLA's folder has the weights of."""
        return dataclasses.replace(self, head=None, film=False)

    @property
    def image_size(self) -> int:
        """Side of the square images."""
        return next(iter(self.towers.values())).image_size

    @property
    def tokens_per_image(self) -> int:
        """How many tokens an image becomes."""
        return next(iter(self.towers.values())).num_patches

    @property
    def projector_dims(self) -> tuple[int, ...]:
        """Widths of the projector: of the features, of what each of its layers gives."""
        features, out = sum(tower.hidden_size for tower in self.towers.values()), self.text.hidden_size
        match self.projector:
            case "fused_gelu_mlp":
                return (features, 4 * features, out, out)
            case "gelu_mlp":
                return (features, out, out)
            case _:
                return (features, out)

    @property
    def decoder(self) -> DecoderConfig:
        """The language model's."""
        text = self.text
        heads = (text.num_attention_heads, text.num_key_value_heads, text.head_dim)
        return DecoderConfig(
            LayerSizes(text.hidden_size, text.intermediate_size, *heads, text.rms_norm_eps),
            text.num_hidden_layers,
            text.vocab_size,
            text.rope_theta,
            last_apart=self.last_layer_apart,
            dtype=self.dtype,
            remat=self.remat,
            scan_layers=self.scan_layers,
            attention=self.attention,
        )


DINO_L = dinov2("large", num_register_tokens=4, class_position=False, read_layers=23)
SIGLIP_SO400M = SiglipConfig(
    1152, 4304, 27, 16, 224, 14, read_layers=26, exact_gelu=True, joint_qkv=True, attention_pool=True
)
_TINY = {"num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 64, "patch_size": 8, "read_layers": 2}
PRESETS = {
    "openvla_7b": PrismaticConfig(TextConfig(vocab_size=32064), DINO_L, SIGLIP_SO400M),
    "prismatic_siglip_224px": PrismaticConfig(TextConfig(vocab_size=32064), None, SIGLIP_SO400M, "gelu_mlp"),
    "tiny": PrismaticConfig(
        TextConfig(1280, 96, 256, 3, 3, 3),
        Dinov2Config(64, 256, **_TINY, num_register_tokens=4, class_position=False, layer_scale=1.0),
        SiglipConfig(48, 192, **_TINY, exact_gelu=True, joint_qkv=True, attention_pool=True),
    ),
}


def preset(name: str) -> PrismaticConfig:
    """The configuration of a published size, or of one that is small enough for tests.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in PRESETS:
        raise ConfigError(f"no Prismatic preset named {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]


# The towers by the names that timm gives them, and what the published configurations call their pairs.
_TIMM = {
    "vit_large_patch14_reg4_dinov2.lvd142m": ("dino", DINO_L),
    "vit_so400m_patch14_siglip_224": ("siglip", SIGLIP_SO400M),
}
_BACKBONE_IDS = {
    ("dino", "siglip"): "dinosiglip-vit-so-224px",
    ("siglip",): "siglip-vit-so400m",
    ("dino",): "dinov2-vit-l",
}
_ARCH = "no-align+"
# Of a config.json: sizes of towers that have no name in timm.
_TOWERS_KEY = "jaxvla_towers"


def from_hf(values: Mapping[str, Any], where: str = "config.json") -> PrismaticConfig:
    """The configuration that the config.json of a folder of OpenVLA describes.

    Args:
        values: the parsed file.
        where: its path, for errors.

    Raises:
        ConfigError: another kind of model, or a variant that this port does not have.
    """
    if values.get("model_type") != MODEL_TYPE:
        raise ConfigError(f"{where}: model_type is {values.get('model_type')!r}, but this model has {MODEL_TYPE!r}")
    arch = str(values.get("arch_specifier", f"{_ARCH}fused-gelu-mlp"))
    projector = arch.rpartition("+")[2].replace("-", "_")
    if projector not in PROJECTORS:
        raise ConfigError(f"{where}: arch_specifier {arch!r} has none of the projectors {', '.join(PROJECTORS)}")
    text = values.get("text_config") or {}
    for key, wanted in (("hidden_act", "silu"), ("attention_bias", False), ("tie_word_embeddings", False)):
        if text.get(key, wanted) != wanted:
            raise ConfigError(f"{where}: text_config.{key} is {text[key]!r}, but this model has {wanted!r}")
    known = {field.name for field in dataclasses.fields(TextConfig)}
    plain = {"text": {key: value for key, value in text.items() if key in known}, "projector": projector}
    return from_mapping(PrismaticConfig, plain | _towers(values, where), where)


def to_hf(config: PrismaticConfig) -> dict[str, Any]:
    """The config.json with which the published code builds the same model, where its towers are published ones."""
    default = TextConfig()
    text = {key: value for key, value in dataclasses.asdict(config.text).items() if value != getattr(default, key)}
    names = {tower: name for name, (_, tower) in _TIMM.items()}
    towers = config.towers
    values = {
        "architectures": ["OpenVLAForActionPrediction"],
        "model_type": MODEL_TYPE,
        "arch_specifier": _ARCH + config.projector.replace("_", "-"),
        "use_fused_vision_backbone": len(towers) == 2,
        "vision_backbone_id": _BACKBONE_IDS[tuple(towers)],
        "llm_backbone_id": "llama2-7b-pure",
        "hf_llm_id": "meta-llama/Llama-2-7b-hf",
        "timm_model_ids": [names.get(tower, "") for tower in towers.values()],
        "timm_override_act_layers": [None] * len(towers),
        "image_sizes": [config.image_size] * len(towers),
        "image_resize_strategy": "resize-naive",
        "llm_max_length": 2048,
        "pad_token_id": 32000,
        "pad_to_multiple_of": 64,
        "n_action_bins": 256,
        "output_projector_states": False,
        "text_config": {"model_type": "llama", **text},
    }
    if all(tower in names for tower in towers.values()):
        return values
    return values | {_TOWERS_KEY: {name: dataclasses.asdict(tower) for name, tower in towers.items()}}


def with_pixel_scales(config: PrismaticConfig, values: Mapping[str, Any], where: str) -> PrismaticConfig:
    """The configuration with the pixel scales of a folder's preprocessor_config.json, which win over those of timm.

    Raises:
        ConfigError: it has none, or not one of each tower.
    """
    scales = values.get("tvf_normalize_params")
    if not isinstance(scales, list) or len(scales) != len(config.towers):
        raise ConfigError(
            f"{where}: tvf_normalize_params is {scales!r}, not a list of {len(config.towers)}, one of each tower: take "
            "the file that came with the weights"
        )
    found = {}
    for name, scale in zip(config.towers, scales):
        kept = {key: scale[key] for key in ("mean", "std") if isinstance(scale, Mapping) and key in scale}
        found[f"{name}_pixels"] = from_mapping(PixelScale, kept, f"{where}: tvf_normalize_params")
    return dataclasses.replace(config, **found)


def _towers(values: Mapping[str, Any], where: str) -> dict[str, Any]:
    if _TOWERS_KEY in values:
        return dict(values[_TOWERS_KEY])
    towers = {}
    for name in values.get("timm_model_ids") or ():
        if name not in _TIMM:
            raise ConfigError(f"{where}: timm_model_ids names {name!r}; the towers that are read: {', '.join(_TIMM)}")
        kind, tower = _TIMM[name]
        towers[kind] = tower
    return towers
