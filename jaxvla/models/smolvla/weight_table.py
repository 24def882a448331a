"""Which tensor of a LeRobot checkpoint is which parameter, and which tensors there are besides that no parameter is."""

from typing import Any

import jax

from jaxvla.models.smolvla.config import SmolVLAConfig
from jaxvla.models.weight_rows import decoder_layer, linear, norm
from jaxvla.models.weights import COPY, TRANSPOSE, Row, Weight, expand, shapes_of

# What stands before the names of the vision-language model in a policy; it has these names alone elsewhere.
VLM_PREFIX = "model.vlm_with_expert.vlm."
_EXPERT = "model.vlm_with_expert.lm_expert."
_VISION = VLM_PREFIX + "model.vision_model."
_TEXT = VLM_PREFIX + "model.text_model."

_BLOCK, _BLOCK_PATH = _VISION + "encoder.layers.*.", "vision/layers/"
_TABLE: tuple[Row, ...] = (
    *linear(_VISION + "embeddings.patch_embedding", "vision/patch_embedding", "dv channel row row"),
    (_VISION + "embeddings.position_embedding.weight", "vision/position_embedding/embedding", COPY, "position dv"),
    *norm(_BLOCK + "layer_norm1", _BLOCK_PATH + "layer_norm1", "dv"),
    *norm(_BLOCK + "layer_norm2", _BLOCK_PATH + "layer_norm2", "dv"),
    *linear(_BLOCK + "self_attn.q_proj", _BLOCK_PATH + "self_attn/q_proj", "dv dv"),
    *linear(_BLOCK + "self_attn.k_proj", _BLOCK_PATH + "self_attn/k_proj", "dv dv"),
    *linear(_BLOCK + "self_attn.v_proj", _BLOCK_PATH + "self_attn/v_proj", "dv dv"),
    *linear(_BLOCK + "self_attn.out_proj", _BLOCK_PATH + "self_attn/out_proj", "dv dv"),
    *linear(_BLOCK + "mlp.fc1", _BLOCK_PATH + "mlp/linear_fc1", "fv dv"),
    *linear(_BLOCK + "mlp.fc2", _BLOCK_PATH + "mlp/linear_fc2", "dv fv"),
    *norm(_VISION + "post_layernorm", "vision/post_layernorm", "dv"),
    (VLM_PREFIX + "model.connector.modality_projection.proj.weight", "connector/kernel", TRANSPOSE, "d square"),
    (_TEXT + "embed_tokens.weight", "text/embed_tokens/embedding", COPY, "vocab d"),
    *decoder_layer(_TEXT + "layers.*.", "text/layers/", "d", "f", "d"),
    *decoder_layer(_EXPERT + "layers.*.", "expert/layers/joint/", "de", "fe", "de"),
    *decoder_layer(_EXPERT + "layers.*.", "expert/layers/cross/", "de", "fe", "kv"),
    (_EXPERT + "norm.weight", "expert/norm/scale", COPY, "de"),
    *linear("model.state_proj", "state_proj", "d state"),
    *linear("model.action_in_proj", "action_in_proj", "de action"),
    *linear("model.action_out_proj", "action_out_proj", "action de"),
    *linear("model.action_time_mlp_in", "action_time_mlp_in", "de twice"),
    *linear("model.action_time_mlp_out", "action_time_mlp_out", "de de"),
)

# Tensors of every checkpoint that no parameter is, and why.
HEAD, LAST_NORM = VLM_PREFIX + "lm_head.weight", _TEXT + "norm.weight"
UNUSED = {HEAD: "the policy says no words", LAST_NORM: "nothing reads what the last layer puts out"}


def weight_table(config: SmolVLAConfig) -> tuple[Weight, ...]:
    """Every parameter of a model of this configuration."""
    depth = config.text.num_hidden_layers
    layers = {
        "vision/layers/": range(config.vision.num_hidden_layers),
        "text/layers/": range(depth),
        "expert/layers/joint/": range(0, depth, 2),
        "expert/layers/cross/": range(1, depth, 2),
    }
    return expand(_TABLE, _sizes(config), layers)


def param_shapes(config: SmolVLAConfig, dtype: jax.typing.DTypeLike = "float32") -> dict[str, Any]:
    """The parameters as a nested dict of `jax.ShapeDtypeStruct`s, such as sharding rules take; nothing is computed."""
    return shapes_of(weight_table(config), dtype)


def _sizes(config: SmolVLAConfig) -> dict[str, int]:
    text, vision = config.text, config.vision
    return {
        "vocab": text.vocab_size,
        "d": text.hidden_size,
        "f": text.intermediate_size,
        "q": text.num_attention_heads * text.head_dim,
        "kv": text.key_dim,
        "de": config.expert_size,
        "fe": config.joint_layer.intermediate_size,
        "twice": 2 * config.expert_size,
        "state": config.max_state_dim,
        "action": config.max_action_dim,
        "dv": vision.hidden_size,
        "fv": vision.intermediate_size,
        "square": config.connector_dim,
        "position": vision.num_patches,
        "channel": vision.num_channels,
        "row": vision.patch_size,
    }
