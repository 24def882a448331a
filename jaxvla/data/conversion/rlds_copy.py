"""Copies an RLDS dataset into a version folder of TFRecords, whose frames training reads one by one.

Records are copied byte for byte, so every feature stays, and pictures stay as they were encoded. TFRecords of
BridgeData would hold their pixels instead, many times larger, and only the features that these know.
"""

import dataclasses
import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping, Sequence

from tqdm import tqdm

from jaxvla.data.conversion.workers import alone_in, replacing
from jaxvla.data.files import reading
from jaxvla.data.formats import rlds_files, tfrecord
from jaxvla.data.formats.records import open_records
from jaxvla.data.formats.rlds_features import read_features
from jaxvla.errors import DataError

Shard = Callable[[], Iterable[bytes]]  # gives the records, each a tf.train.Example


@dataclasses.dataclass(frozen=True)
class RLDSSource:
    """A dataset to copy.

    Attributes:
        path: where it lies.
        name: of the dataset.
        folder: <name>/<version>, or <name>/<configuration>/<version>.
        features: the text of its features.json.
        splits: the shards of each split.
    """

    path: str
    name: str
    folder: str
    features: str
    splits: Mapping[str, Sequence[Shard]]


def of_folder(folder: pathlib.Path) -> RLDSSource:
    """The dataset of a version folder, of TFRecords or array_record files.

    Raises:
        DataError: it is none, or lacks files.
    """
    rlds_files.check_version(folder)
    with reading(folder):
        features = (folder / "features.json").read_text()
    name = rlds_files.dataset_name(folder) or folder.absolute().parent.name
    splits = {
        split: [_records_of(path) for path in rlds_files.find_files(folder, split)]
        for split in rlds_files.splits(folder)
    }
    return RLDSSource(str(folder), name, f"{name}/{folder.absolute().name}", features, splits)


def _records_of(path: str) -> Shard:
    def records() -> Iterable[bytes]:
        with reading(path):
            file = open_records(path)
            # Verified: the copy's own checksums would fit whatever was damaged.
            yield from (file.whole(span)(*span) for span in file.spans())

    return records


def copy_dataset(source: RLDSSource, output: pathlib.Path, splits: Sequence[str] = (), overwrite: bool = False) -> str:
    """Copies splits, shard by shard; those that are there already are left as they are.

    A shard is there when all of it is, so an interrupted copy is finished by starting it again.

    Args:
        source: the dataset.
        output: the folder below which its own folder is made.
        splits: which; () for all.
        overwrite: copy again what is there.

    Returns:
        A line that says what was copied, and where it lies.

    Raises:
        DataError: no such split, no steps in features.json, another dataset or this one itself where it is to lie, or a
            file that cannot be read or written.
    """
    unknown = [split for split in splits if split not in source.splits]
    if unknown or not source.splits:
        there = ", ".join(sorted(source.splits)) or "no splits"
        raise DataError(
            f"{source.name} has no split {', '.join(unknown) or 'at all'}, it has {there}: correct --splits"
        )
    folder = output / source.folder
    if os.path.realpath(folder) == os.path.realpath(source.path):
        raise DataError(f"{folder} is the dataset itself: give another --output_path")
    chosen = {split: shards for split, shards in source.splits.items() if not splits or split in splits}
    with alone_in(folder):
        _write_features(source, folder, overwrite)
        lengths = {split: [] for split in chosen}
        jobs = [(split, number, shard) for split, shards in chosen.items() for number, shard in enumerate(shards)]
        copied = 0
        for split, number, shard in tqdm(jobs, "copying", unit="file", delay=1.0, leave=False):
            path = folder / f"{source.name}-{split}.tfrecord-{number:05}-of-{len(chosen[split]):05}"
            if overwrite or not path.exists():
                _write_shard(path, shard)
                copied += 1
            lengths[split].append(len(tfrecord.scan_records(path)))
        _write_info(source, folder, lengths)
    episodes = sum(map(sum, lengths.values()))
    return f"{folder}: {episodes} episodes in {len(jobs)} files, of which {copied} were written now"


def _write_features(source: RLDSSource, folder: pathlib.Path, overwrite: bool) -> None:
    """Writes features.json, and sees that it describes steps, and the files that are there."""
    path = folder / "features.json"
    if path.exists() and not overwrite and path.read_text() != source.features:
        raise DataError(f"{path}: is of another dataset: give another --output_path, or --overwrite")
    with replacing(path, path.with_name(f".{path.name}.part")) as partial:
        partial.write_text(source.features)
    read_features(path)


def _write_shard(path: pathlib.Path, shard: Shard) -> None:
    with replacing(path, path.with_name(f".{path.name}.part")) as partial, tfrecord.RecordWriter(partial) as writer:
        for record in shard():
            writer.write([record])


def _write_info(source: RLDSSource, folder: pathlib.Path, lengths: Mapping[str, Sequence[int]]) -> None:
    """Writes dataset_info.json: what is there already of other splits stays."""
    path = folder / "dataset_info.json"
    template = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    entries = [
        {"name": split, "shardLengths": [*map(str, own)], "filepathTemplate": template}
        for split, own in (rlds_files.shard_lengths(folder) | lengths).items()
    ]
    version = pathlib.PurePosixPath(source.folder).name
    info = {"name": source.name, "version": version, "fileFormat": "tfrecord", "splits": entries}
    with replacing(path, path.with_name(f".{path.name}.part")) as partial:
        partial.write_text(json.dumps(info, indent=2))
