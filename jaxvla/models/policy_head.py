"""Gaussian policy head: from features to the mean and standard deviation of an action chunk."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Key

from jaxvla.errors import ConfigError
from jaxvla.models.mlp import MLP

STDS = ("fixed", "learned", "state_dependent")

_XAVIER = nnx.initializers.xavier_uniform()
_LOG_STD_RANGE = (-20.0, 2.0)


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """The distribution over actions.

    Attributes:
        std: where the standard deviation comes from: "fixed", "learned" (one parameter per dimension, 1 at the start)
            or "state_dependent" (a linear function of the features).
        fixed_std: its value where it is fixed.
        tanh: squash actions into (-1, 1).

    Raises:
        ConfigError: an unknown `std`, or a `fixed_std` that is not positive.
    """

    std: str = "fixed"
    fixed_std: float = 1.0
    tanh: bool = False

    def __post_init__(self) -> None:
        if self.std not in STDS:
            raise ConfigError(f"policy.std must be one of {', '.join(STDS)}, not {self.std!r}")
        if not 0 < self.fixed_std < math.inf:
            raise ConfigError(f"policy.fixed_std must be positive, not {self.fixed_std}")


class GaussianPolicy(nnx.Module):
    """An MLP, then a linear layer for the mean of each slot and dimension of the action chunk.

    Args:
        in_dim: width of the features.
        chunk: action horizon and action dimension.
        hidden_dims, dropout_rate: of the MLP.
        config: the distribution; what its functions in `jaxvla.ops.gaussian` need beside mean and log_std.
        dtype: of the MLP; mean and log_std are float32.
    """

    def __init__(
        self,
        in_dim: int,
        chunk: tuple[int, int],
        *,
        hidden_dims: tuple[int, ...],
        dropout_rate: float,
        config: PolicyConfig,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.chunk = chunk
        self.config = config
        self.mlp = MLP(in_dim, hidden_dims, activate_final=True, dropout_rate=dropout_rate, dtype=dtype, rngs=rngs)
        linear = {"kernel_init": _XAVIER, "rngs": rngs}
        self.mean = nnx.Linear(self.mlp.out_dim, math.prod(chunk), **linear)
        if config.std == "learned":
            self.log_std = nnx.Param(jnp.zeros(chunk))
        if config.std == "state_dependent":
            self.log_std = nnx.Linear(self.mlp.out_dim, math.prod(chunk), **linear)

    def __call__(
        self, features_bf: Float[Array, "b f"], rng: Key[Array, ""] | None = None
    ) -> tuple[Float[Array, "b a d"], Float[Array, "b a d"]]:
        """(mean, log_std) of the Gaussian, before tanh where there is one. Without `rng`, dropout is off."""
        hidden_bf = self.mlp(features_bf, rng).astype(jnp.float32)
        shape = (len(hidden_bf), *self.chunk)
        mean_bad = self.mean(hidden_bf).reshape(shape)
        match self.config.std:
            case "fixed":
                return mean_bad, jnp.full(shape, math.log(self.config.fixed_std))
            case "learned":
                log_std_bad = jnp.broadcast_to(self.log_std[...], shape)
            case _:
                log_std_bad = self.log_std(hidden_bf).reshape(shape)
        return mean_bad, jnp.clip(log_std_bad, *_LOG_STD_RANGE)
