"""Images on the host: decoding and resizing, uint8 in and uint8 out."""

import io
import math
import warnings

import numpy as np
from PIL import Image

from jaxvla.errors import DataError

_BROKEN = (OSError, SyntaxError, ValueError)  # what Pillow raises for files that are cut off or garbled

# The grid of Qwen3-VL: square patches of so many pixels, merged so many by so many into one token.
PATCH_SIZE, MERGE_SIZE = 16, 2
# Areas, in pixels, that its processor resizes to, and the longest side it admits in terms of the shortest.
MIN_PIXELS, MAX_PIXELS, MAX_ASPECT = 256**2, 4096**2, 200


def decode(data: bytes, name: str) -> np.ndarray:
    """A JPEG or PNG file's content as uint8 [h, w, 3].

    Raises:
        DataError: the data is no image or is cut off; says `name`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (*_BROKEN, Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: not a whole image ({error}); make the file again") from error


def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Lanczos resize of uint8 [n, h, w, 3] to `size` (height, width); the aspect ratio follows, as BridgeData does it.

    Every path from a camera to a policy (conversion, loader, serving) resizes with this filter.
    """
    return _resample(images, size, Image.Resampling.LANCZOS)


def resize_to_grid(images: np.ndarray, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Bicubic resize of uint8 [n, h, w, 3] to the size that `fit_to_grid` picks, as Qwen3-VL was trained.

    Raises:
        DataError: as `fit_to_grid` does.
    """
    height, width = images.shape[1:3]
    return _resample(images, fit_to_grid(height, width, min_pixels, max_pixels), Image.Resampling.BICUBIC)


def fit_to_grid(height: int, width: int, min_pixels: int = MIN_PIXELS, max_pixels: int = MAX_PIXELS) -> tuple[int, int]:
    """The size (height, width) at which Qwen3-VL sees a picture: `smart_resize` of transformers' models/qwen2_vl.

    Both sides are multiples of 32 pixels near the given ones. Where their area leaves [min_pixels, max_pixels], the
    picture is scaled by one factor to that bound first, and the sides are rounded towards the inside.

    Raises:
        DataError: a side is empty, or more than 200 times the other.
    """
    if min(height, width) <= 0 or max(height, width) > MAX_ASPECT * min(height, width):
        raise DataError(
            f"an image of {height} x {width} pixels cannot be fitted to the model's grid: crop it so that no side is "
            f"more than {MAX_ASPECT} times the other"
        )
    unit = PATCH_SIZE * MERGE_SIZE
    rows, columns = round(height / unit), round(width / unit)
    if rows * columns * unit**2 > max_pixels:
        shrink = math.sqrt(height * width / max_pixels)
        rows, columns = (max(1, math.floor(side / shrink / unit)) for side in (height, width))
    elif rows * columns * unit**2 < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows, columns = (math.ceil(side * grow / unit) for side in (height, width))
    return rows * unit, columns * unit


def patch_grid(height: int, width: int) -> tuple[int, int]:
    """The grid (rows, columns) of patches of an image that is at the model's size already.

    Raises:
        DataError: a side is not a multiple of 32 pixels.
    """
    unit = PATCH_SIZE * MERGE_SIZE
    if height % unit or width % unit or min(height, width) <= 0:
        raise DataError(
            f"an image of {height} x {width} pixels is off the model's grid of {unit}: pass it through resize_to_grid"
        )
    return height // PATCH_SIZE, width // PATCH_SIZE


def _resample(images: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    if images.shape[1:3] == tuple(size):
        return images
    height, width = size
    resized = [Image.fromarray(image).resize((width, height), method) for image in images]
    return np.stack([np.asarray(image) for image in resized]) if resized else np.zeros((0, height, width, 3), np.uint8)
