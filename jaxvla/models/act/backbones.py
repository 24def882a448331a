"""What ACT looks through: a ResNet, or the patches of DINOv2, as a feature map of an image."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, UInt8

from jaxvla.models.act.config import FeatureEncoderConfig
from jaxvla.models.resnet import EncoderConfig, ResNet
from jaxvla.models.vision.dinov2 import Dinov2Config, Dinov2Tower
from jaxvla.models.vision.frozen_resnet import MEAN, STD, FrozenResNet
from jaxvla.ops.patches import cut_patches


class PatchMap(nnx.Module):
    """What DINOv2 says of each patch, where the patch is; its class token is not looked at.

    Args:
        config: of the tower, `tower`.
        dtype: of its products; parameters are float32.
    """

    def __init__(self, config: Dinov2Config, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.tower = Dinov2Tower(config, dtype=dtype, rngs=rngs)
        self.out_dim = config.hidden_size

    def __call__(self, images_bhwc: UInt8[Array, "b h w c"]) -> Float[Array, "b y x f"]:
        """float32 [b, h / 14, w / 14, out_dim], of RGB that is normalized as ImageNet's."""
        x_bhwc = (images_bhwc / jnp.float32(255) - jnp.array(MEAN)) / jnp.array(STD)
        config = self.tower.config
        patches_bpd = self.tower(cut_patches(x_bhwc, config.patch_size)).patches_bpd
        side = config.image_size // config.patch_size
        return patches_bpd.reshape(-1, side, side, self.out_dim).astype(jnp.float32)


def make_backbone(
    encoder: FeatureEncoderConfig, image_size: tuple[int, int], *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
) -> FrozenResNet | PatchMap | ResNet:
    """The module from images uint8 [b, h, w, 3] to a feature map [b, y, x, out_dim].

    Raises:
        ConfigError: images of a size that it does not see.
    """
    if encoder.is_frozen:
        return FrozenResNet(encoder.name, dtype=dtype, rngs=rngs)
    if encoder.is_dinov2:
        return PatchMap(encoder.tower(image_size), dtype=dtype, rngs=rngs)
    plain = EncoderConfig(encoder.name, pooling="none", add_coordinates=False)
    return ResNet(plain, image_size, dtype=dtype, rngs=rngs)
