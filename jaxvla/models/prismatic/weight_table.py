"""Which tensor of a folder of OpenVLA is which parameter: one table, read in both directions."""

from typing import Any

import jax

from jaxvla.models.prismatic.config import PrismaticConfig
from jaxvla.models.vision.timm import tower_layers, tower_rows, tower_sizes
from jaxvla.models.weight_rows import decoder_layer, linear
from jaxvla.models.weights import COPY, TRANSPOSE, Row, Weight, expand, shapes_of

# What names begin with there.
TOWERS = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
LLM = "language_model."


def weight_table(config: PrismaticConfig) -> tuple[Weight, ...]:
    """Every parameter of a model of this configuration."""
    rows, sizes, layers = [], _sizes(config), _layers(config)
    for name, (kind, tower) in zip(TOWERS, config.towers.items()):
        # transformers, which wrote the folder, renames what is called gamma.
        rows += tower_rows(name, f"vision/{kind}/", tower, scale="scale_factor", axes=f"{kind}_")
        sizes |= tower_sizes(tower, f"{kind}_")
        layers |= tower_layers(f"vision/{kind}/", tower)
    for i in range(1, len(config.projector_dims)):
        rows += linear(f"projector.fc{i}", f"projector/fc{i}", f"projected{i} projected{i - 1}")
    return expand((*rows, *_llm_rows(config)), sizes, layers)


def param_shapes(config: PrismaticConfig, dtype: jax.typing.DTypeLike = "float32") -> dict[str, Any]:
    """The parameters as a nested dict of `jax.ShapeDtypeStruct`s, such as sharding rules take; nothing is computed."""
    return shapes_of(weight_table(config), dtype)


def _llm_rows(config: PrismaticConfig) -> tuple[Row, ...]:
    layers: list[Row] = []
    for path in ("llm/layers/", "llm/last_layer/")[: 1 + config.last_layer_apart]:
        first_norm, second_norm, *matrices = decoder_layer(LLM + "model.layers.*.", path, "d", "f", "d")
        layers += (*matrices, first_norm, second_norm)  # in torch's order
    return (
        (LLM + "model.embed_tokens.weight", "llm/embed_tokens/embedding", COPY, "vocab d"),
        *layers,
        (LLM + "model.norm.weight", "llm/norm/scale", COPY, "d"),
        (LLM + "lm_head.weight", "llm/lm_head/kernel", TRANSPOSE, "vocab d"),
    )


def _layers(config: PrismaticConfig) -> dict[str, range]:
    depth = config.text.num_hidden_layers
    first = depth - config.last_layer_apart
    return {"llm/layers/": range(first), "llm/last_layer/": range(first, depth)}


def _sizes(config: PrismaticConfig) -> dict[str, int]:
    text = config.text
    return {
        "vocab": text.vocab_size,
        "d": text.hidden_size,
        "f": text.intermediate_size,
        "q": text.hidden_size,
        "kv": text.num_key_value_heads * text.head_dim,
        **{f"projected{i}": dim for i, dim in enumerate(config.projector_dims)},
    }
