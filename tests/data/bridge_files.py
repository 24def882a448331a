"""Small BridgeData TFRecords whose every pixel tells which trajectory, frame and camera it belongs to."""

import pathlib

import numpy as np

from jaxvla.data.formats import tfrecord


def frame(number: int, step: int, size: int = 8) -> np.ndarray:
    """The picture of frame `step` of trajectory `number`."""
    picture = np.arange(size * size * 3, dtype=np.uint8).reshape(size, size, 3) // 4
    picture[0, 0] = (number, step, 7)
    return picture


def trajectory(number: int, transitions: int, language: tuple[str, ...] = ("do it",), size: int = 8) -> dict:
    """Features of one record, in the layout of bridge_data_v2."""
    rng = np.random.default_rng(number)
    states = np.cumsum(rng.normal(0, 0.02, (transitions + 1, 7)), axis=0).astype(np.float32)
    images = np.stack([frame(number, t, size) for t in range(transitions + 1)])
    actions = rng.normal(0, 0.02, (transitions, 7)).astype(np.float32)
    actions[:, 6] = np.arange(transitions) % 4 < 2
    return {
        "observations/images0": images[:-1],
        "observations/state": states[:-1],
        "next_observations/images0": images[1:],
        "next_observations/state": states[1:],
        "language": list(language),
        "actions": actions,
        "terminals": np.zeros(transitions, bool),
        "truncates": np.arange(transitions) == transitions - 1,
    }


def write(path: pathlib.Path, trajectories: list[dict]) -> pathlib.Path:
    """Writes one TFRecord file and its folders."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tfrecord.RecordWriter(path) as writer:
        for features in trajectories:
            writer.write(tfrecord.encode_example({k: tfrecord.encode_tensor(v) for k, v in features.items()}))
    return path


def write_dataset(root: pathlib.Path, tasks: dict[str, list[int]], val: int = 4) -> pathlib.Path:
    """Tasks of train trajectories with the given transitions each, and one val trajectory of `val` transitions."""
    number = 0
    for task, lengths in tasks.items():
        features = [trajectory(number + i, n, (task, f"{task} again")) for i, n in enumerate(lengths)]
        number += len(lengths)
        write(root / task / "train" / "out.tfrecord", features)
        write(root / task / "val" / "out.tfrecord", [trajectory(200, val)])
    return root
