"""Images on the host: decoding and resizing, uint8 in and uint8 out."""

import io
import warnings

import numpy as np
from PIL import Image, UnidentifiedImageError

from jaxvla.errors import DataError


def decode(data: bytes, name: str) -> np.ndarray:
    """A JPEG or PNG file's content as uint8 [h, w, 3].

    Raises:
        DataError: the data is no image or is cut off; says `name`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    except (OSError, SyntaxError, UnidentifiedImageError, Image.DecompressionBombWarning) as error:
        raise DataError(f"{name}: not a whole image ({error}); make the file again") from error


def resize(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Lanczos resize of uint8 [n, h, w, 3] to `size` (height, width); the aspect ratio follows, as BridgeData does it.

    Every path from a camera to a policy (conversion, loader, serving) resizes with this filter.
    """
    if images.shape[1:3] == tuple(size):
        return images
    height, width = size
    resized = [Image.fromarray(image).resize((width, height), Image.Resampling.LANCZOS) for image in images]
    return np.stack([np.asarray(image) for image in resized]) if resized else np.zeros((0, height, width, 3), np.uint8)
