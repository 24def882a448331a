"""The pictures of a film of an episode: its cameras side by side, and its actions below with a line at the present."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Pixels. Everything is even: H.264 keeps colours at half the size.
_HEIGHT, _MARGIN, _STRIP, _LABEL, _VALUE, _PLOT, _STEP, _LEADING, _GAP = 240, 8, 30, 120, 64, 300, 110, 17, 24
_PAPER, _INK, _FAINT, _LINE = (250, 250, 248), (25, 25, 30), (120, 120, 125), (225, 225, 220)
_ACTION, _NOW = (68, 119, 170), (204, 51, 17)
_SIZE = 12
_ROWS = 8  # of strips, before there are more columns


@dataclasses.dataclass(frozen=True)
class _Strip:
    """Where the curve of one action is drawn: left, top and width."""

    left: int
    top: int
    width: int


def draw_film(
    views: Iterator[Mapping[str, np.ndarray]], actions: np.ndarray, names: Sequence[str], texts: Sequence[str]
) -> Iterator[Image.Image]:
    """The pictures, one for each frame, as they come.

    Args:
        views: of each of the T + 1 frames, uint8 [h, w, 3] by camera, always of the same sizes.
        actions: [T, d]; the last frame has none.
        names: of the d dimensions.
        texts: lines above.
    """
    base: Image.Image | None = None
    strips: list[_Strip] = []
    for t, frame in enumerate(views):
        pictures = {name: _scaled(view) for name, view in frame.items()}
        if base is None:
            base, strips = _layout(pictures, actions, names, texts)
        picture = base.copy()
        pen, left = ImageDraw.Draw(picture), _MARGIN
        for view in pictures.values():
            picture.paste(view, (left, _above(texts)))
            left += view.width + _MARGIN
        step = min(t, len(actions) - 1)
        pen.text((picture.width - _MARGIN, _MARGIN), f"step {t} of {len(actions)}", _FAINT, _font(), anchor="ra")
        for d, strip in enumerate(strips):
            x = strip.left + _LABEL + round((strip.width - 1) * step / max(len(actions) - 1, 1))
            pen.line((x, strip.top + 2, x, strip.top + _STRIP - 4), fill=_NOW)
            right = strip.left + _LABEL + strip.width + _VALUE
            pen.text((right, strip.top + _STRIP // 2), f"{actions[step, d]:.3g}", _INK, _font(), anchor="rm")
        yield picture


def _layout(
    pictures: Mapping[str, Image.Image], actions: np.ndarray, names: Sequence[str], texts: Sequence[str]
) -> tuple[Image.Image, list[_Strip]]:
    """All that stays: texts, the names of the cameras and the curves; and where these are."""
    columns = -(-len(names) // _ROWS)
    rows = -(-len(names) // columns)
    own = sum(view.width + _MARGIN for view in pictures.values()) - _MARGIN
    width = max(own, columns * (_LABEL + _PLOT + _VALUE + _GAP) - _GAP)
    each = (width + _GAP) // columns - _GAP - _LABEL - _VALUE
    top = _above(texts) + (max(view.height for view in pictures.values()) + 2 * _SIZE if pictures else 0)
    size = (width + 2 * _MARGIN, top + rows * _STRIP + _MARGIN)
    base = Image.new("RGB", tuple(side + side % 2 for side in size), _PAPER)
    pen, left = ImageDraw.Draw(base), _MARGIN
    for i, text in enumerate(texts):
        pen.text((_MARGIN, _MARGIN + i * _LEADING), _cut(text, base.width - _STEP), _INK, _font())
    for name, view in pictures.items():
        pen.text((left, _above(texts) + view.height + _MARGIN // 2), name, _FAINT, _font())
        left += view.width + _MARGIN
    strips = []
    for d, name in enumerate(names):
        column, row = divmod(d, rows)
        strip = _Strip(_MARGIN + column * (_LABEL + each + _VALUE + _GAP), top + row * _STRIP, each)
        _curve(pen, strip, actions[:, d], name)
        strips.append(strip)
    return base, strips


def _above(texts: Sequence[str]) -> int:
    """Where the cameras begin, in pixels from the top."""
    return 2 * _MARGIN + max(len(texts), 1) * _LEADING - 3


def _curve(pen: ImageDraw.ImageDraw, strip: _Strip, values: np.ndarray, name: str) -> None:
    middle = strip.top + _STRIP // 2
    pen.text((strip.left, middle), _cut(name, _LABEL), _INK, _font(), anchor="lm")
    left, low, high = strip.left + _LABEL, float(values.min()), float(values.max())
    pen.line((left, strip.top + _STRIP - 3, left + strip.width - 1, strip.top + _STRIP - 3), fill=_LINE)
    span = (high - low) or 1.0
    xs = left + np.round(np.linspace(0, strip.width - 1, max(len(values), 2))).astype(int)
    ys = strip.top + _STRIP - 6 - np.round((values.astype(np.float64) - low) / span * (_STRIP - 10)).astype(int)
    pen.line([*zip(xs.tolist(), ys.tolist())], fill=_ACTION)


def _scaled(view: np.ndarray) -> Image.Image:
    height, width = view.shape[:2]
    return Image.fromarray(view).resize((max(round(width * _HEIGHT / height), 1), _HEIGHT), Image.Resampling.BICUBIC)


def _cut(text: str, width: int) -> str:
    """As much of a text as has room; dots stand for the rest."""
    if _font().getlength(text) <= width:
        return text
    while text and _font().getlength(text + "...") > width:
        text = text[:-1]
    return text + "..."


def _font() -> ImageFont.FreeTypeFont:
    """Pillow's own."""
    return ImageFont.load_default(_SIZE)
