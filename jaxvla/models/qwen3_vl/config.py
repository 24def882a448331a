"""Sizes and options of Qwen3-VL, with Hugging Face's field names, and presets of the published models."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jaxvla.config import from_mapping
from jaxvla.errors import ConfigError
from jaxvla.models.decoder import LayerSizes
from jaxvla.models.stack import check_compute
from jaxvla.models.text_decoder import DecoderConfig

POSITION_MODES = ("mrope", "linear")
MODEL_TYPE = "qwen3_vl"


def _check_positive(where: str, config: Any) -> None:
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if isinstance(value, int | float) and value <= 0:
            raise ConfigError(f"{where}.{field.name} must be positive, not {value}")


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Sizes of the text decoder.

    Attributes:
        head_dim: width of a head; num_attention_heads * head_dim need not be hidden_size.
        rope_theta: base of the rotary frequencies.
        mrope_section: how many of the head_dim / 2 frequencies follow time, row and column.
        max_position_embeddings: the longest sequence that the weights were made for; only told to those who read an
            export, since rope has no table that could end.

    Raises:
        ConfigError: sizes that contradict each other.
    """

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int = 128
    rope_theta: float = 5e6
    mrope_section: tuple[int, int, int] = (24, 20, 20)
    rms_norm_eps: float = 1e-6
    max_position_embeddings: int = 262144

    def __post_init__(self) -> None:
        _check_positive("text", self)
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                f"text.num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if 2 * sum(self.mrope_section) != self.head_dim:
            raise ConfigError(
                f"text.mrope_section {self.mrope_section} must sum to head_dim / 2, which is {self.head_dim / 2:g}"
            )


@dataclasses.dataclass(frozen=True)
class VisionConfig:
    """Sizes of the vision tower.

    Attributes:
        out_hidden_size: width of the image tokens, the text decoder's hidden_size.
        num_position_embeddings: entries of the learned position table, which is a square.
        deepstack_visual_indexes: the blocks, in rising order, whose outputs are DeepStack features.

    Raises:
        ConfigError: sizes that contradict each other.
    """

    depth: int
    hidden_size: int
    intermediate_size: int
    num_heads: int
    out_hidden_size: int
    deepstack_visual_indexes: tuple[int, ...]
    num_position_embeddings: int = 2304
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    in_channels: int = 3

    def __post_init__(self) -> None:
        _check_positive("vision", self)
        if self.hidden_size % (4 * self.num_heads):
            raise ConfigError(
                f"vision.hidden_size {self.hidden_size} over num_heads {self.num_heads} must be a multiple of 4: "
                "half of a head turns with rows and half with columns"
            )
        if self.table_side**2 != self.num_position_embeddings:
            raise ConfigError(f"vision.num_position_embeddings {self.num_position_embeddings} is no square")
        indexes = self.deepstack_visual_indexes
        if list(indexes) != sorted(set(indexes)) or not all(0 <= index < self.depth for index in indexes):
            raise ConfigError(f"vision.deepstack_visual_indexes {indexes} must rise within 0..{self.depth - 1}")

    @property
    def head_dim(self) -> int:
        """Width of a head."""
        return self.hidden_size // self.num_heads

    @property
    def table_side(self) -> int:
        """Rows, and columns, of the learned position table."""
        return round(self.num_position_embeddings**0.5)

    @property
    def patch_dim(self) -> int:
        """Values of a patch: channels, then frames, rows and columns."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2


@dataclasses.dataclass(frozen=True)
class Qwen3VLConfig:
    """The whole model.

    Attributes:
        tie_word_embeddings: the head is the transposed embedding table.
        position_mode: "mrope", or "linear" for weights that were trained with plain counting positions on images too.
        dtype: compute dtype, "float32" or "bfloat16"; parameters, norms, rope and softmax are float32.
        remat: what the forward pass keeps, see `jaxvla.models.stack.REMAT_POLICIES`.
        scan_layers: run layers in a loop; False writes them out one by one.
        attention: see `jaxvla.ops.attention.IMPLEMENTATIONS`. Passes over cached keys run as "xla" where this is
            "cudnn", whose kernel takes the keys in one piece.

    Raises:
        ConfigError: an unknown option, or text and vision that do not fit each other.
    """

    text: TextConfig
    vision: VisionConfig
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    tie_word_embeddings: bool = True
    position_mode: str = "mrope"
    dtype: str = "float32"
    remat: str = "none"
    scan_layers: bool = True
    attention: str = "xla"

    def __post_init__(self) -> None:
        check_compute(self.dtype, self.remat, self.attention)
        if self.position_mode not in POSITION_MODES:
            raise ConfigError(f"no position_mode named {self.position_mode!r}; there are: {', '.join(POSITION_MODES)}")
        if self.vision.out_hidden_size != self.text.hidden_size:
            raise ConfigError(
                f"vision.out_hidden_size {self.vision.out_hidden_size} must be text.hidden_size {self.text.hidden_size}"
            )
        if len(self.vision.deepstack_visual_indexes) > self.text.num_hidden_layers:
            raise ConfigError(
                f"{len(self.vision.deepstack_visual_indexes)} DeepStack features need as many text layers, "
                f"but there are {self.text.num_hidden_layers}"
            )
        for field in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"):
            if not 0 <= getattr(self, field) < self.text.vocab_size:
                raise ConfigError(f"{field} {getattr(self, field)} is no row of a vocabulary of {self.text.vocab_size}")

    @property
    def decoder(self) -> DecoderConfig:
        """The text decoder's."""
        text = self.text
        heads = (text.num_attention_heads, text.num_key_value_heads, text.head_dim)
        return DecoderConfig(
            LayerSizes(text.hidden_size, text.intermediate_size, *heads, text.rms_norm_eps, normed_heads=True),
            text.num_hidden_layers,
            text.vocab_size,
            text.rope_theta,
            text.mrope_section,
            tied=self.tie_word_embeddings,
            dtype=self.dtype,
            remat=self.remat,
            scan_layers=self.scan_layers,
            attention=self.attention,
        )


