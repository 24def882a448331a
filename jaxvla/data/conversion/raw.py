"""Reads one trajectory folder of the raw BridgeData V2 layout.

traj<N>/obs_dict.pkl       dict; full_state [T + 1, 7], optionally time_stamp [T + 1]
        policy_out.pkl     T dicts with `actions` [7], or T action vectors
        images<i>/im_<t>.jpg   t = 0 .. T, one folder per camera
        lang.txt           optional; annotations, one per line, and a line with their confidence
"""

import dataclasses
import datetime
import pathlib
import re
from typing import Any

import numpy as np
from PIL import Image

from jaxvla.data import untrusted
from jaxvla.data.conversion.report import UnusableError
from jaxvla.data.index import MIN_TRANSITIONS
from jaxvla.errors import DataError

# Before this day the cameras lagged by one step: frame t + 1 shows what action t was chosen on.
LATENCY_FIXED = datetime.datetime(2021, 7, 23)

_STATE_DIM = _ACTION_DIM = 7
_CAMERA = re.compile(r"images(\d+)")
_FRAME = re.compile(r"im_(\d+)\.jpg")


@dataclasses.dataclass(frozen=True, eq=False)
class RawTrajectory:
    """One trajectory of T transitions, in robot units.

    frames       by camera (`images0`, ...), uint8 [T + 1, im_size, im_size, 3]
    states       float64 [T + 1, 7]: x, y, z (m), roll, pitch, yaw (rad), gripper opening (1 open)
    time_stamps  T + 1 seconds of the robot's clock, or None where they were not recorded
    actions      float64 [T, 7]: deltas of the first six, and the absolute gripper target
    language     the annotations; one empty string where there are none
    """

    frames: dict[str, np.ndarray]
    states: np.ndarray
    time_stamps: list[float] | None
    actions: np.ndarray
    language: list[str]


def read_trajectory(folder: pathlib.Path, im_size: int, latency_shift: bool) -> RawTrajectory:
    """Reads, checks and resizes one trajectory.

    Args:
        folder: the trajectory folder.
        im_size: height and width of the stored frames; the aspect ratio is not kept, as in BridgeData.
        latency_shift: pair frame and state t + 1 with action t, which loses the first frame and the last action.

    Raises:
        UnusableError: something is missing, damaged, not finite, too short, or of another length than the rest.
    """
    observations = _load(folder / "obs_dict.pkl")
    policy_out = _load(folder / "policy_out.pkl")
    if not isinstance(observations, dict) or "full_state" not in observations:
        raise UnusableError("obs_dict.pkl has no full_state", f"{folder / 'obs_dict.pkl'}")
    states = _table(observations["full_state"], (_STATE_DIM,), "states", folder)
    actions = _table(_action_rows(policy_out, folder), (_ACTION_DIM,), "actions", folder)
    time_stamps = None
    if "time_stamp" in observations:
        time_stamps = _table(observations["time_stamp"], (), "time stamps", folder).tolist()
    paths = _frame_paths(folder)
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
    return RawTrajectory(
        frames={camera: _decode(frames[start:], im_size) for camera, frames in paths.items()},
        states=states[start:],
        time_stamps=time_stamps and time_stamps[start:],
        actions=actions[:transitions],
        language=_language(folder / "lang.txt"),
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


def _frame_paths(folder: pathlib.Path) -> dict[str, list[pathlib.Path]]:
    """Per camera, by number: the paths of frames 0, 1, ... without a gap."""
    cameras = sorted(
        (path for path in folder.iterdir() if _CAMERA.fullmatch(path.name) and path.is_dir()),
        key=lambda path: int(path.name.removeprefix("images")),
    )
    if not cameras:
        raise UnusableError("no images folder", f"{folder}")
    paths = {}
    for camera in cameras:
        numbers = {int(match[1]): path for path in camera.iterdir() if (match := _FRAME.fullmatch(path.name))}
        gap = next((t for t in range(len(numbers)) if t not in numbers), None)
        if gap is not None:
            raise UnusableError("a frame is missing", f"{camera / f'im_{gap}.jpg'}")
        paths[camera.name] = [numbers[t] for t in range(len(numbers))]
    return paths


def _decode(paths: list[pathlib.Path], im_size: int) -> np.ndarray:
    """The frames, resized as `images.resize` does it, but without a full-size copy in between: nearly twice as fast."""
    frames = np.empty((len(paths), im_size, im_size, 3), np.uint8)
    for t, path in enumerate(paths):
        try:
            with Image.open(path) as image:
                frames[t] = image.resize((im_size, im_size), Image.Resampling.LANCZOS).convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise UnusableError("damaged image", f"{path}: {error}") from None
    return frames


def _language(path: pathlib.Path) -> list[str]:
    """The annotations in lang.txt; lines of the form `confidence: 1` and empty ones are none."""
    if not path.is_file():
        return [""]
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    return [line.strip() for line in lines if line.strip() and "confidence" not in line] or [""]
