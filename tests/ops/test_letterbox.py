import jax.numpy as jnp
import numpy as np
import pytest

from jaxvla.ops.letterbox import resize_with_pad


def bilinear(image, height, width):
    """One pixel at a time: the four around the same place, the edge repeated."""
    h, w, _ = image.shape
    out = np.zeros((height, width, image.shape[-1]))
    for y, x in np.ndindex(height, width):
        row, column = (max((i + 0.5) * size / new - 0.5, 0) for i, size, new in ((y, h, height), (x, w, width)))
        top, left = int(row), int(column)
        bottom, right = min(top + 1, h - 1), min(left + 1, w - 1)
        upper = image[top, left] * (1 - column + left) + image[top, right] * (column - left)
        lower = image[bottom, left] * (1 - column + left) + image[bottom, right] * (column - left)
        out[y, x] = upper * (1 - row + top) + lower * (row - top)
    return out


@pytest.mark.parametrize(
    ("size", "inner"), [((30, 40), (24, 32)), ((9, 5), (32, 17)), ((100, 31), (32, 9)), ((8, 8), (32, 32))]
)
def test_the_image_lies_at_the_bottom_right(size, inner):
    image = np.random.default_rng(0).uniform(size=(*size, 3)).astype(np.float32)
    found = np.asarray(resize_with_pad(jnp.asarray(image[None]), 32, 32))[0]
    top, left = 32 - inner[0], 32 - inner[1]
    np.testing.assert_allclose(found[top:, left:], bilinear(image, *inner), atol=1e-5)
    assert not found[:top].any()
    assert not found[:, :left].any()


def test_an_image_of_the_size_of_the_canvas_stays():
    image = jnp.asarray(np.random.default_rng(0).uniform(size=(2, 16, 16, 3)), jnp.float32)
    assert resize_with_pad(image, 16, 16) is image
