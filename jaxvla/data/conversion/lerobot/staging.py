"""Episodes written one by one as LeRobotDataset 2.1 has them, each with a mark that it is done.

A mark holds all that meta needs of an episode, and comes last: what has one is whole. So a conversion that was killed
goes on at the first episode without.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from jaxvla.data.conversion.lerobot import films, statistics
from jaxvla.data.conversion.lerobot.episode import IMAGE, RESERVED, VIDEO, Clip, Episode, Frames, column, hugging_face
from jaxvla.data.conversion.lerobot.statistics import Levels, Statistics, sampled_frames
from jaxvla.data.conversion.workers import replacing
from jaxvla.data.formats import video
from jaxvla.data.skipping import UnusableError
from jaxvla.data.transforms import images
from jaxvla.errors import DataError

CHUNK = 1000
DATA_PATH = "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet"
VIDEO_PATH = "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4"
_FINITE = ("action", "observation", "state")  # with which the names of columns begin that policies read
_REENCODED = "what videos lose that could not be cut at a key frame, and are encoded again"


@dataclasses.dataclass(frozen=True)
class Mark:
    """What became of one of the episodes that there are.

    Attributes:
        skipped: (reason, detail) where it cannot be used; nothing else counts then.
        length: frames.
        tasks: its different texts, in their order.
        statistics: of its features.
        levels: of cameras whose pictures were looked at, how often each level is in each channel [3, 256].
        lost: by kind, what it has and a LeRobotDataset does not hold.
    """

    skipped: tuple[str, str] | None = None
    length: int = 0
    tasks: tuple[str, ...] = ()
    statistics: Mapping[str, Statistics] = dataclasses.field(default_factory=dict)
    levels: Mapping[str, Sequence[Sequence[int]]] = dataclasses.field(default_factory=dict)
    lost: tuple[str, ...] = ()


@dataclasses.dataclass
class Place:
    """Where the next episode goes: its number, that of its first frame, and the number of each text so far."""

    episode: int = 0
    index: int = 0
    tasks: dict[str, int] = dataclasses.field(default_factory=dict)

    def pass_by(self, mark: Mark) -> None:
        """Goes on behind an episode."""
        if mark.skipped is None:
            self.episode += 1
            self.index += mark.length
            for text in mark.tasks:
                self.tasks.setdefault(text, len(self.tasks))


@dataclasses.dataclass(frozen=True)
class Stage:
    """A folder in which episodes are gathered.

    Attributes:
        folder: a dataset of 2.1 but for its meta lies in `dataset`, marks in `marks`.
        fps: frames per second, Hz.
        pictures: "video" or "image", what frames become that are not copied.
        crf: how much is lost of those that are encoded, 0 (nothing) to 51.
    """

    folder: pathlib.Path
    fps: float
    pictures: str = VIDEO
    crf: int = 23

    @property
    def dataset(self) -> pathlib.Path:
        """The folder of data and videos."""
        return self.folder / "dataset"

    @property
    def features(self) -> dict[str, dict[str, Any]] | None:
        """Those of the episodes that are there, without `RESERVED`; None where none is."""
        path = self.folder / "features.json"
        return json.loads(path.read_text()) if path.exists() else None

    def path(self, template: str, episode: int, **fields: str) -> pathlib.Path:
        """The file of an episode."""
        return self.dataset / template.format(episode_chunk=episode // CHUNK, episode_index=episode, **fields)

    def mark(self, number: int) -> Mark | None:
        """That of the episode `number` of those that there are; None where it is not done."""
        path = self._mark(number)
        if not path.exists():
            return None
        said = json.loads(path.read_text())
        tuples = {name: tuple(said[name]) for name in ("tasks", "lost")}
        return Mark(**{**said, **tuples, "skipped": said["skipped"] and tuple(said["skipped"])})

    def marks(self, count: int) -> Iterator[Mark]:
        """Those of the first `count`, but for episodes that are left out."""
        for number in range(count):
            found = self.mark(number)
            if found is not None and found.skipped is None:
                yield found

    def add(self, number: int, place: Place, read: Callable[[int], Episode]) -> Mark:
        """Writes the episode that `read` gives of a number to its place; one that cannot be used is left out.

        Raises:
            DataError: a file cannot be written. ConfigError: frames that H.264 does not take.
        """
        try:
            mark = self._write(read(number), place)
        except UnusableError as error:
            mark = Mark((error.reason, error.detail))
            for path in self.dataset.glob(
                f"videos/*/*/{pathlib.PurePath(VIDEO_PATH).name}".format(episode_index=place.episode)
            ):
                path.unlink()
        self._write_json(self._mark(number), dataclasses.asdict(mark))
        return mark

    def _write(self, episode: Episode, place: Place) -> Mark:
        count = len(episode.tasks)
        features = self._features_of(episode)
        found, levels, columns = {}, {}, {name: episode.columns.column(name) for name in episode.columns.column_names}
        lost = list(episode.lost)
        for name, frames in episode.cameras.items():
            watched = _Watched(count)
            if features[name]["dtype"] == IMAGE:
                columns[name] = _pictures(watched.all_of(self._frames(frames)))
            elif isinstance(frames, Clip) and films.can_copy(frames):
                with self._writing(place.episode, name) as path:
                    films.copy(path, [frames], self.fps)
                if name not in episode.statistics:
                    watched.some_of(frames)
            else:
                lost += [_REENCODED] * isinstance(frames, Clip)
                with self._writing(place.episode, name) as path:
                    encoded = watched.all_of(self._frames(frames))
                    films.encode(path, encoded, self.fps, self.crf, f"{episode.where}: {name}")
            if name in episode.statistics:
                found[name] = dict(episode.statistics[name])
            else:
                watched.check(f"{episode.where}: {name}")
                levels[name], found[name] = watched.levels.counts.tolist(), watched.levels.statistics()
        for name in [name for name in episode.columns.column_names if is_picture(features[name])]:
            if name in episode.statistics:
                found[name] = dict(episode.statistics[name])
                continue
            own = _levels_of_column(columns[name], f"{episode.where}: {name}")
            levels[name], found[name] = own.counts.tolist(), own.statistics()
        table = self._table(columns, features, episode.tasks, place)
        found |= _learn(table, episode.where)
        path = self.path(DATA_PATH, place.episode)
        with replacing(path, path.with_suffix(".part")) as partial:
            pq.write_table(table, partial)
        if self.features is None:
            self._write_json(self.folder / "features.json", features)
        texts = tuple(dict.fromkeys(episode.tasks))
        return Mark(None, count, texts, found, levels, tuple(lost))

    def _features_of(self, episode: Episode) -> dict[str, dict[str, Any]]:
        own = {name: dict(entry) for name, entry in episode.features.items()}
        for name, frames in episode.cameras.items():
            if not isinstance(frames, Clip):
                own[name]["dtype"] = self.pictures
        own = json.loads(json.dumps(own))
        first = self.features or own
        if own != first:
            name = next(name for name in [*own, *first] if own.get(name) != first.get(name))
            detail = (
                f"{episode.where}: {name} is {_shape(own.get(name))}, in the first episode {_shape(first.get(name))}"
            )
            raise UnusableError("other features than the first episode", detail)
        return own

    def _table(
        self,
        columns: Mapping[str, Any],
        features: Mapping[str, Mapping[str, Any]],
        tasks: Sequence[str],
        place: Place,
    ) -> pa.Table:
        """The rows of an episode, with the numbers that they get here."""
        steps = np.arange(len(tasks))
        new: dict[str, int] = dict(place.tasks)
        numbers = [new.setdefault(text, len(new)) for text in tasks]
        reserved = {
            "timestamp": steps / self.fps,
            "frame_index": steps,
            "episode_index": np.full(len(tasks), place.episode),
            "index": place.index + steps,
            "task_index": np.array(numbers),
        }
        every = features | {name: {"dtype": dtype, "shape": [1]} for name, dtype in RESERVED.items()}
        made = {name: columns[name] for name in features if name in columns}
        made |= {name: column(values, every[name]) for name, values in reserved.items()}
        types = {name: own for name in made if (own := hugging_face(every[name])) is not None}
        table = pa.table(made)
        if len(types) < len(made):  # of a type that is not known its column says enough
            return table.replace_schema_metadata(None)
        return table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": types}})})

    def _frames(self, frames: Clip | Frames) -> Iterator[np.ndarray]:
        if not isinstance(frames, Clip):
            return frames()
        return (video.read_frame(frames.path, frames.first + t) for t in range(frames.count))

    def _writing(self, episode: int, camera: str) -> Any:
        path = self.path(VIDEO_PATH, episode, video_key=camera)
        return replacing(path, path.with_suffix(".part"))

    def _mark(self, number: int) -> pathlib.Path:
        return self.folder / "marks" / f"{number // CHUNK:03d}" / f"{number:06d}.json"

    def _write_json(self, path: pathlib.Path, value: Any) -> None:
        with replacing(path, path.with_suffix(".part")) as partial:
            partial.write_text(json.dumps(value))


@contextlib.contextmanager
def _frames_read() -> Iterator[None]:
    """Where frames are read: one that cannot be leaves its episode out."""
    try:
        yield
    except UnusableError:
        raise
    except DataError as error:
        raise UnusableError("frames cannot be read", str(error)) from error


def _learn(table: pa.Table, where: str) -> dict[str, Statistics]:
    """Statistics of the columns that are numbers; none of one that may hold NaN, and does."""
    found = {}
    for name, values in numbers_of(table).items():
        if np.isfinite(values).all():
            found[name] = statistics.of_numbers(values)
        elif name.startswith(_FINITE):
            step = int(np.argwhere(~np.isfinite(values))[0][0])
            raise UnusableError(f"{name} are not finite", f"{where}: step {step}")
    return found


def is_picture(feature: Mapping[str, Any]) -> bool:
    """Whether a feature of Parquet holds pictures of three channels."""
    return feature["dtype"] == IMAGE and 3 in (feature["shape"][-1], feature["shape"][0])


def numbers_of(table: pa.Table) -> dict[str, np.ndarray]:
    """The columns that are numbers, or lists of them of one length: each [n] or [n, d]."""
    found = {}
    for name in table.column_names:
        array = table.column(name).combine_chunks()
        if pa.types.is_fixed_size_list(array.type):
            size, array = array.type.list_size, array.flatten()
        else:
            size = 0
        kind = array.type
        if pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind):
            values = array.to_numpy(zero_copy_only=False)
            found[name] = values.reshape(-1, size) if size else values
    return found


def _pictures(frames: Iterable[np.ndarray]) -> pa.Array:
    rows = []
    for number, frame in enumerate(frames):
        file = io.BytesIO()
        Image.fromarray(frame).save(file, "PNG")
        rows.append({"bytes": file.getvalue(), "path": f"frame_{number:06d}.png"})
    return pa.array(rows, pa.struct({"bytes": pa.binary(), "path": pa.string()}))


def _levels_of_column(pictures: pa.ChunkedArray, where: str) -> Levels:
    found = Levels.none()
    for row in sampled_frames(len(pictures)):
        data = pictures[row].as_py()["bytes"]
        if data is None:
            raise UnusableError("rows have no picture in them", f"{where}: row {row}: embed the pictures")
        with _frames_read():
            found += Levels.of(images.decode(data, f"{where}: row {row}"))
    return found


def _shape(feature: Mapping[str, Any] | None) -> str:
    return "missing" if feature is None else f"{feature['dtype']} {[*feature['shape']]}"


class _Watched:
    """The statistics of the frames of an episode of `count`, made while they pass."""

    def __init__(self, count: int) -> None:
        self.levels = Levels.none()
        self._count = count
        self._sampled = {*sampled_frames(count)}
        self._passed = 0

    def all_of(self, frames: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """The frames, looked at."""
        frames = iter(frames)
        while True:
            with _frames_read():
                frame = next(frames, None)
            if frame is None:
                return
            self._look(self._passed, frame)
            self._passed += 1
            yield frame

    def some_of(self, clip: Clip) -> None:
        """Decodes those frames of a clip that count."""
        for t in sorted(self._sampled):
            with _frames_read():
                frame = video.read_frame(clip.path, clip.first + t)
            self._look(t, frame)
        self._passed = self._count

    def check(self, where: str) -> None:
        """Raises UnusableError unless as many passed as there should be."""
        if self._passed != self._count:
            raise UnusableError("lengths disagree", f"{where}: {self._passed} frames, {self._count} actions")

    def _look(self, t: int, frame: np.ndarray) -> None:
        if t in self._sampled:
            self.levels += Levels.of(frame)
