"""What was found, as lines for a terminal."""

from collections.abc import Sequence

import numpy as np

from jaxvla.data.inspection.findings import Finding, counted, plural
from jaxvla.data.inspection.measures import Field, Measures
from jaxvla.data.inspection.page import duration
from jaxvla.data.inspection.pictures import Pictures
from jaxvla.data.inspection.recordings import Recordings
from jaxvla.data.transforms.images import size_text

_TEXTS, _PLACES = 3, 3


def summarize(
    recordings: Recordings, measures: Measures, pictures: Pictures, findings: Sequence[Finding]
) -> tuple[str, ...]:
    """The lines."""
    total, looked, steps = sum(recordings.counts), len(measures.lengths), int(measures.lengths.sum())
    splits = ", ".join(f"{name} {count}" for name, count in zip(recordings.splits, recordings.counts))
    lengths, rate = measures.lengths, recordings.control_frequency
    seen = "" if looked == total else f", {looked} of them looked at"
    spread = f"{lengths.min()} to {lengths.max()} of each, median {np.median(lengths):g}"
    lines = [
        f"dataset      {recordings.root} ({recordings.format})",
        f"episodes     {total} ({splits}){seen}",
        f"steps        {steps}, {spread}" + (f"; {duration(steps / rate)} at {rate:g} Hz" if rate else ""),
    ]
    for camera in pictures.cameras:
        sizes = ", ".join(map(size_text, camera.sizes)) or "not known"
        lines.append(f"camera       {camera.name} {sizes}, {camera.frames} frames looked at")
    share = float((measures.labelled * lengths).sum() / steps)
    texts = _common_texts(recordings)
    lines.append(f"language     {share:.1%} of the steps, {texts}")
    lines += [f"{name:<12} {_ranges(field)}" for name, field in _fields(measures).items()]
    lines += recordings.notes
    lines.append(f"findings     {counted(findings)}")
    for finding in findings:
        lines.append(f"  {finding.severity:<8} {finding.kind}: {finding.what}")
        lines += [f"           {place}" for place in finding.where[:_PLACES]]
        if len(finding.where) > _PLACES:
            lines.append(f"           and {len(finding.where) - _PLACES} more")
    return tuple(lines)


def _fields(measures: Measures) -> dict[str, Field]:
    return {"actions": measures.actions, "proprio": measures.proprio}


def _ranges(field: Field) -> str:
    s = field.statistics
    return f"{len(field.names)}: " + ", ".join(
        f"{name} {low:.3g}" if still else f"{name} {low:.3g}..{high:.3g}"
        for name, low, high, still in zip(field.names, s.min, s.max, field.constant)
    )


def _common_texts(recordings: Recordings) -> str:
    counts: dict[str, int] = {}
    for texts in recordings.source.language:
        for text in dict.fromkeys(texts):
            counts[text] = counts.get(text, 0) + 1
    common = sorted(counts, key=lambda text: -counts[text])[:_TEXTS]
    shown = ", ".join(f"{text!r} ({counts[text]})" for text in common)
    return plural(len(counts), "different instruction") + (f": {shown}" if shown else "")
