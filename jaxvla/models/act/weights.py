"""ACT's weights from and to LeRobot's folders, and the ResNet's from torchvision's or timm's file, without torch."""

import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from jaxvla.errors import WeightsError
from jaxvla.models.act.config import FeatureEncoderConfig, TransformerConfig
from jaxvla.models.act.model import Sizes
from jaxvla.models.lerobot import load_table, report_of
from jaxvla.models.module import Params
from jaxvla.models.safetensors_io import HostTensor
from jaxvla.models.vision import frozen_resnet
from jaxvla.models.weights import COPY, TRANSPOSE, LoadReport, Row, Weight, expand, host_tensors
from jaxvla.ops.sinusoid import place_table

# A constant of LeRobot's model that its checkpoints hold all the same, [1, tokens, d].
PLACES = "model.vae_encoder_pos_enc"

_LATENT = (
    ("model.vae_encoder_cls_embed.weight", "latent_encoder/summary", COPY, "one d"),
    ("model.vae_encoder_action_input_proj.weight", "latent_encoder/action/kernel", TRANSPOSE, "d action"),
    ("model.vae_encoder_action_input_proj.bias", "latent_encoder/action/bias", COPY, "d"),
    ("model.vae_encoder_latent_output_proj.weight", "latent_encoder/out/kernel", TRANSPOSE, "moments d"),
    ("model.vae_encoder_latent_output_proj.bias", "latent_encoder/out/bias", COPY, "moments"),
)
_LATENT_STATE = (
    ("model.vae_encoder_robot_state_input_proj.weight", "latent_encoder/proprio/kernel", TRANSPOSE, "d proprio"),
    ("model.vae_encoder_robot_state_input_proj.bias", "latent_encoder/proprio/bias", COPY, "d"),
)
_STATE = (
    ("model.encoder_robot_state_input_proj.weight", "proprio/kernel", TRANSPOSE, "d proprio"),
    ("model.encoder_robot_state_input_proj.bias", "proprio/bias", COPY, "d"),
)
_POLICY = (
    ("model.encoder_latent_input_proj.weight", "latent/kernel", TRANSPOSE, "d z"),
    ("model.encoder_latent_input_proj.bias", "latent/bias", COPY, "d"),
    ("model.encoder_img_feat_input_proj.weight", "image/kernel", TRANSPOSE, "d channel one one"),
    ("model.encoder_img_feat_input_proj.bias", "image/bias", COPY, "d"),
    ("model.encoder_1d_feature_pos_embed.weight", "places", COPY, "place d"),
    ("model.decoder_pos_embed.weight", "slots", COPY, "slot d"),
    ("model.decoder.norm.weight", "decoder_norm/scale", COPY, "d"),
    ("model.decoder.norm.bias", "decoder_norm/bias", COPY, "d"),
    ("model.action_head.weight", "action/kernel", TRANSPOSE, "action d"),
    ("model.action_head.bias", "action/bias", COPY, "action"),
)


def weight_table(
    encoder: FeatureEncoderConfig, config: TransformerConfig, sizes: Sizes, use_latent: bool
) -> tuple[Weight, ...]:
    """Every parameter of `ACT` with these arguments, by LeRobot's names.

    Raises:
        WeightsError: the image encoder is none that LeRobot has.
    """
    if not encoder.is_frozen:
        raise WeightsError(
            f"LeRobot's act looks through {' or '.join(frozen_resnet.ARCHITECTURES)}, not through {encoder.name}: no "
            "weights go from or to it; export.py --format safetensors keeps such a policy"
        )
    rows = _POLICY + _layer("model.encoder.layers.*.", "encoder/") + _decoder_layer()
    rows += _STATE if sizes.proprio_dim else ()
    if use_latent:
        rows += _LATENT + (_LATENT_STATE if sizes.proprio_dim else ())
        rows += _layer("model.vae_encoder.layers.*.", "latent_encoder/layers/")
    resnet = frozen_resnet.weight_table(encoder.name)
    axes = {
        "one": 1,
        "d": config.width,
        "qkv": 3 * config.width,
        "f": config.mlp_dim,
        "z": config.latent_dim,
        "moments": 2 * config.latent_dim,
        "channel": frozen_resnet.out_channels(encoder.name),
        "proprio": sizes.proprio_dim,
        "action": sizes.action_dim,
        "place": 2 if sizes.proprio_dim else 1,
        "slot": sizes.action_horizon,
    }
    layers = {
        "encoder/": range(config.num_encoder_layers),
        "decoder/": range(config.num_decoder_layers),
        "latent_encoder/layers/": range(config.num_latent_layers),
    }
    return (*(_below(weight, "backbone/", "model.backbone.") for weight in resnet), *expand(rows, axes, layers))


