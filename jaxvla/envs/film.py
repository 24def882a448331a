"""Films of episodes as animated GIFs: views side by side, words below, and how it ended on the last frame."""

import dataclasses
import functools
import pathlib
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

PANEL, MARGIN, LINE, FONT_SIZE, FONT_WIDTH = 224, 6, 16, 12, 7
PAPER, INK, FAINT = (250, 250, 248), (25, 25, 30), (120, 120, 125)
SUCCESS, FAILURE = (40, 150, 80), (200, 60, 45)

# Lines that a text of the caption is broken into at most.
LINES = 4

# Milliseconds: of a time step at 5 Hz, and of the last frame.
STEP_DURATION, LAST_DURATION = 200, 1600


@dataclasses.dataclass(frozen=True, eq=False)
class Frame:
    """One picture of a film.

    Attributes:
        views: uint8 [h, w, 3] by title, drawn side by side as squares.
        texts: below them, each on lines of its own.
    """

    views: Mapping[str, np.ndarray]
    texts: Sequence[str]


def save_film(path: pathlib.Path, frames: Sequence[Frame], success: bool) -> None:
    """Writes a GIF at the pace of the robot; its last frame stays a while, framed in green (success) or red.

    Args:
        path: to write; its folder is made.
        frames: at least one; all have views of the same titles.
        success: how the episode ended.
    """
    lines = max(len(_lines(frame)) for frame in frames)
    pictures = [_draw(frame, lines) for frame in frames]
    _mark(pictures[-1], success)
    # One palette and no dithering: what stands still keeps its pixels, and the file is a tenth as long.
    palette = _above(pictures[0], pictures[-1]).quantize()
    pictures = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    durations = [STEP_DURATION] * (len(pictures) - 1) + [LAST_DURATION]
    path.parent.mkdir(parents=True, exist_ok=True)
    pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=durations, loop=0)


@functools.cache
def font() -> ImageFont.FreeTypeFont:
    """Pillow's own."""
    return ImageFont.load_default(FONT_SIZE)


def wrap(text: str, width: int, most: int) -> list[str]:
    """Breaks `text` into at most `most` lines of about `width` pixels; what is left out leaves dots."""
    return textwrap.wrap(text, width // FONT_WIDTH, max_lines=most, placeholder=" ...")


def _width(frame: Frame) -> int:
    """Of what is inside the margins; a single view leaves room for words beside it."""
    return max(len(frame.views), 2) * (PANEL + MARGIN) - MARGIN


def _lines(frame: Frame) -> list[str]:
    return [line for text in frame.texts for line in wrap(text, _width(frame), LINES)]


def _draw(frame: Frame, lines: int) -> Image.Image:
    """A picture with room for so many lines."""
    picture = Image.new("RGB", (_width(frame) + 2 * MARGIN, PANEL + (lines + 1) * LINE + 3 * MARGIN), PAPER)
    draw = ImageDraw.Draw(picture)
    for i, (title, view) in enumerate(frame.views.items()):
        left = MARGIN + i * (PANEL + MARGIN)
        picture.paste(Image.fromarray(view).resize((PANEL, PANEL), Image.Resampling.BICUBIC), (left, MARGIN))
        draw.text((left, MARGIN + PANEL), title, FAINT, font())
    for i, line in enumerate(_lines(frame), 1):
        draw.text((MARGIN, 2 * MARGIN + PANEL + i * LINE), line, INK, font())
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
    draw.text((picture.width - 2 * MARGIN, MARGIN + PANEL), word, color, font(), anchor="ra")
