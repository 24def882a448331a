"""What the folder `meta` of a LeRobotDataset says: its features, episodes, tasks and files; versions 2.0, 2.1 and 3.0.

Up to 2.1 each episode has files of its own and meta is JSON lines; from 3.0 on files hold many episodes and meta is
Parquet. Source: lerobot 0.3.3 (2.1) and 0.4.4 (3.0), lerobot/datasets/utils.py.
"""

import collections
import dataclasses
import functools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jaxvla.data.files import reading
from jaxvla.data.formats import parquet
from jaxvla.data.formats.rlds_features import DEPTH, NUMBERS, OTHER, PICTURES, TEXT
from jaxvla.data.formats.rlds_files import Part
from jaxvla.data.formats.split_slices import SplitSlice
from jaxvla.errors import ConfigError, DataError

INFO = "meta/info.json"
VIDEO = "video"
TAUGHT = "taught"  # the flag of frames whose action a policy is to learn, if a dataset has it; it is ours
_VERSIONS = ("v2.0", "v2.1", "v3.0")
_PICTURES = (VIDEO, "image")
_NUMBERS = re.compile(r"(float|u?int)\d+|bool")
_CHOICE = re.compile(r"(\d+)(?:(:)(\d+))?")


@dataclasses.dataclass(frozen=True)
class Feature:
    """A feature of the frames: its type by info.json, what that is in the words of messages, and its shape."""

    dtype: str
    kind: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Episode:
    """One episode.

    Attributes:
        number: its `episode_index`.
        length: how many frames it has by meta.
        data: its data file, below the dataset.
        videos: by feature, its file, below the dataset, and the second in it at which the episode begins.
    """

    number: int
    length: int
    data: str
    videos: Mapping[str, tuple[str, float]]


@dataclasses.dataclass(frozen=True, eq=False)
class Info:
    """meta/info.json of the dataset `root`.

    Attributes:
        version: of the format.
        fps: frames per second.
        features: by name, in their order.
        splits: by name, the numbers of its episodes.
        total: how many episodes there should be.
        chunk_size: how many episodes share a folder, up to 2.1.
        templates: of data files and videos.
    """

    root: pathlib.Path
    version: str
    fps: float
    features: Mapping[str, Feature]
    splits: Mapping[str, range]
    total: int
    chunk_size: int
    templates: tuple[str, str]

    @property
    def path(self) -> pathlib.Path:
        """Where it lies."""
        return self.root / INFO

    @property
    def cameras(self) -> tuple[str, ...]:
        """The features that are pictures, in their order."""
        return tuple(name for name, feature in self.features.items() if feature.kind == PICTURES)

    @property
    def says_taught(self) -> bool:
        """Whether it says of each frame if a policy is to learn its action."""
        feature = self.features.get(TAUGHT)
        return feature is not None and (feature.dtype, feature.shape) == ("bool", (1,))

    @functools.cached_property
    def episodes(self) -> tuple[Episode, ...]:
        """All of them, ascending.

        Raises:
            DataError: meta lacks them, is damaged, or names files that lie elsewhere.
        """
        videos = [name for name in self.cameras if self.features[name].dtype == VIDEO]
        read = _episodes_3 if self.version == "v3.0" else _episodes_2
        found = sorted(read(self, videos), key=lambda episode: episode.number)
        number, count = collections.Counter(episode.number for episode in found).most_common(1)[0] if found else (0, 1)
        if count > 1:
            raise DataError(
                f"{self.root / 'meta'}: episode {number} is listed {count} times: download or make it again"
            )
        return tuple(found)

    def tasks(self) -> dict[int, str]:
        """The text of each task by its number; raises as `episodes`."""
        if self.version == "v3.0":
            path = self.root / "meta/tasks.parquet"
            rows = parquet.read_rows(str(path))
        else:
            path = self.root / "meta/tasks.jsonl"
            rows = json_lines(path)
        return dict(_each(path, rows, _task))

    def file(self, template: str, **fields: Any) -> str:
        """The path below the dataset that a template makes of numbers and names.

        Raises:
            DataError: the template has other fields, or leads out of the dataset.
        """
        try:
            made = template.format(**fields)
        except (LookupError, ValueError, AttributeError) as error:
            raise DataError(f"{self.path}: {template!r} is no template of {', '.join(fields)}") from error
        if os.path.isabs(made) or ".." in pathlib.PurePath(made).parts:
            raise DataError(f"{self.path}: {template!r} leads out of the dataset, to {made}")
        return made


