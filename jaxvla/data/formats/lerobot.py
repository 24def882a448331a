"""LeRobotDatasets, versions 2.0, 2.1 and 3.0, read without torch, `datasets` or a network.

One index, which lies beside meta/info.json, holds all episodes: their tables from Parquet, and of each frame the file
and the number in it, of a video or of a row of Parquet.
"""

import dataclasses
import functools
import hashlib
import os
import pathlib
import re
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ClassVar

import numpy as np
from tqdm import tqdm

from jaxvla.data.files import reading
from jaxvla.data.formats import lerobot_meta, parquet, video
from jaxvla.data.formats.frame_files import FILE_BITS
from jaxvla.data.formats.index import MIN_TRANSITIONS, Frames, Index, IndexBuilder
from jaxvla.data.formats.lerobot_meta import TAUGHT, VIDEO, Episode, Info
from jaxvla.data.formats.rlds_features import DEPTH, NUMBERS
from jaxvla.data.formats.standard import annotations
from jaxvla.data.skipping import UnusableError
from jaxvla.errors import DataError

_TASK, _NO_TASK = "task_index", -1
_UP = os.path.join(os.pardir, "")
_BAR = {"delay": 1.0, "leave": False}
_SHOWN = 200  # letters of a choice of episodes in a message
_NTH_CAMERA = re.compile(r"images(\d+)")
_WITHIN = 0.5  # of a frame, by which times may be off: whichever frame is nearest is meant


