import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.data.transforms import images
from jaxvla.errors import ConfigError, DataError
from jaxvla.ops.patches import normalize, patchify, pixel_shuffle

# What numpy gives in float32, with a rounding after each operation, for every value of a pixel.
NORMALIZED = ((np.arange(256) / 255).astype(np.float32) - np.float32(0.5)) / np.float32(0.5)


def patch_indices(height: int, width: int, patch: int = 16, times: int = 2, merge: int = 2) -> np.ndarray:
    """For each value of each patch, where it stands in a flattened [height, width, 3] image."""
    rows, columns, side = height // (patch * merge), width // (patch * merge), range(merge)
    patches = []
    for token_row, token_column, row, column in itertools.product(range(rows), range(columns), side, side):
        top, left = (token_row * merge + row) * patch, (token_column * merge + column) * patch
        values = itertools.product(range(3), range(times), range(patch), range(patch))
        patches.append([((top + y) * width + left + x) * 3 + color for color, _, y, x in values])
    return np.array(patches)


@pytest.mark.parametrize(("height", "width", "patch", "times", "merge"), [(64, 96, 16, 2, 2), (18, 36, 3, 1, 3)])
def test_layout_and_values(height, width, patch, times, merge):
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    patches = jax.jit(lambda x: patchify(x, patch, times, merge))(image)
    assert patches.dtype == jnp.float32
    np.testing.assert_array_equal(patches, NORMALIZED[image.ravel()[patch_indices(height, width, patch, times, merge)]])


def test_every_value_is_rounded_as_numpy_does():
    pixels = np.arange(256, dtype=np.uint8)
    np.testing.assert_array_equal(jax.jit(normalize)(pixels), NORMALIZED)


def test_leading_axes():
    frames = np.random.default_rng(1).integers(0, 256, (2, 3, 32, 64, 3), np.uint8)
    patches = jax.jit(patchify)(frames)
    assert patches.shape == (2, 3, 8, 1536)
    np.testing.assert_array_equal(np.asarray(patches)[1, 2], NORMALIZED[frames[1, 2].ravel()[patch_indices(32, 64)]])


def test_golden_patches(samples):
    folder = samples / "tok_qwen3_vl_4b_instruct"
    with np.load(folder / "DERIVED_pixel_values_bridge_0.npz") as golden:
        values = golden["pixel_values"]
    image = np.zeros(256 * 256 * 3, np.uint8)
    image[patch_indices(256, 256)] = np.rint((values * 0.5 + 0.5) * 255)
    image = image.reshape(256, 256, 3)
    # A photograph: across the borders of patches it changes about as little as within them.
    change = np.abs(np.diff(image.astype(int), axis=1)).mean(axis=(0, 2))
    assert change[15::16].mean() < 1.2 * change.mean()
    np.testing.assert_array_equal(jax.jit(patchify)(image), values)


def test_golden_records(samples):
    golden = json.loads((samples / "tok_qwen3_vl_4b_instruct" / "DERIVED_image_processor_golden.json").read_text())
    for item in golden["items"]:
        width, height = item["size_wh"]
        size = images.fit_to_grid(height, width)
        assert [[1, *images.patch_grid(*size)]] == item["grid_thw"]
        patches = jax.eval_shape(patchify, jax.ShapeDtypeStruct((*size, 3), jnp.uint8))
        assert list(patches.shape) == item["shape"]
        recorded = np.float32(item["row0_first8"] + item["row_last_last8"] + item["row_mid_first8"])
        assert np.isin(recorded, NORMALIZED).all()


def test_off_the_grid():
    with pytest.raises(DataError, match="images of 32 x 48 pixels are off the model's grid of 32"):
        patchify(jnp.zeros((32, 48, 3), jnp.uint8))


def test_squares_of_patches_become_tokens():
    side, factor, width = 6, 3, 2
    x = np.arange(2 * side * side * width, dtype=np.float32).reshape(2, side, side, width)
    found = np.asarray(pixel_shuffle(jnp.asarray(x.reshape(2, side * side, width)), factor))
    assert found.shape == (2, 4, 18)
    for row, column in itertools.product(range(2), range(2)):
        square = x[:, 3 * row : 3 * row + 3, 3 * column : 3 * column + 3]
        np.testing.assert_array_equal(found[:, 2 * row + column], square.reshape(2, -1))
    for patches, factor in ((35, 1), (36, 4)):
        with pytest.raises(ConfigError, match=f"{patches} patches are no square whose side is a multiple of {factor}"):
            pixel_shuffle(jnp.zeros((1, patches, 2)), factor)