_TINY_TEXT = TextConfig(
    vocab_size=1024,
    hidden_size=96,
    intermediate_size=192,
    num_hidden_layers=3,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=32,
    mrope_section=(6, 5, 5),
)
_TINY_VISION = VisionConfig(
    depth=3,
    hidden_size=96,
    intermediate_size=192,
    num_heads=2,
    out_hidden_size=96,
    deepstack_visual_indexes=(0, 1),
    num_position_embeddings=16,
)
_VIT_L = VisionConfig(
    depth=24,
    hidden_size=1024,
    intermediate_size=4096,
    num_heads=16,
    out_hidden_size=2048,
    deepstack_visual_indexes=(5, 11, 17),
)

PRESETS = {
    "tiny": Qwen3VLConfig(
        _TINY_TEXT,
        _TINY_VISION,
        image_token_id=986,
        video_token_id=987,
        vision_start_token_id=983,
        vision_end_token_id=984,
    ),
    "qwen3_vl_2b": Qwen3VLConfig(TextConfig(151936, 2048, 6144, 28, 16, 8), _VIT_L),
    "qwen3_vl_4b": Qwen3VLConfig(
        TextConfig(151936, 2560, 9728, 36, 32, 8), dataclasses.replace(_VIT_L, out_hidden_size=2560)
    ),
    "qwen3_vl_8b": Qwen3VLConfig(
        TextConfig(151936, 4096, 12288, 36, 32, 8),
        VisionConfig(27, 1152, 4304, 16, 4096, deepstack_visual_indexes=(8, 16, 24)),
        tie_word_embeddings=False,
    ),
}


def preset(name: str) -> Qwen3VLConfig:
    """The configuration of a published size, or of one that is small enough for tests.

    Raises:
        ConfigError: an unknown name.
    """
    if name not in PRESETS:
        raise ConfigError(f"no Qwen3-VL preset named {name!r}; there are: {', '.join(PRESETS)}")
    return PRESETS[name]