@dataclasses.dataclass(frozen=True)
class LeRobotFormat:
    """Builds the index of one dataset.

    An episode of N frames has N actions, all of which were taken, though nobody saw what the last one led to. So it
    becomes N transitions, and its last frame stands once more at the end. With `relabel`, where actions are made of
    successive states, there are N - 1, as in RLDS.

    Attributes:
        action, proprio: the features that these are.
        relabel: whether actions are made of states.
        stamp: names the present content of all files.
        info: of the dataset.
    """

    action: str
    proprio: str
    relabel: bool
    stamp: str
    info: Info = dataclasses.field(repr=False, compare=False)

    @classmethod
    def of(cls, root: pathlib.Path, action: str, proprio: str, relabel: bool) -> "LeRobotFormat":
        """Reads meta of the dataset `root`. In names, "/" stands for "." too, as LeRobot's names have none.

        Raises:
            DataError: as `lerobot_meta.read_info`, or there are no such features of numbers.
        """
        info = lerobot_meta.read_info(root)
        found = [
            _find_numbers(info, option, name) for option, name in (("action_key", action), ("proprio_key", proprio))
        ]
        return cls(*found, relabel, stamp_of(info), info)

    @property
    def variant(self) -> str:
        """What the index of these features is called, to lie beside those of others."""
        return hashlib.sha256(repr((self.action, self.proprio, self.relabel)).encode()).hexdigest()[:8]

    def camera(self, name: str, option: str, where: str) -> str:
        """The image feature that `name` means: itself, below `observation.images` or `observation`, or by its place.

        `images0` is the first one of info.json where none has this name.

        Raises:
            DataError: there is none; names the dataset (`where`), those that there are, and the `option` that chooses.
        """
        cameras, features = self.info.cameras, self.info.features
        names = [prefix + name.replace("/", ".") for prefix in ("", "observation.images.", "observation.")]
        found = next((camera for camera in names if camera in cameras), None)
        nth = _NTH_CAMERA.fullmatch(name)
        if found is None and nth and int(nth[1]) < len(cameras):
            return cameras[int(nth[1])]
        if found is None:
            there = (
                f"the frames have {', '.join(cameras) or 'no pictures at all'}: set bridgedata_config.cameras.{option}"
            )
            if any(features[known].kind == DEPTH for known in names if known in features):
                raise DataError(f"{where}: {name!r} holds {DEPTH}, which is no camera, {there}")
            raise DataError(f"{where}: no camera {name!r}, {there}")
        return found

    def notes(self) -> tuple[str, ...]:
        """Lines that say what info.json says of the whole, and what lacks."""
        fps, count, total = self.info.fps, len(self.info.episodes), self.info.total
        lines = (f"frequency    {fps:g} Hz by info.json; bridgedata_config.control_frequency={fps:g} hands it on",)
        if count != total:
            lines += (f"warning: {self.info.path} says {total} episodes, but {count} are listed beside it",)
        if _TASK not in self.info.features:
            lines += (f"language     frames have no {_TASK}",)
        return lines

    def build_index(self, path: str) -> Index:
        """Indexes all episodes; those that cannot be used are left out and counted.

        Args:
            path: of info.json.

        Raises:
            DataError: meta is damaged.
        """
        episodes, builder = self.info.episodes, IndexBuilder()
        tasks = self.info.tasks() if _TASK in self.info.features else {_NO_TASK: ""}
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            files = [*dict.fromkeys(episode.data for episode in episodes)]
            tables = dict(zip(files, tqdm(pool.map(self._read_table, files), "indexing", len(files), **_BAR)))
            cameras = [self._camera(name, pool) for name in self.info.cameras]
        there = lerobot_meta.choice_of(e.number for e in episodes if isinstance(tables[e.data], _Table))
        mend = f", or set bridgedata_config.episodes={there!r}" if 0 < len(there) <= _SHOWN else ""
        for episode in episodes:
            with builder.trajectory():
                table = tables[episode.data]
                if isinstance(table, str):
                    raise UnusableError("data file cannot be used", f"{table}{mend}")
                self._add(builder, episode, table, tasks, cameras)
        return builder.build()

    def _add(
        self,
        builder: IndexBuilder,
        episode: Episode,
        table: "_Table",
        tasks: Mapping[int, str],
        cameras: "Sequence[_Camera]",
    ) -> None:
        where = f"{self.info.root / episode.data}: episode {episode.number}"
        rows = table.rows(episode, self.info.fps, where)
        steps = np.arange(len(rows))
        if not self.relabel:
            steps = np.append(steps, steps[-1])
        acted = rows[: len(steps) - 1]
        language, texts, _ = annotations([_text(tasks, number, where) for number in table.task_index[acted].tolist()])
        builder.add(
            where,
            f"{episode.number}#0",
            table.actions[acted],
            table.proprio[rows[steps]],
            language,
            texts,
            {camera.name: camera.frames(episode, rows, steps, self.info.fps) for camera in cameras},
            taught=table.taught[acted].astype(bool),
        )

    def _read_table(self, name: str) -> "_Table | str":
        """The tables of a data file, or why there are none."""
        features = self.info.features
        shapes = {key: features[key].shape for key in (self.action, self.proprio)}
        shapes |= {key: (1,) for key in (*_Table.COLUMNS, _TASK) if key != _TASK or _TASK in features}
        shapes |= {TAUGHT: (1,)} if self.info.says_taught else {}
        try:
            found = parquet.read_columns(str(self.info.root / name), shapes)
        except DataError as error:
            return str(error)
        absent = {_TASK: _NO_TASK, TAUGHT: True}
        filled = {key: np.full((len(found[self.action]), 1), value) for key, value in absent.items()}
        columns = [(filled | found)[key][:, 0] for key in (*_Table.COLUMNS, *absent)]
        return _Table(found[self.action], found[self.proprio], *columns)

    def _camera(self, name: str, pool: ThreadPoolExecutor) -> "_Camera":
        """A camera's frames in all files that it has, each of which is looked at once."""
        if self.info.features[name].dtype == VIDEO:
            of = {episode.number: episode.videos[name][0] for episode in self.info.episodes}
        else:
            of = {episode.number: episode.data for episode in self.info.episodes}
        files = [*dict.fromkeys(of.values())]
        look = functools.partial(_look, self.info.root, name, self.info.features[name].dtype == VIDEO)
        found = [*tqdm(pool.map(look, files), f"indexing {name}", len(files), **_BAR)]
        paths = tuple(os.path.join(os.pardir, file) for file in files)  # from meta, where the index lies
        numbers = {file: number for number, file in enumerate(files)}
        return _Camera(name, paths, {episode: numbers[file] for episode, file in of.items()}, found)


@dataclasses.dataclass(frozen=True, eq=False)
class _Table:
    """The numbers of a data file: actions [n, d], proprio [n, p], the others [n]."""

    COLUMNS: ClassVar[tuple[str, ...]] = ("episode_index", "frame_index", "timestamp")

    actions: np.ndarray
    proprio: np.ndarray
    episode_index: np.ndarray
    frame_index: np.ndarray
    timestamp: np.ndarray
    task_index: np.ndarray
    taught: np.ndarray

    def rows(self, episode: Episode, fps: float, where: str) -> np.ndarray:
        """As `find_rows`."""
        return find_rows(episode, fps, self.episode_index, self.frame_index, self.timestamp, where)


@dataclasses.dataclass(frozen=True, eq=False)
class _Camera:
    """The files of a camera, from the folder of the index, which of them each episode has, and what was found in them.

    That is the track of a video, None for pictures in Parquet, or what is wrong with the file.
    """

    name: str
    files: tuple[str, ...]
    file_of: Mapping[int, int]
    found: Sequence["video.Track | str | None"]

    def frames(self, episode: Episode, rows: np.ndarray, steps: np.ndarray, fps: float) -> Frames | str:
        """Where frames `steps` of an episode lie whose table has these `rows`, or what is wrong with them."""
        file = self.file_of[episode.number]
        found, numbers, shape = self.found[file], rows, ()
        if isinstance(found, str):
            return found
        if found is not None:
            numbers, wrong = find_frames(found.times, episode.videos[self.name][1], len(rows), fps)
            shape = (*found.size, 3)
            if wrong:
                return f"{self.files[file].removeprefix(_UP)} {wrong}"
        offsets = (np.int64(file) << FILE_BITS) + numbers[steps]
        return Frames(offsets, np.ones(len(steps), np.int64), shape, self.files)


