"""Where tokens and patches stand: the constants of static image grids, and the positions of a batch of tokens.

All samples of a batch show images of the same sizes, so everything that follows from a grid is a numpy constant. Where
the images stand among the tokens is data: two cumulative sums on the device.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from jaxvla.errors import ConfigError, DataError
from jaxvla.models.qwen3_vl.config import Qwen3VLConfig, VisionConfig

# Rows and columns of patches of every image of a sample, in the order in which they stand among the tokens. A video
# is one entry per pair of frames, since Qwen3-VL puts a time stamp in words before each of them.
Grids = tuple[tuple[int, int], ...]


class TokenLayout(NamedTuple):
    """Where the tokens of a batch stand.

    Attributes:
        positions_3bt: time, row and column of each token, as rope needs them.
        image_index_bt: which of the sample's image tokens a token is; their number where it is none.
        next_position_b: the position of the token that would come next, on all three axes.
    """

    positions_3bt: Int[Array, "3 b t"]
    image_index_bt: Int[Array, "b t"]
    next_position_b: Int[Array, " b"]


def check_grids(grids: Grids, config: VisionConfig) -> None:
    """Raises ConfigError unless every grid divides into merge blocks."""
    merge = config.spatial_merge_size
    for rows, columns in grids:
        if rows < 1 or columns < 1 or rows % merge or columns % merge:
            unit = config.patch_size * merge
            raise ConfigError(
                f"an image of {rows} x {columns} patches does not divide into {merge} x {merge} blocks; "
                f"resize images to multiples of {unit} pixels"
            )


def num_patches(grids: Grids) -> int:
    """Patches of all images of a sample."""
    return sum(rows * columns for rows, columns in grids)


def num_image_tokens(grids: Grids, config: VisionConfig) -> int:
    """Image tokens of a sample, one per merge block."""
    return num_patches(grids) // config.spatial_merge_size**2


def check_image_tokens(tokens_bt: np.ndarray, grids: Grids, config: Qwen3VLConfig) -> None:
    """Checks on the host that every sample has one image token per merge block of its images.

    Raises:
        DataError: names the first sample that has more or fewer.
    """
    wanted = num_image_tokens(grids, config.vision)
    counts = np.isin(tokens_bt, (config.image_token_id, config.video_token_id)).sum(axis=1)
    wrong = np.flatnonzero(counts != wanted)
    if wrong.size:
        raise DataError(
            f"sample {wrong[0]} has {counts[wrong[0]]} image tokens, but images of {list(grids)} patches fill "
            f"{wanted}; write as many placeholders as there are images, and expand each to its grid"
        )


def image_offsets(grids: Grids, config: VisionConfig) -> tuple[np.ndarray, np.ndarray]:
    """Constants of each of a sample's n image tokens, and of a last entry that stands for text.

    Returns:
        int32 [2, n + 1], row and column within the image; int32 [n + 1], by how much the position advances after the
        token: for text 1, within an image 0, at an image's end its longer side.
    """
    merge = config.spatial_merge_size
    offsets, advance = [], []
    for rows, columns in grids:
        rows, columns = rows // merge, columns // merge
        offsets.append(np.indices((rows, columns)).reshape(2, -1))
        advance += [0] * (rows * columns - 1) + [max(rows, columns)]
    offsets.append(np.zeros((2, 1)))
    return np.concatenate(offsets, axis=1).astype(np.int32), np.array([*advance, 1], np.int32)


def token_layout(
    tokens_bt: Int[Array, "b t"], valid_bt: Bool[Array, "b t"], grids: Grids, config: Qwen3VLConfig
) -> TokenLayout:
    """Positions of tokens, equal to `get_rope_index` of transformers in mode "mrope".

    Text counts up on all three axes. An image's tokens keep the time at which it begins and add their row and column,
    and what follows goes on after its longer side. In mode "linear" every token counts alike, as transformers does
    where it is given embeddings in place of tokens.

    Args:
        tokens_bt: with as many image tokens per sample as the grids have, see `check_image_tokens`.
        valid_bt: False at padding, whose positions are 0 ("mrope") or 1 ("linear").
        grids: static.

    Raises:
        ConfigError: a grid that does not divide into merge blocks.
    """
    check_grids(grids, config.vision)
    offsets_2n, advance_n = image_offsets(grids, config.vision)
    none = offsets_2n.shape[1] - 1
    is_image_bt = valid_bt & ((tokens_bt == config.image_token_id) | (tokens_bt == config.video_token_id))
    image_index_bt = jnp.where(is_image_bt, jnp.minimum(jnp.cumsum(is_image_bt, 1) - 1, none), none)
    if config.position_mode == "linear":
        end_bt = jnp.cumsum(valid_bt, 1)
        positions_3bt = jnp.broadcast_to(jnp.where(valid_bt, end_bt - 1, 1), (3, *tokens_bt.shape))
    else:
        advance_bt = jnp.where(valid_bt, jnp.asarray(advance_n)[image_index_bt], 0)
        end_bt = jnp.cumsum(advance_bt, 1)
        start_bt = end_bt - advance_bt
        offsets_2bt = jnp.asarray(offsets_2n)[:, image_index_bt]
        positions_3bt = jnp.where(valid_bt, jnp.concatenate([start_bt[None], start_bt + offsets_2bt]), 0)
    return TokenLayout(positions_3bt, image_index_bt, end_bt[:, -1])


def spread(shown_bi: Bool[Array, "b i"], image_index_bt: Int[Array, "b t"]) -> Bool[Array, "b t"]:
    """What is said of the image tokens, at their places among all tokens; True at all others."""
    return jnp.take_along_axis(shown_bi, image_index_bt, axis=1, mode="fill", fill_value=True)


def of_tokens(mask_bc: Bool[Array, "b c"], grids: Grids, config: VisionConfig) -> Bool[Array, "b i"]:
    """What is said of the images, one of each grid, said of each of their tokens."""
    counts = np.array([num_image_tokens((grid,), config) for grid in grids])
    return jnp.repeat(mask_bc, counts, axis=1, total_repeat_length=int(counts.sum()))


def interpolation(size: int, side: int) -> np.ndarray:
    """Bilinear weights float32 [size, side] that spread `size` points over a table of `side` entries, ends included."""
    points = np.arange(size, dtype=np.float32) * np.float32(side - 1) / np.float32(max(size - 1, 1))
    return np.maximum(1 - np.abs(points[:, None] - np.arange(side, dtype=np.float32)), 0)


def patch_positions(grids: Grids, config: VisionConfig) -> np.ndarray:
    """Row and column of every patch of a sample, int32 [2, p], in merge-block order."""
    merge = config.spatial_merge_size
    positions = []
    for rows, columns in grids:
        blocks = np.indices((rows, columns)).reshape(2, rows // merge, merge, columns // merge, merge)
        positions.append(blocks.swapaxes(2, 3).reshape(2, -1))
    return np.concatenate(positions, axis=1).astype(np.int32)
