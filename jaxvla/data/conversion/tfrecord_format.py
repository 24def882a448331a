"""The TFRecord step of BridgeData: one Example per trajectory, each feature one serialized tensor.

observations/images0, next_observations/images0   uint8 [T, s, s, 3]; likewise images1 and so on, all that are converted
observations/state, next_observations/state       float32 [T, 7]
actions                                           float32 [T, 7]
terminals, truncates                              bool [T]; terminals all False, truncates True at the last step
language                                          string [L], L >= 1
taught                                            bool [T], False where a policy is not to learn the action; left out
                                                  where all are True
path                                              string [1], the raw trajectory's folder below the raw root; left out
                                                  where the numpy step does not name it (bridge_data_v2's does not)

All trajectories of a file have the same cameras. bridge_data_v2's reader asks for images0 and passes over the others,
over `taught` and `path`.
"""

import dataclasses
import pathlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jaxvla.data.conversion.cameras import is_camera, select
from jaxvla.data.formats import tfrecord
from jaxvla.data.formats.index import MIN_TRANSITIONS
from jaxvla.data.skipping import UnusableError

_KEYS = ("observations", "next_observations", "actions")
_OTHER_KEYS = {*_KEYS, "terminals", "language", "taught", "path"}


@dataclasses.dataclass(frozen=True, eq=False)
class CheckedTrajectory:
    """A trajectory of which a record can be made; its frames are those of the numpy step, not copies.

    where     its name in messages
    tables    observations/state, next_observations/state and actions
    frames    by camera, in numeric order: frames of the observations and of the next ones, T each
    language  L >= 1 annotations
    taught    bool [T]
    path      its raw folder, "" where it is not known
    unread    by kind: the trajectory, where it has something that a record does not hold
    """

    where: str
    tables: dict[str, np.ndarray]
    frames: dict[str, tuple[list[np.ndarray], list[np.ndarray]]]
    language: list[str]
    taught: np.ndarray
    path: str
    unread: dict[str, str]

    @property
    def sizes(self) -> dict[str, tuple[int, ...]]:
        """(height, width, 3) by camera."""
        return {camera: now[0].shape for camera, (now, _) in self.frames.items()}

    def features(self, cameras: Iterable[str]) -> dict[str, np.ndarray | list[str]]:
        """The features of the module docstring, with these cameras."""
        steps = len(self.taught)
        features: dict[str, np.ndarray | list[str]] = {}
        for camera in cameras:
            for part, frames in zip(("observations", "next_observations"), self.frames[camera]):
                features[f"{part}/{camera}"] = np.stack(frames)
        features |= self.tables | {"language": self.language}
        features |= {"terminals": np.zeros(steps, bool), "truncates": np.arange(steps) == steps - 1}
        features |= {} if self.taught.all() else {"taught": self.taught}
        return features | ({"path": [self.path]} if self.path else {})


def check_trajectory(trajectory: Any, where: str, cameras: Sequence[str] = ()) -> CheckedTrajectory:
    """Checks a trajectory dict of the numpy step.

    Args:
        trajectory: as `numpy_format` describes it; arrays may be of any numeric dtype.
        where: the name of the trajectory in error messages.
        cameras: those to take; all that it has, among which images0 must be, if empty.

    Raises:
        UnusableError: keys or cameras are missing, lengths or sizes disagree, numbers are not finite, or it is short.
    """
    if not isinstance(trajectory, dict) or any(key not in trajectory for key in _KEYS):
        raise UnusableError("not a trajectory", f"{where}: needs {', '.join(_KEYS)}")
    if not all(_is_list(trajectory[key]) for key in _KEYS):
        raise UnusableError("not a trajectory", f"{where}: {', '.join(_KEYS)} must be lists")
    lengths = {key: len(trajectory[key]) for key in _KEYS}
    if len(set(lengths.values())) != 1:
        raise UnusableError("lengths disagree", f"{where}: {lengths}")
    steps = lengths["actions"]
    if steps < MIN_TRANSITIONS:
        raise UnusableError(f"fewer than {MIN_TRANSITIONS} transitions", f"{where}: {steps}")
    now, later = trajectory["observations"], trajectory["next_observations"]
    tables = {
        "observations/state": _numbers(_column(now, "state", where), f"{where}: observations/state"),
        "next_observations/state": _numbers(_column(later, "state", where), f"{where}: next_observations/state"),
        "actions": _numbers(trajectory["actions"], f"{where}: actions"),
    }
    there = {key for step in now for key in step if isinstance(key, str) and is_camera(key)}
    return CheckedTrajectory(
        where,
        tables,
        {camera: _frames(now, later, camera, where) for camera in select(there, cameras, ("images0",), where)},
        _language(trajectory.get("language"), where),
        _taught(trajectory.get("taught"), steps, where),
        _path(trajectory.get("path"), where),
        dict.fromkeys(_unread(trajectory, tables), where),
    )


