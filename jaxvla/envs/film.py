"""Films of episodes: views side by side, words below, and how it ended on the last frame."""

import contextlib
import dataclasses
import fractions
import functools
import pathlib
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from jaxvla.errors import ConfigError

# Pixels. A panel is a whole multiple of the usual views, and all are even: H.264 keeps colours at half the size.
PANEL, MARGIN, LINE, FONT_SIZE, TITLE_SIZE, FONT_WIDTH = 256, 6, 16, 12, 14, 7
PAPER, INK, FAINT = (250, 250, 248), (25, 25, 30), (120, 120, 125)
SUCCESS, FAILURE = (40, 150, 80), (200, 60, 45)

# Lines that a text of the caption is broken into at most.
LINES = 4

# Hz: of the time steps of the tabletop. Seconds: how long the last frame stays.
FREQUENCY, LAST_SECONDS = 5.0, 1.6

# The suffix of a film where nothing is said, and all that there are.
SUFFIX = ".mp4"
SUFFIXES = (SUFFIX, ".gif")

# The encoder, and how much it keeps: at 18 pixels are off by about 1 of 255.
_ENCODER, _CRF = "libx264", 18
# ITU-T H.273's number of BT.709, for a player is to find the colours that were drawn; and the range 16 to 235.
_BT709, _LIMITED = 1, 1


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a film.

    Attributes:
        views: uint8 [h, w, 3] by title, drawn side by side as squares.
        texts: below them, each on lines of its own; the first, the title of the picture, in larger letters.
    """

    views: Mapping[str, np.ndarray]
    texts: Sequence[str]


def save_film(path: pathlib.Path, frames: Sequence[Frame], success: bool | None, frequency: float = FREQUENCY) -> None:
    """Writes a film at the pace of the robot; its last frame stays a while, framed in green (success) or red.

    Args:
        path: to write, one of `SUFFIXES`: H.264 that browsers play, or a GIF, several times as large. Its folder is
            made.
        frames: at least one; all have views of the same titles.
        success: how the episode ended; None where nobody judged, and nothing is framed.
        frequency: time steps per second, Hz.

    Raises:
        ConfigError: another suffix, no encoder for it, or the file cannot be written.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"{path} is no film: its suffix must be {' or '.join(SUFFIXES)}, not {path.suffix!r}")
    lines = max(len(_lines(frame)) for frame in frames)
    pictures = [_draw(frame, lines) for frame in frames]
    if success is not None:
        _mark(pictures[-1], success)
    if path.suffix == SUFFIX:
        save_pictures(path, pictures, frequency)
    else:
        with _writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            _write_gif(path, pictures, frequency)


def save_pictures(path: pathlib.Path, pictures: Iterable[Image.Image], frequency: float) -> None:
    """Writes drawn pictures as H.264, each as it comes; the last one stays a while.

    Args:
        path: the MP4 to write. Its folder is made.
        pictures: RGB of one size, sides of an even number of pixels; at least one.
        frequency: pictures per second, Hz.

    Raises:
        ConfigError: no encoder, or the file cannot be written.
    """
    with _writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_mp4(path, iter(pictures), frequency)


def check_films(folder: pathlib.Path, suffix: str = SUFFIX) -> None:
    """Makes a folder and tries whether films can be written into it, so that it is known before anything is played.

    Raises:
        ConfigError: as `save_film`.
    """
    path = folder / f".trial{suffix}"
    save_film(path, [Frame({"": np.zeros((2, 2, 3), np.uint8)}, ())], success=True)
    path.unlink()


