"""What becomes an episode of a LeRobotDataset, wherever it comes from, and what its features are called."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from jaxvla.data.formats.lerobot_meta import TAUGHT

ACTION, STATE, CAMERAS = "action", "observation.state", "observation.images."
_FLAG = {"dtype": "bool", "shape": [1], "names": None}
VIDEO, IMAGE = "video", "image"
# What every frame has beside the features of its dataset, in this order.
RESERVED = {
    "timestamp": "float32",
    **dict.fromkeys(("frame_index", "episode_index", "index", "task_index"), "int64"),
}
_SEQUENCE = {"_type": "Sequence"}


@dataclasses.dataclass(frozen=True)
class Clip:
    """`count` frames of a video that is there, from number `first` on."""

    path: str
    first: int
    count: int


Frames = Callable[[], Iterator[np.ndarray]]  # uint8 [h, w, 3] each, made anew by every call


@dataclasses.dataclass(frozen=True, eq=False)
class Episode:
    """n frames.

    Attributes:
        where: its name in messages.
        features: as info.json has them, without `RESERVED`.
        columns: n rows of all features that lie in Parquet.
        tasks: the text of each frame; "" where it has none.
        cameras: the frames of the other features, by name: a clip is copied, other frames are encoded.
        statistics: of cameras, as they came with the data; those of others are made.
        lost: what this episode has and a LeRobotDataset does not hold, by kind.
    """

    where: str
    features: Mapping[str, Mapping[str, Any]]
    columns: pa.Table
    tasks: Sequence[str]
    cameras: Mapping[str, Clip | Frames]
    statistics: Mapping[str, Mapping[str, Any]] = dataclasses.field(default_factory=dict)
    lost: Sequence[str] = ()


@dataclasses.dataclass(frozen=True, eq=False)
class Episodes:
    """All episodes of a dataset, or of recordings.

    Attributes:
        stamp: names the present content of all of it.
        fps: frames per second, Hz; 0 where that is not known.
        robot_type: None where it is not known.
        splits: names, and how many each has, one after the other.
        read: gives the episode of a number. Raises `UnusableError` where it cannot be used.
        notes: lines that say what is to be known of the whole.
    """

    stamp: str
    fps: float
    robot_type: str | None
    splits: Sequence[tuple[str, int]]
    read: Callable[[int], Episode]
    notes: Sequence[str] = ()


def make_episode(
    where: str,
    states: np.ndarray,
    actions: np.ndarray,
    tasks: Sequence[str],
    frames: Mapping[str, tuple[tuple[int, int], Frames]],
    names: tuple[Sequence[str], Sequence[str]] = ((), ()),
    lost: Sequence[str] = (),
    taught: np.ndarray | None = None,
) -> Episode:
    """The episode of n transitions: what comes after the last action has none of its own, and is no frame.

    Args:
        where, tasks, lost: see `Episode`.
        states, actions: [n, p] and [n, d].
        frames: by camera, (height, width) and n frames.
        names: of the dimensions of states and actions; empty where they have none.
        taught: bool [n], False where a policy is not to learn the action; None where the dataset says nothing of it.
    """
    tables = {STATE: (states, names[0]), ACTION: (actions, names[1])}
    features: dict[str, dict[str, Any]] = {
        name: {"dtype": "float32", "shape": [values.shape[1]], "names": [*own] or None}
        for name, (values, own) in tables.items()
    }
    for camera, (size, _) in frames.items():
        names_of = ["height", "width", "channels"]
        features[camera_name(camera)] = {"dtype": VIDEO, "shape": [*size, 3], "names": names_of}
    columns = {name: column(values, features[name]) for name, (values, _) in tables.items()}
    if taught is not None:  # LeRobot reads it, and hands it to no policy
        features[TAUGHT] = _FLAG
        columns[TAUGHT] = column(taught, _FLAG)
    films = {camera_name(camera): own for camera, (_, own) in frames.items()}
    return Episode(where, features, pa.table(columns), tasks, films, lost=lost)


def camera_name(stored: str) -> str:
    """The feature of a camera: names of LeRobot have no slash."""
    name = stored.removeprefix("observation/").replace("/", ".")
    return name if name.startswith(CAMERAS) else CAMERAS + name


def column(values: np.ndarray, feature: Mapping[str, Any]) -> pa.Array:
    """Numbers [n, ...] as the column of a feature."""
    flat = pa.array(np.ascontiguousarray(values, feature["dtype"]).reshape(-1))
    kind = arrow_type(feature)
    return pa.FixedSizeListArray.from_arrays(flat, kind.list_size) if pa.types.is_fixed_size_list(kind) else flat


def arrow_type(feature: Mapping[str, Any]) -> pa.DataType | None:
    """The type of a feature's column; None where it is whatever the data has: several axes, or no numbers."""
    dtype, shape = feature["dtype"], [*feature["shape"]]
    if dtype == IMAGE:
        return pa.struct({"bytes": pa.binary(), "path": pa.string()})
    if dtype == "string":
        return pa.string()
    if len(shape) > 1 or dtype == VIDEO:
        return None
    try:
        one = pa.from_numpy_dtype(dtype)
    except (TypeError, ValueError, pa.ArrowNotImplementedError):
        return None
    return one if shape in ([], [1]) else pa.list_(one, shape[0])


def hugging_face(feature: Mapping[str, Any]) -> dict[str, Any] | None:
    """What Hugging Face's `datasets` calls the type of a feature, in words that all of its versions know."""
    dtype, shape = feature["dtype"], [*feature["shape"]]
    if dtype == IMAGE:
        return {"_type": "Image"}
    if arrow_type(feature) is not None:
        value = {"dtype": dtype, "_type": "Value"}
        return value if shape in ([], [1]) or dtype == "string" else {"feature": value, "length": shape[0]} | _SEQUENCE
    return {"shape": shape, "dtype": dtype, "_type": f"Array{len(shape)}D"} if 1 < len(shape) < 6 else None