def load_resnet(
    path: str | pathlib.Path, name: str, shardings: Mapping[str, Any] | None = None
) -> tuple[Params, LoadReport]:
    """Reads the weights of a ResNet of torchvision or timm into those of a `FrozenResNet`.

    Args:
        path: a safetensors file, or the folder of a model.safetensors.
        name: a key of `frozen_resnet.ARCHITECTURES`.
        shardings: one for every parameter; None for the default device.

    Raises:
        WeightsError: as `load_table`.
    """
    return load_table(path, frozen_resnet.weight_table(name), frozen_resnet.why_unused, shardings)


def resnet_report(path: str | pathlib.Path, name: str) -> LoadReport:
    """What `load_resnet` reads, from the file's header alone.

    Raises:
        WeightsError: no weights there, a damaged file, or tensors that are missing or unknown.
    """
    return report_of(path, frozen_resnet.weight_table(name), frozen_resnet.why_unused)


def tensors_of(params: Params, table: tuple[Weight, ...]) -> dict[str, HostTensor]:
    """The tensors of LeRobot's model.safetensors by name, made when they are written.

    Args:
        params: of `ACT`.
        table: from `weight_table`.

    Raises:
        WeightsError: the parameters do not fit the table, or live on other hosts.
    """
    tensors = host_tensors(params, table)
    if "latent_encoder" in params:
        tokens = len(params["slots"]) + len(params["places"])
        places = place_table(np.arange(tokens), params["slots"].shape[1])[None]
        tensors[PLACES] = HostTensor(places.shape, places.dtype, lambda: places)
    return tensors


def why_unused(name: str) -> str:
    """Why a tensor of LeRobot's ACT is no parameter; empty where it is one."""
    return "a constant, which is computed" if name == PLACES else ""


def _below(weight: Weight, path: str, name: str) -> Weight:
    """The same parameter of a module at `path`, whose tensors' names begin with `name`."""
    return dataclasses.replace(
        weight, path=path + weight.path, hf_names=tuple(name + hf_name for hf_name in weight.hf_names)
    )


def _layer(name: str, path: str) -> tuple[Row, ...]:
    """The rows of a stack of encoder layers."""
    return (
        *_attention(f"{name}self_attn.", f"{path}attention/"),
        *_norm(f"{name}norm1.", f"{path}attention_norm/"),
        *_mlp(name, path),
        *_norm(f"{name}norm2.", f"{path}mlp_norm/"),
    )


def _decoder_layer() -> tuple[Row, ...]:
    name, path = "model.decoder.layers.*.", "decoder/"
    return (
        *_attention(f"{name}self_attn.", f"{path}attention/"),
        *_norm(f"{name}norm1.", f"{path}attention_norm/"),
        *_attention(f"{name}multihead_attn.", f"{path}cross_attention/"),
        *_norm(f"{name}norm2.", f"{path}cross_attention_norm/"),
        *_mlp(name, path),
        *_norm(f"{name}norm3.", f"{path}mlp_norm/"),
    )


def _attention(name: str, path: str) -> tuple[Row, ...]:
    return (
        (f"{name}in_proj_weight", f"{path}kernel", TRANSPOSE, "qkv d"),
        (f"{name}in_proj_bias", f"{path}bias", COPY, "qkv"),
        (f"{name}out_proj.weight", f"{path}out/kernel", TRANSPOSE, "d d"),
        (f"{name}out_proj.bias", f"{path}out/bias", COPY, "d"),
    )


def _mlp(name: str, path: str) -> tuple[Row, ...]:
    return (
        (f"{name}linear1.weight", f"{path}mlp/up/kernel", TRANSPOSE, "f d"),
        (f"{name}linear1.bias", f"{path}mlp/up/bias", COPY, "f"),
        (f"{name}linear2.weight", f"{path}mlp/down/kernel", TRANSPOSE, "d f"),
        (f"{name}linear2.bias", f"{path}mlp/down/bias", COPY, "d"),
    )


def _norm(name: str, path: str) -> tuple[Row, ...]:
    return ((f"{name}weight", f"{path}scale", COPY, "d"), (f"{name}bias", f"{path}bias", COPY, "d"))
