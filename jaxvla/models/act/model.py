"""ACT, the Action Chunking Transformer (Zhao et al., "Learning Fine-Grained Bimanual Manipulation", 2023).

As LeRobot has it: a latent, the robot's state and the feature maps of all cameras are the tokens of an encoder; a
decoder of one learned query for each slot gives the chunk. In training an encoder of the demonstrated chunk gives the
latent's distribution; when it acts, the latent is 0.

Axis letters: b batch, c cameras, a slots of a chunk, s tokens, d width, p proprio dimension, z latent dimension.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float

from jaxvla.models.act.backbones import make_backbone
from jaxvla.models.act.config import FeatureEncoderConfig, TransformerConfig
from jaxvla.models.act.layers import EPSILON, UNIFORM, XAVIER, DecoderLayer, EncoderLayer, Rng, linear
from jaxvla.models.norms import LayerNorm
from jaxvla.models.stack import scan_blocks, stack_blocks
from jaxvla.ops.sinusoid import grid_table, place_table

_NORMAL = nnx.initializers.normal(1.0)  # torch's of embeddings


class Sizes(NamedTuple):
    """Of what goes in and out; `proprio_dim` is 0 where the robot's state is not used."""

    cameras: tuple[str, ...]
    image_size: tuple[int, int]
    proprio_dim: int
    action_horizon: int
    action_dim: int


def encode(
    layers: nnx.Module,
    x_bsd: Float[Array, "b s d"],
    places_sd: Float[Array, "s d"],
    visible_bs: Bool[Array, "b s"] | None,
    rng: Rng,
) -> Float[Array, "b s d"]:
    """The tokens behind all stacked encoder layers; without `rng`, dropout is off."""

    def step(layer: EncoderLayer, x_bsd: Array, key: Rng) -> tuple[Array, None]:
        return layer(x_bsd, places_sd, visible_bs, key), None

    return scan_blocks(layers, step, x_bsd, _keys(layers, rng))[0]


