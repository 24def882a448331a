"""What the agents of BridgeData see: the sizes of their observations, and how an observation meets its goal."""

from typing import Protocol, runtime_checkable

from flax import nnx

from jaxvla.data.schema import BatchSpec
from jaxvla.errors import ConfigError
from jaxvla.models.goal_encoder import EarlyFusion, LateFusion, ViewShape
from jaxvla.models.module import compute_dtype
from jaxvla.models.resnet import EncoderConfig


@runtime_checkable
class FusionSettings(Protocol):
    """Those of an agent's settings that say how observation and goal are encoded.

    Attributes:
        encoder: of the images.
        early_goal_concat: stack observation and goal as channels of one image, instead of encoding them apart.
        shared_goal_encoder: where they are encoded apart, by the same encoder.
        use_proprio: proprio of the observations joins the features.
        dtype: in which the encoder computes.
    """

    encoder: EncoderConfig
    early_goal_concat: bool
    shared_goal_encoder: bool
    use_proprio: bool
    dtype: str


def check_fusion(early_goal_concat: bool, shared_goal_encoder: bool) -> None:
    """Raises ConfigError for separate encoders with early fusion."""
    if early_goal_concat and not shared_goal_encoder:
        raise ConfigError(
            "shared_goal_encoder=False has no effect with early_goal_concat=True, which has one encoder; change one"
        )


def view_shape(spec: BatchSpec, use_proprio: bool) -> ViewShape:
    """What of the observations of `spec` enters an encoder."""
    sizes = spec.image_size, spec.obs_horizon, spec.proprio_dim if use_proprio else 0
    return ViewShape(spec.cameras, *sizes, spec.camera_sizes)


def make_fusion(settings: FusionSettings, spec: BatchSpec, rngs: nnx.Rngs) -> EarlyFusion | LateFusion:
    """The encoder of observation and goal."""
    shape, dtype = view_shape(spec, settings.use_proprio), compute_dtype(settings.dtype)
    if settings.early_goal_concat:
        return EarlyFusion(settings.encoder, shape, dtype=dtype, rngs=rngs)
    return LateFusion(settings.encoder, shape, shared=settings.shared_goal_encoder, dtype=dtype, rngs=rngs)
