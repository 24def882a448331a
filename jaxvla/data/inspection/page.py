"""The page of an inspection: one HTML file that needs no other and no network."""

import base64
import collections
import html
from collections.abc import Iterable, Sequence

import numpy as np

from jaxvla.data.inspection import plots
from jaxvla.data.inspection.findings import Finding, counted, plural
from jaxvla.data.inspection.measures import Explanation, Field, Measures
from jaxvla.data.inspection.pictures import Camera, Pictures
from jaxvla.data.inspection.recordings import Recordings
from jaxvla.data.inspection.style import CSS
from jaxvla.data.transforms.images import size_text

# How many episodes have their actions drawn, texts are listed, and places of a finding.
PLOTS, TEXTS, PLACES = 4, 20, 500


def render(
    recordings: Recordings,
    measures: Measures,
    pictures: Pictures,
    findings: Sequence[Finding],
    remarks: Sequence[str],
) -> str:
    """The whole page.

    Args:
        recordings, measures, pictures, findings: of the dataset.
        remarks: what a training run would say of its actions.
    """
    title = html.escape(str(recordings.root))
    sections = [
        _head(recordings, measures, findings),
        _findings(findings),
        _episodes(recordings, measures),
        _cameras(recordings, pictures),
        _actions(recordings, measures, pictures, remarks),
        f"<h2>Proprio</h2>{_field(measures.proprio)}",
        _language(recordings, measures),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{CSS}</style></head>\n<body>\n{''.join(sections)}</body></html>\n"
    )


def _head(recordings: Recordings, measures: Measures, findings: Sequence[Finding]) -> str:
    steps, rate = int(measures.lengths.sum()), recordings.control_frequency
    total, looked = sum(recordings.counts), len(measures.lengths)
    length = f", {duration(steps / rate)} in all" if rate else ""
    share = float((measures.labelled * measures.lengths).sum() / steps)
    taught = float(recordings.source.taught.mean())
    tiles = [
        (f"{looked:,}", "episodes" if looked == total else f"episodes looked at, of {total:,}"),
        (f"{steps:,}", "steps"),
        (f"{rate:g} Hz" if rate else "not known", f"steps a second{length}"),
        (str(len(recordings.cameras)), "camera" if len(recordings.cameras) == 1 else "cameras"),
        (f"{share:.0%}", "of the steps with an instruction"),
        (f"{measures.idle:.1%}", "of the steps in which nothing moves"),
        *([] if taught == 1 else [(f"{taught:.1%}", "of the steps are to be learned")]),
        (str(len(findings)), f"findings: {counted(findings)}" if findings else "findings"),
    ]
    cells = "".join(f'<div class="tile"><b>{value}</b><span>{html.escape(what)}</span></div>' for value, what in tiles)
    notes = "".join(f'<p class="faint">{html.escape(note)}</p>' for note in recordings.notes)
    return (
        f'<h1>{html.escape(str(recordings.root))}</h1><p class="faint">{recordings.format}</p>'
        f'<div class="tiles">{cells}</div>{notes}\n'
    )


