"""Images on the host: decoding and resizing, uint8 in and uint8 out.

From a camera to a policy there is one path, whoever walks it: the camera's frame is resized to the size at which it is
stored (by conversion, or by whoever encoded the data), and from there to the size that the policy sees. Both steps keep
uint8, and the aspect ratio follows. The first is `as_stored`, Pillow's Lanczos, bit for bit what BridgeData does. The
second is `resize`, what the run says, four times as fast: it rounds otherwise than Pillow, as near to what an exact
filter gives, and alike on every processor.
"""

import io
import math
import struct
import threading
from collections.abc import Iterable

import numpy as np
from cykooz_resizer import FilterType, ImageData, PixelType, ResizeAlg, ResizeOptions, Resizer
from PIL import Image

from jaxvla.errors import ConfigError, DataError

# What Pillow raises for files that are cut off or garbled, or say that they are huge.
_BROKEN = (
    *(OSError, SyntaxError, ValueError, struct.error),
    *(Image.DecompressionBombWarning, Image.DecompressionBombError),
)
# Others are not asked for: Pillow's readers of some run programs.
_FORMATS = ("JPEG", "PNG")
_ORIENTATION = 0x0112  # the EXIF tag; 1 is upright
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_ON_ITS_SIDE = (5, 6, 7, 8)
_MOST_PIXELS = 8192**2  # more than cameras have
_PNG_BITS = 24  # the byte of a PNG that says how many bits a channel has

# All look at as many pixels as shrink to one. Octo and OpenVLA resize with the first, Qwen3-VL with the second.
FILTERS = {
    name: ResizeOptions(resize_alg=ResizeAlg.convolution(filter_type))
    for name, filter_type in {
        "lanczos": FilterType.lanczos3,
        "bicubic": FilterType.catmull_rom,
        "bilinear": FilterType.bilinear,
        "area": FilterType.box,
    }.items()
}
_own = threading.local()  # a resizer keeps its buffers

# The grid of Qwen3-VL: square patches of so many pixels, merged so many by so many into one token.
PATCH_SIZE, MERGE_SIZE = 16, 2
# Areas, in pixels, that its processor resizes to, and the longest side it admits in terms of the shortest.
MIN_PIXELS, MAX_PIXELS, MAX_ASPECT = 256**2, 4096**2, 200


class UnfitImageError(DataError):
    """A file is a whole image, but not a picture that a colour camera took."""


def open_picture(data: bytes, name: str) -> Image.Image:
    """A JPEG or PNG file's content as an upright picture of mode RGB.

    Grayscale, one-bit and palette images become RGB exactly, and alpha is dropped where everything is opaque. EXIF's
    orientation is applied, as viewers and OpenCV do. Colour profiles are not.

    Raises:
        UnfitImageError: 16 bits a channel, as depth images have; CMYK; something transparent; several pictures.
        DataError: the data is neither JPEG nor PNG, or is cut off. Both say `name`.
    """
    image = _opened(data, name)
    try:
        orientation = image.getexif().get(_ORIENTATION)
        if image.has_transparency_data:
            image = image.convert("RGBA")
            if image.getchannel("A").getextrema()[0] < 255:
                raise UnfitImageError(
                    f"{name}: the image is transparent in places, which no camera's is (TFDS keeps float32 images so, "
                    "four bytes a pixel); use another camera, or store it as 8-bit RGB"
                )
        picture = image if image.mode == "RGB" else image.convert("RGB")
        picture.load()
        return picture.transpose(_UPRIGHT[orientation]) if orientation in _UPRIGHT else picture
    except _BROKEN as error:
        raise _not_whole(name, error) from error


def read_size(data: bytes, name: str) -> tuple[int, int]:
    """(height, width) of `open_picture(data, name)`, from the header of a JPEG.

    Raises:
        DataError: as `open_picture`, as far as the header tells.
    """
    image = _opened(data, name)
    try:
        on_its_side = image.getexif().get(_ORIENTATION) in _ON_ITS_SIDE
    except _BROKEN as error:
        raise _not_whole(name, error) from error
    return image.size if on_its_side else image.size[::-1]


def raw_picture(pixels: np.ndarray, shape: tuple[int, ...]) -> Image.Image:
    """The picture, of mode RGB, whose pixels are uint8 [h, w, 3], or gray [h, w, 1], of `shape`."""
    image = pixels.reshape(shape)
    return Image.fromarray(image if shape[2] == 3 else np.repeat(image, 3, 2))


def decode_depth(data: bytes, name: str) -> np.ndarray:
    """Depth as TFDS stores it: uint16 [h, w] of a PNG of 16 bits, or float32 [h, w] of an RGBA PNG of their bytes.

    Raises:
        DataError: it is neither, or is cut off; says `name`.
    """
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode.startswith("I"):
                return np.asarray(image).astype(np.uint16)
            if image.mode == "RGBA":
                return np.ascontiguousarray(image).view("<f4")[..., 0]
            raise UnfitImageError(f"{name}: no depth: a PNG of mode {image.mode}, where depth has 16 bits or is RGBA")
    except _BROKEN as error:
        raise _not_whole(name, error) from error


