import concurrent.futures
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from jaxvla.data.transforms import images
from jaxvla.errors import ConfigError, DataError


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


def test_filters_weigh_pixels_otherwise():
    """Of two columns one: their mean by area, of four by bilinear weights; Lanczos and bicubic take more."""
    frames = np.zeros((1, 1, 8, 3), np.uint8)
    frames[0, 0, 4:] = 80
    resized = {name: images.resize(frames, (1, 4), name)[0, 0, :, 0].tolist() for name in images.FILTERS}
    assert resized["area"] == [0, 0, 80, 80]
    assert resized["bilinear"] == [0, 10, 70, 80]
    assert resized["bicubic"] != resized["lanczos"]
    images.check_filter("area", "key")
    with pytest.raises(ConfigError, match="key must be one of lanczos, bicubic, bilinear, area, not 'nearest'"):
        images.check_filter("nearest", "key")


def weights(size: int, new: int, kernel) -> np.ndarray:
    """[new, size]: what pixels count in those of a side of the new size, the kernel widened where it shrinks."""
    scale = size / new
    offsets = np.arange(size) + 0.5 - (np.arange(new)[:, None] + 0.5) * scale
    table = kernel(np.abs(offsets) / max(scale, 1))
    return table / table.sum(1, keepdims=True)


def cubic(x: np.ndarray) -> np.ndarray:
    near, far = (1.5 * x - 2.5) * x * x + 1, ((2.5 - 0.5 * x) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0))


KERNELS = {
    "lanczos": lambda x: np.where(x < 3, np.sinc(x) * np.sinc(x / 3), 0),
    "bicubic": cubic,
    "bilinear": lambda x: np.maximum(1 - x, 0),
    "area": lambda x: (x < 0.5).astype(float),
}


@pytest.mark.parametrize("method", KERNELS)
@pytest.mark.parametrize("size", [(30, 48), (131, 101), (60, 25)])
def test_filters_are_near_to_exact_ones(method, size):
    frame = np.random.default_rng(0).integers(40, 216, (61, 101, 3), dtype=np.uint8)
    table = KERNELS[method]
    rows, columns = weights(61, size[0], table), weights(101, size[1], table)
    exact = np.clip(np.einsum("yj,jkc,xk->yxc", rows, frame.astype(float), columns), 0, 255)
    resized = images.resize(frame[None], size, method)[0]
    assert np.abs(resized - exact).mean() < 0.5
    assert np.abs(resized - exact).max() < 2
    np.testing.assert_array_equal(images.to_array(Image.fromarray(frame), size, method), resized)


