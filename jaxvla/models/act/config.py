"""Sizes of ACT, with LeRobot's values."""

import dataclasses

from jaxvla.errors import ConfigError
from jaxvla.models import resnet
from jaxvla.models.vision import dinov2, frozen_resnet

# Towers of DINOv2 without registers, and their published sizes.
DINOV2 = {f"dinov2_{size}": size for size in ("small", "base", "large")}


@dataclasses.dataclass(frozen=True)
class FeatureEncoderConfig:
    """What makes a feature map of every camera's image; one for all cameras.

    Attributes:
        name: "resnet18" or "resnet34" with frozen BatchNorm, as torchvision has them; a key of `DINOV2`; or a ResNet
            with GroupNorm that learns from scratch, a key of `jaxvla.models.resnet.ARCHITECTURES` without FiLM.
        path: a safetensors file of torchvision or timm, of DINOv2 one of timm or transformers, or the folder of its
            model.safetensors, that training starts from; empty for parameters that are drawn at random.

    Raises:
        ConfigError: an unknown name, or weights for a ResNet with GroupNorm.
    """

    name: str = "resnet18"
    path: str = ""

    def __post_init__(self) -> None:
        known = [*frozen_resnet.ARCHITECTURES, *DINOV2, *(k for k, v in resnet.ARCHITECTURES.items() if not v.film)]
        if self.name not in known:
            raise ConfigError(
                f"encoder.name {self.name!r} is none that act looks through; there are: {', '.join(known)}"
            )
        if self.path and not self.is_frozen and not self.is_dinov2:
            raise ConfigError(
                f"encoder.path is {self.path}, but {self.name} has GroupNorm and learns from scratch: set encoder.name "
                f"to one of {', '.join([*frozen_resnet.ARCHITECTURES, *DINOV2])}, or leave the path empty"
            )

    @property
    def is_frozen(self) -> bool:
        """Whether its norms are frozen BatchNorm, and its pictures normalized as ImageNet's."""
        return self.name in frozen_resnet.ARCHITECTURES

    @property
    def is_dinov2(self) -> bool:
        """Whether it is a tower of DINOv2, all of which learns."""
        return self.name in DINOV2

    def tower(self, image_size: tuple[int, int]) -> dinov2.Dinov2Config:
        """Of DINOv2, for images of this (height, width).

        Raises:
            ConfigError: no square of whole patches.
        """
        height, width = image_size
        patch = dinov2.Dinov2Config.patch_size
        if height != width or height % patch:
            raise ConfigError(
                f"{self.name} sees squares whose side is a multiple of {patch} pixels, not {height} x {width}: set "
                "config.data.image_size to one, such as (224,224)"
            )
        return dinov2.preset(DINOV2[self.name], image_size=height)


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of the three transformers.

    Attributes:
        width: of the tokens; LeRobot's dim_model. A multiple of 4 that the heads divide.
        num_heads: of all attention; n_heads.
        mlp_dim: between the two layers of each MLP; dim_feedforward.
        num_encoder_layers: of the encoder of what is seen; n_encoder_layers.
        num_decoder_layers: of the decoder of actions; n_decoder_layers.
        num_latent_layers: of the encoder of the actions that are imitated; n_vae_encoder_layers.
        latent_dim: of the latent that says which of several ways a demonstration goes; latent_dim.
        dropout_rate: in [0, 1); dropout.

    Raises:
        ConfigError: a value out of range.
    """

    width: int = 512
    num_heads: int = 8
    mlp_dim: int = 3200
    num_encoder_layers: int = 4
    num_decoder_layers: int = 1
    num_latent_layers: int = 4
    latent_dim: int = 32
    dropout_rate: float = 0.1

    def __post_init__(self) -> None:
        sizes = {key: value for key, value in dataclasses.asdict(self).items() if key != "dropout_rate"}
        for name, size in sizes.items():
            if size < 1:
                raise ConfigError(f"transformer.{name} must be at least 1, not {size}")
        if self.width % 4 or self.width % self.num_heads:
            raise ConfigError(
                f"transformer.width {self.width} must be a multiple of 4 and of num_heads, {self.num_heads}"
            )
        if not 0 <= self.dropout_rate < 1:
            raise ConfigError(f"transformer.dropout_rate must lie in [0, 1), not {self.dropout_rate}")
