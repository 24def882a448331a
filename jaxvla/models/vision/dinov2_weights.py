"""DINOv2's weights from the files of timm and of transformers, without torch, for images of any size."""

import dataclasses
import math
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxvla.errors import WeightsError
from jaxvla.models.lerobot import load_table, report_of
from jaxvla.models.module import Params
from jaxvla.models.safetensors_io import open_checkpoint
from jaxvla.models.vision.dinov2 import Dinov2Config
from jaxvla.models.vision.timm import tower_layers, tower_rows, tower_sizes
from jaxvla.models.weight_rows import linear, norm
from jaxvla.models.weights import COPY, SQUEEZE, LoadReport, Row, Weight, expand

# The position table in the names of timm and of transformers; by it a file is told to be of one or the other.
_POSITIONS = {"timm": "pos_embed", "transformers": "embeddings.position_embeddings"}
_MODEL = "dinov2."  # before transformers' names, in the weights of a model that classifies or segments
_MODEL_WITH_REGISTERS = "dinov2_with_registers."


def weight_table(config: Dinov2Config, names: str = "timm") -> tuple[Weight, ...]:
    """Every parameter of a tower by the names of "timm" or of "transformers" (Dinov2, Dinov2WithRegisters)."""
    rows = tower_rows("", "", config) if names == "timm" else _transformers_rows(config)
    return expand(rows, tower_sizes(config), tower_layers("", config))


def load_dinov2(
    path: str | pathlib.Path, config: Dinov2Config, shardings: Mapping[str, Any] | None = None
) -> tuple[Params, LoadReport]:
    """Reads the weights of timm or of transformers into those of a `Dinov2Tower`.

    A position table of images of another size, such as the published 518 pixels, is resized to the configuration's.

    Args:
        path: a safetensors file, or the folder of a model.safetensors.
        config: sizes of the tower.
        shardings: one for every parameter; None for the default device.

    Raises:
        WeightsError: no weights there, a damaged file, or tensors that are missing, unknown or of another shape.
    """
    stored, table = _stored(path, config)
    params, report = load_table(path, table, _why_unused, shardings)
    if stored.image_size != config.image_size:
        embedding = params["position_embedding"]["embedding"]
        resized = resize_positions(embedding, config.image_size // config.patch_size, int(config.class_position))
        placed = resized if shardings is None else jax.device_put(resized, embedding.sharding)
        params["position_embedding"]["embedding"] = placed
    return params, report


def dinov2_report(path: str | pathlib.Path, config: Dinov2Config) -> LoadReport:
    """What `load_dinov2` reads, from the file's header alone.

    Raises:
        WeightsError: as `load_dinov2`, but for shapes.
    """
    return report_of(path, _stored(path, config)[1], _why_unused)


def _stored(path: str | pathlib.Path, config: Dinov2Config) -> tuple[Dinov2Config, tuple[Weight, ...]]:
    """The tower of a file, for images of its own size, and its tensors."""
    path = pathlib.Path(path).expanduser()
    names, prefix, rows = _recognize(path)
    side = math.isqrt(max(rows - config.class_position, 0))
    if not side or side**2 + config.class_position != rows:
        table = "a row of the class token and " if config.class_position else ""
        raise WeightsError(
            f"{path} has {rows} positions, which are not {table}those of a square of patches: set class_position to "
            f"{not config.class_position}, or choose other weights"
        )
    stored = dataclasses.replace(config, image_size=side * config.patch_size)
    return stored, tuple(_without(weight, prefix) for weight in weight_table(stored, names))


def resize_positions(table_pd: Float[Array, "p d"], side: int, num_prefix: int = 0) -> Float[Array, "q d"]:
    """A learned position table for a grid of another side, as timm and Dinov2WithRegisters resize it.

    Bicubic with antialias and half-pixel centres, in float32.

    Args:
        table_pd: `num_prefix` rows that stay as they are, then those of a square grid, row by row.
        side: of the new grid.
        num_prefix: rows of no patch.
    """
    prefix, grid = table_pd[:num_prefix], table_pd[num_prefix:]
    old = math.isqrt(len(grid))
    grid = jnp.asarray(grid, jnp.float32).reshape(old, old, -1)
    with jax.default_matmul_precision("highest"):
        resized = jax.image.resize(grid, (side, side, grid.shape[-1]), "cubic", antialias=True)
    return jnp.concatenate([prefix, resized.reshape(side**2, -1).astype(table_pd.dtype)])


def _transformers_rows(config: Dinov2Config) -> tuple[Row, ...]:
    rows = [("embeddings.cls_token", "class_token", SQUEEZE, "one one d")]
    if config.num_register_tokens:
        rows.append(("embeddings.register_tokens", "register_tokens", SQUEEZE, "one register d"))
    rows.append((_POSITIONS["transformers"], "position_embedding/embedding", SQUEEZE, "one position d"))
    rows += linear("embeddings.patch_embeddings.projection", "patch_embedding", "d channel row row")
    for path in ("layers/", "unread/layers/"):
        name = "encoder.layer.*."
        heads = " ".join(f"{name}attention.attention.{part}" for part in ("query", "key", "value"))
        rows += norm(name + "norm1", path + "layer_norm1", "d") + norm(name + "norm2", path + "layer_norm2", "d")
        rows += linear(heads, path + "self_attn/qkv", "d d")
        rows += linear(name + "attention.output.dense", path + "self_attn/out_proj", "d d")
        rows += linear(name + "mlp.fc1", path + "mlp/linear_fc1", "f d")
        rows += linear(name + "mlp.fc2", path + "mlp/linear_fc2", "d f")
        rows += [(f"{name}layer_scale{i}.lambda1", f"{path}layer_scale{i}", COPY, "d") for i in (1, 2)]
    rows += norm("layernorm", "post_layernorm" if config.read_layers is None else "unread/norm", "d")
    return tuple(rows)


def _recognize(path: pathlib.Path) -> tuple[str, str, int]:
    """Whose names a file has, what stands before them, and how many positions there are."""
    with open_checkpoint(path) as stored:
        for prefix in ("", _MODEL, _MODEL_WITH_REGISTERS):
            for names, position in _POSITIONS.items():
                tensor = stored.get(prefix + position)
                if tensor is not None and len(tensor.shape) == 3:
                    return names, prefix, tensor.shape[1]
    raise WeightsError(
        f"{path} holds no DINOv2: neither {' nor '.join(_POSITIONS.values())} is in it; give the weights of timm or of "
        "transformers"
    )


def _without(weight: Weight, prefix: str) -> Weight:
    return dataclasses.replace(weight, hf_names=tuple(prefix + name for name in weight.hf_names))


def _why_unused(name: str) -> str:
    """Why a tensor is no parameter; empty where it is one."""
    if name.endswith("mask_token"):
        return "stands for hidden patches, and no patch is hidden"
    return "the classifier of another task" if name.split(".")[0] in ("classifier", "head") else ""
