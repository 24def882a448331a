"""The towers' weights by the names that timm gives them.

rows = tower_rows("", "vision/", config)
table = expand(rows, tower_sizes(config), tower_layers("vision/", config))
"""

from jaxvla.models.vision.dinov2 import Dinov2Config
from jaxvla.models.vision.siglip import SiglipConfig
from jaxvla.models.weight_rows import linear, norm
from jaxvla.models.weights import COPY, SQUEEZE, Row

TowerConfig = Dinov2Config | SiglipConfig


def tower_rows(name: str, path: str, config: TowerConfig, *, scale: str = "gamma", axes: str = "") -> tuple[Row, ...]:
    """The rows of every tensor of a tower of timm, in timm's order.

    Args:
        name: what stands before its names there, "vision_backbone.featurizer.".
        path: what stands before its paths here, "vision/".
        config: of the tower.
        scale: what LayerScale's factors are called there.
        axes: what stands before the names of its axes, in a table of several towers.
    """
    d, f = axes + "d", axes + "f"
    dino, unread = isinstance(config, Dinov2Config), path + "unread/"
    rows = [(name + "cls_token", path + "class_token", SQUEEZE, f"one one {d}")] if dino else []
    if dino and config.num_register_tokens:
        rows.append((name + "reg_token", path + "register_tokens", SQUEEZE, f"one {axes}register {d}"))
    rows.append((name + "pos_embed", path + "position_embedding/embedding", SQUEEZE, f"one {axes}position {d}"))
    rows += linear(name + "patch_embed.proj", path + "patch_embedding", f"{d} {axes}channel {axes}row {axes}row")
    rows += _block(name + "blocks.*.", path + "layers/", config, scale, axes)
    rows += _block(name + "blocks.*.", unread + "layers/", config, scale, axes)
    rows += norm(name + "norm", path + "post_layernorm" if config.read_layers is None else unread + "norm", d)
    if not dino and config.attention_pool:
        pool, ours = name + "attn_pool.", unread + "pool/"
        rows.append((pool + "latent", ours + "latent", SQUEEZE, f"one one {d}"))
        rows += linear(pool + "q", ours + "q", f"{d} {d}") + linear(pool + "kv", ours + "kv", f"{axes}kv {d}")
        rows += linear(pool + "proj", ours + "proj", f"{d} {d}") + norm(pool + "norm", ours + "norm", d)
        rows += linear(pool + "mlp.fc1", ours + "mlp/linear_fc1", f"{f} {d}")
        rows += linear(pool + "mlp.fc2", ours + "mlp/linear_fc2", f"{d} {f}")
    return tuple(rows)


def tower_layers(path: str, config: TowerConfig) -> dict[str, range]:
    """The numbers of the blocks that each stack of a tower holds."""
    return {
        path + "layers/": range(config.num_run),
        path + "unread/layers/": range(config.num_run, config.num_hidden_layers),
    }


def tower_sizes(config: TowerConfig, axes: str = "") -> dict[str, int]:
    """The sizes of the axes that `tower_rows` names."""
    dino = isinstance(config, Dinov2Config)
    sizes = {
        "d": config.hidden_size,
        "f": config.intermediate_size,
        "qkv": 3 * config.hidden_size,
        "kv": 2 * config.hidden_size,
        "register": config.num_register_tokens if dino else 0,
        "position": config.num_positions if dino else config.num_patches,
        "channel": config.num_channels,
        "row": config.patch_size,
    }
    return {"one": 1} | {axes + name: size for name, size in sizes.items()}


def _block(name: str, path: str, config: TowerConfig, scale: str, axes: str) -> tuple[Row, ...]:
    d, f, scaled = axes + "d", axes + "f", config.block.layer_scale is not None
    return (
        *norm(name + "norm1", path + "layer_norm1", d),
        *linear(name + "attn.qkv", path + "self_attn/qkv", f"{axes}qkv {d}"),
        *linear(name + "attn.proj", path + "self_attn/out_proj", f"{d} {d}"),
        *([(f"{name}ls1.{scale}", path + "layer_scale1", COPY, d)] if scaled else []),
        *norm(name + "norm2", path + "layer_norm2", d),
        *linear(name + "mlp.fc1", path + "mlp/linear_fc1", f"{f} {d}"),
        *linear(name + "mlp.fc2", path + "mlp/linear_fc2", f"{d} {f}"),
        *([(f"{name}ls2.{scale}", path + "layer_scale2", COPY, d)] if scaled else []),
    )