def test_stored_frames_are_those_of_pillow():
    frame = picture(60, 80)
    expected = np.asarray(Image.fromarray(frame).resize((40, 30), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(images.as_stored(frame[None], (30, 40))[0], expected)
    np.testing.assert_array_equal(images.store(Image.fromarray(frame), (30, 40)), expected)


def test_threads_resize_alike():
    frames = np.random.default_rng(0).integers(0, 256, (64, 60, 80, 3), dtype=np.uint8)
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        resized = list(pool.map(lambda frame: images.resize(frame[None], (30, 40))[0], frames))
    np.testing.assert_array_equal(resized, images.resize(frames, (30, 40)))


def encode(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    data = io.BytesIO()
    image.save(data, kind, **options)
    return data.getvalue()


RGB = picture(12, 20)
GRAY = RGB[..., 0]
OPAQUE = np.full_like(GRAY, 255)
COLOURS = (RGB // 128 * 255).astype(np.uint8)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (encode(Image.fromarray(RGB)), RGB),
        (encode(Image.fromarray(GRAY)), np.stack([GRAY] * 3, -1)),
        (encode(Image.fromarray(np.dstack([GRAY, OPAQUE]))), np.stack([GRAY] * 3, -1)),
        (encode(Image.fromarray(np.dstack([RGB, OPAQUE]))), RGB),
        (encode(Image.fromarray(RGB), transparency=(1, 2, 3)), RGB),
        (encode(Image.fromarray(COLOURS).quantize(8, dither=Image.Dither.NONE)), COLOURS),
        (encode(Image.fromarray(GRAY > 99)), np.stack([np.where(GRAY > 99, 255, 0)] * 3, -1)),
    ],
    ids=["RGB", "L", "LA", "RGBA", "RGB with a transparent colour that it lacks", "P", "1"],
)
def test_pictures_of_every_exact_mode(data, expected):
    np.testing.assert_array_equal(images.decode(data, "frame"), expected)
    assert images.read_size(data, "frame") == (12, 20)


def test_grayscale_jpeg():
    data = encode(Image.fromarray(GRAY), "JPEG")
    channels = images.decode(data, "frame")
    np.testing.assert_array_equal(channels, np.stack([np.asarray(Image.open(io.BytesIO(data)))] * 3, -1))


def png_of_16_bits(pixels: np.ndarray) -> bytes:
    """A PNG of RGB in 16 bits, which Pillow reads but does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (encode(Image.fromarray(GRAY.astype(np.uint16) * 9)), r"16 bits a channel \(mode I;16\), as depth images"),
        (png_of_16_bits(RGB.astype(np.uint16) * 9), r"16 bits a channel \(mode RGB\)"),
        (encode(Image.fromarray(RGB).convert("CMYK"), "JPEG"), "CMYK"),
        (encode(Image.fromarray(np.dstack([RGB, GRAY]))), "transparent in places"),
        (encode(Image.fromarray(np.dstack([GRAY, RGB[..., 1]]))), "transparent in places"),
        (encode(Image.fromarray(RGB), transparency=tuple(map(int, RGB[3, 4]))), "transparent in places"),
        (encode(Image.fromarray(COLOURS).quantize(8), transparency=0), "transparent in places"),
        (encode(Image.fromarray(RGB), save_all=True, append_images=[Image.fromarray(COLOURS)]), "holds 2 pictures"),
        (encode(Image.fromarray(RGB), "MPO", save_all=True, append_images=[Image.fromarray(RGB)]), "holds 2 pictures"),
    ],
)
def test_images_that_are_no_pictures(data, message):
    with pytest.raises(images.UnfitImageError, match=f"^im_0.jpg: .*{message}.*store it as 8-bit RGB$") as error:
        images.decode(data, "im_0.jpg")
    assert "\n" not in str(error.value)


def test_a_header_tells_of_depth_before_a_run_starts():
    with pytest.raises(images.UnfitImageError, match="as depth images have"):
        images.read_size(encode(Image.fromarray(GRAY.astype(np.uint16))), "frame")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
@pytest.mark.parametrize("orientation", range(10))
def test_pictures_are_turned_upright(kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(Image.fromarray(RGB), kind, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    upright = images.decode(data, "frame")
    np.testing.assert_array_equal(upright, np.asarray(expected))
    assert images.read_size(data, "frame") == upright.shape[:2]
    assert (upright.shape == (20, 12, 3)) == (5 <= orientation <= 8)


def test_headers_that_promise_more_than_any_camera_has():
    data = bytearray(encode(Image.fromarray(RGB)))
    data[16:24] = struct.pack(">II", 9000, 8000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    with pytest.raises(DataError, match=r"frame: not a whole image \(8000 x 9000 pixels\)"):
        images.read_size(bytes(data), "frame")


def test_a_picture_is_resized_as_its_array_is():
    data = encode(Image.fromarray(picture(48, 64)), "JPEG")
    expected = images.resize(images.decode(data, "frame")[None], (30, 20))[0]
    np.testing.assert_array_equal(images.to_array(images.open_picture(data, "frame"), (30, 20)), expected)


@pytest.mark.parametrize(
    "data", [b"", b"\xff\xd8\xff", encode(Image.fromarray(GRAY / 9), "TIFF"), encode(Image.fromarray(RGB))[:-80]]
)
def test_damaged_files(data):
    with pytest.raises(DataError, match=r"im_0\.jpg: not a whole image"):
        images.decode(data, "im_0.jpg")