def check_version(folder: pathlib.Path) -> None:
    """Refuses what is no LeRobotDataset.

    Raises:
        DataError: it is missing, or has no meta/info.json; names the datasets that lie below it.
    """
    if not folder.is_dir():
        raise DataError(f"no data folder {folder}: set the data path to a LeRobotDataset, the folder that holds {INFO}")
    if (folder / INFO).exists():
        return
    below = sorted(path.parents[1] for pattern in ("*", "*/*") for path in folder.glob(f"{pattern}/{INFO}"))
    shown = (
        f"below it lie {', '.join(map(str, below[:5]))}: set the data path to one of these"
        if below
        else ("the data path of a LeRobotDataset is the folder that holds it, with data and videos")
    )
    raise DataError(f"{folder} has no {INFO}: {shown}")


def read_info(root: pathlib.Path) -> Info:
    """Reads meta/info.json of a dataset.

    Raises:
        DataError: there is none, it is damaged, of another version, or says what cannot be.
    """
    check_version(root)
    path = root / INFO
    try:
        with reading(path):
            info = json.loads(path.read_text())
        version = str(info["codebase_version"])
        if version not in _VERSIONS:
            raise DataError(
                f"{path}: codebase_version is {version}, {', '.join(_VERSIONS)} are read: convert it with lerobot"
            )
        features = {str(name): _feature(entry) for name, entry in info["features"].items()}
        made = Info(
            root,
            version,
            float(info["fps"]),
            features,
            {name: _range(text) for name, text in (info.get("splits") or {"train": f"0:{2**62}"}).items()},
            int(info["total_episodes"]),
            int(info.get("chunks_size", 1000)),
            (str(info["data_path"]), str(info.get("video_path"))),
        )
    except KeyError as error:
        raise DataError(f"{path}: has no {error}: download it again") from error
    except (ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is damaged ({error}): download it again") from error
    if not 0 < made.fps < float("inf") or made.chunk_size < 1:
        raise DataError(f"{path}: fps {made.fps:g} and chunks_size {made.chunk_size} must be positive: correct them")
    return made


def splits(folder: pathlib.Path) -> tuple[str, ...]:
    """The names of the splits; raises as `read_info`."""
    return tuple(sorted(read_info(folder).splits))


def find_parts(folder: pathlib.Path, which: SplitSlice, chosen: str, excluded: str) -> list[Part]:
    """The episodes of a split, or of a slice of it, as a part of all episodes.

    Args:
        folder: the dataset.
        which: the split. Slices count all its episodes, those that are not chosen included.
        chosen, excluded: numbers of episodes, see `parse_choice`; an empty choice is all of them.

    Raises:
        DataError: as `read_info`, or there is no such split.
        ConfigError: the split has not as many episodes, or no episode is left.
    """
    info = read_info(folder)
    if which.split not in info.splits:
        mend = "download or build it"
        if which.split == "val":
            mend = "hold out a share of train with --bridgedata_config.validation_share=0.05, or set val_split"
        raise DataError(f"{folder} has no {which.split} split, it has {', '.join(sorted(info.splits))}: {mend}")
    numbers = [episode.number for episode in info.episodes]
    own = [i for i, number in enumerate(numbers) if number in info.splits[which.split]]
    part = which.range([len(own)], str(folder))
    places = own[part.start : part.stop]
    wanted = _numbers(chosen, "episodes", numbers, folder) if chosen else {*numbers}
    wanted -= _numbers(excluded, "exclude_episodes", numbers, folder)
    left_out = frozenset(place for place in places if numbers[place] not in wanted)
    if len(left_out) == len(places):
        raise ConfigError(
            f"{folder}: no episode of {which} is left by bridgedata_config.episodes={chosen!r} and exclude_episodes="
            f"{excluded!r}: its numbers are {choice_of(numbers[place] for place in places)}"
        )
    return [Part(str(info.path), places[0], places[-1] + 1, None, left_out)]


def parse_choice(text: str, option: str) -> list[range]:
    """Numbers of episodes such as "0:50,60": from 0 to 49, and 60.

    Raises:
        ConfigError: it is something else; names the option.
    """
    found = [_CHOICE.fullmatch(part.strip()) for part in text.split(",")] if text.strip() else []
    ranges = [range(int(m[1]), int(m[3]) if m[2] else int(m[1]) + 1) if m else range(0) for m in found]
    if not all(ranges):
        raise ConfigError(f"{option}={text!r} is no choice of episodes: write numbers and ranges, such as 0:50,60")
    return ranges


def choice_of(numbers: Iterable[int]) -> str:
    """The inverse of `parse_choice`, of ascending numbers."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and ranges[-1][1] == number:
            ranges[-1][1] += 1
        else:
            ranges.append([number, number + 1])
    return ",".join(f"{start}" if stop == start + 1 else f"{start}:{stop}" for start, stop in ranges)


def _numbers(text: str, option: str, there: list[int], folder: pathlib.Path) -> set[int]:
    found: set[int] = set()
    for part in parse_choice(text, f"bridgedata_config.{option}"):
        own = {number for number in there if number in part}
        if not own:
            raise ConfigError(
                f"{folder} has no episode {part.start}, which bridgedata_config.{option}={text!r} names: its numbers "
                f"are {choice_of(there)}"
            )
        found |= own
    return found


def _feature(entry: Mapping[str, Any]) -> Feature:
    dtype, shape = str(entry["dtype"]), tuple(int(side) for side in entry.get("shape") or ())
    if dtype in _PICTURES:
        details = {**entry, **(entry.get("info") or entry.get("video_info") or {})}
        is_depth = details.get("is_depth_map") or details.get("video.is_depth_map")
        return Feature(dtype, DEPTH if is_depth else PICTURES, shape)
    kind = NUMBERS if _NUMBERS.fullmatch(dtype) else TEXT if dtype == "string" else OTHER
    return Feature(dtype, kind, shape)


def _range(text: str) -> range:
    start, stop = map(int, str(text).split(":"))
    return range(start, stop)


def _episodes_2(info: Info, videos: list[str]) -> Iterable[Episode]:
    data_path, video_path = info.templates

    def read(row: Mapping[str, Any]) -> Episode:
        number = int(row["episode_index"])
        fields = {"episode_chunk": number // info.chunk_size, "episode_index": number}
        own = {name: (info.file(video_path, **fields, video_key=name), 0.0) for name in videos}
        return Episode(number, int(row["length"]), info.file(data_path, **fields), own)

    path = info.root / "meta/episodes.jsonl"
    return _each(path, json_lines(path), read)


def _episodes_3(info: Info, videos: list[str]) -> Iterable[Episode]:
    data_path, video_path = info.templates

    def place(row: Mapping[str, Any], of: str) -> dict[str, int]:
        return {name: int(row[f"{of}/{name}"]) for name in ("chunk_index", "file_index")}

    def read(row: Mapping[str, Any]) -> Episode:
        own = {
            name: (
                info.file(video_path, **place(row, f"videos/{name}"), video_key=name),
                float(row[f"videos/{name}/from_timestamp"]),
            )
            for name in videos
        }
        return Episode(int(row["episode_index"]), int(row["length"]), info.file(data_path, **place(row, "data")), own)

    columns = ["episode_index", "length", "data/chunk_index", "data/file_index"]
    for name in videos:
        columns += [f"videos/{name}/{column}" for column in ("chunk_index", "file_index", "from_timestamp")]
    folder = info.root / "meta/episodes"
    paths = sorted(folder.glob("*/*.parquet"))
    if not paths:
        raise DataError(f"{folder} holds no Parquet files, which list the episodes: download it")
    return [episode for path in paths for episode in _each(path, parquet.read_rows(str(path), columns), read)]


def _each(path: pathlib.Path, rows: Iterable[Any], read: Callable[[Any], Any]) -> list[Any]:
    """What `read` makes of the rows of a file."""
    made = []
    for number, row in enumerate(rows):
        try:
            made.append(read(row))
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path}: entry {number} is damaged ({error!r}): download or make it again") from error
    return made


def _task(row: Mapping[str, Any]) -> tuple[int, str]:
    """pandas keeps the texts of 3.0 as a column without a certain name."""
    (text,) = (value for name, value in row.items() if name != "task_index" and isinstance(value, str))
    return int(row["task_index"]), text.strip()


def json_lines(path: pathlib.Path) -> list[Any]:
    """The values of a file of JSON lines.

    Raises:
        DataError: it is missing or damaged; names it.
    """
    if not path.exists():
        raise DataError(f"{path} is missing: download it")
    with reading(path):
        lines = path.read_text().splitlines()
    return _each(path, [line for line in lines if line.strip()], json.loads)
