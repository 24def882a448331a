"""Values of states and actions, and contrastive critics of goals.

Axis letters: b batch, f features, g features of the goal, a action horizon, d action dimension, k representation,
n critics side by side. A chunk of actions is one action of a critic: its slots are laid end to end, those behind the
end of a trajectory as 0.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Key

from jaxvla.models.mlp import MLP
from jaxvla.models.module import bind, params_of
from jaxvla.models.stack import stack_blocks
from jaxvla.ops.masks import only_visible

_XAVIER = nnx.initializers.xavier_uniform()
_LARGEST_START = 1e-12


class ValueHead(nnx.Module):
    """An MLP, then a linear layer to one number: the value of a state, or with `with_actions` that of an action.

    Args:
        in_dim: width of the features.
        hidden_dims, dropout_rate: of the MLP.
        dtype: of the MLP; values are float32.
    """

    def __init__(
        self,
        in_dim: int,
        *,
        hidden_dims: tuple[int, ...],
        dropout_rate: float,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.mlp = MLP(in_dim, hidden_dims, activate_final=True, dropout_rate=dropout_rate, dtype=dtype, rngs=rngs)
        self.value = nnx.Linear(self.mlp.out_dim, 1, kernel_init=_XAVIER, rngs=rngs)

    def __call__(self, features_bf: Float[Array, "b f"], rng: Key[Array, ""] | None = None) -> Float[Array, " b"]:
        """Without `rng`, dropout is off."""
        return self.value(self.mlp(features_bf, rng).astype(jnp.float32))[:, 0]


class ContrastiveCritic(nnx.Module):
    """Critics side by side; each represents states with actions, and goals, and their inner product is its logit.

    The representations start next to zero, so that every logit starts at 0 and the policy is not pushed anywhere
    (Zheng et al., 2023).

    Args:
        state_dim, goal_dim: widths of the features of state and goal.
        action_size: numbers in a chunk of actions.
        num_critics: n; they differ by how they are drawn.
        hidden_dims: of the MLPs with LayerNorm before the last, linear layers.
        repr_dim: k.
        dtype: of the MLPs; representations are float32.
    """

    def __init__(
        self,
        state_dim: int,
        action_size: int,
        goal_dim: int,
        *,
        num_critics: int,
        hidden_dims: tuple[int, ...],
        repr_dim: int,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        options = {"hidden_dims": hidden_dims, "repr_dim": repr_dim, "dtype": dtype}
        in_dim = state_dim + action_size
        self.state_action = stack_blocks(lambda rngs: _Tower(in_dim, rngs=rngs, **options), num_critics, rngs)
        self.goal = stack_blocks(lambda rngs: _Tower(goal_dim, rngs=rngs, **options), num_critics, rngs)

    def __call__(
        self,
        states_bf: Float[Array, "b f"],
        actions_bad: Float[Array, "b a d"],
        visible_ba: Bool[Array, "b a"],
        goals_bg: Float[Array, "b g"],
    ) -> tuple[Float[Array, "n b k"], Float[Array, "n b k"]]:
        """Representations of state and action, and of the goal; `pair_logits` and `all_logits` compare them."""
        return _each(self.state_action, with_actions(states_bf, actions_bad, visible_ba)), _each(self.goal, goals_bg)


class _Tower(nnx.Module):
    """An MLP with LayerNorm, then a linear layer that starts next to zero."""

    def __init__(
        self, in_dim: int, *, hidden_dims: tuple[int, ...], repr_dim: int, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ) -> None:
        self.mlp = MLP(in_dim, hidden_dims, activate_final=True, layer_norm=True, dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(self.mlp.out_dim, repr_dim, kernel_init=_next_to_zero, rngs=rngs)

    def __call__(self, x_bf: Float[Array, "b f"]) -> Float[Array, "b k"]:
        return self.out(self.mlp(x_bf).astype(jnp.float32))


def with_actions(
    features_bf: Float[Array, "b f"], actions_bad: Float[Array, "b a d"], visible_ba: Bool[Array, "b a"]
) -> Float[Array, "b h"]:
    """The features, then the chunk's slots end to end, 0 where they are not visible: [b, f + a d]."""
    flat_bh = only_visible(actions_bad, visible_ba).reshape(len(actions_bad), -1)
    return jnp.concatenate([features_bf, flat_bh], axis=-1)


def pair_logits(rows_nbk: Float[Array, "n b k"], goals_nbk: Float[Array, "n b k"]) -> Float[Array, "n b"]:
    """The logit of each row with the goal of the same index."""
    return jnp.sum(rows_nbk * goals_nbk, axis=-1)


def all_logits(rows_nbk: Float[Array, "n b k"], goals_nbk: Float[Array, "n b k"]) -> Float[Array, "n b b"]:
    """The logits [critic, row, goal] of each row with every goal."""
    return jnp.einsum("nik,njk->nij", rows_nbk, goals_nbk, precision=jax.lax.Precision.HIGHEST)


def _each(stack: nnx.Module, x: Array) -> Array:
    """The results of all blocks of a stack on the same input, [n, ...]."""
    graphdef, _ = nnx.split(stack, nnx.Param)
    return jax.vmap(lambda params: bind(graphdef, params)(x))(params_of(stack))


def _next_to_zero(rng: Array, shape: tuple[int, ...], dtype: jax.typing.DTypeLike = jnp.float32) -> Array:
    """Uniform in (-1e-12, 0]: what the initializer of bridge_data_v2 comes to."""
    return -_LARGEST_START * jax.random.uniform(rng, shape, dtype)
