import numpy as np
import pytest

from jaxvla.data import images
from jaxvla.errors import DataError


def picture(height: int, width: int) -> np.ndarray:
    """Slopes with edges in them, uint8 [height, width, 3]."""
    row, column, color = np.ogrid[:height, :width, :3]
    return ((7 * row + 3 * column + 50 * color + 40 * (row // 9 * column // 11)) % 256).astype(np.uint8)


# `smart_resize` of transformers 5.23 with factor 32 and the bounds of Qwen3-VL's preprocessor_config.json.
@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((224, 224), (256, 256)),
        ((256, 256), (256, 256)),
        ((480, 640), (480, 640)),
        ((304, 240), (320, 256)),
        ((100, 300), (160, 448)),
        ((33, 47), (224, 320)),
        ((8, 8), (256, 256)),
        ((1, 200), (32, 3648)),
        ((1080, 1920), (1088, 1920)),
        ((5000, 5000), (4096, 4096)),
        ((3000, 9000), (2336, 7072)),
        ((31, 4000), (32, 4000)),
    ],
)
def test_size_that_the_model_sees(size, expected):
    assert images.fit_to_grid(*size) == expected


def test_bounds_on_the_area():
    assert images.fit_to_grid(480, 640, min_pixels=64**2, max_pixels=224**2) == (192, 256)
    assert images.fit_to_grid(64, 64, min_pixels=64**2) == (64, 64)


@pytest.mark.parametrize("size", [(1, 201), (0, 64), (64, 0)])
def test_sizes_that_cannot_be_fitted(size):
    with pytest.raises(DataError, match=f"{size[0]} x {size[1]} pixels cannot be fitted"):
        images.fit_to_grid(*size)


# The sum of what Qwen2VLImageProcessorPil of transformers 5.23 gives, back in uint8, and its pixels [5, :6, 0].
@pytest.mark.parametrize(
    ("size", "total", "pixels"),
    [
        ((224, 224), 25102641, [30, 32, 35, 38, 40, 43]),
        ((100, 300), 27473194, [21, 22, 25, 27, 29, 31]),
        ((700, 500), 137903850, [35, 38, 41, 44, 47, 50]),
    ],
)
def test_resize_as_the_processor_of_the_model(size, total, pixels):
    resized = images.resize_to_grid(np.stack([picture(*size)] * 2))
    assert resized.shape == (2, *images.fit_to_grid(*size), 3)
    assert resized.dtype == np.uint8
    assert resized[0].sum(dtype=np.int64) == resized[1].sum(dtype=np.int64) == total
    assert resized[0, 5, :6, 0].tolist() == pixels


def test_fitting_images_pass_unchanged():
    frames = picture(256, 288)[None]
    assert images.resize_to_grid(frames) is frames
    assert images.resize_to_grid(frames[:0, :100]).shape == (0, 160, 448, 3)


def test_patch_grid():
    assert images.patch_grid(256, 256) == (16, 16)
    assert images.patch_grid(480, 640) == (30, 40)
    for size in ((256, 250), (16, 32), (0, 32)):
        with pytest.raises(DataError, match=f"{size[0]} x {size[1]} pixels is off the model's grid of 32"):
            images.patch_grid(*size)


def test_lanczos_for_camera_frames():
    frames = picture(60, 80)[None]
    assert images.resize(frames, (30, 40)).shape == (1, 30, 40, 3)
    assert images.resize(frames, (60, 80)) is frames
    assert images.resize(frames[:0], (30, 40)).shape == (0, 30, 40, 3)


def test_damaged_files():
    with pytest.raises(DataError, match=r"im_0\.jpg: not a whole image"):
        images.decode(b"\xff\xd8\xff", "im_0.jpg")