def duration(seconds: float) -> str:
    """A time, such as "3 h 12 min"."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(int(seconds // 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"


def _findings(findings: Sequence[Finding]) -> str:
    if not findings:
        return "<h2>Findings</h2><p>None: nothing of what is looked for was found.</p>\n"
    return f"<h2>Findings</h2>{''.join(map(_finding, findings))}\n"


def _finding(finding: Finding) -> str:
    places = ""
    if finding.where:
        shown = "".join(f"<li>{html.escape(place)}</li>" for place in finding.where[:PLACES])
        more = len(finding.where) - PLACES
        shown += f"<li>and {more:,} more</li>" if more > 0 else ""
        is_open = " open" if len(finding.where) <= 3 else ""
        places = f"<details{is_open}><summary>where ({len(finding.where):,})</summary><ul>{shown}</ul></details>"
    return (
        f'<div class="card finding {finding.severity}"><span class="badge">{finding.severity}</span>'
        f"<b>{html.escape(finding.kind)}</b><p>{html.escape(finding.what)}</p>"
        f'<p class="faint">{html.escape(finding.mend[0].upper() + finding.mend[1:])}.</p>{places}</div>\n'
    )


def _episodes(recordings: Recordings, measures: Measures) -> str:
    lengths, splits = measures.lengths, recordings.split_of[recordings.numbers]
    rows = []
    for i, (name, count) in enumerate(zip(recordings.splits, recordings.counts)):
        own = lengths[splits == i]
        shortest, middle, longest = (f"{f(own):g}" if len(own) else "" for f in (np.min, np.median, np.max))
        rows.append(
            (html.escape(name), f"{count:,}", f"{len(own):,}", f"{int(own.sum()):,}", shortest, middle, longest)
        )
    heads = ("split", "#stored", "#looked at", "#steps", "#shortest", "#median", "#longest")
    return (
        f"<h2>Episodes</h2>{table(heads, rows)}"
        f'<h3>Lengths</h3><div class="card"><figure>{_image(plots.draw_lengths(lengths))}</figure></div>\n'
    )


def _cameras(recordings: Recordings, pictures: Pictures) -> str:
    heads = ("camera", "stored", "looked at", "brightness of frames", "mean colour", "#black", "#one colour", "#frozen")
    rows = table(heads, [_camera(camera) for camera in pictures.cameras])
    cards = [_card(recordings, row, views) for row, views in pictures.sheet.items() if views]
    sheet = "".join(cards)
    if not cards:
        return f"<h2>Cameras</h2>{rows}\n"
    return f'<h2>Cameras</h2>{rows}<h3>First, middle and last frames</h3><div class="sheet">{sheet}</div>\n'


def _camera(camera: Camera) -> tuple[str, ...]:
    red, green, blue = (round(value) for value in camera.mean.tolist())
    sizes = ", ".join(size_text(size) for size in camera.sizes) or "not known"
    return (
        html.escape(camera.name),
        sizes,
        f"{plural(camera.frames, 'frame')} of {plural(len(camera.rows), 'episode')}",
        bars(camera.brightness),
        f'<span class="swatch" style="background:rgb({red},{green},{blue})"></span>',
        plural(int(camera.black.sum()), "frame"),
        plural(int(camera.plain.sum()), "frame"),
        plural(int(camera.frozen.sum()), "episode"),
    )


def _card(recordings: Recordings, row: int, views: dict[str, tuple[bytes, ...]]) -> str:
    texts = recordings.source.language[row]
    text = f"<br>{html.escape(texts[0])}" if texts else ""
    cameras = "".join(
        f'<div class="views">{"".join(_image(data, "jpeg", camera, "") for data in frames)}</div>'
        f'<div class="faint">{html.escape(camera)}</div>'
        for camera, frames in views.items()
    )
    steps = plural(int(recordings.source.lengths[row]), "step")
    caption = f"<figcaption><b>{html.escape(recordings.name(row))}</b>, {steps}{text}</figcaption>"
    return f'<figure class="card">{caption}{cameras}</figure>\n'


def _actions(recordings: Recordings, measures: Measures, pictures: Pictures, remarks: Sequence[str]) -> str:
    said = "".join(f"<li>{html.escape(remark)}</li>" for remark in remarks)
    said = f"<p>A training run will say of them:</p><ul>{said}</ul>" if said else ""
    shown = [*pictures.sheet, *range(len(measures.lengths))][:PLOTS]
    drawn = "".join(
        f'<figure class="card"><figcaption><b>{html.escape(recordings.name(row))}</b></figcaption>'
        f"{_image(plots.draw_actions(recordings, measures, row))}</figure>"
        for row in dict.fromkeys(shown)
    )
    wide = " wide" if len(measures.actions.names) > plots.ROWS else ""
    key = (
        '<p class="faint key"><i style="background:#4477aa"></i>action &ensp; <i style="background:#cc7711"></i>change '
        "of the state of the same number, where the action is a movement of it</p>"
    )
    return (
        f"<h2>Actions</h2>{_field(measures.actions, measures.explanation)}{said}"
        f'<h3>Over time</h3>{key}<div class="plots{wide}">{drawn}</div>\n'
    )


def _field(field: Field, explanation: Explanation | None = None) -> str:
    heads = ["dimension", "", "values", *("#min", "#1 %", "#mean", "#deviation", "#99 %", "#max")]
    heads += ["#with its state", "better with another"] if explanation else []
    rows, s = [], field.statistics
    for d, name in enumerate(field.names):
        figures = [f"{x[d]:.4g}" for x in (s.min, s.q01, s.mean, s.std, s.q99, s.max)]
        row = [html.escape(name), _flags(field, explanation, d), bars(field.histograms[d]), *figures]
        if explanation:
            row += _correlations(explanation, d)
        rows.append(tuple(row))
    return table(heads, rows)


def _flags(field: Field, explanation: Explanation | None, d: int) -> str:
    flags = []
    if field.constant[d]:
        flags.append('<span class="badge warning">constant</span>')
    elif field.switches[d]:
        flags.append('<span class="badge">two values</span>')
    if explanation and explanation.moving[d] and not explanation.explained[d]:
        flags.append('<span class="badge warning">unexplained</span>')
    return " ".join(flags)


def _correlations(explanation: Explanation, d: int) -> list[str]:
    if not explanation.moving[d]:
        return ["", ""]
    own = "" if np.isnan(explanation.own[d]) else f"{explanation.own[d]:.2f}"
    if abs(explanation.best[d]) == explanation.own[d]:
        return [own, ""]
    return [own, f"{explanation.best[d]:.2f} with {html.escape(explanation.what[d])}"]


def _language(recordings: Recordings, measures: Measures) -> str:
    counts = collections.Counter(text for texts in recordings.source.language for text in dict.fromkeys(texts))
    if not counts:
        return ""
    episodes = len(measures.lengths)
    rows = [(html.escape(text), f"{count:,}", f"{count / episodes:.1%}") for text, count in counts.most_common(TEXTS)]
    shown = f", of which the {TEXTS} commonest are these" if len(counts) > TEXTS else ""
    lead = f'<p class="faint">{plural(len(counts), "different instruction")}{shown}.</p>'
    return f"<h2>Language</h2>{lead}{table(('instruction', '#episodes', '#share'), rows, 'text')}\n"


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], first: str = "name") -> str:
    """A table in a frame of its own that scrolls; cells are HTML.

    Args:
        heads: of the columns; those of figures begin with "#".
        rows: the cells.
        first: the class of the first column, "name" or "text".
    """
    kinds = ["number" if head.startswith("#") else "" for head in heads]
    head = "".join(f'<th class="{kind}">{name.removeprefix("#")}</th>' for kind, name in zip(kinds, heads))
    body = "".join(_row(cells, [first, *kinds[1:]]) for cells in rows)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _row(cells: Sequence[str], kinds: Sequence[str]) -> str:
    return "<tr>" + "".join(f'<td class="{kind}">{cell}</td>' for kind, cell in zip(kinds, cells)) + "</tr>"


def bars(counts: np.ndarray) -> str:
    """A histogram as a small drawing."""
    top = max(int(counts.max()), 1)
    parts = "".join(
        f'<rect x="{4 * i}" y="{26 - height:.1f}" width="3.4" height="{height:.1f}"/>'
        for i, count in enumerate(counts.tolist())
        if (height := max(26 * count / top, 0.8) if count else 0)
    )
    return f'<svg class="bars" viewBox="0 0 {4 * len(counts)} 26" fill="currentColor" role="img">{parts}</svg>'


def _image(data: bytes, kind: str = "png", alt: str = "", style: str = "plot") -> str:
    content = base64.b64encode(data).decode()
    css = f' class="{style}"' if style else ""
    return f'<img{css} alt="{html.escape(alt)}" src="data:image/{kind};base64,{content}">'