def check_filter(name: str, where: str) -> None:
    """Raises ConfigError unless `name` is one of `FILTERS`; `where` is the key that says so."""
    if name not in FILTERS:
        raise ConfigError(f"{where} must be one of {', '.join(FILTERS)}, not {name!r}")


def to_array(picture: Image.Image, size: tuple[int, ...] = (), method: str = "lanczos") -> np.ndarray:
    """uint8 [h, w, 3] of a picture, resized to `size` (height, width) as `resize` does it, or of its own size."""
    if not size or picture.size[::-1] == tuple(size):
        return np.asarray(picture)
    return _resize_pixels(picture.tobytes(), picture.size[::-1], size, method)


def decode(data: bytes, name: str) -> np.ndarray:
    """`open_picture` as uint8 [h, w, 3]."""
    return to_array(open_picture(data, name))


def resize(images: np.ndarray, size: tuple[int, int], method: str = "lanczos") -> np.ndarray:
    """uint8 [n, h, w, 3] resized to `size` (height, width) by one of `FILTERS`, as policies see them."""
    if images.shape[1:3] == tuple(size):
        return images
    resized = np.empty((len(images), *size, 3), np.uint8)
    for row, image in zip(resized, images):
        row[:] = _resize_pixels(image.tobytes(), image.shape[:2], size, method)
    return resized


def middle(images: np.ndarray, area: float) -> np.ndarray:
    """The middle of images uint8 [n, h, w, 3], of this share of their area, enlarged to their size.

    As OpenVLA crops where it was trained on random crops: tf.image.crop_and_resize, which interpolates linearly between
    pixels and puts the corners of the new image on those of the part, and then rounds as tf.image.convert_image_dtype.
    """

    def places(size: int) -> np.ndarray:
        side = np.float32(area) ** 0.5
        return ((1 - side) / 2 + side * np.linspace(0, 1, size)) * (size - 1)

    pixels = images.astype(np.float32) / 255
    for axis in (1, 2):
        at = places(pixels.shape[axis])
        low = np.floor(at).astype(int)
        share = (at - low).astype(np.float32).reshape(-1, *[1] * (3 - axis))
        high = np.minimum(low + 1, pixels.shape[axis] - 1)
        pixels = pixels.take(low, axis) * (1 - share) + pixels.take(high, axis) * share
    return np.minimum(pixels * 255.5, 255).astype(np.uint8)


def as_stored(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 [n, h, w, 3] at `size` (height, width), as the conversion of BridgeData stores frames."""
    return _resample(images, size, Image.Resampling.LANCZOS)


def store(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w, 3]: a picture as `as_stored` gives it."""
    return np.asarray(_resized(picture, size, Image.Resampling.LANCZOS))


def enlarges(size: Iterable[int], new: Iterable[int]) -> bool:
    """Whether resizing from `size` to `new` (height, width) invents pixels."""
    return any(before < after for before, after in zip(size, new))


def size_text(size: Iterable[int]) -> str:
    """A size (height, width) as people read it."""
    return " x ".join(map(str, size))


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


def _opened(data: bytes, name: str) -> Image.Image:
    """The image before its pixels are decoded, of a kind that RGB can be made of."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > _MOST_PIXELS:
            raise ValueError(f"{size_text(image.size[::-1])} pixels")
        pictures = getattr(image, "n_frames", 1)
    except Image.UnidentifiedImageError as error:
        raise DataError(f"{name}: not a whole image, JPEG or PNG; make the file again") from error
    except _BROKEN as error:
        raise _not_whole(name, error) from error
    kind = ""
    if image.format == "PNG" and data[_PNG_BITS] == 16:
        kind = f"has 16 bits a channel (mode {image.mode}), as depth images have"
    elif image.mode == "CMYK":
        kind = "is CMYK, colours of a printer"
    elif pictures > 1:
        kind = f"holds {pictures} pictures, where a frame is one"
    if kind:
        raise UnfitImageError(f"{name}: the image {kind}; use another camera, or store it as 8-bit RGB")
    return image


def _not_whole(name: str, error: Exception) -> DataError:
    return DataError(f"{name}: not a whole image ({error}); make the file again")


def _resize_pixels(pixels: bytes, size: tuple[int, ...], new: tuple[int, ...], method: str) -> np.ndarray:
    """uint8 [h, w, 3] of size `new` (height, width) of RGB pixels of `size`."""
    if not hasattr(_own, "resizer"):
        _own.resizer = Resizer()
    resized = ImageData(new[1], new[0], PixelType.U8x3)
    _own.resizer.resize(ImageData(size[1], size[0], PixelType.U8x3, pixels), resized, FILTERS[method])
    return np.frombuffer(resized.get_buffer(), np.uint8).reshape(*new, 3)


def _resample(images: np.ndarray, size: tuple[int, int], method: Image.Resampling) -> np.ndarray:
    if images.shape[1:3] == tuple(size):
        return images
    resized = [np.asarray(_resized(Image.fromarray(image), size, method)) for image in images]
    return np.stack(resized) if resized else np.zeros((0, *size, 3), np.uint8)


def _resized(picture: Image.Image, size: tuple[int, ...], method: Image.Resampling) -> Image.Image:
    """Without a copy where the size is right."""
    height, width = size
    return picture if picture.size == (width, height) else picture.resize((width, height), method)
