"""SmolVLA (Shukor et al., 2025): images, an instruction and the robot's state in, a chunk of actions out, as LeRobot's.

    model = bind(graphdef, params)                                  # inside jit or grad
    context = model.look(images, present, tokens, token_mask, state)
    errors_bad = model.errors(context, actions_bad, noise_bad, time_b)
    actions_bad = model.sample(context, noise_bad)

The prefix never sees the actions, so it is read once for a loss and once for all steps of sampling. Time runs from 1,
noise, to 0, actions. Axis letters: n cameras, t tokens of the prefix, a actions of a chunk, d their width, p state.
"""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key, UInt8

from jaxvla.errors import ConfigError
from jaxvla.models.flow_matching import Guide, between, euler
from jaxvla.models.layers import Linear
from jaxvla.models.module import compute_dtype
from jaxvla.models.smolvla.config import SmolVLAConfig
from jaxvla.models.smolvla.expert import Context, Expert
from jaxvla.models.smolvla.prefix import Prefix, TextReader
from jaxvla.models.vision.siglip import SiglipTower
from jaxvla.ops.letterbox import resize_with_pad
from jaxvla.ops.patches import cut_patches, pixel_shuffle
from jaxvla.ops.sinusoid import time_waves


class SmolVLA(nnx.Module):
    """Vision tower, language model, action expert, and the projections of state, actions and time.

    Args:
        config: sizes and options.
        rngs: for the first parameters.
    """

    def __init__(self, config: SmolVLAConfig, rngs: nnx.Rngs) -> None:
        dtype, width = compute_dtype(config.dtype), config.expert_size
        self.config = config
        self.vision = SiglipTower(
            config.vision,
            dtype=dtype,
            attention=config.attention,
            remat=config.remat,
            unroll=not config.scan_layers,
            rngs=rngs,
        )
        self.connector = Linear(config.connector_dim, config.text.hidden_size, bias=False, dtype=dtype, rngs=rngs)
        self.text = TextReader(config, rngs)
        self.expert = Expert(config, rngs)

        def projection(in_dim: int, out_dim: int) -> Linear:
            return Linear(in_dim, out_dim, bias=True, uniform=True, dtype=jnp.float32, rngs=rngs)

        self.state_proj = projection(config.max_state_dim, config.text.hidden_size)
        self.action_in_proj = projection(config.max_action_dim, width)
        self.action_out_proj = projection(width, config.max_action_dim)
        self.action_time_mlp_in = projection(2 * width, width)
        self.action_time_mlp_out = projection(width, width)

    def encode_images(self, images_bnhwc: Float[Array, "b n h w c"]) -> Float[Array, "b i d"]:
        """Image tokens of all cameras, one after the other, before they are scaled.

        Args:
            images_bnhwc: in [-1, 1], of the size that the vision tower sees, see `prepare_images`.
        """
        b, n = images_bnhwc.shape[:2]
        patches = cut_patches(images_bnhwc.reshape(b * n, *images_bnhwc.shape[2:]), self.config.vision.patch_size)
        tokens = self.connector(pixel_shuffle(self.vision(patches), self.config.scale_factor))
        return tokens.reshape(b, n * self.config.tokens_per_image, -1)

    def embed(
        self,
        images_bnhwc: Float[Array, "b n h w c"],
        present_bn: Bool[Array, "b n"],
        tokens_bs: Int[Array, "b s"],
        token_mask_bs: Bool[Array, "b s"],
        state_bp: Float[Array, "b p"],
    ) -> Prefix:
        """The embeddings that the language model reads; images and words are scaled by the root of their width.

        Args:
            images_bnhwc: as of `encode_images`.
            present_bn: which cameras a sample has.
            tokens_bs: the instruction.
            token_mask_bs: which of its tokens are no padding.
            state_bp: normalized, filled up with zeros.
        """
        images_bid = self.encode_images(images_bnhwc)
        words_bsd = self.text.embed_tokens(tokens_bs)
        scale = jnp.asarray(self.config.text.hidden_size**0.5, words_bsd.dtype)
        state_b1d = self.state_proj(state_bp[:, None]).astype(words_bsd.dtype)
        x_btd = jnp.concatenate([images_bid * scale, words_bsd * scale, state_b1d], axis=1)
        present_bi = jnp.repeat(present_bn, self.config.tokens_per_image, axis=1)
        has_state_b1 = jnp.ones((len(state_bp), 1), bool)
        return Prefix(x_btd, jnp.concatenate([present_bi, token_mask_bs, has_state_b1], axis=1))

    def look(
        self,
        images_bnhwc: Float[Array, "b n h w c"],
        present_bn: Bool[Array, "b n"],
        tokens_bs: Int[Array, "b s"],
        token_mask_bs: Bool[Array, "b s"],
        state_bp: Float[Array, "b p"],
    ) -> Context:
        """What the expert looks at; arguments as of `embed`."""
        prefix = self.embed(images_bnhwc, present_bn, tokens_bs, token_mask_bs, state_bp)
        return self.expert.context(self.text(prefix).keys)

    def velocity(
        self,
        context: Context,
        x_bad: Float[Array, "b a d"],
        time_b: Float[Array, " b"],
        known_ba: Bool[Array, "b a"] | None = None,
    ) -> Float[Array, "b a d"]:
        """Noise - actions, as the model predicts it at noised actions; float32.

        Where actions are known, they are no noise but as they are, and what comes out means nothing. None for none.
        """
        tokens_baf = self.embed_actions(x_bad, time_b, known_ba)
        out_baf = self.expert(tokens_baf.astype(compute_dtype(self.config.dtype)), context)[0]
        return self.action_out_proj(out_baf)

    def embed_actions(
        self, x_bad: Float[Array, "b a d"], time_b: Float[Array, " b"], known_ba: Bool[Array, "b a"] | None = None
    ) -> Float[Array, "b a f"]:
        """Tokens of noised actions, each beside the time, through an MLP; float32. Known actions are at the time 0."""
        action_baf = self.action_in_proj(x_bad)
        time_bk = time_b[:, None] if known_ba is None else jnp.where(known_ba, 0, time_b[:, None])
        wave_bkf = time_waves(time_bk, self.config.expert_size, self.config.min_period, self.config.max_period)
        wave_baf = jnp.broadcast_to(wave_bkf, action_baf.shape)
        mixed_baf = self.action_time_mlp_in(jnp.concatenate([action_baf, wave_baf], axis=-1))
        return self.action_time_mlp_out(jax.nn.silu(mixed_baf))

    def errors(
        self,
        context: Context,
        actions_bad: Float[Array, "b a d"],
        noise_bad: Float[Array, "b a d"],
        time_b: Float[Array, " b"],
        known_ba: Bool[Array, "b a"] | None = None,
    ) -> Float[Array, "b a d"]:
        """The squared error of the velocity at a point between noise and actions; see `jaxvla.models.smolvla.loss`.

        Args:
            context: from `look`.
            actions_bad: normalized, filled up with zeros to `max_action_dim`.
            noise_bad: standard normal, in all dimensions.
            time_b: from `draw_time`.
            known_ba: the actions that the model is given as they are, which have no error; None for none.
        """
        point_bad = between(noise_bad, actions_bad, 1 - time_b)
        if known_ba is not None:
            point_bad = jnp.where(known_ba[..., None], actions_bad, point_bad)
        errors_bad = (noise_bad - actions_bad - self.velocity(context, point_bad, time_b, known_ba)) ** 2
        return errors_bad if known_ba is None else jnp.where(known_ba[..., None], 0, errors_bad)

    def sample(
        self,
        context: Context,
        noise_bad: Float[Array, "b a d"],
        num_steps: int | None = None,
        guide: Guide | None = None,
    ) -> Float[Array, "b a d"]:
        """Chunks of normalized actions, float32; what comes out in dimensions that only fill up means nothing.

        Args:
            context: from `look`.
            noise_bad: standard normal.
            num_steps: of Euler's method; None for what the configuration says.
            guide: what the actions are to be like, filled up with zeros; None for nothing.

        Raises:
            ConfigError: fewer steps than 1.
        """
        num_steps = self.config.num_steps if num_steps is None else num_steps
        if num_steps < 1:
            raise ConfigError(f"num_steps must be at least 1, not {num_steps}")
        times = jnp.asarray(1 - np.arange(num_steps) / num_steps, jnp.float32)
        # Its time runs from 1, noise, to 0.
        known_ba = None if guide is None else guide.known_ba
        return euler(lambda x_bad, time_b: -self.velocity(context, x_bad, time_b, known_ba), noise_bad, times, guide)


def prepare_images(images_bhwc: UInt8[Array, "b h w c"], config: SmolVLAConfig) -> Float[Array, "b y x c"]:
    """Camera images of any size as the model sees them: on a square canvas, in [-1, 1], where the canvas is -1."""
    size = config.vision.image_size
    return resize_with_pad(images_bhwc.astype(jnp.float32) / 255, size, size) * 2 - 1


def draw_time(rng: Key[Array, ""], num: int) -> Float[Array, " num"]:
    """Times for training, more often near the noise: 0.999 Beta(1.5, 1) + 0.001."""
    return jax.random.beta(rng, 1.5, 1.0, (num,)) * 0.999 + 0.001


def pad_last(x: Float[Array, "*b d"], width: int, name: str) -> Float[Array, "*b w"]:
    """States or actions filled up with zeros.

    Args:
        x: normalized, so that a zero is a mean.
        width: `max_state_dim` or `max_action_dim`.
        name: of what they are, for the error.

    Raises:
        ConfigError: they are wider already.
    """
    if x.shape[-1] > width:
        raise ConfigError(f"{name} has {x.shape[-1]} values, but this model takes {width} at most")
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, width - x.shape[-1])])
