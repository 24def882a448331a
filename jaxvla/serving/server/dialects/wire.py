"""What comes, before it is known which protocol it is of: arrays in any of their forms, and encoded images."""

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from PIL import Image

from jaxvla.serving.server.keys import MAX_PIXELS
from jaxvla_client.codec import OPENPI, ArrayForm, Bounds, array_of, unpack
from jaxvla_client.errors import CodecError

# In every frame with an encoded image.
ENCODED = b"__image__"
_IMAGE_FORMATS = {"png": "PNG", "jpeg": "JPEG"}


def _text_array(value: Mapping[str, Any]) -> np.ndarray:
    return array_of(value.get("data"), value.get("dtype"), value.get("shape"))


def _image(value: Mapping[str, Any]) -> np.ndarray:
    """An image as vla-eval encodes it; its size is read, and bounded, before its pixels are."""
    kind, data, shape = value.get("format"), value.get("data"), value.get("shape")
    if kind == "raw":
        return _text_array(value)
    if kind not in _IMAGE_FORMATS or not isinstance(data, bytes):
        raise CodecError(f"an image must be raw, {' or '.join(_IMAGE_FORMATS)}, of bytes, not {kind!r:.40}")
    try:
        with Image.open(io.BytesIO(data), formats=[_IMAGE_FORMATS[kind]]) as image:
            if math.prod(image.size) > MAX_PIXELS:
                raise CodecError(f"an image of {image.size[1]}x{image.size[0]} pixels is more than {MAX_PIXELS}")
            pixels = np.asarray(image)
    except CodecError:
        raise
    except Exception as error:  # of the decoder, for damaged data of any kind
        raise CodecError(f"an image of {len(data)} bytes is no {kind}") from error
    if shape != list(pixels.shape):
        raise CodecError(f"an image says that it is {shape!r:.60}, and is {list(pixels.shape)}")
    return pixels


# vla-eval's arrays have keys of text, openpi's of bytes, so that one form reads both.
ANY = ArrayForm(OPENPI.key, (*OPENPI.others, ("__ndarray__", _text_array), (ENCODED.decode(), _image)))
VLA_EVAL = ArrayForm(str)


def read(data: bytes, bounds: Bounds) -> Mapping[Any, Any]:
    """The message of a client.

    Raises:
        CodecError: it is damaged, beyond the bounds, or no map.
    """
    message = unpack(data, bounds, ANY)
    if not isinstance(message, Mapping):
        raise CodecError(f"a message must be a map, not {type(message).__name__}")
    return message
