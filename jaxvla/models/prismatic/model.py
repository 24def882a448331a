"""Prismatic models (Karamcheti et al., 2024), which OpenVLA is one of: an image among the words of a Llama.

    model = bind(graphdef, params)                                  # inside jit or grad
    images_bpd = model.encode_images(images_bnhwc)
    output = model.read(tokens_bt, images_bpd, stop_b)
    logits = model.llm.logits(model.llm.norm(output.hidden_btd))

A sequence is [first token][tokens of the images][the other tokens], padded on the right. With a `head`, the robot's
state is one more token behind the images. Axis letters: n images of a sample, p tokens of all of them, t tokens of
text, s = p + t.
"""

import itertools
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, UInt8

from jaxvla.errors import ConfigError
from jaxvla.models.layers import Linear
from jaxvla.models.module import compute_dtype
from jaxvla.models.prismatic.config import PixelScale, PrismaticConfig
from jaxvla.models.prismatic.continuous import ActionHead, Film, ProprioProjector
from jaxvla.models.text_decoder import DecoderOutput, TextDecoder
from jaxvla.models.vision.blocks import Modulation
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

    def __call__(
        self, images_bhwc: UInt8[Array, "b h w c"], modulation: Mapping[str, Modulation] | None = None
    ) -> Float[Array, "b p f"]:
        """The features of each patch, those of DINOv2 before those of SigLIP; `modulation` is that of each tower."""
        config, features, own = self.config, [], dict(modulation or {})
        if self.dino is not None:
            patches = _patches(images_bhwc, config.dino_pixels, config.dino.patch_size)
            features.append(self.dino(patches, own.get("dino")).patches_bpd)
        if self.siglip is not None:
            patches = _patches(images_bhwc, config.siglip_pixels, config.siglip.patch_size)
            features.append(self.siglip(patches, own.get("siglip")))
        return jnp.concatenate(features, axis=-1)


class Projector(nnx.Module):
    """Layers with GELU between them, drawn as torch draws them, for it is new where the towers are not."""

    def __init__(self, dims: tuple[int, ...], dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.num_layers = len(dims) - 1
        for i, (in_dim, out_dim) in enumerate(itertools.pairwise(dims), 1):
            setattr(self, f"fc{i}", Linear(in_dim, out_dim, bias=True, uniform=True, dtype=dtype, rngs=rngs))

    def __call__(self, x_bpf: Float[Array, "b p f"]) -> Float[Array, "b p d"]:
        """Each patch by itself."""
        x = self.fc1(x_bpf)
        for i in range(2, self.num_layers + 1):
            x = getattr(self, f"fc{i}")(jax.nn.gelu(x, approximate=False))
        return x


class Prismatic(nnx.Module):
    """Vision towers, projector and language model, and what regresses actions where they are no tokens.

    Args:
        config: sizes and options.
        rngs: for the first parameters.
    """

    def __init__(self, config: PrismaticConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        dtype, dim, head = compute_dtype(config.dtype), config.text.hidden_size, config.head
        self.vision = Towers(config, rngs)
        self.projector = Projector(config.projector_dims, dtype, rngs)
        self.llm = TextDecoder(config.decoder, rngs)
        self.film = Film(dim, config.towers, dtype, rngs) if config.film else None
        self.action_head = None if head is None else ActionHead(dim, head, dtype, rngs)
        reads_state = head is not None and head.proprio_dim > 0
        self.proprio_projector = ProprioProjector(head.proprio_dim, dim, dtype, rngs) if reads_state else None

    def encode_images(
        self, images_bnhwc: UInt8[Array, "b n h w c"], words_bd: Float[Array, "b d"] | None = None
    ) -> Float[Array, "b p d"]:
        """The tokens of all images of a sample, one image after the other.

        Args:
            images_bnhwc: all cameras of the present moment.
            words_bd: from `mean_words`, for a model with FiLM; None for one without.

        Raises:
            ConfigError: images of another size.
        """
        b, n, *shape = images_bnhwc.shape
        size = self.config.image_size
        if shape != [size, size, 3]:
            raise ConfigError(f"images are {tuple(shape)}, but this model sees {(size, size, 3)}: resize them to it")
        modulation = None if self.film is None else self.film(jnp.repeat(words_bd, n, axis=0))
        features = self.vision(images_bnhwc.reshape(b * n, *shape), modulation)
        return self.projector(features).reshape(b, n * self.config.tokens_per_image, -1)

    def mean_words(self, tokens_bt: Int[Array, "b t"], shown_bt: Bool[Array, "b t"]) -> Float[Array, "b d"]:
        """The mean embedding of the tokens that are shown, of which every sample has one."""
        x_btd = self.llm.embed_tokens(tokens_bt).astype(jnp.float32)
        return jnp.where(shown_bt[..., None], x_btd, 0).sum(1) / shown_bt.sum(1)[:, None]

    def read(
        self,
        tokens_bt: Int[Array, "b t"],
        images_bpd: Float[Array, "b p d"],
        stop_b: Int[Array, " b"] | None = None,
        *,
        blank_bt: Bool[Array, "b t"] | None = None,
        causal: bool = True,
        keep_keys: bool = False,
    ) -> DecoderOutput:
        """One pass over images and text, positions counting on from 0; hidden states before the final norm.

        Args:
            tokens_bt: of the text, the first of which stands before the images.
            images_bpd: from `encode_images`, and what else stands there.
            stop_b: where padding on the right of `tokens_bt` begins; None for none.
            blank_bt: True at tokens that have a place, but zeros in place of an embedding; None for none.
            causal: nothing looks at what comes behind it.
            keep_keys: return keys and values, for a cache.
        """
        x_btd = self.llm.embed_tokens(tokens_bt)
        if blank_bt is not None:
            x_btd = jnp.where(blank_bt[..., None], 0, x_btd)
        x_bsd = jnp.concatenate([x_btd[:, :1], images_bpd.astype(x_btd.dtype), x_btd[:, 1:]], axis=1)
        b, s, _ = x_bsd.shape
        positions_bs = jnp.broadcast_to(jnp.arange(s), (b, s))
        stop_b = None if stop_b is None else stop_b + images_bpd.shape[1]
        return self.llm(x_bsd, positions_bs, stop_b=stop_b, causal=causal, keep_keys=keep_keys)


def _patches(images_bhwc: Array, scale: PixelScale, patch_size: int) -> Float[Array, "b p f"]:
    pixels = (images_bhwc.astype(jnp.float32) / 255 - jnp.array(scale.mean)) / jnp.array(scale.std)
    return cut_patches(pixels, patch_size)
