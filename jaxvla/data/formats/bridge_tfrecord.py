"""TFRecords of BridgeData V2: one trajectory per record, every feature one serialized tensor, pixels raw.

Written by bridge_data_v2's `bridgedata_numpy_to_tfrecord.py` or by this project's; both are read. A trajectory's key is
"<path>#0" where the record names the raw folder that it was made from, as this project's do, else
"<task folder>/<split>/<number in the file>#0". Both follow RLDS's "<file_path>#<episode_id>".
"""

import os
import pathlib
import re

import numpy as np

from jaxvla.data.formats import tfrecord
from jaxvla.data.formats.folders import distinct, ends_with, glob
from jaxvla.data.formats.index import ANY_TEXT, NO_TEXT, Frames, Index, IndexBuilder
from jaxvla.data.formats.protobuf import Read
from jaxvla.data.formats.tfrecord import FeatureSpan
from jaxvla.data.skipping import UnusableError
from jaxvla.errors import DataError

_CAMERA = re.compile(r"observations/(images\d+)$")


def build_index(path: str) -> Index:
    """Indexes one TFRecord file by walking its headers; pixels are skipped.

    Frame t < T is read from `observations`, frame T from the last of `next_observations`. Trajectories that cannot be
    used are left out and counted.

    Raises:
        DataError: the file is damaged; names path and byte position.
    """
    builder = IndexBuilder()
    split = pathlib.Path(path).parent
    with open(path, "rb") as file:
        read = tfrecord.file_reader(file.fileno())
        for number, record in enumerate(tfrecord.scan_records(file.fileno(), path)):
            where = f"{path}: record {number}"
            example = _Example(read, tfrecord.parse_example(read, record, path), where)
            with builder.trajectory():
                _add(builder, example, f"{split.parent.name}/{split.name}/{number}", where)
    return builder.build()


def _add(builder: IndexBuilder, example: "_Example", name: str, where: str) -> None:
    states, later = (example.array(f"{part}/state") for part in ("observations", "next_observations"))
    if states.shape != later.shape:
        raise UnusableError("lengths disagree", f"{where}: states {list(states.shape)}, later ones {list(later.shape)}")
    actions = example.array("actions")
    cameras = sorted(match[1] for key in example.features if (match := _CAMERA.match(key)))
    language = example.strings("language")
    builder.add(
        where,
        f"{example.path() or name}#0",
        actions,
        np.concatenate([states, later[-1:]]),
        language,
        np.full(len(actions), ANY_TEXT if language else NO_TEXT),
        {camera: example.frames(camera) for camera in cameras},
        taught=example.flags("taught"),
    )


class _Example:
    """The features of one record, each expected to hold one serialized tensor."""

    def __init__(self, read: Read, features: dict[str, FeatureSpan], where: str) -> None:
        self.features = features
        self._read = read
        self._where = where

    def _span(self, key: str) -> tfrecord.Span:
        feature = self.features.get(key)
        if feature is None or feature.kind != "bytes" or len(feature.values) != 1:
            there = ", ".join(sorted(self.features)) or "nothing"
            raise UnusableError(f"no tensor {key!r}", f"{self._where}: it has {there}; is it a BridgeData V2 TFRecord?")
        return feature.values[0]

    def array(self, key: str) -> np.ndarray:
        array = tfrecord.read_tensor(self._read, self._span(key), self._where)
        if isinstance(array, list) or array.ndim != 2:
            raise UnusableError(f"{key!r} is no table of numbers", self._where)
        return array

    def strings(self, key: str) -> tuple[str, ...]:
        if key not in self.features:
            return ()
        texts = tfrecord.read_tensor(self._read, self._span(key), self._where)
        if not isinstance(texts, list):
            raise UnusableError(f"{key!r} is no list of strings", self._where)
        return tuple(text for raw in texts if (text := raw.decode(errors="replace").strip()))

    def flags(self, key: str) -> np.ndarray | None:
        """A bool of each transition [T]; None where the record says nothing."""
        if key not in self.features:
            return None
        array = tfrecord.read_tensor(self._read, self._span(key), self._where)
        if isinstance(array, list) or array.dtype != bool or array.ndim != 1:
            raise UnusableError(f"{key!r} is no list of bools", self._where)
        return array

    def path(self) -> str:
        """The raw folder that the trajectory was made from; "" where it is not known."""
        return "".join(self.strings("path"))

    def frames(self, camera: str) -> Frames | str:
        """Where the frames of a camera lie, or what is wrong with them."""
        keys = [f"{part}/{camera}" for part in ("observations", "next_observations")]
        if not all(key in self.features for key in keys):
            return "pictures before or after the steps only"
        now, later = (tfrecord.parse_tensor(self._read, self._span(key), self._where) for key in keys)
        if now.shape[:1] == (0,):
            return "no pictures"
        if any(s.content is None or s.dtype != np.uint8 or len(s.shape) != 4 or s.shape[3] != 3 for s in (now, later)):
            return f"{now.dtype.name} {list(now.shape)}, not uint8 [steps, height, width, 3]"
        if now.shape != later.shape:
            return f"{list(now.shape)} observations but {list(later.shape)} next ones"
        steps, size = now.shape[0], int(np.prod(now.shape[1:]))
        offsets = now.content.offset + np.arange(steps, dtype=np.int64) * size
        offsets = np.append(offsets, later.content.offset + (steps - 1) * size)
        return Frames(offsets, np.full(steps + 1, size, np.int64), tuple(now.shape[1:]))


def find_files(
    root: pathlib.Path, patterns: tuple[str, ...], exclude: tuple[str, ...], split: str
) -> tuple[list[str], list[pathlib.Path]]:
    """The files `<root>/<pattern>/<split>/out.tfrecord`, sorted; each once, by however many links it can be reached.

    Beside them, links that might be task folders but lead nowhere.

    Args:
        root: the data path.
        patterns: glob patterns of task folders; `**` matches any number of folders.
        exclude: glob patterns; a task folder is left out where the end of its path matches one.
        split: "train" or "val".

    Raises:
        DataError: the root is missing or cannot be read, a pattern matches no task folder or leads out of the root, no
            task folder has the split, or a file is a link that leads nowhere.
    """
    if not root.is_dir():
        raise DataError(f"no data folder {root}: convert data into it (see README, From raw data) or set the data path")
    found: set[pathlib.Path] = set()
    lost: set[pathlib.Path] = set()
    for pattern in patterns:
        files = [
            root / folder.path / part / "out.tfrecord"
            for folder in glob(root, pattern, lost)
            for part in folder.folders
        ]
        files = [path for path in files if path.parent.name in ("train", "val") and os.path.lexists(path)]
        if not files:
            below = ", ".join(sorted(p.name for p in root.iterdir() if p.is_dir())[:5]) or "no folders"
            raise DataError(
                f"include pattern {pattern!r} matches no <task>/(train|val)/out.tfrecord below {root} "
                f"(which has {below}): correct bridgedata_config.include or the data path"
            )
        found |= {path for path in files if path.parent.name == split}
    found = {path for path in found if not any(ends_with(path.parents[1], pattern) for pattern in exclude)}
    if not found:
        raise DataError(
            f"no {split}/out.tfrecord below {root} for include {patterns}, exclude {exclude}: convert again"
            + (", or hold out a share with --bridgedata_config.validation_share=0.05" if split == "val" else "")
        )
    for path in found:
        if not path.is_file():
            raise DataError(f"{path} is no file, or a link that leads nowhere: mend it, or exclude its task folder")
    return [os.fspath(path) for path in distinct(found)[0]], sorted(lost)
