"""What is wrong with a dataset, or may be: each finding with its severity, where it is, and how it is mended."""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from jaxvla.data.inspection.measures import Measures
from jaxvla.data.inspection.pictures import Camera, Pictures
from jaxvla.data.inspection.recordings import Recordings
from jaxvla.data.transforms.action_checks import ENOUGH, EXPLAINED, check_actions
from jaxvla.errors import ConfigError

ERROR, WARNING, NOTE = "error", "warning", "note"
SEVERITIES = (ERROR, WARNING, NOTE)

_SHORT = 2  # steps

# By the beginning of the reason for which an episode cannot be used: the kind of finding, and the mend.
_LEFT_OUT = {
    "actions are not finite": ("not finite", "record them again, or cut the steps out when converting"),
    "states are not finite": ("not finite", "record them again, or cut the steps out when converting"),
    "language vectors are not finite": ("not finite", "make the vectors again"),
    "fewer than": ("short", "leave them out when converting; there is nothing to learn from them"),
}
_OTHERWISE = ("left out", "repair or remove them; training leaves them out, too")


@dataclasses.dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        severity: `ERROR`, where training would leave data out, refuse it, or judge itself by what it has seen;
            `WARNING`, where it would learn what is wrong; or `NOTE`, where it may be meant so.
        kind: in a word or two, the same for the same kind of fault.
        what: a sentence.
        where: the episodes, or the places in files; empty where it is of the whole dataset.
        mend: what to do.
    """

    severity: str
    kind: str
    what: str
    where: tuple[str, ...]
    mend: str


def find(recordings: Recordings, measures: Measures, pictures: Pictures) -> tuple[Finding, ...]:
    """All findings, the severest first."""
    found = [
        *_left_out(recordings),
        *_refused(recordings),
        *_cameras(recordings, measures, pictures),
        *_movement(recordings, measures),
        *_actions(recordings, measures),
        *_states(recordings, measures),
        *_episodes(recordings, measures),
        *_language(recordings, measures),
    ]
    return tuple(sorted(found, key=lambda finding: SEVERITIES.index(finding.severity)))


def counted(findings: Iterable[Finding]) -> str:
    """How many there are of each severity, such as "1 error, 2 warnings"."""
    counts = collections.Counter(finding.severity for finding in findings)
    return ", ".join(plural(counts[name], name) for name in SEVERITIES if counts[name]) or "none"


def plural(count: int, word: str) -> str:
    """A count of something, such as "1 error" or "1,234 steps"."""
    return f"{count:,} {word}{'' if count == 1 else 's'}"


def _names(recordings: Recordings, rows: Iterable[int] | np.ndarray) -> tuple[str, ...]:
    return tuple(recordings.name(int(row)) for row in rows)


def _of(count: int, total: int) -> str:
    """How many of the episodes that were looked at."""
    return f"all {plural(total, 'episode')}" if count == total else f"{count:,} of {plural(total, 'episode')}"


def _left_out(recordings: Recordings) -> Iterator[Finding]:
    reasons: dict[str, list[str]] = {}
    for reason, detail in recordings.skipped:
        reasons.setdefault(reason, []).append(detail)
    total = sum(recordings.counts)
    for reason, details in reasons.items():
        kind, mend = next((own for start, own in _LEFT_OUT.items() if reason.startswith(start)), _OTHERWISE)
        yield Finding(ERROR, kind, f"{_of(len(details), total)} cannot be used: {reason}.", tuple(details), mend)


def _refused(recordings: Recordings) -> Iterator[Finding]:
    if not recordings.said:
        return
    try:
        check_actions(recordings.source, recordings.convention)
    except ConfigError as error:
        what, _, mend = str(error).rpartition(": ")
        yield Finding(ERROR, "refused", f"A training run with this config refuses the actions: {what}.", (), mend)


def remarks(recordings: Recordings) -> tuple[str, ...]:
    """What a training run would say of the actions at its start; nothing where it would refuse them."""
    try:
        return check_actions(recordings.source, recordings.convention) if recordings.said else ()
    except ConfigError:
        return ()


def _cameras(recordings: Recordings, measures: Measures, pictures: Pictures) -> Iterator[Finding]:
    for camera in pictures.cameras:
        if len(camera.missing):
            details = tuple(detail for name, detail in recordings.faults if name == camera.name)
            what = f"Camera {camera.name} lacks in {_of(len(camera.missing), len(recordings.source))}."
            mend = "record or convert it again, or train on the other cameras (bridgedata_config.cameras)"
            yield Finding(ERROR, "no camera", what, details or _names(recordings, camera.missing), mend)
        if camera.unreadable:
            places = tuple(f"{recordings.name(row)}: {what}" if row >= 0 else what for row, what in camera.unreadable)
            what = f"Frames of camera {camera.name} cannot be read."
            yield Finding(ERROR, "unreadable frames", what, places, "make or download these files again")
        yield from _dark(recordings, camera)
        frozen = camera.rows[camera.frozen & (camera.black + camera.plain == 0) & ~measures.still[camera.rows]]
        if len(frozen):
            what = f"Camera {camera.name} is frozen in {_of(len(frozen), len(camera.rows))}: its frames are all equal."
            mend = "leave these episodes or the camera out; look at how frames are taken from its driver"
            yield Finding(WARNING, "frozen camera", what, _names(recordings, frozen), mend)


def _dark(recordings: Recordings, camera: Camera) -> Iterator[Finding]:
    for kind, counts, looks in (("black", camera.black, "black"), ("one colour", camera.plain, "of one colour")):
        count, wrong = int(counts.sum()), camera.rows[counts > 0]
        if not count:
            continue
        what = f"Camera {camera.name} is {looks} throughout: all {camera.frames:,} frames that were looked at."
        if count < camera.frames:
            what = (
                f"{count:,} of {camera.frames:,} frames of camera {camera.name} are {looks}, in "
                f"{_of(len(wrong), len(camera.rows))}."
            )
        mend = "train on the other cameras (bridgedata_config.cameras), or leave these episodes out"
        places = () if count == camera.frames else _names(recordings, wrong)
        yield Finding(WARNING, f"{kind} camera", what, places, mend)


def _movement(recordings: Recordings, measures: Measures) -> Iterator[Finding]:
    still = np.flatnonzero(measures.still)
    if len(still):
        what = f"Nothing moves in {_of(len(still), len(measures.still))}: no state leaves 1 % of its range."
        mend = "leave them out when converting: a policy learns from them to stand still"
        yield Finding(WARNING, "static episodes", what, _names(recordings, still), mend)


def _actions(recordings: Recordings, measures: Measures) -> Iterator[Finding]:
    yield from _grippers(recordings, measures)
    explanation = measures.explanation
    count, moving = len(recordings.source.actions), np.flatnonzero(explanation.moving)
    if len(moving) and count >= ENOUGH:
        lost = moving[~explanation.explained[moving]]
        names = ", ".join(measures.actions.names[d] for d in lost)
        if len(lost) * 2 > len(moving):
            what = (
                f"The actions do not explain the states: {names} correlate by less than {EXPLAINED} with the change of "
                "the proprio of the same number, by less than 0.5 with that of any other, and are no states themselves."
            )
            mend = "look whether actions and states are of the same steps, robot and frame, and in the right columns"
            yield Finding(WARNING, "unexplained actions", what, (), mend)
        elif len(lost):
            what = f"Unlike the others, these actions do not explain the states: {names}."
            yield Finding(NOTE, "unexplained dimensions", what, (), "look whether they are what they are taken for")
    rows = np.flatnonzero(measures.unexplained)
    if len(rows):
        what = f"In {_of(len(rows), len(measures.still))} the actions have nothing to do with how the states change."
        mend = "look whether actions and states belong together there, and to the same steps"
        yield Finding(WARNING, "unexplained episodes", what, _names(recordings, rows), mend)


def _grippers(recordings: Recordings, measures: Measures) -> Iterator[Finding]:
    mend = "look at the units of its values (bridgedata_config.actions.open, closed), or leave these episodes out"
    total = len(measures.still)
    for k, d in enumerate(measures.grippers):
        verbs = (
            ("never opens", "never closes")
            if recordings.said
            else ("is never at its high end", "is never at its low end")
        )
        for verb, does in zip(verbs, (measures.opens[:, k], measures.closes[:, k])):
            never = np.flatnonzero(~does)
            if len(never) == total:
                yield Finding(WARNING, "gripper", f"The gripper {verb} (dimension {d} of the actions).", (), mend)
            elif len(never):
                what = f"The gripper {verb} in {_of(len(never), total)} (dimension {d} of the actions)."
                own = "nothing, if the task needs no grasp; else leave them out"
                yield Finding(NOTE, "gripper", what, _names(recordings, never), own)
    last = len(measures.actions.names) - 1
    constant = measures.actions.constant
    if not recordings.said and not measures.grippers and constant[last] and not constant.all():
        value = measures.actions.statistics.min[last]
        what = f"The last action never changes ({value:g}); if it is a gripper, it neither opens nor closes."
        yield Finding(NOTE, "gripper", what, (), "look at how it was recorded")


def _states(recordings: Recordings, measures: Measures) -> Iterator[Finding]:
    handled = recordings.convention.angles if recordings.convention.wrap else ()
    turning = measures.turns[~np.isin(measures.turns[:, 1], handled)]
    if len(turning):
        dims = tuple(np.unique(turning[:, 1]).tolist())
        angles = tuple(sorted({*recordings.convention.angles, *dims}))
        names = ", ".join(measures.proprio.names[d] for d in dims)
        what = f"Angles turn by 2 pi from one step to the next: {names}, {plural(len(turning), 'time')}."
        mend = f"unwrap them, or set bridgedata_config.actions.angles={angles} and wrap=True where they are relabelled"
        yield Finding(WARNING, "wrapped angles", what, _steps(recordings, turning[:, 0]), mend)
    if len(measures.jumps):
        names = ", ".join(measures.proprio.names[d] for d in np.unique(measures.jumps[:, 1]))
        what = f"States jump, {plural(len(measures.jumps), 'time')}: {names} over half of their range in one step."
        mend = "cut the episodes there: steps or connections were lost, or the robot was moved by hand"
        yield Finding(WARNING, "jumps", what, _steps(recordings, measures.jumps[:, 0]), mend)
    fields = {"actions": (measures.actions, recordings.source.action_starts)}
    fields["states"] = (measures.proprio, recordings.source.frame_starts)
    for name, (field, starts) in fields.items():
        if len(field.far):
            dims = ", ".join(field.names[d] for d in np.unique(field.far[:, 1]))
            what = f"Far outside of the other values of the {name}: {plural(len(field.far), 'value')} ({dims})."
            mend = "look at these steps; bounds_q99 normalization clips them, the others are scaled by them"
            yield Finding(WARNING, "outliers", what, _steps(recordings, field.far[:, 0], starts), mend)


def _steps(recordings: Recordings, rows: np.ndarray, starts: np.ndarray | None = None) -> tuple[str, ...]:
    """The episodes of transitions or frames, each with the steps."""
    starts = recordings.source.action_starts if starts is None else starts
    steps: dict[int, list[int]] = {}
    for row in np.unique(rows).tolist():
        episode = int(np.searchsorted(starts, row, "right")) - 1
        steps.setdefault(episode, []).append(row - int(starts[episode]))
    return tuple(f"{recordings.name(episode)}: step {_listed(own)}" for episode, own in steps.items())


def _listed(numbers: Sequence[int], most: int = 5) -> str:
    return ", ".join(map(str, numbers[:most])) + (" ..." if len(numbers) > most else "")


def _episodes(recordings: Recordings, measures: Measures) -> Iterator[Finding]:
    short = np.flatnonzero(measures.lengths <= _SHORT)
    if len(short):
        what = f"Of {_SHORT} steps or fewer: {_of(len(short), len(measures.still))}."
        mend = "leave them out when converting, if the task takes longer"
        yield Finding(NOTE, "short", what, _names(recordings, short), mend)
    splits = recordings.split_of[recordings.numbers]
    across = [rows for rows in measures.duplicates if len({*splits[[*rows]].tolist()}) > 1]
    within = [rows for rows in measures.duplicates if rows not in across]
    for groups, severity, what, mend in (
        (
            across,
            ERROR,
            "Stored in several splits",
            "remove them from all but one: validation shows what was trained on",
        ),
        (within, WARNING, "Stored several times", "keep one of each, unless they are to weigh more"),
    ):
        if groups:
            places = tuple(_equal(recordings, rows) for rows in groups)
            text = f"{what}: {plural(len(groups), 'episode')}, with the same actions and states."
            yield Finding(severity, "duplicates", text, places, mend)
    copies = {row for rows in measures.duplicates for row in rows[1:]}  # which are named above
    keys = collections.Counter(key for row, key in enumerate(recordings.source.keys) if row not in copies)
    again = [key for key, count in keys.items() if count > 1]
    if again:
        what = f"Keys that name several episodes: {len(again):,}."
        mend = "give each episode its own: annotations join by them"
        yield Finding(WARNING, "duplicate keys", what, tuple(f"{key} ({keys[key]} times)" for key in again), mend)


def _equal(recordings: Recordings, rows: Sequence[int]) -> str:
    """Episodes that are one and the same; the key, which may be long, once where they share it."""
    *others, last = rows
    alike = len({recordings.source.keys[row] for row in rows}) == 1
    names = [recordings.place(row) if alike else recordings.name(row) for row in others]
    return " = ".join([*names, recordings.name(last)])


def _language(recordings: Recordings, measures: Measures) -> Iterator[Finding]:
    total, none = len(measures.labelled), np.flatnonzero(measures.labelled == 0)
    mend = "add instructions; goals need none (config.data.skip_unlabeled leaves such steps out)"
    if len(none) == total:
        yield Finding(
            WARNING, "no language", "No episode has an instruction.", (), " ".join([mend, *_hint(recordings)])
        )
        return
    if len(none):
        what = f"Without an instruction: {_of(len(none), total)}."
        yield Finding(WARNING, "no language", what, _names(recordings, none), mend)
    partly = np.flatnonzero((measures.labelled > 0) & (measures.labelled < 1))
    if len(partly):
        what = f"Without an instruction in some of their steps: {_of(len(partly), total)}."
        yield Finding(NOTE, "language in part", what, _names(recordings, partly), mend)


def _hint(recordings: Recordings) -> list[str]:
    return [f"({' '.join(note.split())})" for note in recordings.notes if note.startswith("language")]
