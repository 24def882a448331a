"""RLDS version folders of any size: episodes of random numbers and pictures, written without TensorFlow."""

import io
import json
import os
import pathlib
import shutil
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from jaxvla.data.formats.protobuf import header
from jaxvla.data.formats.tfrecord import RecordWriter

# Shards of a dataset that differ; the others are copies of these, which costs the reader nothing less.
_DIFFERENT = 4


def write_dataset(
    folder: pathlib.Path, frames: int, encode: Callable[[np.random.Generator], bytes], steps: int, episodes: int
) -> None:
    """A version folder of `frames` steps, rounded to whole shards.

    Args:
        folder: is made.
        frames: of all shards.
        encode: makes the file of one picture.
        steps: of an episode.
        episodes: of a shard.
    """
    folder.mkdir(parents=True)
    shards = max(1, round(frames / (steps * episodes)))
    names = [folder / f"{folder.parent.name}-train.tfrecord-{i:05}-of-{shards:05}" for i in range(shards)]
    rng = np.random.default_rng(len(folder.parent.name))
    for i, path in enumerate(names):
        if i >= _DIFFERENT:
            shutil.copyfile(names[i % _DIFFERENT], path)
            continue
        with RecordWriter(path) as writer:
            for number in range(episodes):
                writer.write([_episode(rng, encode, steps, f"task {i}.{number % 10}")])
    (folder / "features.json").write_text(json.dumps(_features_json()))
    split = {"name": "train", "shardLengths": [str(episodes)] * shards}
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {"name": folder.parent.name, "fileFormat": "tfrecord", "splits": [split]}
    (folder / "dataset_info.json").write_text(json.dumps(info))


def png(side: int) -> Callable[[np.random.Generator], bytes]:
    """Pictures of few bytes."""
    return lambda rng: _encoded(np.full((side, side, 3), rng.integers(0, 256, 3), np.uint8), "PNG")


def jpeg(height: int, width: int, quality: int = 95) -> Callable[[np.random.Generator], bytes]:
    """Pictures with about the detail of a camera's: smooth shapes and some noise."""

    def encode(rng: np.random.Generator) -> bytes:
        coarse = rng.integers(0, 256, (height // 32, width // 32, 3), dtype=np.uint8)
        smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = smooth + rng.normal(0, 4, smooth.shape)
        return _encoded(np.clip(noisy, 0, 255).astype(np.uint8), "JPEG", quality=quality)

    return encode


def files(folder: pathlib.Path) -> list[str]:
    """The shards of a version folder, in order."""
    return sorted(os.fspath(path) for path in folder.glob("*.tfrecord-*-of-?????"))


def _encoded(pixels: np.ndarray, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind, **options)
    return file.getvalue()


def _episode(rng: np.random.Generator, encode: Callable, steps: int, text: str) -> bytes:
    pictures = [encode(rng) for _ in range(min(steps, 16))]
    features = {
        "steps/action": rng.normal(0, 0.02, (steps, 7)).astype("<f4"),
        "steps/observation/state": rng.normal(0, 0.02, (steps, 7)).cumsum(0).astype("<f4"),
        "steps/observation/image_0": [pictures[t % len(pictures)] for t in range(steps)],
        "steps/language_instruction": [text.encode()] * steps,
        "steps/is_first": np.arange(steps) == 0,
    }
    entries = (_field(1, _field(1, name.encode()) + _field(2, _feature(x))) for name, x in features.items())
    return _field(1, b"".join(entries))


def _feature(values: np.ndarray | Sequence[bytes]) -> bytes:
    if not isinstance(values, np.ndarray):
        return _field(1, b"".join(_field(1, value) for value in values))
    number = 2 if values.dtype.kind == "f" else 3  # bools are varints of one byte
    return _field(number, _field(1, values.tobytes()))


def _field(number: int, data: bytes) -> bytes:
    return header(number, len(data)) + data


def _features_json() -> dict:
    """`image_0`, and tensors of what TFDS calls the other features."""
    steps: dict = {"observation": {"featuresDict": {"features": {"image_0": {"image": {}}, "state": {"tensor": {}}}}}}
    steps |= {"action": {"tensor": {}}, "language_instruction": {"text": {}}, "is_first": {"tensor": {}}}
    inner = {"sequence": {"feature": {"featuresDict": {"features": steps}}}}
    return {"featuresDict": {"features": {"steps": inner}}}
