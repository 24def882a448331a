"""Small RLDS datasets as TFDS writes them, of any features; the colour of a picture tells its episode and step."""

import io
import json
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image

from jaxvla.data.dataset import DataConfig, SourceConfig, open_dataset
from jaxvla.data.formats.protobuf import header, varint
from jaxvla.data.formats.tfrecord import RecordWriter
from jaxvla.errors import DataError

TEMPLATE = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
NODES = {"image", "sequence", "classLabel", "boundingBox", "video"}
STEPS = {
    "action": "tensor",
    "observation/state": "tensor",
    "observation/image_0": "image",
    "language_instruction": "text",
}


def picture(number: int, step: int, size: tuple[int, int] = (8, 8)) -> bytes:
    """A PNG of the colour (number, step, 7)."""
    file = io.BytesIO()
    Image.new("RGB", size[::-1], (number, step, 7)).save(file, "PNG")
    return file.getvalue()


def episode(number: int, steps: int = 6, dims: tuple[int, int] = (7, 7), **changes: object) -> dict:
    """The features of a record by name, with `dims` of action and state.

    `changes` name features below `steps`, with "__" for "/"; None leaves one out.
    """
    rng = np.random.default_rng(number)
    own = {
        "action": rng.normal(0, 0.02, (steps, dims[0])).astype(np.float32),
        "observation/state": rng.normal(0, 0.02, (steps, dims[1])).cumsum(0).astype(np.float32),
        "observation/image_0": [picture(number, t) for t in range(steps)],
        "language_instruction": ["go"] * steps,
        "is_first": np.arange(steps) == 0,
    }
    own["action"][:, -1] = np.arange(steps) < steps // 2
    own |= {name.replace("__", "/"): value for name, value in changes.items()}
    names = {"episode_metadata/file_path": [f"/raw/{number}"], "episode_metadata/episode_id": np.array([number])}
    return {f"steps/{name}": value for name, value in own.items() if value is not None} | names


def write(path: pathlib.Path, episodes: Sequence[Mapping]) -> pathlib.Path:
    """Writes one shard, in the format that its name says."""
    if ".array_record" in path.name:
        writer = ArrayRecordWriter(str(path), "group_size:1")  # as TFDS does it
        for features in episodes:
            writer.write(example(features))
        writer.close()
        return path
    with RecordWriter(path) as writer:
        for features in episodes:
            writer.write([example(features)])
    return path


def example(features: Mapping) -> bytes:
    """A tf.train.Example."""
    entries = (_field(1, _field(1, name.encode()) + _field(2, _feature(v))) for name, v in features.items())
    return _field(1, b"".join(entries))


def write_dataset(
    folder: pathlib.Path,
    splits: Mapping[str, Sequence[Sequence[Mapping]]],
    steps: Mapping[str, object] = STEPS,
    info: Mapping | None = None,
    file_format: str = "tfrecord",
    template: str = TEMPLATE,
) -> pathlib.Path:
    """A version folder: the shards of each split, called by `template`; `steps` as `features_json` takes them."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "features.json").write_text(json.dumps(features_json(steps)))
    for split, shards in splits.items():
        for i, episodes in enumerate(shards):
            own = {"DATASET": "my-set", "SPLIT": split, "FILEFORMAT": file_format, "SHARD_INDEX": f"{i:05}"}
            own |= {"NUM_SHARDS": f"{len(shards):05}", "SHARD_X_OF_Y": f"{i:05}-of-{len(shards):05}"}
            path = folder / template.format(**own)
            path.parent.mkdir(exist_ok=True)
            write(path, episodes)
    if info is not None:
        entries = [
            {"name": split, "shardLengths": [str(n) for n in lengths], "filepathTemplate": template}
            for split, lengths in info.items()
        ]
        described = {"name": "my-set", "fileFormat": file_format, "splits": entries}
        (folder / "dataset_info.json").write_text(json.dumps(described))
    return folder


def features_json(steps: Mapping[str, object]) -> dict:
    """Features by "/"-joined name: "image", "text", "tensor", what stands in the "tensor" of features.json, or a node.

    In names that hold a slash themselves it is "|".
    """
    tree: dict = {}
    for name, kind in steps.items():
        *groups, leaf = (key.replace("|", "/") for key in name.split("/"))
        node = tree
        for group in groups:
            node = node.setdefault(group, {"featuresDict": {"features": {}}})["featuresDict"]["features"]
        whole = not isinstance(kind, str) and NODES.intersection(kind)
        node[leaf] = {kind: {}} if isinstance(kind, str) else kind if whole else {"tensor": kind}
    inner = {"sequence": {"feature": {"featuresDict": {"features": tree}}}}
    return {"featuresDict": {"features": {"steps": inner}}}


FOUR = [episode(i) for i in range(4)]


def opened(folder, split="train", data=None, **changes):
    """A split of such a dataset; `data` are changes of `DataConfig`, the others of `SourceConfig`."""
    config = {"cameras": {"images0": "image_0"}, "image_size": (8, 8)} | changes
    return open_dataset(
        SourceConfig("rlds", str(folder), **config), DataConfig(relabel_actions=False, **(data or {})), split
    )


def one_line(folder, match, error=DataError, **options):
    """What is said of a dataset that `opened` refuses."""
    with pytest.raises(error, match=match) as caught:
        opened(folder, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _field(number: int, data: bytes) -> bytes:
    return header(number, len(data)) + data


def _feature(values: np.ndarray | Sequence[str | bytes]) -> bytes:
    if isinstance(values, np.ndarray) and values.dtype.kind == "f":
        return _field(2, _field(1, values.astype("<f4").tobytes()))
    if isinstance(values, np.ndarray):
        small = values.size and values.min() >= 0 and values.max() < 128  # such integers are their own bytes
        packed = values.astype(np.uint8).tobytes() if small else b"".join(varint(int(x)) for x in values.ravel())
        return _field(3, _field(1, packed))
    return _field(1, b"".join(_field(1, x.encode() if isinstance(x, str) else x) for x in values))
