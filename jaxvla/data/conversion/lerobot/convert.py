"""From episodes to a LeRobotDataset that is there whole, or not at all.

Everything is made in `<output>.partial`, which is renamed at the end. A conversion that was killed goes on there.
"""

import dataclasses
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from jaxvla.data import skipping
from jaxvla.data.conversion.lerobot import meta
from jaxvla.data.conversion.lerobot.episode import IMAGE, VIDEO, Episodes
from jaxvla.data.conversion.lerobot.staging import Mark, Place, Stage
from jaxvla.data.conversion.workers import alone_in, replacing, writing
from jaxvla.data.formats import sidecar
from jaxvla.data.formats.lerobot_meta import INFO
from jaxvla.errors import ConfigError, DataError

VERSIONS = {"v2.1": meta.write_2, "v3.0": meta.write_3}
_SHOWN = 12  # notes
_ENTRIES = (
    "stamp",
    "stamp.part",
    "features.json",
    "features.part",
    "marks",
    "dataset",
    "joined",
)  # of an unfinished one


@dataclasses.dataclass(frozen=True)
class Options:
    """How a dataset is written.

    Attributes:
        version: of the format, one of `VERSIONS`.
        fps: frames per second, Hz; 0 for what the episodes say.
        pictures: "video" or "image", what frames become that are no videos yet.
        crf: see `Stage`.
        max_skipped: the share of episodes that may be left out.
        overwrite: whether a LeRobotDataset that is there is replaced.
        data_mb, video_mb: see `Whole`.
    """

    version: str
    fps: float = 0.0
    pictures: str = VIDEO
    crf: int = 23
    max_skipped: float = 0.1
    overwrite: bool = False
    data_mb: int = 100
    video_mb: int = 200

    def __post_init__(self) -> None:
        if self.version not in VERSIONS:
            raise ConfigError(f"version must be one of {', '.join(VERSIONS)}, not {self.version!r}")
        if self.pictures not in (VIDEO, IMAGE):
            raise ConfigError(f"--pictures must be {VIDEO} or {IMAGE}, not {self.pictures!r}")
        if not 0 <= self.crf <= 51:
            raise ConfigError(f"--crf must lie in [0, 51], not {self.crf}")


def write_lerobot(episodes: Episodes, output: pathlib.Path, options: Options) -> list[str]:
    """Writes a LeRobotDataset.

    Args:
        episodes: of which.
        output: its folder.
        options: how.

    Returns:
        Lines that say what was written and what was not.

    Raises:
        ConfigError: nothing says the frequency, or frames have odd sides.
        DataError: the output is there already, or cannot be written; too many episodes cannot be used.
    """
    fps = options.fps or episodes.fps
    if not 0 < fps < float("inf"):
        raise ConfigError("nothing says how many frames a second has: give --fps")
    output = pathlib.Path(os.path.abspath(output))
    _check_output(output, options.overwrite)
    partial = output.with_name(f"{output.name}.partial")
    with alone_in(partial):
        stage = _begin(partial, episodes, fps, options)
        names, counts = " and ".join(name for name, _ in episodes.splits), [count for _, count in episodes.splits]
        place, kept, skipped, lost = _stage(stage, episodes, sum(counts))
        skipping.check(skipped, sum(counts), names, options.max_skipped, str(output), "--max_skipped")
        splits = {name: sum(own) for (name, count), own in zip(episodes.splits, _pieces(kept, counts))}
        splits = {name: count for name, count in splits.items() if count}
        whole = meta.Whole(episodes.robot_type, splits, place.tasks, sum(counts), options.data_mb, options.video_mb)
        made = VERSIONS[options.version](stage, whole)
        with writing(output):
            (partial / "stamp").unlink()  # what is left of it from here on is of no use
            _swap(made, output)
            shutil.rmtree(partial)
    lines = [
        f"dataset      {output}, LeRobotDataset {options.version}",
        f"episodes     {place.episode} of {sum(counts)}: {', '.join(f'{n} {name}' for name, n in splits.items())}",
        f"frames       {place.index} at {fps:g} Hz, {len(place.tasks)} tasks",
        *skipping.describe(skipped, sum(counts), names),
    ]
    lines += [f"lost         of {count} episodes, {what}" for what, count in lost.items()]
    lines += [f"note         {note}" for note in episodes.notes[:_SHOWN]]
    return lines


def _check_output(output: pathlib.Path, overwrite: bool) -> None:
    if not output.exists():
        return
    if not (output / INFO).exists():
        raise DataError(f"{output} exists and is no LeRobotDataset, which --overwrite would replace: give another path")
    if not overwrite:
        raise DataError(f"{output} exists: pass --overwrite to replace it, or give another --output_path")


def _begin(partial: pathlib.Path, episodes: Episodes, fps: float, options: Options) -> Stage:
    """The stage in a folder; what lies there of another conversion is removed, and nothing else.

    Raises:
        DataError: something else lies there.
    """
    stamp = sidecar.fingerprint((), 1, episodes.stamp, fps, options.pictures, options.crf)
    path = partial / "stamp"
    with writing(partial):
        if not path.exists() or path.read_text() != stamp:
            strange = [entry for entry in partial.iterdir() if entry.name not in _ENTRIES]
            if strange:
                raise DataError(f"{strange[0]} is no part of a conversion: move it, or give another --output_path")
            for entry in partial.iterdir():
                shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
            with replacing(path, path.with_suffix(".part")) as made:
                made.write_text(stamp)
        shutil.rmtree(partial / "joined", ignore_errors=True)
    return Stage(partial, fps, options.pictures, options.crf)


def _stage(
    stage: Stage, episodes: Episodes, total: int
) -> tuple[Place, list[bool], list[skipping.Skipped], dict[str, int]]:
    """Writes all episodes that are not there; gives the end of them, which were kept, and what was not."""
    place, kept, skipped, lost = Place(), [], [], {}
    for number in tqdm(range(total), "episodes", unit="episode", disable=None):
        mark = stage.mark(number) or stage.add(number, place, episodes.read)
        place.pass_by(mark)
        kept.append(mark.skipped is None)
        skipped += _reasons(mark)
        for what in mark.lost:
            lost[what] = lost.get(what, 0) + 1
    return place, kept, skipped, lost


def _reasons(mark: Mark) -> list[skipping.Skipped]:
    return [] if mark.skipped is None else [mark.skipped]


def _pieces(values: Sequence[bool], counts: Sequence[int]) -> Iterator[Sequence[bool]]:
    start = 0
    for count in counts:
        yield values[start : start + count]
        start += count


def _swap(made: pathlib.Path, output: pathlib.Path) -> None:
    """Puts a whole dataset in the place of what is there."""
    old = output.with_name(f"{output.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        os.replace(output, old)
    os.replace(made, output)
    shutil.rmtree(old, ignore_errors=True)
