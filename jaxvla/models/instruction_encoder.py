"""A small transformer that reads instructions, for training from scratch together with a policy.

Axis letters: b batch, l tokens of an instruction, d width, n heads, h width of a head.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from jaxvla.errors import ConfigError
from jaxvla.models.norms import LayerNorm
from jaxvla.models.stack import scan_blocks, stack_blocks
from jaxvla.ops.attention import KeyValues, attend
from jaxvla.ops.losses import masked_mean

_NORMAL = nnx.initializers.normal(0.02)
_XAVIER = nnx.initializers.xavier_uniform()


@dataclasses.dataclass(frozen=True)
class InstructionEncoderConfig:
    """Sizes of the encoder; these have 0.9 M parameters with a vocabulary of 1000.

    Attributes:
        width: of the tokens, and of the vector that comes out.
        num_layers: blocks of attention and MLP.
        num_heads: must divide the width.

    Raises:
        ConfigError: a size that is not positive, or heads that do not divide the width.
    """

    width: int = 128
    num_layers: int = 4
    num_heads: int = 4

    def __post_init__(self) -> None:
        if min(self.width, self.num_layers, self.num_heads) < 1 or self.width % self.num_heads:
            raise ConfigError(
                f"instruction_encoder has width {self.width}, num_layers {self.num_layers} and num_heads "
                f"{self.num_heads}: all must be positive, and num_heads must divide width"
            )


class Block(nnx.Module):
    """Attention to all tokens and an MLP, each behind a norm and beside a residual."""

    def __init__(self, config: InstructionEncoderConfig, dtype: jax.typing.DTypeLike, rngs: nnx.Rngs) -> None:
        width, options = config.width, {"kernel_init": _XAVIER, "dtype": dtype, "rngs": rngs}
        self.num_heads = config.num_heads
        self.attention_norm = LayerNorm(width)
        self.queries_keys_values = nnx.Linear(width, 3 * width, **options)
        self.out = nnx.Linear(width, width, **options)
        self.mlp_norm = LayerNorm(width)
        self.up = nnx.Linear(width, 4 * width, **options)
        self.down = nnx.Linear(4 * width, width, **options)

    def __call__(self, x_bld: Float[Array, "b l d"], length_b: Int[Array, " b"]) -> Float[Array, "b l d"]:
        """The tokens after this block; those from `length_b` on are padding, which no token looks at."""
        joined = self.queries_keys_values(self.attention_norm(x_bld))
        parts = jnp.split(joined, 3, axis=-1)
        q_blnh, k_blnh, v_blnh = (part.reshape(*x_bld.shape[:2], self.num_heads, -1) for part in parts)
        attended_blnh = attend(q_blnh, KeyValues(k_blnh, v_blnh, stop_b=length_b))
        x_bld = x_bld + self.out(attended_blnh.reshape(x_bld.shape))
        return x_bld + self.down(jax.nn.gelu(self.up(self.mlp_norm(x_bld))))


class InstructionEncoder(nnx.Module):
    """Token ids to one vector: embeddings, pre-norm blocks, and the mean over the tokens that are no padding.

    Args:
        config: sizes.
        vocab_size: rows of the embedding.
        max_length: the most tokens of an instruction, rows of the table of positions.
        dtype: of the products of matrices; parameters, norms, softmax and the vector are float32.
    """

    def __init__(
        self,
        config: InstructionEncoderConfig,
        vocab_size: int,
        max_length: int,
        *,
        dtype: jax.typing.DTypeLike,
        rngs: nnx.Rngs,
    ) -> None:
        self.dtype = dtype
        self.out_dim = config.width
        self.embedding = nnx.Param(_NORMAL(rngs.params(), (vocab_size, config.width)))
        self.positions = nnx.Param(_NORMAL(rngs.params(), (max_length, config.width)))
        self.layers = stack_blocks(lambda rngs: Block(config, dtype, rngs), config.num_layers, rngs)
        self.norm = LayerNorm(config.width)

    def __call__(self, ids_bl: Int[Array, "b l"]) -> Float[Array, "b d"]:
        """The vectors of instructions; zeros for those without tokens.

        Args:
            ids_bl: padded on the right with negative numbers, which change nothing; l up to `max_length`.
        """
        valid_bl = ids_bl >= 0
        length_b = valid_bl.sum(axis=1)
        embedded_bld = self.embedding[jnp.maximum(ids_bl, 0)] + self.positions[: ids_bl.shape[1]]

        def step(block: Block, x_bld: Array, _: Any) -> tuple[Array, None]:
            return block(x_bld, length_b), None

        x_bld, _ = scan_blocks(self.layers, step, embedded_bld.astype(self.dtype))
        normed_bld = self.norm(x_bld.astype(jnp.float32))
        return masked_mean(normed_bld, jnp.broadcast_to(valid_bl[..., None], normed_bld.shape), 1)
