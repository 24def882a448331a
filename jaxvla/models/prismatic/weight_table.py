"""Which tensor of a folder of OpenVLA is which parameter: one table, read in both directions.

And one for each file that OpenVLA-OFT puts beside it (`component_tables`).
"""

from typing import Any

import jax

from jaxvla.models.prismatic.config import PrismaticConfig
from jaxvla.models.vision.timm import tower_layers, tower_rows, tower_sizes
from jaxvla.models.weight_rows import decoder_layer, linear, norm
from jaxvla.models.weights import COPY, TRANSPOSE, Row, Weight, expand, shapes_of

# What names begin with there.
TOWERS = ("vision_backbone.featurizer.", "vision_backbone.fused_featurizer.")
LLM = "language_model."

# The files of OpenVLA-OFT, each called <name>--<step>_checkpoint, whose tensors are named as in torch's modules.
ACTION_HEAD, PROPRIO_PROJECTOR, VISION_BACKBONE = "action_head", "proprio_projector", "vision_backbone"


def weight_table(config: PrismaticConfig) -> tuple[Weight, ...]:
    """Every parameter that OpenVLA's own folder has, of a model of this configuration."""
    rows, sizes, layers = _vision_rows(config), _sizes(config), _layers(config)
    for i in range(1, len(config.projector_dims)):
        rows += linear(f"projector.fc{i}", f"projector/fc{i}", f"projected{i} projected{i - 1}")
    return expand((*rows, *_llm_rows(config)), sizes, layers)


def param_shapes(config: PrismaticConfig, dtype: jax.typing.DTypeLike = "float32") -> dict[str, Any]:
    """All parameters as a nested dict of `jax.ShapeDtypeStruct`s, such as sharding rules take; nothing is computed."""
    tables = weight_table(config), _film_table(config), *_head_tables(config).values()
    return shapes_of([weight for table in tables for weight in table], dtype)


def component_tables(config: PrismaticConfig) -> dict[str, tuple[Weight, ...]]:
    """The files that OpenVLA-OFT puts beside the folder, by name: the parameters of each.

    That of FiLM holds the vision towers as a whole; those in the folder are then of before the training.
    """
    tables = _head_tables(config)
    if config.film:
        vision = expand(_vision_rows(config, ".block"), _sizes(config), _layers(config))
        tables[VISION_BACKBONE] = (*vision, *_film_table(config))
    return tables


def _vision_rows(config: PrismaticConfig, inner: str = "") -> list[Row]:
    """The towers' tensors; `inner` stands behind the names of blocks."""
    rows: list[Row] = []
    for name, (kind, tower) in zip(TOWERS, config.towers.items()):
        # transformers, which wrote the folder, renames what is called gamma.
        rows += tower_rows(name, f"vision/{kind}/", tower, scale="scale_factor", axes=f"{kind}_")
    return [(name.replace("blocks.*", f"blocks.*{inner}"), *row) for name, *row in rows]


def _film_table(config: PrismaticConfig) -> tuple[Weight, ...]:
    rows: list[Row] = []
    for name, kind in zip(TOWERS, config.towers if config.film else ()):
        for part, stack in (("scale", "layers"), ("shift", "layers"), ("scale", "unread"), ("shift", "unread")):
            rows += linear(f"{name}blocks.*.{part}", f"film/{kind}/{stack}/{part}", f"{kind}_d d")
    return expand(rows, _sizes(config), _layers(config))


def _head_tables(config: PrismaticConfig) -> dict[str, tuple[Weight, ...]]:
    head = config.head
    if head is None:
        return {}
    ours, block = "action_head/", "model.mlp_resnet_blocks.*.ffn."
    rows = norm("model.layer_norm1", ours + "layer_norm1", "actions") + linear("model.fc1", ours + "fc1", "d actions")
    rows += norm(block + "0", ours + "layers/norm", "d") + linear(block + "1", ours + "layers/linear", "d d")
    rows += norm("model.layer_norm2", ours + "layer_norm2", "d") + linear("model.fc2", ours + "fc2", "action d")
    sizes = _sizes(config) | {"action": head.action_dim, "actions": head.action_dim * config.text.hidden_size}
    tables = {ACTION_HEAD: expand(rows, sizes, {ours + "layers/": range(head.num_blocks)})}
    if head.proprio_dim:
        ours, sizes = "proprio_projector/", sizes | {"state": head.proprio_dim}
        rows = linear("fc1", ours + "fc1", "d state") + linear("fc2", ours + "fc2", "d d")
        tables[PROPRIO_PROJECTOR] = expand(rows, sizes, {})
    return tables


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
    layers = {"llm/layers/": range(first), "llm/last_layer/": range(first, depth)}
    for kind, tower in config.towers.items():
        layers |= tower_layers(f"vision/{kind}/", tower)
        run = range(tower.num_run)
        layers |= {f"film/{kind}/layers/": run, f"film/{kind}/unread/": range(len(run), tower.num_hidden_layers)}
    return layers


def _sizes(config: PrismaticConfig) -> dict[str, int]:
    text, towers = config.text, {}
    for kind, tower in config.towers.items():
        towers |= tower_sizes(tower, f"{kind}_")
    return towers | {
        "vocab": text.vocab_size,
        "d": text.hidden_size,
        "f": text.intermediate_size,
        "q": text.hidden_size,
        "kv": text.num_key_value_heads * text.head_dim,
        **{f"projected{i}": dim for i, dim in enumerate(config.projector_dims)},
    }
