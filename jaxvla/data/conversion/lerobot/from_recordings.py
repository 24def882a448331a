"""The episodes of other data, to be written as a LeRobotDataset: indexed datasets, raw BridgeData, numpy files.

A LeRobotDataset has an action for every frame, so that what was seen after the last action is left out.
"""

import collections
import dataclasses
import functools
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from jaxvla.data.conversion import numpy_format
from jaxvla.data.conversion.discovery import SPLITS, Ignored, find_numpy, find_raw
from jaxvla.data.conversion.lerobot.episode import Episode, Episodes, Frames, make_episode
from jaxvla.data.conversion.raw import LATENCY_FIXED, read_trajectory
from jaxvla.data.conversion.tfrecord_format import check_trajectory
from jaxvla.data.formats import sidecar, untrusted
from jaxvla.data.formats.index import ANY_TEXT, MIN_TRANSITIONS, NO_TEXT
from jaxvla.data.inspection.recordings import Recordings
from jaxvla.data.skipping import UnusableError
from jaxvla.data.source import TrajectorySource
from jaxvla.data.transforms import images
from jaxvla.errors import ConfigError, DataError

# Hz, of BridgeData V2, and what its seven numbers are (m and rad).
BRIDGE_FPS = 5.0
BRIDGE_NAMES = ("x", "y", "z", "roll", "pitch", "yaw", "gripper")
_OTHER_TEXTS = "other words for the instruction"


def open_recordings_of(
    recordings: Recordings, cameras: Sequence[str], image_size: tuple[int, ...], fps: float
) -> Episodes:
    """All episodes of a dataset that is indexed: TFRecords of BridgeData, or RLDS.

    Args:
        recordings: all of them.
        cameras: those to take, by their stored names; all if empty.
        image_size: (height, width) of the frames; () for the stored size.
        fps: frames per second, Hz; 0 where that is not known.

    Raises:
        ConfigError: no such camera, or none at all.
    """
    unknown = [camera for camera in cameras if camera not in recordings.cameras]
    if unknown or not recordings.cameras:
        there = ", ".join(recordings.cameras) or "no cameras"
        raise ConfigError(
            f"{recordings.root}: no camera {', '.join(unknown) or 'at all'}, it has {there}: see --cameras"
        )
    chosen = tuple(cameras) or recordings.cameras
    places: dict[str, dict[int, int]] = {}
    views: dict[str, TrajectorySource] = {}
    for camera in chosen:
        numbers = np.flatnonzero(recordings.seen(camera))
        places[camera] = {number: place for place, number in enumerate(numbers.tolist())}
        views[camera] = recordings.views(camera, numbers)
    names = recordings.convention.names if recordings.said else ()
    source = _Indexed(recordings.source, places, views, image_size, tuple(names))
    counts = np.bincount(recordings.split_of, minlength=len(recordings.splits)).tolist()
    stamp = sidecar.fingerprint(recordings.files, chosen, image_size, names)
    splits = [(name, count) for name, count in zip(recordings.splits, counts) if count]
    return Episodes(stamp, fps, None, splits, source.read, recordings.notes)


@dataclasses.dataclass(frozen=True, eq=False)
class _Indexed:
    """Tables of all episodes; by camera, which of its own episodes each is, and these."""

    tables: TrajectorySource
    places: Mapping[str, Mapping[int, int]]
    views: Mapping[str, TrajectorySource]
    image_size: tuple[int, ...]
    names: tuple[str, ...]

    def read(self, number: int) -> Episode:
        """The episode of a number."""
        table, length = self.tables.table(number), int(self.tables.lengths[number])
        frames = {}
        for camera, places in self.places.items():
            if number not in places:
                raise UnusableError(f"no camera {camera}", f"{table.key}: --cameras chooses")
            view = self.views[camera]
            sizes = view.found_sizes[camera]
            if len(sizes) > 1 and not self.image_size:
                found = ", ".join(map(images.size_text, sorted(sizes)))
                raise ConfigError(
                    f"{view.paths[0]} and others: {camera} has frames of {found} pixels: give --image_size"
                )
            size = self.image_size or min(sizes)
            frames[camera] = size, functools.partial(_stored, view, camera, places[number], length, size)
        start = int(self.tables.action_starts[number])
        numbers = self.tables.texts[start : start + length].tolist()
        texts = [_text(table.language, text) for text in numbers]
        lost = [_OTHER_TEXTS] if ANY_TEXT in numbers and len(table.language) > 1 else []
        taught = None if self.tables.taught.all() else self.tables.taught[start : start + length]
        names = ((), self.names)
        return make_episode(table.key, table.proprio[:-1], table.actions, texts, frames, names, lost, taught)


def _text(language: Sequence[str], text: int) -> str:
    return "" if text == NO_TEXT else language[max(text, 0)]


