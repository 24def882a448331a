"""Qwen3-VL: images and tokens in; hidden states, logits and losses out.

graphdef = graph_of(lambda rngs: Qwen3VL(config, rngs))
model = bind(graphdef, params)                       # inside jit or grad
hidden_btd = model.forward(tokens_bt, patches_bpf=patches_bpf, grids=((16, 16),))
losses_bt, hits_bt = model.token_losses(hidden_btd, labels_bt)
"""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from jaxvla.errors import ConfigError
from jaxvla.models.qwen3_vl.config import Qwen3VLConfig
from jaxvla.models.qwen3_vl.positions import Grids, TokenLayout, spread, token_layout
from jaxvla.models.qwen3_vl.vision import ImageFeatures, VisionTower
from jaxvla.models.text_decoder import DecoderOutput, DeepStack, TextDecoder, place
from jaxvla.ops.masks import valid_range


class Qwen3VL(nnx.Module):
    """Vision tower and text decoder.

    Throughout, a batch of tokens [b, t] may be padded on the left, up to `start_b`, or on the right, from `stop_b`; all
    its samples show images of the same `grids`, a static argument.

    Args:
        config: sizes and options.
        rngs: for the first parameters.
    """

    def __init__(self, config: Qwen3VLConfig, rngs: nnx.Rngs) -> None:
        self.config = config
        self.visual = VisionTower(config, rngs)
        self.text = TextDecoder(config.decoder, rngs)

    def encode_images(self, patches_bpf: Float[Array, "b p f"], grids: Grids) -> ImageFeatures:
        """Image tokens and DeepStack features of all images of each sample, see `VisionTower`."""
        return self.visual(patches_bpf, grids)

    def layout(
        self,
        tokens_bt: Int[Array, "b t"],
        *,
        start_b: Int[Array, " b"] | None = None,
        stop_b: Int[Array, " b"] | None = None,
        grids: Grids = (),
    ) -> TokenLayout:
        """Positions of the tokens, and which of them stand for which part of an image."""
        valid_bt = valid_range(tokens_bt.shape[1], start_b, stop_b)
        valid_bt = jnp.ones(tokens_bt.shape, bool) if valid_bt is None else valid_bt
        return token_layout(tokens_bt, valid_bt, grids, self.config)

    def embed(
        self, tokens_bt: Int[Array, "b t"], images: ImageFeatures | None = None, layout: TokenLayout | None = None
    ) -> Float[Array, "b t d"]:
        """Embeddings of the tokens, image features in the place of image tokens where both are given."""
        x_btd = self.text.embed_tokens(tokens_bt)
        if images is None or layout is None:
            return x_btd
        is_image_bt = layout.image_index_bt < images.features_bid.shape[1]
        return jnp.where(is_image_bt[..., None], place(images.features_bid, layout.image_index_bt), x_btd)

    def decode_tokens(
        self,
        tokens_bt: Int[Array, "b t"],
        *,
        start_b: Int[Array, " b"] | None = None,
        stop_b: Int[Array, " b"] | None = None,
        images: ImageFeatures | None = None,
        grids: Grids = (),
        shown_bi: Bool[Array, "b i"] | None = None,
        keep_keys: bool = False,
        keep_layers: bool = False,
    ) -> tuple[DecoderOutput, TokenLayout]:
        """One pass over whole sequences; with `keep_keys`, the prefill of a cache.

        Args:
            tokens_bt: with as many image tokens per sample as `grids` have, see `positions.check_image_tokens`.
            start_b: number of padding tokens on the left.
            stop_b: where padding on the right begins.
            images: from `encode_images`.
            grids: rows and columns of patches of each image of a sample; static.
            shown_bi: False at image tokens that no token may look at; None where all may.
            keep_keys: return keys and values.
            keep_layers: return every layer's output.

        Raises:
            ConfigError: images without grids, or grids without images.
        """
        if (images is None) != (not grids):
            raise ConfigError(f"images and grids come together, but grids are {grids} with images {images}")
        layout = self.layout(tokens_bt, start_b=start_b, stop_b=stop_b, grids=grids)
        deepstack = None
        if images is not None and images.deepstack_nbid is not None:
            deepstack = DeepStack(images.deepstack_nbid, layout.image_index_bt)
        output = self.text(
            self.embed(tokens_bt, images, layout),
            layout.positions_3bt,
            start_b=start_b,
            stop_b=stop_b,
            deepstack=deepstack,
            shown_bt=None if shown_bi is None else spread(shown_bi, layout.image_index_bt),
            keep_keys=keep_keys,
            keep_layers=keep_layers,
        )
        return output, layout

    def forward(
        self,
        tokens_bt: Int[Array, "b t"],
        *,
        start_b: Int[Array, " b"] | None = None,
        stop_b: Int[Array, " b"] | None = None,
        patches_bpf: Float[Array, "b p f"] | None = None,
        grids: Grids = (),
        final_norm: bool = True,
    ) -> Float[Array, "b t d"]:
        """Hidden states, after the final norm or before it.

        Args:
            tokens_bt, start_b, stop_b, grids: as in `decode_tokens`.
            patches_bpf: of all images of a sample, one after the other, from `jaxvla.ops.patches.patchify`.
            final_norm: False for the last layer's output as it is.
        """
        images = None if patches_bpf is None else self.encode_images(patches_bpf, grids)
        output, _ = self.decode_tokens(tokens_bt, start_b=start_b, stop_b=stop_b, images=images, grids=grids)
        return self.text.norm(output.hidden_btd) if final_norm else output.hidden_btd

    def logits(self, hidden_btd: Float[Array, "b t d"]) -> Float[Array, "b t v"]:
        """float32 logits of hidden states after the final norm."""
        return self.text.logits(hidden_btd)

    def token_losses(
        self, hidden_btd: Float[Array, "b t d"], labels_bt: Int[Array, "b t"], chunk: int = 128
    ) -> tuple[Float[Array, "b t"], Float[Array, "b t"]]:
        """Cross entropy of each position, and 1 where its label is the likeliest, see `TextDecoder.token_losses`."""
        return self.text.token_losses(hidden_btd, labels_bt, chunk)
