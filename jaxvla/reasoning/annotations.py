"""Reads annotations as they are published: ECoT's JSON and LaRA-VLA's lines. Memory holds one episode at a time.

Published files are patchy. What is missing is simply absent from the records; what is wrong is left out, counted and
named in a `Tally`, and the rest is kept.
"""

import collections
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from typing import Any

from jaxvla.data.files import reading
from jaxvla.reasoning.json_stream import Advance, members
from jaxvla.reasoning.record import Episode, PixelBox, Reasoning, UnitBox

Steps = dict[int, Reasoning]
Point = tuple[int, int]

FRAME_SIDE = 256  # of the frame that ECoT's pixels refer to
GRIPPER_POINTS = 5  # positions that are told ahead, the present one included

# Lists of ECoT's features that have one entry per step, whatever was found there.
_PER_STEP = ("state_3d", "move_primitive", "gripper_position", "gripper_positions", "bboxes")
_TEXTS = ("task", "plan", "subtask_reason", "subtask", "move_reason", "move")
_FAR = 10_000  # no coordinate is farther; a regression may put the gripper outside the frame, but not there
_STEP_DIGITS = 6  # of the largest step number; no episode is as long
_ROUNDING = 1e-3  # by which a box may leave the unit square
_EXAMPLES = 3


@dataclasses.dataclass
class Tally:
    """What a reader met.

    Attributes:
        without_text: steps that have features only.
        without_steps: episodes of which no step is annotated.
        faults: what was left out, by reason.
        examples: the places of the first few of each reason.
    """

    without_text: int = 0
    without_steps: int = 0
    faults: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=lambda: collections.defaultdict(list))

    def fault(self, reason: str, where: str) -> None:
        """Counts one thing that is wrong, and keeps the place of the first few of its kind."""
        self.faults[reason] += 1
        if len(self.examples[reason]) < _EXAMPLES:
            self.examples[reason].append(where)


def ecot_episodes(path: str | os.PathLike, tally: Tally, advance: Advance) -> Iterator[Episode]:
    """The episodes of a JSON file in the layout of `embodied_features_bridge.json` (Zawalski et al. 2024).

    {file_path: {episode_id: {"reasoning": {step: {...}}, "features": {...}, "metadata": {...}}}}. A step has a record
    if it has any text, object box or gripper position. The number of steps is metadata's `n_steps`, else the length of
    the longest list of features; the instruction is metadata's `language_instruction`.

    Args:
        path: the file.
        tally: counts what is missing and what is wrong.
        advance: is told of progress, in bytes.

    Yields:
        Episodes with the key "<file_path>#<episode_id>".

    Raises:
        DataError: the file cannot be read, or is not valid JSON.
    """
    seen = set()
    for names, episode in members(path, 2, advance):
        key = _clean("#".join(names))
        if len(names) < 2 or not isinstance(episode, dict):
            tally.fault("not an episode", key)
        elif key in seen:
            tally.fault("episode given twice, the first counts", key)
        else:
            seen.add(key)
            yield _ecot_episode(key, episode, tally)


def _ecot_episode(key: str, episode: Mapping[str, Any], tally: Tally) -> Episode:
    features = _member(episode, "features", dict, key, tally)
    metadata = _member(episode, "metadata", dict, key, tally)
    longest = max(len(values) if isinstance(values := features.get(name), list) else 0 for name in _PER_STEP)
    steps = _ecot_steps(key, _member(episode, "reasoning", dict, key, tally), features, tally)
    tally.without_steps += not steps
    return Episode(
        key,
        steps,
        _step_count(metadata, "n_steps", key, tally) or longest or None,
        _text(metadata.get("language_instruction"), f"{key}, language_instruction", tally) or "",
    )


def _ecot_steps(key: str, reasoning: Mapping[str, Any], features: Mapping[str, Any], tally: Tally) -> Steps:
    points_name = "gripper_position" if "gripper_position" in features else "gripper_positions"
    points = _member(features, points_name, list, key, tally)
    points = [_point(point, f"{key}, step {t}", tally) for t, point in enumerate(points)]
    objects = _member(features, "bboxes", list, key, tally)
    texts = {}
    for number, parts in _numbered(reasoning, key, tally).items():
        where = f"{key}, step {number}"
        texts[number] = {part: _text(parts.get(part), f"{where}, {part}", tally) for part in _TEXTS}
    steps = {}
    for t in sorted({*texts, *range(max(len(points), len(objects)))}):
        boxes = _objects(objects[t], f"{key}, step {t}", tally) if t < len(objects) else ()
        parts = texts.get(t, {})
        record = Reasoning(**parts, visible_objects=boxes, gripper_positions=_window(points, t))
        if record != Reasoning():
            steps[t] = record
            tally.without_text += not any(parts.values())
    return steps


