"""What lies in `meta` of a LeRobotDataset: JSON lines of 2.1; of 3.0 Parquet, and data and videos that are joined.

Source: lerobot 0.3.3 (2.1) and 0.4.4 (3.0), lerobot/datasets/utils.py and lerobot_dataset.py.
"""

import collections
import contextlib
import dataclasses
import json
import os
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from jaxvla.data.conversion.lerobot import films, statistics
from jaxvla.data.conversion.lerobot.episode import RESERVED, VIDEO, Clip
from jaxvla.data.conversion.lerobot.staging import CHUNK, DATA_PATH, VIDEO_PATH, Mark, Stage, numbers_of
from jaxvla.data.conversion.lerobot.statistics import MOMENTS, QUANTILES, Joined, Levels
from jaxvla.data.conversion.workers import writing

_FILE = "chunk-{chunk_index:03d}/file-{file_index:03d}"
_DATA_3, _EPISODES_3 = f"data/{_FILE}.parquet", f"meta/episodes/{_FILE}.parquet"
_VIDEO_3 = f"videos/{{video_key}}/{_FILE}.mp4"
_MEGABYTE = 1 << 20
_ROWS = 5000  # of a file that lists episodes: with their statistics, below LeRobot's hundred megabytes


@dataclasses.dataclass(frozen=True)
class Whole:
    """What meta says of all episodes together.

    Attributes:
        robot_type: None where it is not known.
        splits: by name, how many episodes of each are there, one after the other.
        tasks: the number of each text.
        count: how many marks there are, those of episodes that are left out included.
        data_mb, video_mb: how large a file of 3.0 may become.
    """

    robot_type: str | None
    splits: Mapping[str, int]
    tasks: Mapping[str, int]
    count: int
    data_mb: int = 100
    video_mb: int = 200


