"""The two ways in which OpenVLA comes to actions: `Spoken`, token after token, and `Regressed`, all values at once.

Each is for a model that is bound, and each has `loss`, `evaluate` and `act` as an agent has them, without parameters.
Axis letters: l columns of a prompt, n values of a chunk of actions, m = n + 1 with the end, t tokens of text, p those
of images.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Key

from jaxvla.agents.executed import action_mse
from jaxvla.agents.openvla_text import Text, TokenIds, lay_out
from jaxvla.data.schema import PROPRIO, Batch, BatchSpec
from jaxvla.models.cache import extend, start_cache
from jaxvla.models.prismatic.model import Prismatic
from jaxvla.ops.action_tokens import to_actions, to_tokens
from jaxvla.ops.losses import masked_mean

Metrics = dict[str, Float[Array, ""]]


def stacked_images(spec: BatchSpec, observations: Mapping[str, Any]) -> Array:
    """The present images of all cameras, [b, n, h, w, c]."""
    return jnp.stack([observations[camera][:, -1] for camera in spec.cameras], axis=1)


def shown(batch: Batch) -> Bool[Array, "b a d"]:
    """True at values inside the trajectory, of dimensions that the sample has."""
    shown_bad = jnp.broadcast_to(batch["action_pad_mask"][..., None], batch["actions"].shape)
    return shown_bad & batch["action_dim_mask"][:, None] if "action_dim_mask" in batch else shown_bad


@dataclasses.dataclass(frozen=True)
class Spoken:
    """Values as tokens, each with those before it, as OpenVLA has it."""

    # The modules of the model that compute nothing.
    unused: ClassVar[tuple[str, ...]] = ()

    tokens: TokenIds
    spec: BatchSpec

    @property
    def num_values(self) -> int:
        """Values of a chunk of actions, each of which has a token."""
        return self.spec.action_horizon * self.spec.action_dim

    def loss(self, model: Prismatic, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """token_loss, the cross entropy of actions and end, with action_accuracy and l1.

        l1 is the error of the likeliest tokens' values, each with the true ones before it.
        """
        losses_bm, metrics = self._judge(model, batch)
        shown_bn = self._shown(batch)
        # The end has a share in the loss where the last action is shown.
        labelled_bm = jnp.concatenate([shown_bn, batch["action_pad_mask"][:, -1:]], axis=1)
        loss = masked_mean(losses_bm, labelled_bm)
        return loss, {"token_loss": loss} | {name: masked_mean(x_bn, shown_bn) for name, x_bn in metrics.items()}

    def evaluate(self, model: Prismatic, batch: Batch) -> dict[str, Float[Array, " b"]]:
        """ "mse" of the actions of `act`; action_accuracy and l1 as of `loss`."""
        actions_bad = self.act(model, batch["observations"], batch["instruction"])
        _, metrics = self._judge(model, batch)
        shown_bn = self._shown(batch)
        own = {name: masked_mean(x_bn, shown_bn, 1) for name, x_bn in metrics.items()}
        return {"mse": action_mse(actions_bad, batch, self.spec, 1)} | own

    def act(
        self,
        model: Prismatic,
        observations: Mapping[str, Any],
        prompt_bl: Int[Array, "b l"],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b a d"]:
        """One pass over image and prompt, then one for each value but the last, in a loop over a cache."""
        images_bpd = self._encode(model, observations)
        text = lay_out(self.tokens, prompt_bl, None)
        output = model.read(text.tokens_bt, images_bpd, text.stop_b, keep_keys=True)
        stop_b = text.stop_b + images_bpd.shape[1]
        cache = start_cache(output, stop_b, output.hidden_btd.shape[1] + self.num_values)
        hidden_b1d = jnp.take_along_axis(output.hidden_btd, stop_b[:, None, None] - 1, axis=1)

        def choose(hidden_b1d: Array, step: int | Array) -> Int[Array, "b 1"]:
            logits_b1v = model.llm.logits(model.llm.norm(hidden_b1d))
            if rng is None:
                return logits_b1v.argmax(-1).astype(jnp.int32)
            drawn = jax.random.categorical(jax.random.fold_in(rng, step), logits_b1v / temperature)
            return drawn.astype(jnp.int32)

        def step(carry: tuple[Array, Any], i: Array) -> tuple[tuple[Array, Any], Array]:
            token_b1, cache = carry
            hidden_b1d, cache = extend(model.llm, cache, model.llm.embed_tokens(token_b1))
            token_b1 = choose(hidden_b1d, i)
            return (token_b1, cache), token_b1

        first_b1 = choose(hidden_b1d, 0)
        _, later_nb1 = jax.lax.scan(step, (first_b1, cache), jnp.arange(1, self.num_values))
        tokens_bn = jnp.concatenate([first_b1[None], later_nb1])[..., 0].T
        actions_bn = to_actions(tokens_bn, self.tokens.actions_end)
        return actions_bn.reshape(-1, self.spec.action_horizon, self.spec.action_dim)

    def _encode(self, model: Prismatic, observations: Mapping[str, Any]) -> Float[Array, "b p d"]:
        return model.encode_images(stacked_images(self.spec, observations))

    def _judge(self, model: Prismatic, batch: Batch) -> tuple[Float[Array, "b m"], dict[str, Float[Array, "b n"]]]:
        """Cross entropy of each token of the actions and of the end; hits and errors of the actions' values."""
        actions_bn = batch["actions"].reshape(len(batch["actions"]), -1)
        end = self.tokens.actions_end
        truth_bn = to_tokens(actions_bn, end)
        images_bpd = self._encode(model, batch["observations"])
        text = lay_out(self.tokens, batch["instruction"], truth_bn)
        hidden_btd = model.read(text.tokens_bt, images_bpd, text.stop_b).hidden_btd
        # What stands at the space predicts the first value, what stands at the last value the end.
        hidden_bmd = _behind(hidden_btd, text, images_bpd.shape[1], self.num_values + 1)
        logits_bmv = model.llm.logits(model.llm.norm(hidden_bmd))
        labels_bm = jnp.pad(truth_bn, ((0, 0), (0, 1)), constant_values=self.tokens.end)
        is_label_bmv = labels_bm[..., None] == jnp.arange(logits_bmv.shape[-1])
        chosen_bm = jnp.where(is_label_bmv, logits_bmv, 0).sum(-1)
        losses_bm = jax.nn.logsumexp(logits_bmv, axis=-1) - chosen_bm
        said_bn = logits_bmv[:, :-1].argmax(-1)
        errors_bn = jnp.abs(to_actions(said_bn, end) - to_actions(truth_bn, end))
        return losses_bm, {"action_accuracy": (said_bn == truth_bn).astype(jnp.float32), "l1": errors_bn}

    def _shown(self, batch: Batch) -> Bool[Array, "b n"]:
        shown_bad = shown(batch)
        return shown_bad.reshape(len(shown_bad), -1)