def _stored(
    view: TrajectorySource, camera: str, number: int, length: int, size: tuple[int, int]
) -> Iterator[np.ndarray]:
    for step in range(length):
        (frame,) = view.stored_frames(number, [step], camera)
        yield images.as_stored(frame[None], size)[0]


def open_raw(folder: pathlib.Path, depth: int, cameras: Sequence[str], image_size: tuple[int, ...]) -> Episodes:
    """The trajectories of raw BridgeData, see `discovery`; their frames become squares.

    Args:
        folder: the root.
        depth: how many folders lie above the trajectories' dated ones, these included.
        cameras: those to take; all that each trajectory has if empty.
        image_size: (side, side) of the frames.

    Raises:
        ConfigError: the frames are no squares.
        DataError: there are none.
    """
    if len(image_size) != 2 or image_size[0] != image_size[1]:
        raise ConfigError(f"raw frames become squares, as BridgeData has them: give one --image_size, not {image_size}")
    tree = find_raw(folder, depth)
    ignored: Ignored = collections.defaultdict(list)
    found = [
        (path, dated.date < LATENCY_FIXED)
        for folders in tree.tasks.values()
        for dated in folders
        for path in dated.trajectories(ignored)
    ]
    if not found:
        raise DataError(f"{folder} has dated folders, but none with raw/traj_group*/traj*: correct --from or --depth")

    def read(number: int) -> Episode:
        path, shift = found[number]
        try:
            own = read_trajectory(path, image_size[0], shift, cameras)
        except OSError as error:
            raise UnusableError("cannot be read", f"{error.filename or path}: {error.strerror}") from error
        frames = {camera: (image_size, _of_list(pixels[:-1])) for camera, pixels in own.frames.items()}
        return _bridge_episode(str(path), own.states[:-1], own.actions, own.language, own.taught, frames)

    stamp = sidecar.fingerprint([path for path, _ in found], tuple(cameras), image_size)
    beside = [*tree.ignored.items(), *ignored.items()]
    notes = [f"ignored {len(paths)}, {kind}, such as {paths[0]}" for kind, paths in beside if paths]
    return Episodes(stamp, BRIDGE_FPS, "widowx", [("train", len(found))], read, (*tree.notes, *notes))


def open_numpy(folder: pathlib.Path, depth: int, cameras: Sequence[str]) -> Episodes:
    """The trajectories of the numpy step of BridgeData, training before validation.

    Args:
        folder, depth: see `open_raw`.
        cameras: those to take; all that each trajectory has if empty.

    Raises:
        DataError: there are none.
    """
    tree = find_numpy(folder, depth)
    files = {split: [own / split / "out.npy" for own in tree.tasks.values()] for split in SPLITS}
    files = {split: [path for path in own if path.exists()] for split, own in files.items()}
    found = [(path, i) for own in files.values() for path in own for i in range(numpy_format.count_trajectories(path))]

    def read(number: int) -> Episode:
        path, i = found[number]
        where = f"{path}: trajectory {i}"
        own = check_trajectory(_load(path)[i], where, cameras)
        frames = {camera: (now[0].shape[:2], _of_list(now)) for camera, (now, _) in own.frames.items()}
        tables = own.tables["observations/state"], own.tables["actions"]
        return _bridge_episode(where, *tables, own.language, own.taught, frames)

    stamp = sidecar.fingerprint([path for own in files.values() for path in own], tuple(cameras))
    splits = [(split, sum(map(numpy_format.count_trajectories, own))) for split, own in files.items() if own]
    return Episodes(stamp, BRIDGE_FPS, "widowx", splits, read)


@functools.lru_cache(1)
def _load(path: pathlib.Path) -> np.ndarray:
    """All trajectories of a file: its format forces to hold them."""
    try:
        found = untrusted.load_object_npy(path)
    except DataError as error:
        raise UnusableError("damaged or refused out.npy", str(error)) from error
    if found.dtype != np.dtype(object) or found.ndim != 1:
        raise UnusableError("out.npy holds no trajectories", f"{path}: {found.dtype} array")
    return found


def _of_list(frames: Sequence[np.ndarray] | np.ndarray) -> Frames:
    return lambda: iter(frames)


def _bridge_episode(
    where: str,
    states: np.ndarray,
    actions: np.ndarray,
    language: Sequence[str],
    taught: np.ndarray,
    frames: Mapping[str, tuple[tuple[int, int], Frames]],
) -> Episode:
    if len(actions) < MIN_TRANSITIONS:
        raise UnusableError(f"fewer than {MIN_TRANSITIONS} transitions", f"{where}: {len(actions)}")
    lost = [_OTHER_TEXTS] if len(language) > 1 else []
    text = next(iter(language), "")
    names = (BRIDGE_NAMES, BRIDGE_NAMES)
    return make_episode(where, states, actions, [text] * len(actions), frames, names, lost, taught)