def _numbered(steps: Mapping[str, Any], where: str, tally: Tally) -> dict[int, dict[str, Any]]:
    """The objects among `steps`, by the number that their names spell."""
    found = {}
    for name, parts in steps.items():
        if not name.isdecimal() or len(name) > _STEP_DIGITS:
            tally.fault("step is not numbered", f"{where}, step {name}")
        elif isinstance(parts, dict):
            found[int(name)] = parts
        elif parts is not None:
            tally.fault("step is not an object", f"{where}, step {name}")
    return found


def _member(values: Mapping[str, Any], name: str, kind: type, where: str, tally: Tally) -> Any:
    """`values[name]`, or an empty `kind` where it is missing or of another kind."""
    value = values.get(name)
    if isinstance(value, kind):
        return value
    if value is not None:
        tally.fault(f"{name} is no {kind.__name__}", where)
    return kind()


def _step_count(values: Mapping[str, Any], name: str, where: str, tally: Tally) -> int | None:
    """The number of an episode's steps that `values[name]` says, if any."""
    value = values.get(name)
    if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 10**_STEP_DIGITS:
        return value
    if value is not None:
        tally.fault(f"{name} is no number of steps", where)
    return None


def _clean(text: str) -> str:
    """`text` without lone halves of surrogate pairs, which JSON can hold and UTF-8 cannot."""
    return text.encode(errors="replace").decode()


def _text(value: Any, where: str, tally: Tally) -> str | None:
    if value is None:
        return None
    if not isinstance(value, str):
        tally.fault("text is no string", where)
        return None
    return _clean(value.strip()) or None


def _numbers(value: Any, count: int) -> list[float] | None:
    """`value` if it is a list of `count` numbers, none of them NaN or absurdly large."""
    if not isinstance(value, list) or len(value) != count:
        return None
    good = all(isinstance(x, int | float) and not isinstance(x, bool) and abs(x) <= _FAR for x in value)
    return [float(x) for x in value] if good else None


def _point(value: Any, where: str, tally: Tally) -> Point | None:
    numbers = _numbers(value, 2)
    if numbers:
        return round(numbers[0]), round(numbers[1])
    if value is not None:
        tally.fault("gripper position is no pixel", where)
    return None


def _window(points: list[Point | None], t: int) -> tuple[Point, ...]:
    """The known points of t and the steps after it, the last repeated; none where that of t is not known."""
    if t >= len(points) or points[t] is None:
        return ()
    known = [point for point in points[t : t + GRIPPER_POINTS] if point]
    return (*known, *known[-1:] * (GRIPPER_POINTS - len(known)))


def _objects(values: Any, where: str, tally: Tally) -> tuple[tuple[str, PixelBox], ...]:
    """The objects of one step, from [[score, name, [x0, y0, x1, y1]], ...], their boxes cut off at the frame."""
    if not isinstance(values, list):
        if values is not None:
            tally.fault("bboxes of a step are no list", where)
        return ()
    objects = []
    for value in values:
        name, box = (value[1], value[2]) if isinstance(value, list) and len(value) == 3 else (None, None)
        numbers = _numbers(box, 4)
        if not isinstance(name, str) or not name.strip() or numbers is None:
            tally.fault("box is not [score, name, [x0, y0, x1, y1]]", where)
            continue
        x0, y0, x1, y1 = (round(min(max(x, 0), FRAME_SIDE)) for x in numbers)
        if x0 >= x1 or y0 >= y1:
            tally.fault("box has no area inside the frame", where)
            continue
        if min(numbers) < 0 or max(numbers) > FRAME_SIDE:
            tally.fault("box cut off at the edge of the frame", where)
        objects.append((_clean(name.strip()), (x0, y0, x1, y1)))
    return tuple(objects)


