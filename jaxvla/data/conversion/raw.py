"""Reads one trajectory folder of the raw BridgeData V2 layout.

traj<N>/obs_dict.pkl       dict; full_state [T + 1, 7], optionally time_stamp [T + 1]
        policy_out.pkl     T dicts with `actions` [7], or T action vectors
        images<i>/im_<t>.jpg   t = 0 .. T, one folder per camera
        lang.txt           optional; annotations, one per line, and lines `confidence: <number>`

A dict of policy_out.pkl may hold `taught`, a bool, True where it is absent: whether a policy is to learn this action.
Steps that are not taught stay in the trajectory, as what was seen before and after the others.
"""

import dataclasses
import datetime
import pathlib
import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from jaxvla.data.conversion.cameras import is_camera, select
from jaxvla.data.formats import untrusted
from jaxvla.data.formats.folders import is_hidden, walk
from jaxvla.data.formats.index import MIN_TRANSITIONS
from jaxvla.data.skipping import UnusableError
from jaxvla.data.transforms import images
from jaxvla.errors import DataError

# Before this day the cameras lagged by one step: frame t + 1 shows what action t was chosen on.
LATENCY_FIXED = datetime.datetime(2021, 7, 23)

_STATE_DIM = _ACTION_DIM = 7
_FRAME = re.compile(r"im_([0-9]+)\.jpg")
_CONFIDENCE = re.compile(r"confidence\s*:\s*[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
# What every trajectory has, read or not. Other entries may be data of somebody's own.
_FILES = {"obs_dict.pkl", "policy_out.pkl", "agent_data.pkl", "reward_data.pkl", "lang.txt", "target_image.png"}


@dataclasses.dataclass(frozen=True, eq=False)
class RawTrajectory:
    """One trajectory of T transitions, in robot units.

    frames       by camera (`images0`, ...), uint8 [T + 1, im_size, im_size, 3]
    sizes        by camera, (height, width) of what it took
    states       float64 [T + 1, 7]: x, y, z (m), roll, pitch, yaw (rad), gripper opening (1 open)
    time_stamps  T + 1 seconds of the robot's clock, or None where they were not recorded
    actions      float64 [T, 7]: deltas of the first six, and the absolute gripper target
    taught       bool [T]: whether a policy is to learn the action
    language     the annotations; one empty string where there are none
    unread       by kind: an entry of the folder that none of this is made from
    """

    frames: dict[str, np.ndarray]
    sizes: dict[str, tuple[int, int]]
    states: np.ndarray
    time_stamps: list[float] | None
    actions: np.ndarray
    taught: np.ndarray
    language: list[str]
    unread: dict[str, str]


def read_trajectory(
    folder: pathlib.Path, im_size: int, latency_shift: bool, cameras: Sequence[str] = ()
) -> RawTrajectory:
    """Reads, checks and resizes one trajectory.

    Args:
        folder: the trajectory folder.
        im_size: height and width of the stored frames; the aspect ratio is not kept, as in BridgeData.
        latency_shift: pair frame and state t + 1 with action t, which loses the first frame and the last action.
        cameras: those to read; all that there are if empty.

    Raises:
        UnusableError: something is missing, damaged, not finite, too short, or of another length than the rest.
    """
    unread: dict[str, str] = {}
    paths = _frame_paths(folder, cameras, unread)
    observations = _load(folder / "obs_dict.pkl")
    policy_out = _load(folder / "policy_out.pkl")
    if not isinstance(observations, dict) or "full_state" not in observations:
        raise UnusableError("obs_dict.pkl has no full_state", f"{folder / 'obs_dict.pkl'}")
    states = _table(observations["full_state"], (_STATE_DIM,), "states", folder)
    actions = _table(_action_rows(policy_out, folder), (_ACTION_DIM,), "actions", folder)
    time_stamps = None
    if "time_stamp" in observations:
        time_stamps = _table(observations["time_stamp"], (), "time stamps", folder).tolist()
    lengths = {"states": len(states)} | {camera: len(frames) for camera, frames in paths.items()}
    if time_stamps is not None:
        lengths["time stamps"] = len(time_stamps)
    if set(lengths.values()) != {len(actions) + 1}:
        counts = ", ".join(f"{count} {name}" for name, count in lengths.items())
        detail = f"{folder}: {len(actions)} actions need {len(actions) + 1} of the rest, there are {counts}"
        raise UnusableError("lengths disagree", detail)
    start = 1 if latency_shift else 0
    transitions = len(actions) - start
    if transitions < MIN_TRANSITIONS:
        raise UnusableError(f"fewer than {MIN_TRANSITIONS} transitions", f"{folder}: {max(transitions, 0)}")
    decoded = {camera: _decode(frames[start:], im_size) for camera, frames in paths.items()}
    return RawTrajectory(
        frames={camera: frames for camera, (frames, _) in decoded.items()},
        sizes={camera: size for camera, (_, size) in decoded.items()},
        states=states[start:],
        time_stamps=time_stamps and time_stamps[start:],
        actions=actions[:transitions],
        taught=_taught(policy_out, folder)[:transitions],
        language=_language(folder / "lang.txt", unread),
        unread=unread,
    )


def _load(path: pathlib.Path) -> Any:
    if not path.is_file():
        raise UnusableError(f"{path.name} is missing", f"{path.parent}")
    try:
        return untrusted.load_pickle(path)
    except DataError as error:
        raise UnusableError("damaged or refused pickle", str(error)) from None


def _action_rows(policy_out: Any, folder: pathlib.Path) -> Any:
    """The action vectors of both layouts of policy_out.pkl."""
    if isinstance(policy_out, np.ndarray) and policy_out.ndim:
        policy_out = list(policy_out)
    if not isinstance(policy_out, list | tuple):
        raise UnusableError("policy_out.pkl is no list", f"{folder / 'policy_out.pkl'}: {type(policy_out).__name__}")
    if not policy_out or not isinstance(policy_out[0], dict):
        return policy_out
    rows = [step.get("actions") if isinstance(step, dict) else None for step in policy_out]
    if any(row is None for row in rows):
        missing = next(t for t, row in enumerate(rows) if row is None)
        raise UnusableError("policy_out.pkl lacks actions", f"{folder / 'policy_out.pkl'}: step {missing}")
    return rows


def _taught(policy_out: Any, folder: pathlib.Path) -> np.ndarray:
    """bool [T] of a policy_out.pkl that `_action_rows` admits."""
    taught = [step.get("taught", True) if isinstance(step, dict) else True for step in policy_out]
    for t, value in enumerate(taught):
        if not isinstance(value, bool | np.bool_):
            detail = f"{folder / 'policy_out.pkl'}: step {t}: {type(value).__name__}"
            raise UnusableError("`taught` is neither True nor False", detail)
    return np.array(taught, bool)


def _table(values: Any, shape: tuple[int, ...], name: str, folder: pathlib.Path) -> np.ndarray:
    """`values` as finite float64 [n, *shape]; n may be 0."""
    try:
        table = np.asarray(values, np.float64)
    except (TypeError, ValueError, OverflowError):
        raise UnusableError(f"{name} are no table of numbers", f"{folder}") from None
    if table.shape == (0,):
        return np.zeros((0, *shape))
    if not table.ndim or table.shape[1:] != shape:
        expected = ", ".join(map(str, ("steps", *shape)))
        raise UnusableError(f"{name} have another shape than [{expected}]", f"{folder}: {list(table.shape)}")
    if not np.isfinite(table).all():
        step = int(np.argwhere(~np.isfinite(table))[0, 0])
        raise UnusableError(f"{name} are not finite", f"{folder}: step {step}: {table[step].tolist()}")
    return table


def _frame_paths(folder: pathlib.Path, cameras: Sequence[str], unread: dict[str, str]) -> dict[str, list[pathlib.Path]]:
    """Per camera, by number: the paths of frames 0, 1, ... without a gap. What is no part of this goes to `unread`."""
    root, *inside = walk(folder, lambda path: len(path.parts) == 1 and is_camera(path.name))
    there = [name for name in root.folders if is_camera(name)]
    if not there:
        raise UnusableError("no images folder", f"{folder}")
    chosen = select(there, cameras, (), f"{folder}")
    _list_unread(folder, [*root.dead, *(name for name in root.files if name not in _FILES)], unread)
    _list_unread(folder, [f"{name}/" for name in root.folders if name not in there], unread)
    files = {camera.path.name: camera.files for camera in inside}
    return {name: _numbered(folder / name, files[name], unread) for name in chosen}


def _numbered(camera: pathlib.Path, names: Sequence[str], unread: dict[str, str]) -> list[pathlib.Path]:
    frames = [(int(match[1]), name) for name in names if (match := _FRAME.fullmatch(name))]
    others = sorted(set(names) - {name for _, name in frames})
    if others and not frames:
        raise UnusableError("frames are not called im_<t>.jpg", f"{camera / others[0]}")
    _list_unread(camera.parent, [f"{camera.name}/{name}" for name in others], unread)
    for t, (number, name) in enumerate(sorted(frames)):
        if number < t:
            raise UnusableError("two frames have one number", f"{camera / name}")
        if number > t:
            raise UnusableError("a frame is missing", f"{camera / f'im_{t}.jpg'}")
    return [camera / name for _, name in sorted(frames)]


def _list_unread(folder: pathlib.Path, names: Sequence[str], unread: dict[str, str]) -> None:
    """Enters the first of each kind: names that differ in numbers only are of one kind."""
    for name in names:
        if not is_hidden(name.rpartition("/")[2]):
            unread.setdefault(re.sub(r"\d+", "<n>", name), f"{folder / name}")


def _decode(paths: list[pathlib.Path], im_size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """The frames, resized, and the one size (height, width) that they have in the files."""
    frames, size = np.empty((len(paths), im_size, im_size, 3), np.uint8), ()
    for t, path in enumerate(paths):
        try:
            picture = images.open_picture(path.read_bytes(), str(path))
        except images.UnfitImageError as error:
            raise UnusableError("image that is no camera's picture", str(error)) from None
        except DataError as error:
            raise UnusableError("damaged image", str(error)) from None
        size, before = picture.size[::-1], size
        if before and size != before:
            detail = f"{path}: {images.size_text(size)} pixels, the frame before it {images.size_text(before)}"
            raise UnusableError("frames change their size", detail)
        frames[t] = images.store(picture, frames.shape[1:3])
    return frames, size


def _language(path: pathlib.Path, unread: dict[str, str]) -> list[str]:
    """The annotations in lang.txt: all lines but empty ones and those that say `confidence: 1`, with any number."""
    if not path.is_file():
        return [""]
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    if "\ufffd" in text:
        unread["bytes of lang.txt that are not UTF-8"] = f"{path}"
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not _CONFIDENCE.fullmatch(line)] or [""]