def write_2(stage: Stage, whole: Whole) -> pathlib.Path:
    """Completes the staged episodes to a dataset of 2.1; gives its folder.

    Raises:
        DataError: it cannot be written.
    """
    folder, lines, learned = stage.dataset / "meta", [], []
    for number, mark in enumerate(stage.marks(whole.count)):
        lines.append({"episode_index": number, "tasks": [*mark.tasks], "length": mark.length})
        learned.append({"episode_index": number, "stats": statistics.only(mark.statistics, MOMENTS)})
    features = _features(stage, {})
    films_each = sum(entry["dtype"] == VIDEO for entry in features.values())
    info = {
        "codebase_version": "v2.1",
        **_said(stage, whole, lines),
        "total_videos": films_each * len(lines),
        "total_chunks": -(-len(lines) // CHUNK),
        "data_path": DATA_PATH,
        "video_path": VIDEO_PATH if films_each else None,
        "features": features,
    }
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        _write_lines(folder / "episodes.jsonl", lines)
        _write_lines(folder / "episodes_stats.jsonl", learned)
        _write_lines(folder / "tasks.jsonl", [{"task_index": i, "task": text} for text, i in whole.tasks.items()])
        _write_json(folder / "info.json", info)
    return stage.dataset


def write_3(stage: Stage, whole: Whole) -> pathlib.Path:
    """Joins the staged episodes to a dataset of 3.0 beside them; gives its folder.

    Raises:
        DataError: it cannot be written.
    """
    root = stage.folder / "joined"
    cameras = [name for name, entry in (stage.features or {}).items() if entry["dtype"] == VIDEO]
    with writing(root):
        rows, columns = _join_data(stage, root, whole)
        for camera in cameras:
            places = _join_videos(stage, root, camera, rows, whole.video_mb)
            rows = [row | place for row, place in zip(rows, places)]
        _write_episodes(root, rows, stage.marks(whole.count))
        _write_json(root / "meta/stats.json", _of_all(stage.marks(whole.count), columns))
        _write_tasks(root / "meta/tasks.parquet", whole.tasks)
        features = _features(stage, {"fps": films.whole(stage.fps)})
        info = {
            "codebase_version": "v3.0",
            **_said(stage, whole, rows),
            "data_path": _DATA_3,
            "video_path": _VIDEO_3 if cameras else None,
            "features": features,
            "data_files_size_in_mb": whole.data_mb,
            "video_files_size_in_mb": whole.video_mb,
        }
        _write_json(root / "meta/info.json", info)
    return root


def _said(stage: Stage, whole: Whole, episodes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What info.json says in both versions."""
    ends = np.cumsum([*whole.splits.values()]).tolist()
    return {
        "robot_type": whole.robot_type,
        "total_episodes": len(episodes),
        "total_frames": sum(row["length"] for row in episodes),
        "total_tasks": len(whole.tasks),
        "chunks_size": CHUNK,
        "fps": films.whole(stage.fps),
        "splits": {name: f"{end - count}:{end}" for (name, count), end in zip(whole.splits.items(), ends)},
    }


def _features(stage: Stage, more: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """All features as info.json has them; those that are no videos get `more`."""
    found = {}
    for name, entry in (stage.features or {}).items():
        if entry["dtype"] == VIDEO:
            described = films.describe(str(stage.path(VIDEO_PATH, 0, video_key=name)), stage.fps)
            found[name] = {**entry, "info": {**entry.get("info", {}), **described}}
        else:
            found[name] = {**entry, **more}
    reserved = {name: {"dtype": dtype, "shape": [1], "names": None, **more} for name, dtype in RESERVED.items()}
    return found | reserved


def _files(sizes: Sequence[float], most: int, changes: Sequence[bool]) -> list[dict[str, int]]:
    """The file of each episode: a new one begins before it would be larger than `most`, and where something changes."""
    places, file, filled = [], 0, 0.0
    for size, change in zip(sizes, changes):
        if filled and (filled + size >= most or change):
            file, filled = file + 1, 0.0
        filled += size
        places.append({"chunk_index": file // CHUNK, "file_index": file % CHUNK})
    return places


def _join_data(
    stage: Stage, root: pathlib.Path, whole: Whole
) -> tuple[list[dict[str, Any]], dict[str, list[np.ndarray]]]:
    """Writes all rows; gives an entry of each episode, and the columns that are numbers, in pieces."""
    tasks = [[*mark.tasks] for mark in stage.marks(whole.count)]
    paths = [stage.path(DATA_PATH, number) for number in range(len(tasks))]
    places = _files([os.path.getsize(path) / _MEGABYTE for path in paths], whole.data_mb, [False] * len(paths))
    rows, columns, start = [], collections.defaultdict(list), 0
    with contextlib.ExitStack() as stack:
        for number, (path, place) in enumerate(zip(paths, tqdm(places, "joining data", **_BAR))):
            table = pq.read_table(path)
            if not number or place != places[number - 1]:
                stack.close()
                writer = stack.enter_context(pq.ParquetWriter(_made(root, _DATA_3, **place), table.schema))
            writer.write_table(table)
            for name, values in numbers_of(table).items():
                columns[name].append(values)
            row = {"episode_index": number, "tasks": tasks[number], "length": len(table)}
            row |= {f"data/{name}": value for name, value in place.items()}
            rows.append(row | {"dataset_from_index": start, "dataset_to_index": start + len(table)})
            start += len(table)
    return rows, columns


def _join_videos(
    stage: Stage, root: pathlib.Path, camera: str, episodes: Sequence[Mapping[str, Any]], most: int
) -> list[dict[str, Any]]:
    """Writes the videos of a camera, those of one kind together; gives where each episode lies."""
    paths = [str(stage.path(VIDEO_PATH, number, video_key=camera)) for number in range(len(episodes))]
    kinds = [films.kind_of(path) for path in paths]
    changes = [i > 0 and kinds[i] != kinds[i - 1] for i in range(len(kinds))]
    places = _files([os.path.getsize(path) / _MEGABYTE for path in paths], most, changes)
    clips: dict[tuple[int, ...], list[Clip]] = collections.defaultdict(list)
    rows = []
    for path, place, episode in zip(paths, places, episodes):
        own = clips[tuple(place.values())]
        start = sum(clip.count for clip in own)
        own.append(Clip(path, 0, episode["length"]))
        times = {"from_timestamp": start / stage.fps, "to_timestamp": (start + episode["length"]) / stage.fps}
        rows.append({f"videos/{camera}/{name}": value for name, value in (place | times).items()})
    for (chunk, file), own in tqdm(clips.items(), f"joining {camera}", **_BAR):
        films.copy(_made(root, _VIDEO_3, video_key=camera, chunk_index=chunk, file_index=file), own, stage.fps)
    return rows


def _write_episodes(root: pathlib.Path, rows: Sequence[Mapping[str, Any]], marks: Iterator[Mark]) -> None:
    for file, start in enumerate(range(0, len(rows), _ROWS)):
        place = {"chunk_index": file // CHUNK, "file_index": file % CHUNK}
        listed = []
        for row, mark in zip(rows[start : start + _ROWS], marks):
            learned = {f"stats/{name}/{key}": x for name, own in mark.statistics.items() for key, x in own.items()}
            listed.append({**row, **learned, **{f"meta/episodes/{name}": value for name, value in place.items()}})
        pq.write_table(pa.Table.from_pylist(listed), _made(root, _EPISODES_3, **place))


def _of_all(marks: Iterator[Mark], columns: Mapping[str, Sequence[np.ndarray]]) -> dict[str, Any]:
    """Statistics of all episodes; quantiles are of all values, and left out of pictures that were not looked at."""
    joined: dict[str, Joined] = collections.defaultdict(Joined)
    levels: dict[str, Levels] = collections.defaultdict(Levels.none)
    for mark in marks:
        for name, own in mark.statistics.items():
            joined[name].add(own)
        for name, counts in mark.levels.items():
            levels[name] += Levels(np.array(counts), mark.statistics[name]["count"][0])
    found = {name: own.statistics() for name, own in joined.items()}
    for name, own in found.items():
        if name in columns:
            values = np.concatenate(columns[name])
            own |= statistics.quantiles_of(values[np.isfinite(values).reshape(len(values), -1).all(1)])
        elif levels[name].pictures == joined[name].count:
            every = levels[name].statistics()
            own |= {key: every[key] for key in QUANTILES}
    return found


def _write_tasks(path: pathlib.Path, tasks: Mapping[str, int]) -> None:
    """As pandas writes a table whose index is the texts."""
    kinds = {"task_index": "int64", "__index_level_0__": "unicode"}
    said = [
        {
            "name": name if kind == "int64" else None,
            "field_name": name,
            "pandas_type": kind,
            "numpy_type": "int64" if kind == "int64" else "object",
            "metadata": None,
        }
        for name, kind in kinds.items()
    ]
    index = {"name": None, "field_name": None, "pandas_type": "unicode", "numpy_type": "object", "metadata": None}
    pandas = {"index_columns": ["__index_level_0__"], "column_indexes": [index], "columns": said}
    numbers, texts = pa.array([*tasks.values()], pa.int64()), pa.array([*tasks], pa.string())
    table = pa.table({"task_index": numbers, "__index_level_0__": texts})
    pq.write_table(table.replace_schema_metadata({"pandas": json.dumps(pandas)}), path)


_BAR = {"delay": 1.0, "leave": False}


def _made(root: pathlib.Path, template: str, **fields: Any) -> pathlib.Path:
    path = root / template.format(**fields)
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def _write_lines(path: pathlib.Path, rows: Sequence[Any]) -> None:
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows))


def _write_json(path: pathlib.Path, value: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=4, ensure_ascii=False))