class LatentEncoder(nnx.Module):
    """From the robot's state and a demonstrated chunk to a Gaussian over latents."""

    def __init__(self, config: TransformerConfig, sizes: Sizes, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        width = config.width
        self.dtype = dtype
        self.summary = nnx.Param(_NORMAL(rngs.params(), (1, width)))
        self.proprio = linear(sizes.proprio_dim, width, dtype, rngs) if sizes.proprio_dim else None
        self.action = linear(sizes.action_dim, width, dtype, rngs)
        self.layers = stack_blocks(
            lambda rngs: EncoderLayer(config, UNIFORM, dtype, rngs), config.num_latent_layers, rngs
        )
        self.out = linear(width, 2 * config.latent_dim, dtype, rngs)

    def __call__(
        self,
        proprio_bp: Float[Array, "b p"],
        actions_bad: Float[Array, "b a k"],
        visible_ba: Bool[Array, "b a"],
        rng: Rng = None,
    ) -> tuple[Float[Array, "b z"], Float[Array, "b z"]]:
        """(mean, log variance), float32; slots that are not visible change neither."""
        b = len(actions_bad)
        summary_b1d = jnp.broadcast_to(self.summary[...].astype(self.dtype), (b, *self.summary.shape))
        first = [summary_b1d] if self.proprio is None else [summary_b1d, self.proprio(proprio_bp)[:, None]]
        x_bsd = jnp.concatenate([*first, self.action(actions_bad)], axis=1)
        visible_bs = jnp.concatenate([jnp.ones((b, len(first)), bool), visible_ba], axis=1)
        x_bsd = encode(
            self.layers, x_bsd, jnp.asarray(place_table(np.arange(x_bsd.shape[1]), x_bsd.shape[2])), visible_bs, rng
        )
        mean_bz, log_var_bz = jnp.split(self.out(x_bsd[:, 0]).astype(jnp.float32), 2, axis=-1)
        return mean_bz, log_var_bz


class ACT(nnx.Module):
    """Observations and a latent to a chunk of actions.

    Args:
        encoder: of the images.
        config: sizes of the transformers.
        sizes: of the data.
        use_latent: has an encoder of demonstrated chunks, `latent_encoder`; else that is None.
        dtype: of the products of matrices and the convolutions; parameters and actions are float32.
    """

    def __init__(
        self,
        encoder: FeatureEncoderConfig,
        config: TransformerConfig,
        sizes: Sizes,
        *,
        use_latent: bool,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        width = config.width
        self.dtype, self.cameras = dtype, sizes.cameras
        self.latent_encoder = LatentEncoder(config, sizes, dtype=dtype, rngs=rngs) if use_latent else None
        self.backbone = make_backbone(encoder, sizes.image_size, dtype=dtype, rngs=rngs)
        self.image = linear(self.backbone.out_dim, width, dtype, rngs)
        self.proprio = linear(sizes.proprio_dim, width, dtype, rngs) if sizes.proprio_dim else None
        self.latent = linear(config.latent_dim, width, dtype, rngs)
        self.places = nnx.Param(_NORMAL(rngs.params(), (1 if self.proprio is None else 2, width)))
        self.encoder = stack_blocks(
            lambda rngs: EncoderLayer(config, XAVIER, dtype, rngs), config.num_encoder_layers, rngs
        )
        self.slots = nnx.Param(_NORMAL(rngs.params(), (sizes.action_horizon, width)))
        self.decoder = stack_blocks(lambda rngs: DecoderLayer(config, dtype, rngs), config.num_decoder_layers, rngs)
        self.decoder_norm = LayerNorm(width, EPSILON)
        self.action = linear(width, sizes.action_dim, dtype, rngs)

    def __call__(
        self, observations: Mapping[str, Any], latent_bz: Float[Array, "b z"], rng: Rng = None
    ) -> Float[Array, "b a k"]:
        """The chunk, float32; without `rng`, dropout is off.

        Args:
            observations: images uint8 [b, 1, h, w, 3] of every camera, and proprio [b, 1, p]. Where it holds a
                `camera_mask`, bool [b, 1, c], nobody looks at the pixels of the others.
            latent_bz: which way to go.
            rng: of dropout.
        """
        encoder_rng, decoder_rng = (None, None) if rng is None else jax.random.split(rng)
        x_bsd, places_sd = self._tokens(observations, latent_bz)
        visible_bs = _shown(observations.get("camera_mask"), x_bsd.shape[1], len(self.places[...]))
        context_bsd = encode(self.encoder, x_bsd, places_sd, visible_bs, encoder_rng)
        placed_bsd = context_bsd + places_sd.astype(context_bsd.dtype)
        slots_ad = self.slots[...]

        def step(layer: DecoderLayer, x_bad: Array, key: Rng) -> tuple[Array, None]:
            return layer(x_bad, slots_ad, context_bsd, placed_bsd, visible_bs, key), None

        nothing_bad = jnp.zeros((len(latent_bz), *slots_ad.shape), self.dtype)
        x_bad, _ = scan_blocks(self.decoder, step, nothing_bad, _keys(self.decoder, decoder_rng))
        return self.action(self.decoder_norm(x_bad)).astype(jnp.float32)

    def _tokens(
        self, observations: Mapping[str, Any], latent_bz: Float[Array, "b z"]
    ) -> tuple[Float[Array, "b s d"], Float[Array, "s d"]]:
        """Latent, state, then the pixels of each camera's feature map, row by row; and where each token stands."""
        tokens = [self.latent(latent_bz)]
        if self.proprio is not None:
            tokens.append(self.proprio(observations["proprio"][:, -1]))
        images_bchwk = jnp.stack([observations[camera][:, -1] for camera in self.cameras], axis=1)
        b, c = images_bchwk.shape[:2]
        map_nhwf = self.backbone(images_bchwk.reshape(b * c, *images_bchwk.shape[2:]))
        height, width = map_nhwf.shape[1:3]
        pixels_bsd = self.image(map_nhwf).reshape(b, c * height * width, -1)
        grid_sd = jnp.asarray(np.tile(grid_table(height, width, pixels_bsd.shape[-1]), (c, 1)))
        x_bsd = jnp.concatenate([jnp.stack(tokens, axis=1), pixels_bsd], axis=1)
        return x_bsd, jnp.concatenate([self.places[...], grid_sd])


def _shown(mask_boc: Bool[Array, "b o c"] | None, num_tokens: int, num_first: int) -> Bool[Array, "b s"] | None:
    """Which tokens may be looked at: the first ones, and the pixels of cameras that there are; None for all."""
    if mask_boc is None:
        return None
    mask_bc = mask_boc[:, -1]
    pixels_bs = jnp.repeat(mask_bc, (num_tokens - num_first) // mask_bc.shape[1], axis=1)
    return jnp.concatenate([jnp.ones((len(mask_bc), num_first), bool), pixels_bs], axis=1)


def _keys(layers: nnx.Module, rng: Rng) -> Array | None:
    """A key for each of the stacked layers."""
    return None if rng is None else jax.random.split(rng, len(layers.mlp_norm.scale[...]))
