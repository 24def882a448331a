"""Prismatic models (Karamcheti et al., 2024), which OpenVLA is one of: an image among the words of a Llama.

    model = bind(graphdef, params)                                  # inside jit or grad
    images_bpd = model.encode_images(images_bnhwc)
    output = model.read(tokens_bt, images_bpd, stop_b)
    logits = model.llm.logits(model.llm.norm(output.hidden_btd))

A sequence is [first token][tokens of the images][the other tokens], padded on the right. Axis letters: n images of a
sample, p tokens of all of them, t tokens of text, s = p + t.
"""

import itertools

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int, UInt8

from jaxvla.errors import ConfigError
from jaxvla.models.layers import Linear
from jaxvla.models.module import compute_dtype
from jaxvla.models.prismatic.config import PixelScale, PrismaticConfig
from jaxvla.models.text_decoder import DecoderOutput, TextDecoder
from jaxvla.models.vision.dinov2 import Dinov2Tower
from jaxvla.models.vision.siglip import SiglipTower
from jaxvla.ops.patches import cut_patches


class Towers(nnx.Module):
    """One or two vision towers that see the same images, each with its own scale of pixels."""

    def __init__(self, config: PrismaticConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        options = {
            "dtype": compute_dtype(config.dtype),
            "attention": config.attention,
            "remat": config.remat,
            "unroll": not config.scan_layers,
            "rngs": rngs,
        }
        self.dino = None if config.dino is None else Dinov2Tower(config.dino, **options)
        self.siglip = None if config.siglip is None else SiglipTower(config.siglip, **options)

    def __call__(self, images_bhwc: UInt8[Array, "b h w c"]) -> Float[Array, "b p f"]:
        """The features of each patch, those of DINOv2 before those of SigLIP."""
        config, features = self.config, []
        if self.dino is not None:
            features.append(self.dino(_patches(images_bhwc, config.dino_pixels, config.dino.patch_size)).patches_bpd)
        if self.siglip is not None:
            features.append(self.siglip(_patches(images_bhwc, config.siglip_pixels, config.siglip.patch_size)))
        return jnp.concatenate(features, axis=-1)


class Projector(nnx.Module):
    """Layers with GELU between them."""

    def __init__(self, dims: tuple[int, ...], dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.num_layers = len(dims) - 1
        for i, (in_dim, out_dim) in enumerate(itertools.pairwise(dims), 1):
            setattr(self, f"fc{i}", Linear(in_dim, out_dim, bias=True, dtype=dtype, rngs=rngs))

    def __call__(self, x_bpf: Float[Array, "b p f"]) -> Float[Array, "b p d"]:
        """Each patch by itself."""
        x = self.fc1(x_bpf)
        for i in range(2, self.num_layers + 1):
            x = getattr(self, f"fc{i}")(jax.nn.gelu(x, approximate=False))
        return x


class Prismatic(nnx.Module):
    """Vision towers, projector and language model.

    Args:
        config: sizes and options.
        rngs: for the first parameters.
    """

    def __init__(self, config: PrismaticConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.vision = Towers(config, rngs)
        self.projector = Projector(config.projector_dims, compute_dtype(config.dtype), rngs)
        self.llm = TextDecoder(config.decoder, rngs)

    def encode_images(self, images_bnhwc: UInt8[Array, "b n h w c"]) -> Float[Array, "b p d"]:
        """The tokens of all images of a sample, one image after the other.

        Raises:
            ConfigError: images of another size.
        """
        b, n, *shape = images_bnhwc.shape
        size = self.config.image_size
        if shape != [size, size, 3]:
            raise ConfigError(f"images are {tuple(shape)}, but this model sees {(size, size, 3)}: resize them to it")
        features = self.vision(images_bnhwc.reshape(b * n, *shape))
        return self.projector(features).reshape(b, n * self.config.tokens_per_image, -1)

    def read(
        self,
        tokens_bt: Int[Array, "b t"],
        images_bpd: Float[Array, "b p d"],
        stop_b: Int[Array, " b"] | None = None,
        *,
        keep_keys: bool = False,
    ) -> DecoderOutput:
        """One causal pass over images and text, positions counting on from 0; hidden states before the final norm.

        Args:
            tokens_bt: of the text, the first of which stands before the images.
            images_bpd: from `encode_images`.
            stop_b: where padding on the right of `tokens_bt` begins; None for none.
            keep_keys: return keys and values, for a cache.
        """
        x_btd = self.llm.embed_tokens(tokens_bt)
        x_bsd = jnp.concatenate([x_btd[:, :1], images_bpd.astype(x_btd.dtype), x_btd[:, 1:]], axis=1)
        b, s, _ = x_bsd.shape
        positions_bs = jnp.broadcast_to(jnp.arange(s), (b, s))
        stop_b = None if stop_b is None else stop_b + images_bpd.shape[1]
        return self.llm(x_bsd, positions_bs, stop_b=stop_b, keep_keys=keep_keys)


def _patches(images_bhwc: Array, scale: PixelScale, patch_size: int) -> Float[Array, "b p f"]:
    pixels = (images_bhwc.astype(jnp.float32) / 255 - jnp.array(scale.mean)) / jnp.array(scale.std)
    return cut_patches(pixels, patch_size)