def from_hf(values: Mapping[str, Any], where: str = "config.json") -> Qwen3VLConfig:
    """The configuration that a Hugging Face config.json describes.

    Args:
        values: the parsed file, as transformers 4.57 or 5 writes it.
        where: the file's path, for error messages.

    Raises:
        ConfigError: another model type, a missing value, or a variant that this port does not have.
    """
    _require(where, "model_type", values.get("model_type"), MODEL_TYPE)
    text = _section(values, "text_config", where)
    vision = _section(values, "vision_config", where)
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    _require(where, "text_config.hidden_act", text.get("hidden_act", "silu"), "silu")
    _require(where, "text_config.attention_bias", text.get("attention_bias", False), False)
    _require(where, "text_config rope_type", rope.get("rope_type", "default"), "default")
    _require(where, "text_config mrope_interleaved", rope.get("mrope_interleaved", True), True)
    _require(where, "vision_config.hidden_act", vision.get("hidden_act", "gelu_pytorch_tanh"), "gelu_pytorch_tanh")
    rope = {"rope_theta": text.get("rope_theta"), **rope}
    text = {**text, **{key: rope[key] for key in ("rope_theta", "mrope_section") if rope.get(key) is not None}}
    # transformers 5 writes the tie beside the sections, 4.57 in both places.
    tied = values.get("tie_word_embeddings", text.get("tie_word_embeddings", False))
    ids = {key: values[key] for key in ("image_token_id", "video_token_id") if key in values}
    ids |= {key: values[key] for key in ("vision_start_token_id", "vision_end_token_id") if key in values}
    return Qwen3VLConfig(
        _pick(TextConfig, text, f"{where}: text_config"),
        _pick(VisionConfig, vision, f"{where}: vision_config"),
        tie_word_embeddings=tied,
        **ids,
    )


def to_hf(config: Qwen3VLConfig) -> dict[str, Any]:
    """The content of the config.json with which transformers, 4.57 or 5, builds the same model."""
    text = dataclasses.asdict(config.text)
    rope = {"rope_type": "default", "mrope_section": list(text.pop("mrope_section")), "mrope_interleaved": True}
    vision = dataclasses.asdict(config.vision)
    vision["deepstack_visual_indexes"] = list(config.vision.deepstack_visual_indexes)
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": MODEL_TYPE,
        "image_token_id": config.image_token_id,
        "video_token_id": config.video_token_id,
        "vision_start_token_id": config.vision_start_token_id,
        "vision_end_token_id": config.vision_end_token_id,
        "tie_word_embeddings": config.tie_word_embeddings,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "hidden_act": "silu",
            "attention_bias": False,
            "tie_word_embeddings": config.tie_word_embeddings,
            # rope_parameters for transformers 5; 4.57 knows only rope_scaling and the rope_theta beside it.
            "rope_parameters": rope | {"rope_theta": text["rope_theta"]},
            "rope_scaling": rope,
            **text,
        },
        "vision_config": {"model_type": "qwen3_vl_vision", "hidden_act": "gelu_pytorch_tanh", **vision},
    }


def _pick(cls: type, values: Mapping[str, Any], where: str) -> Any:
    """`cls` from those of `values` that are its fields; the others are read by transformers alone."""
    fields = {field.name for field in dataclasses.fields(cls)}
    return from_mapping(cls, {key: value for key, value in values.items() if key in fields}, where)


def _section(values: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    if not isinstance(values.get(key), Mapping):
        raise ConfigError(f"{where} has no section {key}: take the config.json that came with the weights")
    return values[key]


def _require(where: str, key: str, value: Any, wanted: Any) -> None:
    if value != wanted:
        raise ConfigError(
            f"{where}: {key} is {value!r}, but this model has {wanted!r}; use weights of a Qwen3-VL model"
        )
