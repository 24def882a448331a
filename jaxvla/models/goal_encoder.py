"""From camera images, their goals and proprio to one vector: early or late fusion, any history, any cameras.

Axis letters: b batch, o observation horizon, h height, w width, c channels, p proprio dimension, f features,
k condition. A history is folded into the batch of the image encoder; its features come out oldest frame first.
Where views hold a `camera_mask`, bool [b, o, cameras] or of goals [b, cameras], features of the others are 0.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxvla.errors import ConfigError
from jaxvla.models.resnet import EncoderConfig, ResNet

Views = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class ViewShape:
    """What of an observation enters a network, and its static sizes; `proprio_dim` is 0 where proprio is not used.

    `camera_sizes` are (camera, size) of those whose images are of another size than `image_size`.
    """

    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    obs_horizon: int
    proprio_dim: int
    camera_sizes: tuple[tuple[str, tuple[int, int]], ...] = ()


class CameraEncoder(nnx.Module):
    """One ResNet per camera, features concatenated. Cameras share the architecture, not the parameters.

    Args:
        config: of each ResNet.
        shape: cameras and image size.
        in_channels: of each image.
        cond_dim: width of a conditioning vector, for FiLM architectures.
        dtype: of the convolutions.

    Raises:
        ConfigError: the pooling gives a feature map, not a vector; or see `ResNet`.
    """

    def __init__(
        self,
        config: EncoderConfig,
        shape: ViewShape,
        *,
        in_channels: int = 3,
        cond_dim: int | None = None,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        if config.pooling == "none":
            raise ConfigError("encoder.pooling 'none' gives a feature map, not a vector; choose another pooling")
        self.cameras = shape.cameras
        options = {"in_channels": in_channels, "cond_dim": cond_dim, "dtype": dtype, "rngs": rngs}
        sizes = dict.fromkeys(shape.cameras, shape.image_size) | dict(shape.camera_sizes)
        self.resnets = nnx.Dict({camera: ResNet(config, sizes[camera], **options) for camera in shape.cameras})
        self.out_dim = sum(self.resnets[camera].out_dim for camera in shape.cameras)

    def __call__(self, views: Views, cond_bk: Float[Array, "b k"] | None = None) -> Float[Array, "b o f"]:
        """Images uint8 [b, o, h, w, c] of every camera; features of every frame, [b, o, out_dim]."""
        features, mask_boc = [], views.get("camera_mask")
        for i, camera in enumerate(self.cameras):
            x_bohwc = views[camera]
            b, o = x_bohwc.shape[:2]
            cond = None if cond_bk is None else jnp.repeat(cond_bk, o, axis=0)
            x_bof = self.resnets[camera](x_bohwc.reshape(b * o, *x_bohwc.shape[2:]), cond).reshape(b, o, -1)
            features.append(x_bof if mask_boc is None else jnp.where(mask_boc[..., i : i + 1], x_bof, 0))
        return jnp.concatenate(features, axis=-1)


class EarlyFusion(nnx.Module):
    """Each frame and the goal image of its camera are stacked along the channels and encoded together."""

    def __init__(self, config: EncoderConfig, shape: ViewShape, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.shape = shape
        self.encoder = CameraEncoder(config, shape, in_channels=6, dtype=dtype, rngs=rngs)
        self.out_dim = shape.obs_horizon * (self.encoder.out_dim + shape.proprio_dim)

    def __call__(self, observations: Views, goals: Views) -> Float[Array, "b f"]:
        """Images uint8 [b, o, h, w, 3] and [b, h, w, 3], proprio [b, o, p]; features [b, out_dim]."""
        pairs = _mask_of(observations)
        for i, camera in enumerate(self.shape.cameras):
            frames, goal_bhwc = observations[camera], goals[camera]
            for mask_bc in _mask_of(goals).values():
                goal_bhwc = jnp.where(mask_bc[:, i, None, None, None], goal_bhwc, 0)
            goal = jnp.broadcast_to(goal_bhwc[:, None], frames.shape)
            pairs[camera] = jnp.concatenate([frames, goal], axis=-1)
        return _flatten(self.encoder(pairs), observations, self.shape)


class LateFusion(nnx.Module):
    """Frames and goal images are encoded apart, by one encoder or by two, and their features concatenated."""

    def __init__(
        self, config: EncoderConfig, shape: ViewShape, *, shared: bool, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.shape = shape
        self.encoder = CameraEncoder(config, shape, dtype=dtype, rngs=rngs)
        self.goal_encoder = None if shared else CameraEncoder(config, shape, dtype=dtype, rngs=rngs)
        self.goal_dim = self.encoder.out_dim
        self.out_dim = shape.obs_horizon * (self.encoder.out_dim + shape.proprio_dim) + self.goal_dim

    def __call__(self, observations: Views, goals: Views) -> Float[Array, "b f"]:
        """Images uint8 [b, o, h, w, 3] and [b, h, w, 3], proprio [b, o, p]; features [b, out_dim], the goal's last."""
        return jnp.concatenate([self.encode_observations(observations), self.encode_goals(goals)], axis=-1)

    def encode_observations(self, observations: Views) -> Float[Array, "b f"]:
        """The part that knows no goal, [b, out_dim - goal_dim]."""
        return _flatten(self.encoder(observations), observations, self.shape)

    def encode_goals(self, goals: Views) -> Float[Array, "b f"]:
        """The part that knows the goal alone, [b, goal_dim]."""
        encoder = self.encoder if self.goal_encoder is None else self.goal_encoder
        return encoder({name: goals[name][:, None] for name in (*self.shape.cameras, *_mask_of(goals))})[:, 0]


class ConditionedFrames(nnx.Module):
    """Frames alone, encoded under a vector such as that of an instruction, by an architecture with FiLM."""

    def __init__(
        self, config: EncoderConfig, shape: ViewShape, *, cond_dim: int, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.shape = shape
        self.encoder = CameraEncoder(config, shape, cond_dim=cond_dim, dtype=dtype, rngs=rngs)
        self.out_dim = shape.obs_horizon * (self.encoder.out_dim + shape.proprio_dim)

    def __call__(self, observations: Views, cond_bk: Float[Array, "b k"]) -> Float[Array, "b f"]:
        """Images uint8 [b, o, h, w, 3], proprio [b, o, p]; features [b, out_dim]."""
        return _flatten(self.encoder(observations, cond_bk), observations, self.shape)


def _mask_of(views: Views) -> dict[str, Any]:
    """The entry that says which cameras there are, where there is one."""
    return {"camera_mask": views["camera_mask"]} if "camera_mask" in views else {}


def _flatten(features_bof: Array, observations: Views, shape: ViewShape) -> Array:
    """Joins the frames' features, then the frames' proprio where it is used."""
    parts = [features_bof.reshape(len(features_bof), -1)]
    if shape.proprio_dim:
        proprio_bop = observations["proprio"]
        parts.append(proprio_bop.reshape(len(proprio_bop), -1))
    return jnp.concatenate(parts, axis=-1)
