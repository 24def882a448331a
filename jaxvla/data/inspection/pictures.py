"""What the cameras of a dataset show, by a sample of their frames, of which no more than an episode's are in memory."""

import collections
import dataclasses
import io

import numpy as np
from PIL import Image
from tqdm import tqdm

from jaxvla.data.inspection.recordings import Recordings
from jaxvla.data.source import TrajectorySource
from jaxvla.errors import DataError

# Frames of an episode that are looked at: the first, the middle and the last, and some between.
FRAMES = 5

# Episodes whose first, middle and last frames are kept, and how large, in pixels.
SHEET, THUMB = 8, (192, 144)

BINS = 32

# Of 255: a frame is black where nearly all of it is below one value and its mean below another, and of one colour where
# its pixels deviate less than JPEG's rounding.
_BLACK_PIXEL, _BLACK_MEAN, _ONE_COLOUR = 20, 5, 1.5
# Pixels a side that are enough to tell this.
_SIDE = 96


@dataclasses.dataclass(frozen=True, eq=False)
class Camera:
    """What is known of one camera.

    Attributes:
        name: the stored one.
        sizes: (height, width) of the frames, and how many there are of each size.
        frames: how many were looked at.
        rows: the episodes of these, as rows of `Recordings.source`; int64 [k].
        black, plain: int64 [k], how many of an episode's frames are black, or of one other colour.
        looked: int64 [k], how many of its frames were looked at.
        frozen: bool [k], whether these are all equal.
        mean: float64 [3], mean red, green and blue of all frames, of 255.
        brightness: int64 [BINS], frames by their mean, from 0 to 255.
        unreadable: what is wrong, and the row of the episode, -1 for all.
        missing: rows of episodes without frames of it; of all, not of a sample.
    """

    name: str
    sizes: dict[tuple[int, int], int]
    frames: int
    rows: np.ndarray
    black: np.ndarray
    plain: np.ndarray
    looked: np.ndarray
    frozen: np.ndarray
    mean: np.ndarray
    brightness: np.ndarray
    unreadable: tuple[tuple[int, str], ...]
    missing: np.ndarray


@dataclasses.dataclass(frozen=True, eq=False)
class Pictures:
    """What was seen.

    Attributes:
        cameras: each of the dataset.
        sheet: by row of some episodes, then by camera, JPEGs of the first, middle and last frame.
    """

    cameras: tuple[Camera, ...]
    sheet: dict[int, dict[str, tuple[bytes, ...]]]


def look(recordings: Recordings, max_frames: int, seed: int) -> Pictures:
    """Looks at a sample of frames.

    Args:
        recordings: whose.
        max_frames: of all cameras, at most, but `FRAMES` of each at least.
        seed: of the choice of episodes, which is the same for all cameras, and of frames.
    """
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(recordings.source))
    most = max(max_frames // (FRAMES * max(len(recordings.cameras), 1)), 1)
    rows, sheet = np.sort(order[:most]), sorted(order[: min(most, SHEET)].tolist())
    steps = {row: _choose(int(recordings.source.lengths[row]), rng) for row in rows.tolist()}
    kept: dict[int, dict[str, tuple[bytes, ...]]] = {row: {} for row in sheet}
    cameras = []
    with tqdm(total=len(rows) * len(recordings.cameras), desc="looking", unit="episode", disable=None) as bar:
        for name in recordings.cameras:
            there = recordings.seen(name)[recordings.numbers]
            watch = _Watch(name)
            own = rows[there[rows]]
            bar.update(len(rows) - len(own))
            for row, frames in _read(recordings, name, own, steps, watch.unreadable):
                bar.update()
                watch.add(row, frames)
                if row in kept and frames:
                    kept[row][name] = tuple(_jpeg(frames[k]) for k in (0, len(frames) // 2, len(frames) - 1))
            cameras.append(watch.camera(np.flatnonzero(~there)))
    return Pictures(tuple(cameras), kept)


def _choose(length: int, rng: np.random.Generator) -> list[int]:
    """The frames of an episode that are looked at, ascending, the middle one in the middle."""
    middle = length // 2
    parts = [np.arange(1, middle), np.arange(middle + 1, length)]
    between = [int(rng.choice(part)) for part in parts if len(part)]
    return sorted({0, middle, length, *between})


def _read(
    recordings: Recordings, camera: str, rows: np.ndarray, steps: dict[int, list[int]], faults: list[tuple[int, str]]
) -> collections.abc.Iterator[tuple[int, list[np.ndarray]]]:
    """Each episode's chosen frames; none of one that cannot be read, which is added to the faults."""
    if not len(rows):
        return
    try:
        source = recordings.views(camera, recordings.numbers[rows])
    except DataError as error:
        faults.append((-1, str(error)))
        return
    for i, row in enumerate(rows.tolist()):
        yield row, _frames(source, i, steps[row], camera, row, faults)


def _frames(
    source: TrajectorySource, i: int, steps: list[int], camera: str, row: int, faults: list[tuple[int, str]]
) -> list[np.ndarray]:
    try:
        return source.stored_frames(i, steps, camera)
    except DataError as error:
        faults.append((row, str(error)))
        return []


class _Watch:
    """Gathers what is seen of one camera."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._sizes: collections.Counter[tuple[int, int]] = collections.Counter()
        self._episodes: list[tuple[int, int, int, int, bool]] = []
        self._sum = np.zeros(3)
        self._brightness = np.zeros(BINS, np.int64)
        self.unreadable: list[tuple[int, str]] = []

    def add(self, row: int, frames: list[np.ndarray]) -> None:
        """Frames of an episode; none are nothing."""
        if not frames:
            return
        black = plain = 0
        for frame in frames:
            self._sizes[frame.shape[:2]] += 1
            step = max(min(frame.shape[:2]) // _SIDE, 1)
            pixels = frame[::step, ::step].reshape(-1, 3).astype(np.float32)
            mean = pixels.mean(0)
            self._sum += mean
            self._brightness[min(int(mean.mean() / 256 * BINS), BINS - 1)] += 1
            is_black = mean.mean() < _BLACK_MEAN and np.quantile(pixels.max(1), 0.99) < _BLACK_PIXEL
            black += is_black
            plain += not is_black and pixels.std(0).max() < _ONE_COLOUR
        frozen = len(frames) > 1 and all(np.array_equal(frames[0], frame) for frame in frames[1:])
        self._episodes.append((row, int(black), int(plain), len(frames), frozen))

    def camera(self, missing: np.ndarray) -> Camera:
        """All of it."""
        rows, black, plain, looked, frozen = np.array(self._episodes, np.int64).reshape(-1, 5).T
        frames = int(looked.sum())
        return Camera(
            name=self._name,
            sizes=dict(sorted(self._sizes.items())),
            frames=frames,
            rows=rows,
            black=black,
            plain=plain,
            looked=looked,
            frozen=frozen.astype(bool),
            mean=self._sum / max(frames, 1),
            brightness=self._brightness,
            unreadable=tuple(self.unreadable),
            missing=missing,
        )


def _jpeg(frame: np.ndarray) -> bytes:
    picture, file = Image.fromarray(frame), io.BytesIO()
    picture.thumbnail(THUMB, Image.Resampling.LANCZOS)
    picture.save(file, "JPEG", quality=88, subsampling=0)
    return file.getvalue()