@dataclasses.dataclass(frozen=True)
class Regressed:
    """Values as numbers, all in one pass in which everything looks at everything, as OpenVLA-OFT has it.

    The places of the values hold zeros. What stands one place before each is made a number of.
    """

    unused: ClassVar[tuple[str, ...]] = ("llm/lm_head",)

    tokens: TokenIds
    spec: BatchSpec

    def loss(self, model: Prismatic, batch: Batch) -> tuple[Float[Array, ""], Metrics]:
        """l1_loss, the absolute error of the values; first_l1 is that of the first action of each chunk."""
        shown_bad = shown(batch)
        errors_bad = self._errors(self.act(model, batch["observations"], batch["instruction"]), batch)
        loss = masked_mean(errors_bad, shown_bad)
        return loss, {"l1_loss": loss, "first_l1": masked_mean(errors_bad[:, 0], shown_bad[:, 0])}

    def evaluate(self, model: Prismatic, batch: Batch) -> dict[str, Float[Array, " b"]]:
        """ "mse" and "l1_loss" of the actions of `act`."""
        actions_bad = self.act(model, batch["observations"], batch["instruction"])
        l1_b = masked_mean(self._errors(actions_bad, batch), shown(batch), (1, 2))
        return {"mse": action_mse(actions_bad, batch, self.spec, 1), "l1_loss": l1_b}

    def act(
        self,
        model: Prismatic,
        observations: Mapping[str, Any],
        prompt_bl: Int[Array, "b l"],
        rng: Key[Array, ""] | None = None,
        temperature: float | Float[Array, ""] = 1.0,
    ) -> Float[Array, "b a d"]:
        """One pass. There is nothing to draw: the actions are the same whatever `rng` and `temperature` are."""
        slots_bn = jnp.zeros((len(prompt_bl), self.spec.action_horizon * self.spec.action_dim), jnp.int32)
        text = lay_out(self.tokens, prompt_bl, slots_bn)
        words_bd = model.mean_words(text.tokens_bt, text.valid_bt & ~text.slots_bt) if model.film else None
        before_bpd = model.encode_images(stacked_images(self.spec, observations), words_bd)
        if model.proprio_projector is not None:
            state_b1d = model.proprio_projector(observations[PROPRIO][:, -1])
            before_bpd = jnp.concatenate([before_bpd, state_b1d.astype(before_bpd.dtype)], axis=1)
        output = model.read(text.tokens_bt, before_bpd, text.stop_b, blank_bt=text.slots_bt, causal=False)
        hidden_bnd = _behind(output.hidden_btd, text, before_bpd.shape[1], slots_bn.shape[1])
        return model.action_head(model.llm.norm(hidden_bnd))

    def _errors(self, actions_bad: Float[Array, "b a d"], batch: Batch) -> Float[Array, "b a d"]:
        return jnp.abs(actions_bad - batch["actions"])


def _behind(hidden_btd: Float[Array, "b t d"], text: Text, inserted: int, count: int) -> Float[Array, "b m d"]:
    """The hidden states from the space on, which predict what stands behind them."""
    places_bm = text.space_b[:, None] + inserted + jnp.arange(count)
    return jnp.take_along_axis(hidden_btd, places_bm[..., None], axis=1)
