"""Losses of value functions and of the policies that learn from them, as functions of values and logits.

Axis letters: b batch, n critics side by side.
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def expectile_loss(error: Float[Array, "*b"], expectile: float) -> Float[Array, "*b"]:
    """The squared error, weighted by `expectile` where it is positive and by 1 - `expectile` elsewhere.

    Its minimum over a constant is the expectile of the errors' distribution (Kostrikov et al., 2021); with 0.5 it is
    half the squared error.
    """
    return jnp.where(error > 0, expectile, 1 - expectile) * error**2


def advantage_weights(advantage_b: Float[Array, " b"], temperature: float, largest: float) -> Float[Array, " b"]:
    """min(exp(advantage / temperature), largest): how much an action counts in advantage-weighted regression."""
    return jnp.exp(jnp.minimum(advantage_b / temperature, math.log(largest)))


def pessimistic_odds(logits_nb: Float[Array, "n b"], largest: float) -> Float[Array, " b"]:
    """p / (1 - p), at most `largest`, of the smallest probability p that the critics give."""
    return jnp.exp(jnp.minimum(logits_nb.min(0), math.log(largest)))


def contrastive_td_loss(
    positive_nb: Float[Array, "n b"],
    negative_nb: Float[Array, "n b"],
    odds_b: Float[Array, " b"],
    discount: float,
) -> Float[Array, "n b"]:
    """The loss of a classifier between states that follow and states drawn at random, learned by bootstrapping.

    With BCE(logit, label): (1 - discount) BCE(positive, 1) + discount odds BCE(negative, 1) + BCE(negative, 0), as in
    C-learning (Eysenbach et al., 2021).

    Args:
        positive_nb: logits of the next state.
        negative_nb: logits of a random state.
        odds_b: that the random state follows the next state, by the target critics.
        discount: in [0, 1).
    """
    says_yes, says_no = jax.nn.softplus(-negative_nb), jax.nn.softplus(negative_nb)
    return (1 - discount) * jax.nn.softplus(-positive_nb) + discount * odds_b * says_yes + says_no


def contrastive_nce_loss(logits_nbg: Float[Array, "n b b"]) -> Float[Array, "n b b"]:
    """Binary cross entropy of every pair of a row and a goal; a row belongs to its own goal alone (Eysenbach, 2022)."""
    is_own = jnp.eye(logits_nbg.shape[-1], dtype=bool)
    return jax.nn.softplus(jnp.where(is_own, -logits_nbg, logits_nbg))
