"""The episodes of a LeRobotDataset, to be written as one of another version: columns as they are, videos copied."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from jaxvla.data.conversion.lerobot.episode import RESERVED, VIDEO, Clip, Episode, Episodes, arrow_type
from jaxvla.data.conversion.lerobot.statistics import MOMENTS
from jaxvla.data.files import reading
from jaxvla.data.formats import lerobot_meta, parquet, video
from jaxvla.data.formats.lerobot import find_frames, find_rows, stamp_of
from jaxvla.data.formats.lerobot_meta import Info
from jaxvla.data.formats.rlds_features import DEPTH
from jaxvla.data.skipping import UnusableError
from jaxvla.errors import DataError

_TASK = "task_index"
_PLACES = ("episode_index", "frame_index", "timestamp")
_OF_PICTURES = {**dict.fromkeys(MOMENTS, (3, 1, 1)), "count": (1,)}


def open_lerobot(root: pathlib.Path) -> Episodes:
    """All episodes of a dataset, numbered anew from 0 where its own numbers have gaps.

    Raises:
        DataError: as `lerobot_meta.read_info`; no episodes, videos of depth, or splits that are no parts of it.
    """
    info = lerobot_meta.read_info(root)
    with reading(info.path):
        said = json.loads(info.path.read_text())
    depth = [name for name, feature in info.features.items() if (feature.kind, feature.dtype) == (DEPTH, VIDEO)]
    if depth:
        raise DataError(f"{info.path}: {depth[0]!r} are videos of depth, which are not copied: remove the feature")
    if not info.episodes:
        raise DataError(f"{root}: has no episodes to convert: download it again")
    with reading(root):
        stamp = stamp_of(info)
        source = _Source(info, _features(said), info.tasks() if _TASK in info.features else {}, _statistics(info))
    robot = said.get("robot_type")
    return Episodes(stamp, info.fps, robot and str(robot), _splits(info), source.read)


@dataclasses.dataclass(frozen=True, eq=False)
class _Source:
    """A dataset: its meta, its features by info.json, its tasks, and by episode what is known of its cameras."""

    info: Info
    features: Mapping[str, Mapping[str, Any]]
    tasks: Mapping[int, str]
    statistics: Mapping[int, Mapping[str, Mapping[str, Any]]]

    def read(self, number: int) -> Episode:
        """Episode `number`, in their order."""
        episode = self.info.episodes[number]
        path = str(self.info.root / episode.data)
        where = f"{path}: episode {episode.number}"
        columns = [name for name, feature in self.features.items() if feature["dtype"] != VIDEO]
        try:
            table = _read(path, (*columns, *_PLACES, *((_TASK,) if self.tasks else ())))
            places = [table.column(name).to_numpy() for name in _PLACES]
            rows = table.take(find_rows(episode, self.info.fps, *places, where))
            kept = {name: _typed(rows.column(name), self.features[name]) for name in columns}
        except DataError as error:
            raise UnusableError("data file cannot be used", str(error)) from error
        except pa.ArrowException as error:
            raise UnusableError("columns are not those of info.json", f"{where}: {error}".splitlines()[0]) from error
        tasks = [self._task(task, where) for task in rows.column(_TASK).to_pylist()] if self.tasks else [""] * len(rows)
        clips = {name: self._clip(name, *place, len(rows)) for name, place in episode.videos.items()}
        known = self.statistics.get(episode.number, {})
        return Episode(where, self.features, pa.table(kept), tasks, clips, known)

    def _task(self, number: int, where: str) -> str:
        if number not in self.tasks:
            raise UnusableError("no such task", f"{where}: task_index {number}, meta has {len(self.tasks)} tasks")
        return self.tasks[number]

    def _clip(self, camera: str, file: str, start: float, count: int) -> Clip:
        path = str(self.info.root / file)
        try:
            with reading(path):
                track = video.read_track(path)
        except DataError as error:
            raise UnusableError(f"camera {camera!r} cannot be used", str(error)) from error
        numbers, wrong = find_frames(track.times, start, count, self.info.fps)
        if wrong:
            raise UnusableError(f"camera {camera!r} cannot be used", f"{path} {wrong}")
        return Clip(path, int(numbers[0]), count)


@functools.lru_cache(1)
def _read(path: str, columns: tuple[str, ...]) -> pa.Table:
    return parquet.read_table(path, columns)


def _typed(column: pa.ChunkedArray, feature: Mapping[str, Any]) -> pa.ChunkedArray:
    kind = arrow_type(feature)
    return column if kind in (None, column.type) else column.cast(kind)


def _features(said: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """As info.json has them, but for the frequency that 3.0 repeats in each."""
    own = {name: entry for name, entry in said["features"].items() if name not in RESERVED}
    return {name: {key: value for key, value in entry.items() if key != "fps"} for name, entry in own.items()}


def _splits(info: Info) -> list[tuple[str, int]]:
    numbers = [episode.number for episode in info.episodes]
    named = sorted(info.splits.items(), key=lambda item: item[1].start)
    counts = [(name, sum(number in own for number in numbers)) for name, own in named]
    if sum(count for _, count in counts) != len(numbers):
        raise DataError(f"{info.path}: splits {dict(counts)} are no parts of {len(numbers)} episodes: correct them")
    return [(name, count) for name, count in counts if count]


def _statistics(info: Info) -> dict[int, dict[str, Any]]:
    """By episode, what its meta says of its cameras' pictures."""
    found: dict[int, dict[str, Any]] = {}
    for number, camera, own in (_rows_3 if info.version == "v3.0" else _rows_2)(info):
        if all(np.shape(own.get(name)) == shape for name, shape in _OF_PICTURES.items()):
            found.setdefault(number, {})[camera] = {name: own[name] for name in MOMENTS}
    return found


def _rows_2(info: Info) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    path = info.root / "meta/episodes_stats.jsonl"
    for row in lerobot_meta.json_lines(path) if path.exists() else ():
        for camera in info.cameras:
            yield row.get("episode_index"), camera, row.get("stats", {}).get(camera, {})


def _rows_3(info: Info) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    for path in sorted(info.root.glob("meta/episodes/*/*.parquet")):
        there = parquet.column_names(str(path))
        for camera in info.cameras:
            columns = {f"stats/{camera}/{name}": name for name in MOMENTS}
            if columns.keys() <= {*there}:
                for row in parquet.read_rows(str(path), ["episode_index", *columns]):
                    yield row["episode_index"], camera, {name: row[column] for column, name in columns.items()}
