import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from models.qwen3_vl.cases import CONFIG, VISION, quick_jit

from jaxvla.errors import ConfigError, DataError
from jaxvla.models.qwen3_vl.positions import (
    check_image_tokens,
    interpolation,
    num_image_tokens,
    num_patches,
    patch_positions,
    token_layout,
)

IMAGE, START, END, PAD = CONFIG.image_token_id, CONFIG.vision_start_token_id, CONFIG.vision_end_token_id, 0
GRIDS = ((4, 6), (2, 2))
# Two words, an image of 2 x 3 tokens, one word, an image of one token, a word; the second sample has one word more.
TOKENS = np.array(
    [
        [PAD, 5, 6, START, *[IMAGE] * 6, END, 7, START, IMAGE, END, 8],
        [5, 6, 6, START, *[IMAGE] * 6, END, 7, START, IMAGE, END, 8],
    ]
)
TIME = [0, 1, 2, 3, 3, 3, 3, 3, 3, 6, 7, 8, 9, 10, 11]
ROW = [0, 1, 2, 3, 3, 3, 4, 4, 4, 6, 7, 8, 9, 10, 11]
COLUMN = [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 7, 8, 9, 10, 11]


def layout(tokens, valid, grids=GRIDS, config=CONFIG):
    run = quick_jit(lambda tokens, valid: token_layout(tokens, valid, grids, config))
    return run(jnp.asarray(tokens), jnp.asarray(valid))


def test_positions_with_images():
    found = layout(TOKENS, TOKENS != PAD)
    np.testing.assert_array_equal(found.positions_3bt[:, 0], [[0, *TIME], [0, *ROW], [0, *COLUMN]])
    later = np.array([[0, *(np.array(axis) + 1)] for axis in (TIME, ROW, COLUMN)])
    np.testing.assert_array_equal(found.positions_3bt[:, 1], later)
    np.testing.assert_array_equal(found.next_position_b, [12, 13])
    wanted = [7, 7, 7, 7, 0, 1, 2, 3, 4, 5, 7, 7, 7, 6, 7, 7]
    np.testing.assert_array_equal(found.image_index_bt, [wanted, wanted])


def test_right_padding_counts_for_nothing():
    tokens = np.concatenate([TOKENS[1:], TOKENS[1:, :1]], axis=1)
    valid = np.arange(tokens.shape[1]) < TOKENS.shape[1]
    found = layout(tokens, valid[None])
    assert found.next_position_b == 13
    np.testing.assert_array_equal(found.positions_3bt[:, 0, -1], 0)


def test_an_image_at_the_end_moves_the_next_position_by_its_longer_side():
    found = layout(TOKENS[:1, :10], TOKENS[:1, :10] != PAD, ((4, 6),))
    assert found.next_position_b == 6


def test_linear_positions_count_every_token_and_give_pads_one():
    found = layout(TOKENS, TOKENS != PAD, config=dataclasses.replace(CONFIG, position_mode="linear"))
    counted = np.arange(16)
    np.testing.assert_array_equal(found.positions_3bt, np.broadcast_to([[1, *counted[:-1]], counted], (3, 2, 16)))
    np.testing.assert_array_equal(found.next_position_b, [15, 16])


def test_counts():
    assert num_patches(GRIDS) == 28
    assert num_image_tokens(GRIDS, VISION) == 7


@pytest.mark.parametrize("grid", [(3, 4), (4, 5), (0, 2)])
def test_a_grid_without_whole_blocks_is_refused(grid):
    with pytest.raises(ConfigError, match=rf"{grid[0]} x {grid[1]} patches does not divide into 2 x 2.*multiples of 8"):
        layout(TOKENS, TOKENS != PAD, (grid,))


def test_image_tokens_are_counted_on_the_host():
    check_image_tokens(TOKENS, GRIDS, CONFIG)
    tokens = TOKENS.copy()
    tokens[1, 1] = IMAGE
    with pytest.raises(DataError, match=r"sample 1 has 8 image tokens, but images of \[\(4, 6\), \(2, 2\)\].* fill 7"):
        check_image_tokens(tokens, GRIDS, CONFIG)


@pytest.mark.parametrize(("size", "side"), [(1, 6), (4, 6), (6, 6), (11, 6)])
def test_interpolation_is_linear_between_the_ends_of_the_table(size, side):
    table = np.random.default_rng(0).standard_normal(side)
    expected = np.interp(np.linspace(0, side - 1, size), np.arange(side), table)
    np.testing.assert_allclose(interpolation(size, side) @ table, expected, atol=1e-6)


def test_patches_go_block_by_block():
    expected = [[0, 0, 1, 1, 0, 0, 1, 1, 0, 0, 1, 1], [0, 1, 0, 1, 2, 3, 2, 3, 0, 1, 0, 1]]
    np.testing.assert_array_equal(patch_positions(((2, 4), (2, 2)), VISION), expected)
