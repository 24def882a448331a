"""The TFRecord step of BridgeData: one Example per trajectory, each feature one serialized tensor.

observations/images0, next_observations/images0   uint8 [T, s, s, 3]
observations/state, next_observations/state       float32 [T, 7]
actions                                           float32 [T, 7]
terminals, truncates                              bool [T]; terminals all False, truncates True at the last step
language                                          string [L], L >= 1
path                                              string [1], the raw trajectory's folder below the raw root; left out
                                                  where the numpy step does not name it (bridge_data_v2's does not)
"""

import pathlib
from collections.abc import Iterable
from typing import Any

import numpy as np

from jaxvla.data import tfrecord
from jaxvla.data.conversion.report import UnusableError
from jaxvla.data.index import MIN_TRANSITIONS


def trajectory_features(trajectory: Any, where: str) -> dict[str, np.ndarray | list[str]]:
    """The features of the module docstring, from a trajectory dict of the numpy step.

    Args:
        trajectory: as `numpy_format` describes it; arrays may be of any numeric dtype.
        where: the name of the trajectory in error messages.

    Raises:
        UnusableError: keys are missing, lengths or sizes disagree, numbers are not finite, or it is too short.
    """
    keys = ("observations", "next_observations", "actions")
    if not isinstance(trajectory, dict) or any(key not in trajectory for key in keys):
        raise UnusableError("not a trajectory", f"{where}: needs {', '.join(keys)}")
    if not all(isinstance(trajectory[key], list | tuple | np.ndarray) for key in keys):
        raise UnusableError("not a trajectory", f"{where}: {', '.join(keys)} must be lists")
    lengths = {key: len(trajectory[key]) for key in keys}
    if len(set(lengths.values())) != 1:
        raise UnusableError("lengths disagree", f"{where}: {lengths}")
    steps = lengths["actions"]
    if steps < MIN_TRANSITIONS:
        raise UnusableError(f"fewer than {MIN_TRANSITIONS} transitions", f"{where}: {steps}")
    features: dict[str, np.ndarray | list[str]] = {}
    for part in ("observations", "next_observations"):
        features[f"{part}/images0"] = _images(trajectory[part], f"{where}: {part}")
        features[f"{part}/state"] = _numbers(_column(trajectory[part], "state", where), f"{where}: {part}/state")
    features["language"] = _language(trajectory.get("language"), where)
    features |= _path(trajectory.get("path"), where)
    features["actions"] = _numbers(trajectory["actions"], f"{where}: actions")
    features["terminals"] = np.zeros(steps, bool)
    features["truncates"] = np.arange(steps) == steps - 1
    if features["observations/images0"].shape != features["next_observations/images0"].shape:
        raise UnusableError("frames of several sizes", where)
    return features


def write_trajectories(path: pathlib.Path, trajectories: Iterable[dict[str, np.ndarray | list[str]]]) -> int:
    """Writes a TFRecord file of the trajectories, given as `trajectory_features` returns them, and counts them."""
    count = 0
    with tfrecord.RecordWriter(path) as writer:
        for features in trajectories:
            writer.write(tfrecord.encode_example({key: tfrecord.encode_tensor(x) for key, x in features.items()}))
            count += 1
    return count


def _column(steps: Any, key: str, where: str) -> list[Any]:
    if not all(isinstance(step, dict) and key in step for step in steps):
        raise UnusableError(f"a step has no {key}", where)
    return [step[key] for step in steps]


def _images(steps: Any, where: str) -> np.ndarray:
    frames = [np.asarray(frame) for frame in _column(steps, "images0", where)]
    if len({frame.shape for frame in frames}) != 1:
        raise UnusableError("frames of several sizes", where)
    if frames[0].dtype != np.uint8 or frames[0].ndim != 3 or frames[0].shape[2] != 3:
        detail = f"{where}: {frames[0].dtype} {list(frames[0].shape)}"
        raise UnusableError("frames are not uint8 [height, width, 3]", detail)
    return np.stack(frames)


def _numbers(rows: Any, where: str) -> np.ndarray:
    try:
        table = np.asarray(list(rows), np.float32)
    except (TypeError, ValueError, OverflowError):
        raise UnusableError("states or actions are no table of numbers", where) from None
    if table.ndim != 2 or table.shape[1] != 7:
        raise UnusableError("states or actions are not [steps, 7]", f"{where}: {list(table.shape)}")
    if not np.isfinite(table).all():
        raise UnusableError("states or actions are not finite", where)
    return table


def _language(annotations: Any, where: str) -> list[str]:
    if annotations is None:
        return [""]
    if not isinstance(annotations, list | tuple) or not all(isinstance(text, str) for text in annotations):
        raise UnusableError("language is no list of strings", where)
    return list(annotations) or [""]


def _path(path: Any, where: str) -> dict[str, list[str]]:
    if path is None:
        return {}
    if not isinstance(path, str):
        raise UnusableError("path is no string", where)
    return {"path": [path]}
