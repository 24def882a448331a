"""What OpenVLA-OFT (Kim et al., 2025) adds to a Prismatic model: a head that regresses actions, the robot's state as a
token, and FiLM by the words in the vision towers.

Axis letters: n values of a chunk of actions, a actions of it, m values of an action, p numbers of a state.
"""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from jaxvla.models.layers import Linear
from jaxvla.models.norms import LayerNorm
from jaxvla.models.prismatic.config import HeadConfig
from jaxvla.models.stack import map_blocks, scan_blocks, stack_blocks
from jaxvla.models.vision.blocks import Modulation
from jaxvla.models.vision.dinov2 import Dinov2Config
from jaxvla.models.vision.siglip import SiglipConfig

_EPSILON = 1e-5  # torch's


class _ResidualBlock(nnx.Module):
    """A norm, a layer and a ReLU, beside a residual."""

    def __init__(self, dim: int, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.norm = LayerNorm(dim, _EPSILON)
        self.linear = Linear(dim, dim, bias=True, uniform=True, dtype=dtype, rngs=rngs)

    def __call__(self, x_bad: Float[Array, "b a d"]) -> Float[Array, "b a d"]:
        return x_bad + jax.nn.relu(self.linear(self.norm(x_bad)))


class ActionHead(nnx.Module):
    """An MLP with residuals, from the hidden states of the values of an action to these values.

    Args:
        dim: width of the hidden states.
        config: sizes.
        dtype: compute dtype.
        rngs: for the first parameters, drawn as torch draws them.
    """

    def __init__(self, dim: int, config: HeadConfig, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        self.width = config.action_dim * dim
        options = {"bias": True, "uniform": True, "dtype": dtype, "rngs": rngs}
        self.layer_norm1 = LayerNorm(self.width, _EPSILON)
        self.fc1 = Linear(self.width, dim, **options)
        self.layers = stack_blocks(lambda rngs: _ResidualBlock(dim, dtype, rngs), config.num_blocks, rngs)
        self.layer_norm2 = LayerNorm(dim, _EPSILON)
        self.fc2 = Linear(dim, config.action_dim, **options)

    def __call__(self, hidden_bnd: Float[Array, "b n d"]) -> Float[Array, "b a m"]:
        """Normalized actions, float32, each by itself."""
        x_bad = hidden_bnd.reshape(len(hidden_bnd), -1, self.width)
        x_bad = jax.nn.relu(self.fc1(self.layer_norm1(x_bad)))
        x_bad, _ = scan_blocks(self.layers, lambda block, x_bad, _: (block(x_bad), None), x_bad)
        return self.fc2(self.layer_norm2(x_bad)).astype(jnp.float32)


class ProprioProjector(nnx.Module):
    """Two layers with GELU between them, from a normalized state to a token."""

    def __init__(self, proprio_dim: int, dim: int, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        options = {"bias": True, "uniform": True, "dtype": dtype, "rngs": rngs}
        self.fc1 = Linear(proprio_dim, dim, **options)
        self.fc2 = Linear(dim, dim, **options)

    def __call__(self, proprio_bp: Float[Array, "b p"]) -> Float[Array, "b 1 d"]:
        """One token of each sample."""
        return self.fc2(jax.nn.gelu(self.fc1(proprio_bp[:, None]), approximate=False))


class _FilmLayer(nnx.Module):
    """Two layers, from a vector to what a block's tokens are scaled and shifted by."""

    def __init__(self, dim: int, channels: int, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        options = {"bias": True, "uniform": True, "dtype": dtype, "rngs": rngs}
        self.scale = Linear(dim, channels, **options)
        self.shift = Linear(dim, channels, **options)


class _TowerFilm(nnx.Module):
    """Of one tower: the layers of its blocks that are run, and of those that are not."""

    def __init__(
        self, dim: int, tower: Dinov2Config | SiglipConfig, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs
    ) -> None:
        def stack(count: int) -> nnx.Module:
            return stack_blocks(lambda rngs: _FilmLayer(dim, tower.hidden_size, dtype, rngs), count, rngs)

        self.layers = stack(tower.num_run)
        unread = tower.num_hidden_layers - tower.num_run
        self.unread = stack(unread) if unread else None


class Film(nnx.Module):
    """Feature-wise modulation of the blocks of vision towers (Perez et al., 2018), not the identity at the start.

    Args:
        dim: width of the words' embeddings.
        towers: by name.
        dtype: compute dtype.
        rngs: for the first parameters, drawn as torch draws them.
    """

    def __init__(
        self,
        dim: int,
        towers: dict[str, Dinov2Config | SiglipConfig],
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.names = tuple(towers)
        for name, tower in towers.items():
            setattr(self, name, _TowerFilm(dim, tower, dtype, rngs))

    def __call__(self, words_bd: Float[Array, "b d"]) -> dict[str, Modulation]:
        """What the mean of the words' embeddings makes of each block of each tower."""
        x_b1d = words_bd[:, None]

        def modulation(layer: _FilmLayer) -> Modulation:
            return Modulation(layer.scale(x_b1d)[:, 0], layer.shift(x_b1d)[:, 0])

        return {name: map_blocks(getattr(self, name).layers, modulation) for name in self.names}
