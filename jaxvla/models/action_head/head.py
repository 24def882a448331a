"""The action head: hidden states of a backbone in, a chunk of actions out, by flow matching or diffusion.

After the head of GR00T N1 (Bjorck et al., 2025) in the form of LaRA-VLA, with three changes: padding of the context is
masked, so that a sample does not depend on its batch; slots behind the end of a trajectory carry no loss and are not
seen by the others; and repeated draws of noise share the keys of the context. Axis letters in `dit`.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxvla.errors import ConfigError
from jaxvla.models.action_head import diffusion, flow_matching
from jaxvla.models.action_head.config import ActionHeadConfig
from jaxvla.models.action_head.dit import Context, DiT
from jaxvla.models.action_head.encoders import ActionEncoder
from jaxvla.models.action_head.layers import ReluMLP
from jaxvla.models.flow_matching import Guide, draw_known, known_of
from jaxvla.models.module import compute_dtype
from jaxvla.ops.dimensions import mean_present, only_present
from jaxvla.ops.losses import masked_mean

_NORMAL = nnx.initializers.normal(0.02)


class ActionHead(nnx.Module):
    """A transformer over [state token, future tokens, action tokens] that looks at a context.

    Args:
        config: sizes and options.
        context_dim: width of the context's hidden states.
        action_horizon: a, actions per chunk.
        action_dim: d.
        state_dim: p, width of the robot's state; 0 without `config.use_state`.

    Raises:
        ConfigError: a horizon that the table of positions does not hold, or a state that does not fit `use_state`.
    """

    def __init__(
        self,
        config: ActionHeadConfig,
        context_dim: int,
        action_horizon: int,
        action_dim: int,
        state_dim: int,
        rngs: nnx.Rngs,
    ) -> None:
        if action_horizon > config.max_seq_len:
            raise ConfigError(
                f"action_head.max_seq_len {config.max_seq_len} is below the action horizon {action_horizon}; raise it"
            )
        if config.max_delay >= action_horizon:
            raise ConfigError(
                f"action_head.max_delay must be below the action horizon {action_horizon}, not {config.max_delay}"
            )
        if config.use_state != (state_dim > 0):
            raise ConfigError(f"action_head.use_state={config.use_state} does not fit a state of {state_dim} values")
        dim, dtype = config.dit.inner_dim, compute_dtype(config.dtype)
        options = {"dtype": dtype, "rngs": rngs}
        self.config = config
        self.dit = DiT(config, context_dim, rngs)
        self.action_encoder = ActionEncoder(action_dim, dim, config.max_seq_len, **options)
        self.action_decoder = ReluMLP(config.output_dim, config.hidden_size, action_dim, **options)
        self.future_tokens = nnx.Param(_NORMAL(rngs.params(), (config.num_future_tokens, dim)))
        self.state_encoder = ReluMLP(state_dim, config.hidden_size, dim, **options) if config.use_state else None

    def losses(
        self,
        context_btc: Float[Array, "b t c"],
        context_valid_bt: Bool[Array, "b t"],
        actions_bad: Float[Array, "b a d"],
        pad_mask_ba: Bool[Array, "b a"],
        rng: Key[Array, ""],
        state_bp: Float[Array, "b p"] | None = None,
        present_bd: Bool[Array, "b d"] | None = None,
        train: bool = True,
    ) -> Float[Array, " b"]:
        """The mean squared error of each sample over draws of noise and time, valid slots and dimensions.

        Args:
            context_btc: hidden states of the backbone.
            context_valid_bt: which of them may be looked at; any mask.
            actions_bad: normalized.
            pad_mask_ba: True at the slots inside the trajectory; a sample without any gives 0.
            rng: of noise, times and dropout.
            state_bp: normalized; with `config.use_state` alone.
            present_bd: the dimensions of actions that a sample has; the others carry no loss and are not seen, neither
                action nor noise. None where all have all.
            train: with dropout.

        Returns:
            float32.
        """
        draw_rng, dropout_rng = jax.random.split(rng)
        draws = self.config.repeated_diffusion_steps
        actions_mad, visible_ma = (jnp.repeat(x, draws, axis=0) for x in (actions_bad, pad_mask_ba))
        method = diffusion if self.config.kind == "ddpm" else flow_matching
        noised_mad, bucket_m, target_mad = method.noised(self.config, draw_rng, actions_mad.astype(jnp.float32))
        known_ma, counts_ma = None, visible_ma
        if self.config.max_delay:
            known_ma = draw_known(jax.random.fold_in(rng, 2), *visible_ma.shape, self.config.max_delay)
            noised_mad, counts_ma = jnp.where(known_ma[..., None], actions_mad, noised_mad), visible_ma & ~known_ma
        present_md = None if present_bd is None else jnp.repeat(present_bd, draws, axis=0)
        predicted_mad = self.predict(
            only_present(noised_mad, present_md),
            bucket_m,
            self.dit.context(context_btc, context_valid_bt),
            state_bp,
            visible_ma=visible_ma,
            known_ma=known_ma,
            rng=dropout_rng if train else None,
        )
        error_mad = (predicted_mad - target_mad) ** 2
        error_ma = mean_present(error_mad, present_md)
        error_bra, counts_bra = (x.reshape(-1, draws, x.shape[1]) for x in (error_ma, counts_ma))
        return masked_mean(error_bra, counts_bra, (1, 2))

    def sample(
        self,
        context_btc: Float[Array, "b t c"],
        context_valid_bt: Bool[Array, "b t"],
        noise_bad: Float[Array, "b a d"],
        state_bp: Float[Array, "b p"] | None = None,
        present_bd: Bool[Array, "b d"] | None = None,
        num_steps: int | None = None,
        rng: Key[Array, ""] | None = None,
        guide: Guide | None = None,
    ) -> Float[Array, "b a d"]:
        """Chunks of normalized actions, float32; a function of its arguments alone.

        Args:
            context_btc: hidden states of the backbone.
            context_valid_bt: which of them may be looked at; any mask.
            noise_bad: standard normal.
            state_bp: normalized; with `config.use_state` alone.
            present_bd: as of `losses`; what comes out in the others means nothing.
            num_steps: None for what the configuration says.
            rng: of the noise that "ddpm" adds between steps; None for the mean of each step. Flow matching adds none.
            guide: what the actions are to be like, with flow matching alone; None for nothing. Of the actions that it
                gives as they are, the first `config.max_delay` are taken, as in training.

        Raises:
            ConfigError: a number of steps that sampling cannot take, a guide for "ddpm", or one that gives actions to a
                head that has not learned to go on from there.
        """
        if guide is not None and self.config.kind == "ddpm":
            raise ConfigError("actions of action_head.kind ddpm are drawn towards no chunk of before")
        known_ba = known_of(guide, self.config.max_delay)
        guide = None if guide is None else guide._replace(known_ba=known_ba)
        config = self.config if num_steps is None else self.config.with_steps(num_steps)
        context = self.dit.context(context_btc, context_valid_bt)

        def predict(x_bad: Array, bucket_b: Array) -> Array:
            return self.predict(only_present(x_bad, present_bd), bucket_b, context, state_bp, known_ma=known_ba)

        noise_bad = noise_bad.astype(jnp.float32)
        if self.config.kind == "ddpm":
            return diffusion.denoise(config, predict, noise_bad, rng)
        return flow_matching.integrate(config, predict, noise_bad, config.num_inference_steps, guide)

    def predict(
        self,
        x_mad: Float[Array, "m a d"],
        bucket_m: Int[Array, " m"],
        context: Context,
        state_bp: Float[Array, "b p"] | None = None,
        *,
        visible_ma: Bool[Array, "m a"] | None = None,
        known_ma: Bool[Array, "m a"] | None = None,
        rng: Key[Array, ""] | None = None,
    ) -> Float[Array, "m a d"]:
        """The velocity, or for "ddpm" the noise, at noised actions; float32.

        Args:
            x_mad: noised actions, m / b rows for each sample of the context, one after the other.
            bucket_m: of the time of each row.
            context: from `dit.context`.
            state_bp: normalized; with `config.use_state` alone.
            visible_ma: which actions the tokens of their row see; None for all.
            known_ma: which actions are no noise, but as they are; None for none. What comes out there means nothing.
            rng: of dropout; None for none.

        Raises:
            ConfigError: a state without `config.use_state`, or none with it.
        """
        bucket_mk = bucket_m[:, None]
        if known_ma is not None:
            bucket_mk = jnp.where(known_ma, flow_matching.last_bucket(self.config), bucket_mk)
        x_msd = self._tokens(x_mad, bucket_mk, state_bp)
        num_actions, others = x_mad.shape[1], x_msd.shape[1] - x_mad.shape[1]
        visible_ms = None
        if visible_ma is not None:
            visible_ms = jnp.pad(visible_ma, ((0, 0), (others, 0)), constant_values=True)
        if known_ma is not None:
            row_mo = jnp.broadcast_to(bucket_m[:, None], (len(bucket_m), others))
            bucket_mk = jnp.concatenate([row_mo, bucket_mk], axis=1)
        out_mao = self.dit(x_msd, bucket_mk, context, visible_ms=visible_ms, num_outputs=num_actions, rng=rng)
        return self.action_decoder(out_mao).astype(jnp.float32)

    def looks_at(
        self,
        context_btc: Float[Array, "b t c"],
        context_valid_bt: Bool[Array, "b t"],
        noise_bad: Float[Array, "b a d"],
        state_bp: Float[Array, "b p"] | None = None,
    ) -> Float[Array, "l b t"]:
        """How much of its attention each pair of layers has at each column of the context, where sampling begins.

        Means over tokens and heads, 1 in sum over the valid columns. Arguments as of `sample`.
        """
        method = diffusion if self.config.kind == "ddpm" else flow_matching
        bucket_b1 = jnp.full((len(noise_bad), 1), method.first_bucket(self.config))
        x_bsd = self._tokens(noise_bad, bucket_b1, state_bp)
        return self.dit.looks_at(x_bsd, bucket_b1, self.dit.context(context_btc, context_valid_bt))

    def _tokens(self, x_mad: Array, bucket_mk: Array, state_bp: Array | None) -> Array:
        """[state, future, actions] of each row, [m, s, d]; raises as `predict` does."""
        if (state_bp is None) == self.config.use_state:
            given = "no state was given" if state_bp is None else "a state was given"
            raise ConfigError(f"{given}, but action_head.use_state is {self.config.use_state}")
        rows = len(x_mad)
        action_mad = self.action_encoder(x_mad, bucket_mk)
        future_sd = self.future_tokens[...].astype(action_mad.dtype)
        tokens = [jnp.broadcast_to(future_sd, (rows, *future_sd.shape)), action_mad]
        if self.state_encoder is not None:
            state_b1d = self.state_encoder(state_bp[:, None])
            tokens.insert(0, jnp.repeat(state_b1d, rows // len(state_bp), axis=0))
        return jnp.concatenate(tokens, axis=1)