@contextlib.contextmanager
def _writing(path: pathlib.Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ConfigError(f"the film {path} cannot be written: {error.strerror or error}") from error


def _write_mp4(path: pathlib.Path, pictures: Iterator[Image.Image], frequency: float) -> None:
    import av  # here, for it loads FFmpeg
    from av.video.reformatter import ColorRange, Colorspace

    try:
        av.Codec(_ENCODER, "w")
    except av.codec.codec.UnknownCodecError as error:
        raise ConfigError(
            f"the FFmpeg of PyAV {av.__version__} has no encoder {_ENCODER}, which {path.suffix} films need: install a "
            "PyAV that has it (pip install --force-reinstall av), or give --video_format=gif"
        ) from error
    first = next(pictures)
    # The table of its frames first, so that a browser plays what it has while the rest is on its way.
    with av.open(path, "w", format="mp4", options={"movflags": "+faststart"}) as container:
        rate = fractions.Fraction(frequency).limit_denominator(1000)
        stream = container.add_stream(_ENCODER, rate=rate, options={"crf": str(_CRF)})
        stream.width, stream.height, stream.pix_fmt = *first.size, "yuv420p"
        codec = stream.codec_context
        codec.thread_count = 1  # else what is kept depends on the number of cores
        codec.colorspace = codec.color_primaries = codec.color_trc = _BT709
        codec.color_range = _LIMITED
        for picture in _held(first, pictures, round(LAST_SECONDS * frequency - 1)):
            frame = av.VideoFrame.from_image(picture).reformat(
                format="yuv420p", dst_colorspace=Colorspace.ITU709, dst_color_range=ColorRange.MPEG
            )
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def _held(first: Image.Image, others: Iterable[Image.Image], times: int) -> Iterator[Image.Image]:
    """All pictures, and the last one so many times more."""
    last = first
    yield first
    for last in others:
        yield last
    yield from [last] * times


def _write_gif(path: pathlib.Path, pictures: Sequence[Image.Image], frequency: float) -> None:
    # One palette and no dithering: what stands still keeps its pixels, and the file is a tenth as long.
    palette = _above(pictures[0], pictures[-1]).quantize()
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [round(1000 / frequency)] * (len(pictures) - 1) + [round(1000 * LAST_SECONDS)]
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


@functools.cache
def font(size: int = FONT_SIZE) -> ImageFont.FreeTypeFont:
    """Pillow's own."""
    return ImageFont.load_default(size)


def wrap(text: str, width: int, most: int) -> list[str]:
    """Breaks `text` into at most `most` lines of about `width` pixels; what is left out leaves dots."""
    return textwrap.wrap(text, width // FONT_WIDTH, max_lines=most, placeholder=" ...")


def _width(frame: Frame) -> int:
    """Of what is inside the margins; a single view leaves room for words beside it."""
    return max(len(frame.views), 2) * (PANEL + MARGIN) - MARGIN


def _lines(frame: Frame) -> list[tuple[str, int]]:
    """The lines of the caption, and the size of the letters of each."""
    sizes = [TITLE_SIZE, *[FONT_SIZE] * len(frame.texts)]
    return [(line, size) for text, size in zip(frame.texts, sizes) for line in wrap(text, _width(frame), LINES)]


def _draw(frame: Frame, lines: int) -> Image.Image:
    """A picture with room for so many lines."""
    picture = Image.new("RGB", (_width(frame) + 2 * MARGIN, PANEL + (lines + 1) * LINE + 3 * MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    for i, (title, view) in enumerate(frame.views.items()):
        left = MARGIN + i * (PANEL + MARGIN)
        picture.paste(Image.fromarray(view).resize((PANEL, PANEL), Image.Resampling.BICUBIC), (left, MARGIN))
        draw.text((left, MARGIN + PANEL), title, FAINT, font())
    for i, (line, size) in enumerate(_lines(frame), 2):
        draw.text((MARGIN, MARGIN + PANEL + i * LINE), line, INK, font(size), anchor="ls")
    return picture


def _above(picture: Image.Image, other: Image.Image) -> Image.Image:
    both = Image.new("RGB", (picture.width, picture.height + other.height))
    both.paste(picture, (0, 0))
    both.paste(other, (0, picture.height))
    return both


def _mark(picture: Image.Image, success: bool) -> None:
    color, word = (SUCCESS, "success") if success else (FAILURE, "failure")
    draw = ImageDraw.Draw(picture)
    draw.rectangle((0, 0, picture.width - 1, picture.height - 1), outline=color, width=MARGIN - 1)
    draw.text((picture.width - 2 * MARGIN, MARGIN + PANEL), word, color, font(TITLE_SIZE), anchor="ra")
