"""The numpy step of BridgeData: `(train|val)/out.npy`, an object array of trajectory dicts.

    observations, next_observations   T dicts {images0, ...: uint8 [s, s, 3], state: float64 [7], time_stamp: float}
    actions                           T arrays float64 [7]
    terminals                         T zeros
    language                          list of str
    taught                            T bools, whether a policy is to learn the action; left out where all are True
    path                              str, the raw trajectory's folder below the raw root: the join key of annotations

The arrays are pickled by public names only, so that files written with numpy 2 load in numpy 1 (where bridge_data_v2
runs) and the other way round. Step t + 1 stands in `observations` and `next_observations` as one and the same dict,
which the pickle stores once.
"""

import pathlib
import pickle
import struct
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from jaxvla.data.conversion.raw import RawTrajectory

_PROTOCOL = 3  # the newest without frames, whose programs can be joined

# The program that a file's array is made by: numpy.array([<trajectory>, ...], "O"). A trajectory's part of it is the
# pickle of that trajectory without its first two bytes (protocol) and its last (stop). Each part begins its memo anew,
# which is sound, since none refers to another.
_START = pickle.PROTO + bytes([_PROTOCOL]) + b"cnumpy\narray\n" + pickle.MARK + pickle.EMPTY_LIST + pickle.MARK
_END = pickle.APPENDS + pickle.BINUNICODE + struct.pack("<I", 1) + b"O" + pickle.TUPLE + pickle.REDUCE + pickle.STOP


class _Pickler(pickle.Pickler):
    """Stores an array as the call numpy.ndarray(shape, dtype, bytes)."""

    dispatch_table: ClassVar[dict[type, Callable[[Any], tuple]]] = {
        np.ndarray: lambda array: (np.ndarray, (array.shape, array.dtype.str, array.tobytes()))
    }


def to_numpy_format(trajectory: RawTrajectory, path: str) -> dict[str, Any]:
    """The trajectory dict of the module docstring; its frames are views into those of `trajectory`."""
    steps = []
    for t, state in enumerate(trajectory.states):
        step = {camera: frames[t] for camera, frames in trajectory.frames.items()} | {"state": state}
        if trajectory.time_stamps is not None:
            step["time_stamp"] = trajectory.time_stamps[t]
        steps.append(step)
    content = {
        "observations": steps[:-1],
        "next_observations": steps[1:],
        "actions": list(trajectory.actions),
        "terminals": [0] * len(trajectory.actions),
        "language": trajectory.language,
        "path": path,
    }
    return content if trajectory.taught.all() else content | {"taught": trajectory.taught.tolist()}


def write_part(path: pathlib.Path, trajectory: dict[str, Any]) -> None:
    """Writes one trajectory to a file of its own, for `join_parts`."""
    with open(path, "wb") as file:
        _Pickler(file, _PROTOCOL).dump(trajectory)


def count_trajectories(path: pathlib.Path) -> int:
    """How many trajectories an out.npy says it has, without reading them; 1 where it says nothing that can be read."""
    try:
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            shape, _, dtype = np.lib.format.read_array_header_1_0(file)
    except (OSError, ValueError, EOFError, SyntaxError):
        return 1
    return shape[0] if len(shape) == 1 and dtype.hasobject else 1


def join_parts(parts: Sequence[pathlib.Path], path: pathlib.Path) -> None:
    """Writes the out.npy of the trajectories in `parts`, holding no more than one of them in memory."""
    with open(path, "wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": (len(parts),)}
        np.lib.format.write_array_header_1_0(file, header)
        file.write(_START)
        for part in parts:
            file.write(memoryview(part.read_bytes())[2:-1])
        file.write(_END)