def find_rows(
    episode: Episode,
    fps: float,
    episode_index: np.ndarray,
    frame_index: np.ndarray,
    timestamp: np.ndarray,
    where: str,
) -> np.ndarray:
    """The rows of an episode among those of a file whose columns are given, frame after frame, int64 [frames].

    Raises:
        UnusableError: meta speaks of another number, they are not numbered from 0, or their times are not those of
            `fps`.
    """
    rows = np.flatnonzero(episode_index == episode.number)
    if len(rows) != episode.length:
        raise UnusableError("lengths disagree", f"{where}: {len(rows)} rows, {episode.length} frames by meta")
    if not len(rows):
        raise UnusableError(f"fewer than {MIN_TRANSITIONS} transitions", f"{where}: no frames")
    steps = np.arange(len(rows))
    if (frame_index[rows] != steps).any():
        raise UnusableError("frames are not numbered from 0 on", f"{where}: {frame_index[rows][:3].tolist()}...")
    wrong = np.flatnonzero(~(abs(timestamp[rows] - steps / fps) < _WITHIN / fps))
    if len(wrong):
        detail = f"frame {wrong[0]} has timestamp {timestamp[rows[wrong[0]]]:g} s, by fps {fps:g} it is "
        raise UnusableError("times are not those of fps", f"{where}: {detail}{wrong[0] / fps:g} s")
    return rows


def find_frames(times: np.ndarray, start: float, count: int, fps: float) -> tuple[np.ndarray, str]:
    """The numbers of `count` frames of a video, shown at `times`, of an episode that begins at second `start`.

    Beside them, what is wrong with them.
    """
    numbers = np.searchsorted(times, start - _WITHIN / fps) + np.arange(count)
    if numbers[-1] >= len(times):
        return numbers, f"has {len(times)} frames, the episode needs number {numbers[0]} to {numbers[-1]}"
    expected = start + np.arange(count) / fps
    wrong = np.flatnonzero(~(abs(times[numbers] - expected) < _WITHIN / fps))
    if not len(wrong):
        return numbers, ""
    at, shown = wrong[0], times[numbers[wrong[0]]]
    return numbers, (f"shows frame {numbers[at]} at {shown:g} s, by fps {fps:g} of info.json it is {expected[at]:g} s")


def _look(root: pathlib.Path, camera: str, is_video: bool, file: str) -> "video.Track | str | None":
    """See `_Camera.found`."""
    path = str(root / file)
    if not os.path.isfile(path):
        return f"{path} is missing: download it"
    try:
        with reading(path):
            if is_video:
                return video.read_track(path)
            lost = parquet.missing_pictures(path, camera)
            return f"{path}: {lost} rows have no picture in them: embed the pictures" if lost else None
    except DataError as error:
        return str(error)


def _find_numbers(info: Info, option: str, name: str) -> str:
    """The feature of numbers that is called so, with "/" for "." or not."""
    for known in (name, name.replace("/", ".")):
        if known in info.features and info.features[known].kind == NUMBERS:
            return known
    there = ", ".join(known for known, feature in info.features.items() if feature.kind == NUMBERS) or "nowhere"
    raise DataError(
        f"{info.path}: frames have no {NUMBERS} {name!r}; {NUMBERS} are {there}: set bridgedata_config.{option} to one "
        "of these"
    )


def _text(tasks: Mapping[int, str], number: int | float, where: str) -> str:
    if number not in tasks:
        raise UnusableError(
            "no such task", f"{where}: task_index {number:g}, meta has {lerobot_meta.choice_of(sorted(tasks))}"
        )
    return tasks[number]


def stamp_of(info: Info) -> str:
    """Names the present content of all files that an index is made from, by their sizes and times of modification."""
    digest = hashlib.sha256()
    meta = sorted(
        path for pattern in ("tasks*", "episodes*", "episodes/*/*.parquet") for path in info.path.parent.glob(pattern)
    )
    files = {file: None for e in info.episodes for file in (e.data, *(path for path, _ in e.videos.values()))}
    for path in (*meta, *(info.root / file for file in files)):
        try:
            status = os.stat(path)
            digest.update(f"{path.name}|{status.st_size}|{status.st_mtime_ns}".encode())
        except FileNotFoundError:
            digest.update(b"missing")
    return digest.hexdigest()[:16]
