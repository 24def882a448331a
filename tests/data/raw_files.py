"""Small raw BridgeData trees, the two conversions with short names, and readers that share no code with them."""

import io
import os
import pathlib
import pickle

import numpy as np
from PIL import Image

from jaxvla.data.conversion.numpy_to_tfrecord import convert_numpy
from jaxvla.data.conversion.raw_to_numpy import convert_raw
from jaxvla.data.formats import tfrecord

DATE = "2022-03-04_05-06-07"
EARLY = "2021-07-22_23-59-59"
SIZE = 16


def jpeg(seed: int) -> bytes:
    """A smooth 40 x 24 picture."""
    rng = np.random.default_rng(seed)
    low = Image.fromarray(rng.integers(0, 256, (3, 5, 3), dtype=np.uint8))
    data = io.BytesIO()
    low.resize((40, 24), Image.Resampling.BICUBIC).save(data, "JPEG", quality=90)
    return data.getvalue()


def make_trajectory(folder: pathlib.Path, seed: int = 0, steps: int = 4, cameras=("images0",), lang=None, dicts=True):
    """Writes a raw trajectory of `steps` transitions; gives its states and actions."""
    rng = np.random.default_rng(seed)
    states, actions = rng.normal(size=(steps + 1, 7)), rng.normal(size=(steps, 7))
    folder.mkdir(parents=True)
    observations = {"full_state": states, "time_stamp": [100.0 + t for t in range(steps + 1)], "qpos": states[:, :6]}
    policy = [{"actions": action, "policy_type": "VRTeleop"} for action in actions] if dicts else list(actions)
    (folder / "obs_dict.pkl").write_bytes(pickle.dumps(observations))
    (folder / "policy_out.pkl").write_bytes(pickle.dumps(policy))
    for number, camera in enumerate(cameras):
        (folder / camera).mkdir()
        for t in range(steps + 1):
            (folder / camera / f"im_{t}.jpg").write_bytes(jpeg(1000 * seed + 100 * number + t))
    if lang is not None:
        (folder / "lang.txt").write_bytes(lang)
    return states, actions


def make_session(task: pathlib.Path, date: str = DATE, count: int = 3, first_seed: int = 0, **options) -> None:
    for number in range(count):
        make_trajectory(task / date / "raw" / "traj_group0" / f"traj{number}", first_seed + number, **options)


def to_numpy(raw: pathlib.Path, out: pathlib.Path, **options):
    defaults = {
        "depth": 2,
        "train_proportion": 0.7,
        "im_size": SIZE,
        "cameras": (),
        "seed": 0,
        "overwrite": False,
        "num_workers": 1,
    }
    return convert_raw(raw, out, **(defaults | options))


def to_tfrecord(source: pathlib.Path, out: pathlib.Path, **options):
    return convert_numpy(source, out, **({"depth": 2, "cameras": (), "overwrite": False, "num_workers": 1} | options))


def load(path: pathlib.Path) -> np.ndarray:
    """As bridge_data_v2's second script loads it."""
    return np.load(path, allow_pickle=True)


def expected_frame(seed: int, camera: int, t: int) -> np.ndarray:
    picture = Image.open(io.BytesIO(jpeg(1000 * seed + 100 * camera + t)))
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def first_values(path: pathlib.Path) -> list[float]:
    """One number per trajectory that tells which it is."""
    return [trajectory["observations"][0]["state"][0] for trajectory in load(path)]


def files_of(root: pathlib.Path) -> dict[str, bytes]:
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def read_features(path: pathlib.Path) -> list[dict]:
    data = path.read_bytes()
    read = tfrecord.buffer_reader(data)
    return [
        {
            key: tfrecord.read_tensor(read, feature.values[0], str(path))
            for key, feature in tfrecord.parse_example(read, record, str(path)).items()
        }
        for record in tfrecord.scan_records(path)
    ]


class Bomb:
    """Runs a program when it is unpickled."""

    def __reduce__(self):
        return os.system, ("false",)