def lara_episodes(
    captions: str | os.PathLike, boxes: str | os.PathLike | None, tally: Tally, advance: Advance
) -> Iterator[Episode]:
    """The episodes of LaRA-VLA's two files, one JSON object per line, joined by their `episode_index`.

    captions  {"episode_index": i, "steps": {step: {"subtask": str, "reasoning": str, ...}}}
    boxes     {"episode_index": i, "num_steps": n,
               "dense_labels": {"active_bbox": [null | [x0, y0, x1, y1], ...], "active_bbox2": ...}}

    The number of steps is `num_steps`, else the length of the longer list of boxes; captions do not say it, as they
    hold the steps that have words. Neither file knows the instruction.

    Args:
        captions: `episode_dense_captions*.jsonl`.
        boxes: `episode_sam3_bboxes*.jsonl`, or None.
        tally: counts what is missing and what is wrong.
        advance: is told of progress, in bytes.

    Yields:
        Episodes with the key "<episode_index>#0". Those that have boxes only come last.

    Raises:
        DataError: a file cannot be read.
    """
    places = {} if boxes is None else {i: place for i, place, _ in _lines(boxes, tally, advance)}
    done = set()
    for episode, _, line in _lines(captions, tally, advance):
        done.add(episode)
        yield _lara_episode(episode, line, _line_at(boxes, places.get(episode)), tally)
    for episode, place in places.items():
        if episode not in done:
            yield _lara_episode(episode, {}, _line_at(boxes, place), tally)


def _lines(path: str | os.PathLike, tally: Tally, advance: Advance) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """The episode index, the byte position and the content of the first line of each episode."""
    place, seen = 0, set()
    with reading(path), open(path, "rb") as file:
        for number, line in enumerate(file, 1):
            value = _loads(line)
            episode = value.get("episode_index") if isinstance(value, dict) else None
            where = f"{os.fspath(path)}: line {number}"
            if not isinstance(episode, int) or isinstance(episode, bool):
                if line.strip():
                    tally.fault("line holds no episode_index", where)
            elif episode in seen:
                tally.fault("episode given twice, the first counts", where)
            else:
                seen.add(episode)
                yield episode, place, value
            place += len(line)
            advance(len(line))


def _loads(line: bytes) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _line_at(path: str | os.PathLike | None, place: int | None) -> dict[str, Any]:
    """The line at a byte position that `_lines` gave; {} where there is none."""
    if path is None or place is None:
        return {}
    with open(path, "rb") as file:
        file.seek(place)
        return json.loads(file.readline())


def _lara_episode(episode: int, captions: Mapping[str, Any], boxes: Mapping[str, Any], tally: Tally) -> Episode:
    key = f"episode {episode}"
    texts = _member(captions, "steps", dict, key, tally)
    labels = _member(boxes, "dense_labels", dict, key, tally)
    columns = [_member(labels, name, list, key, tally) for name in ("active_bbox", "active_bbox2")]
    numbered = _numbered(texts, key, tally)
    steps = {}
    for t in sorted({*numbered, *range(max(map(len, columns)))}):
        where = f"{key}, step {t}"
        parts = numbered.get(t, {})
        found = [_unit_box(column[t], where, tally) for column in columns if t < len(column)]
        record = Reasoning(
            subtask=_text(parts.get("subtask"), f"{where}, subtask", tally),
            reason=_text(parts.get("reasoning"), f"{where}, reasoning", tally),
            boxes=tuple(box for box in found if box),
        )
        if record != Reasoning():
            steps[t] = record
            tally.without_text += record.subtask is record.reason is None
    tally.without_steps += not steps
    longest = max(map(len, columns))
    return Episode(f"{episode}#0", steps, _step_count(boxes, "num_steps", key, tally) or longest or None)


def _unit_box(value: Any, where: str, tally: Tally) -> UnitBox | None:
    numbers = _numbers(value, 4)
    if numbers and -_ROUNDING <= min(numbers) <= max(numbers) <= 1 + _ROUNDING:
        x0, y0, x1, y1 = (float(min(max(x, 0), 1)) for x in numbers)
        if x0 < x1 and y0 < y1:
            return x0, y0, x1, y1
    if value is not None:
        tally.fault("box is not [x0, y0, x1, y1] with area, from 0 to 1", where)
    return None