def write_trajectories(path: pathlib.Path, trajectories: Iterable[dict[str, np.ndarray | list[str]]]) -> int:
    """Writes a TFRecord file of the trajectories, given as `trajectory_features` returns them, and counts them."""
    count = 0
    with tfrecord.RecordWriter(path) as writer:
        for features in trajectories:
            writer.write(tfrecord.encode_example({key: tfrecord.encode_tensor(x) for key, x in features.items()}))
            count += 1
    return count


def _is_list(value: Any) -> bool:
    return isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim > 0)


def _column(steps: Any, key: str, where: str) -> list[Any]:
    if not all(isinstance(step, dict) and key in step for step in steps):
        raise UnusableError(f"a step has no {key}", where)
    return [step[key] for step in steps]


def _frames(now: Any, later: Any, camera: str, where: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
    try:
        pair = tuple([np.asarray(frame) for frame in _column(steps, camera, where)] for steps in (now, later))
    except ValueError:
        raise UnusableError("frames are not uint8 [height, width, 3]", f"{where}: {camera} is ragged") from None
    frames = [*pair[0], *pair[1]]
    if len({frame.shape for frame in frames}) != 1:
        raise UnusableError("frames of several sizes", f"{where}: {camera}")
    wrong = next((frame for frame in frames if frame.dtype != np.uint8), frames[0])
    if wrong.dtype != np.uint8 or wrong.ndim != 3 or wrong.shape[2] != 3 or not wrong.size:
        detail = f"{where}: {camera} is {wrong.dtype} {list(wrong.shape)}"
        raise UnusableError("frames are not uint8 [height, width, 3]", detail)
    return pair


def _unread(trajectory: dict[Any, Any], tables: dict[str, np.ndarray]) -> Iterator[str]:
    """Names what a trajectory has and a record does not."""
    for key in sorted(map(str, trajectory)):
        if key not in _OTHER_KEYS:
            yield f"key {key!r} of the trajectory"
    keys = {str(key) for part in _KEYS[:2] for step in trajectory[part] for key in step}
    for key in sorted(keys - {"state", "time_stamp"}):
        if not is_camera(key):
            yield f"key {key!r} of its steps"
    if not _all_zero(trajectory.get("terminals", ())):
        yield "terminals that are not 0"
    if not np.array_equal(tables["next_observations/state"][:-1], tables["observations/state"][1:]):
        yield "next observations that differ from the observation after (training reads the latter, and the last one)"


def _all_zero(values: Any) -> bool:
    try:
        return not np.asarray(values, bool).any()
    except (TypeError, ValueError):
        return False


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
    return [_utf8(text, where) for text in annotations] or [""]


def _taught(taught: Any, steps: int, where: str) -> np.ndarray:
    if taught is None:
        return np.ones(steps, bool)
    if not _is_list(taught) or not all(isinstance(x, bool | np.bool_) for x in taught):
        raise UnusableError("`taught` is no list of bools", where)
    if len(taught) != steps:
        raise UnusableError("lengths disagree", f"{where}: {len(taught)} taught for {steps} actions")
    return np.array(taught, bool)


def _path(path: Any, where: str) -> str:
    if path is None:
        return ""
    if not isinstance(path, str):
        raise UnusableError("path is no string", where)
    return _utf8(path, where)


def _utf8(text: str, where: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UnusableError("text that is not Unicode", f"{where}: {text!r}") from None
    return text
