"""Which tensor of a Hugging Face checkpoint is which parameter: one table, read in both directions."""

from typing import Any

import jax

from jaxvla.models.qwen3_vl.config import Qwen3VLConfig
from jaxvla.models.weights import COPY, TRANSPOSE, Weight, expand, shapes_of

_TEXT = "model.language_model.layers.*."
_BLOCK = "model.visual.blocks.*."
_MERGER = "model.visual.merger."
_DEEPSTACK = "model.visual.deepstack_merger_list.*."

_TABLE = (
    ("model.language_model.embed_tokens.weight", "text/embed_tokens/embedding", COPY, "vocab d"),
    (_TEXT + "input_layernorm.weight", "text/layers/input_layernorm/scale", COPY, "d"),
    (_TEXT + "post_attention_layernorm.weight", "text/layers/post_attention_layernorm/scale", COPY, "d"),
    (_TEXT + "self_attn.q_proj.weight", "text/layers/self_attn/q_proj/kernel", TRANSPOSE, "q d"),
    (_TEXT + "self_attn.k_proj.weight", "text/layers/self_attn/k_proj/kernel", TRANSPOSE, "kv d"),
    (_TEXT + "self_attn.v_proj.weight", "text/layers/self_attn/v_proj/kernel", TRANSPOSE, "kv d"),
    (_TEXT + "self_attn.o_proj.weight", "text/layers/self_attn/o_proj/kernel", TRANSPOSE, "d q"),
    (_TEXT + "self_attn.q_norm.weight", "text/layers/self_attn/q_norm/scale", COPY, "h"),
    (_TEXT + "self_attn.k_norm.weight", "text/layers/self_attn/k_norm/scale", COPY, "h"),
    (_TEXT + "mlp.gate_proj.weight", "text/layers/mlp/gate_proj/kernel", TRANSPOSE, "f d"),
    (_TEXT + "mlp.up_proj.weight", "text/layers/mlp/up_proj/kernel", TRANSPOSE, "f d"),
    (_TEXT + "mlp.down_proj.weight", "text/layers/mlp/down_proj/kernel", TRANSPOSE, "d f"),
    ("model.language_model.norm.weight", "text/norm/scale", COPY, "d"),
    ("lm_head.weight", "text/lm_head/kernel", TRANSPOSE, "vocab d"),
    ("model.visual.patch_embed.proj.weight", "visual/patch_embed/kernel", TRANSPOSE, "dv channel time row row"),
    ("model.visual.patch_embed.proj.bias", "visual/patch_embed/bias", COPY, "dv"),
    ("model.visual.pos_embed.weight", "visual/pos_embed/embedding", COPY, "position dv"),
    (_BLOCK + "norm1.weight", "visual/blocks/norm1/scale", COPY, "dv"),
    (_BLOCK + "norm1.bias", "visual/blocks/norm1/bias", COPY, "dv"),
    (_BLOCK + "norm2.weight", "visual/blocks/norm2/scale", COPY, "dv"),
    (_BLOCK + "norm2.bias", "visual/blocks/norm2/bias", COPY, "dv"),
    (_BLOCK + "attn.qkv.weight", "visual/blocks/attn/qkv/kernel", TRANSPOSE, "qkv dv"),
    (_BLOCK + "attn.qkv.bias", "visual/blocks/attn/qkv/bias", COPY, "qkv"),
    (_BLOCK + "attn.proj.weight", "visual/blocks/attn/proj/kernel", TRANSPOSE, "dv dv"),
    (_BLOCK + "attn.proj.bias", "visual/blocks/attn/proj/bias", COPY, "dv"),
    (_BLOCK + "mlp.linear_fc1.weight", "visual/blocks/mlp/linear_fc1/kernel", TRANSPOSE, "fv dv"),
    (_BLOCK + "mlp.linear_fc1.bias", "visual/blocks/mlp/linear_fc1/bias", COPY, "fv"),
    (_BLOCK + "mlp.linear_fc2.weight", "visual/blocks/mlp/linear_fc2/kernel", TRANSPOSE, "dv fv"),
    (_BLOCK + "mlp.linear_fc2.bias", "visual/blocks/mlp/linear_fc2/bias", COPY, "dv"),
    (_MERGER + "norm.weight", "visual/merger/norm/scale", COPY, "dv"),
    (_MERGER + "norm.bias", "visual/merger/norm/bias", COPY, "dv"),
    (_MERGER + "linear_fc1.weight", "visual/merger/linear_fc1/kernel", TRANSPOSE, "merged merged"),
    (_MERGER + "linear_fc1.bias", "visual/merger/linear_fc1/bias", COPY, "merged"),
    (_MERGER + "linear_fc2.weight", "visual/merger/linear_fc2/kernel", TRANSPOSE, "out merged"),
    (_MERGER + "linear_fc2.bias", "visual/merger/linear_fc2/bias", COPY, "out"),
    (_DEEPSTACK + "norm.weight", "visual/deepstack_mergers/norm/scale", COPY, "merged"),
    (_DEEPSTACK + "norm.bias", "visual/deepstack_mergers/norm/bias", COPY, "merged"),
    (_DEEPSTACK + "linear_fc1.weight", "visual/deepstack_mergers/linear_fc1/kernel", TRANSPOSE, "merged merged"),
    (_DEEPSTACK + "linear_fc1.bias", "visual/deepstack_mergers/linear_fc1/bias", COPY, "merged"),
    (_DEEPSTACK + "linear_fc2.weight", "visual/deepstack_mergers/linear_fc2/kernel", TRANSPOSE, "out merged"),
    (_DEEPSTACK + "linear_fc2.bias", "visual/deepstack_mergers/linear_fc2/bias", COPY, "out"),
)


def weight_table(config: Qwen3VLConfig) -> tuple[Weight, ...]:
    """Every parameter of a model of this configuration; no output head where it is tied to the embedding."""
    table = expand(_TABLE, _sizes(config), _layers(config))
    return tuple(weight for weight in table if weight.path != "text/lm_head/kernel" or not config.tie_word_embeddings)


def param_shapes(config: Qwen3VLConfig, dtype: jax.typing.DTypeLike = "float32") -> dict[str, Any]:
    """The parameters as a nested dict of `jax.ShapeDtypeStruct`s, such as sharding rules take; nothing is computed."""
    return shapes_of(weight_table(config), dtype)


def _layers(config: Qwen3VLConfig) -> dict[str, range]:
    return {
        "text/layers/": range(config.text.num_hidden_layers),
        "visual/blocks/": range(config.vision.depth),
        "visual/deepstack_mergers/": range(len(config.vision.deepstack_visual_indexes)),
    }


def _sizes(config: Qwen3VLConfig) -> dict[str, int]:
    text, vision = config.text, config.vision
    return {
        "vocab": text.vocab_size,
        "d": text.hidden_size,
        "f": text.intermediate_size,
        "h": text.head_dim,
        "q": text.num_attention_heads * text.head_dim,
        "kv": text.num_key_value_heads * text.head_dim,
        "dv": vision.hidden_size,
        "fv": vision.intermediate_size,
        "qkv": 3 * vision.hidden_size,
        "merged": vision.hidden_size * vision.spatial_merge_size**2,
        "out": vision.out_hidden_size,
        "position": vision.num_position_embeddings,
        "channel": vision.in_channels,
        "time": vision.temporal_patch_size,
        "row": vision.patch_size,
    }
