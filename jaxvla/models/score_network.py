"""The network that predicts noise for gc_ddpm_bc: features of the noise level, a residual MLP, its sizes those of
bridge_data_v2.

Axis letters: m rows, f features, a action horizon, d action dimension.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float, Int, Key

from jaxvla.errors import ConfigError
from jaxvla.models.mlp import MLP
from jaxvla.ops.dropout import dropout
from jaxvla.ops.masks import only_visible

_XAVIER = nnx.initializers.xavier_uniform()
_FREQUENCY_STD = 0.2


@dataclasses.dataclass(frozen=True)
class ScoreNetworkConfig:
    """Sizes of the network.

    Attributes:
        time_dim: features of the noise level, even.
        hidden_dim: of the residual MLP, whose blocks are four times as wide inside.
        num_blocks: of it.
        dropout_rate: at the start of each block, in [0, 1).
        layer_norm: after that.

    Raises:
        ConfigError: a value out of range.
    """

    time_dim: int = 32
    hidden_dim: int = 256
    num_blocks: int = 3
    dropout_rate: float = 0.1
    layer_norm: bool = True

    def __post_init__(self) -> None:
        if self.time_dim < 2 or self.time_dim % 2:
            raise ConfigError(f"score_network.time_dim must be even and positive, not {self.time_dim}")
        for name in ("hidden_dim", "num_blocks"):
            if getattr(self, name) < 1:
                raise ConfigError(f"score_network.{name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.dropout_rate < 1:
            raise ConfigError(f"score_network.dropout_rate must lie in [0, 1), not {self.dropout_rate}")


class FourierFeatures(nnx.Module):
    """Cosines, then sines, of 2 pi t w with learned frequencies w, which start with deviation 0.2.

    t is the level as it is counted, as in the original; divided by the number of levels it would be all but constant
    to frequencies this low.
    """

    def __init__(self, out_dim: int, rngs: nnx.Rngs) -> None:
        self.frequencies = nnx.Param(_FREQUENCY_STD * jax.random.normal(rngs.params(), (out_dim // 2,)))

    def __call__(self, level_m: Int[Array, " m"]) -> Float[Array, "m f"]:
        """float32 [m, out_dim]."""
        angle_mf = 2 * math.pi * level_m[:, None].astype(jnp.float32) * self.frequencies[...]
        return jnp.concatenate([jnp.cos(angle_mf), jnp.sin(angle_mf)], axis=-1)


class ResidualBlock(nnx.Module):
    """x plus dropout, LayerNorm, a linear layer to four times the width, swish, and one back."""

    def __init__(self, config: ScoreNetworkConfig, *, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        dim = config.hidden_dim
        self.dropout_rate = config.dropout_rate
        self.norm = nnx.LayerNorm(dim, dtype=dtype, rngs=rngs) if config.layer_norm else None
        self.up = nnx.Linear(dim, 4 * dim, dtype=dtype, rngs=rngs)
        self.down = nnx.Linear(4 * dim, dim, dtype=dtype, rngs=rngs)

    def __call__(self, x_mf: Float[Array, "m f"], rng: Key[Array, ""] | None) -> Float[Array, "m f"]:
        """Without `rng`, dropout is off."""
        y_mf = dropout(x_mf, self.dropout_rate, rng)
        if self.norm is not None:
            y_mf = self.norm(y_mf)
        return x_mf + self.down(jax.nn.swish(self.up(y_mf)))


class ScoreNetwork(nnx.Module):
    """From features of the situation, a noised action chunk and its noise level to the noise in it.

    Args:
        in_dim: width of the features.
        chunk: action horizon and action dimension.
        config: sizes.
        dtype: of the layers; features of the level, and the noise, are float32.
    """

    def __init__(
        self,
        in_dim: int,
        chunk: tuple[int, int],
        config: ScoreNetworkConfig,
        *,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        time_dim, dim, action_dim = config.time_dim, config.hidden_dim, math.prod(chunk)
        self.chunk = chunk
        self.num_blocks = config.num_blocks
        self.fourier = FourierFeatures(time_dim, rngs)
        self.time = MLP(time_dim, (2 * time_dim, time_dim), dtype=dtype, rngs=rngs)
        self.input = nnx.Linear(time_dim + in_dim + action_dim, dim, kernel_init=_XAVIER, dtype=dtype, rngs=rngs)
        self.blocks = nnx.Dict(
            {f"block{i}": ResidualBlock(config, dtype=dtype, rngs=rngs) for i in range(config.num_blocks)}
        )
        self.noise = nnx.Linear(dim, action_dim, kernel_init=_XAVIER, rngs=rngs)

    def __call__(
        self,
        features_mf: Float[Array, "m f"],
        noisy_mad: Float[Array, "m a d"],
        level_m: Int[Array, " m"],
        rng: Key[Array, ""] | None = None,
        visible_ma: Bool[Array, "m a"] | None = None,
    ) -> Float[Array, "m a d"]:
        """float32; without `rng`, dropout is off. Slots that are not visible count as 0; None for all visible."""
        if visible_ma is not None:
            noisy_mad = only_visible(noisy_mad, visible_ma)
        rngs = [None] * self.num_blocks if rng is None else jax.random.split(rng, self.num_blocks)
        time_mf = self.time(self.fourier(level_m))
        x_mf = jnp.concatenate([time_mf, features_mf, noisy_mad.reshape(len(noisy_mad), -1)], axis=-1)
        x_mf = self.input(x_mf)
        for i in range(self.num_blocks):
            x_mf = self.blocks[f"block{i}"](x_mf, rngs[i])
        return self.noise(jax.nn.swish(x_mf).astype(jnp.float32)).reshape(noisy_mad.shape)
