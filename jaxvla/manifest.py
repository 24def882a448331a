"""What the files of a checkpoint hold, written down beside them, so that a changed byte is noticed before it is used.

    manifest.json      {"files": {"params/d/NAME": [bytes, CRC-32C], ...}, "crc32c": of "files"}

It lists every file of every item; not those beside it, which Orbax writes last and of which nothing is restored.
"""

import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import google_crc32c

MANIFEST = "manifest.json"
_BLOCK = 1 << 22


def write_manifest(folder: pathlib.Path) -> None:
    """Lists the files of a checkpoint that is complete but for its name.

    Args:
        folder: of the checkpoint, whose items nobody writes to any more.

    Raises:
        OSError: a file cannot be read, or the manifest not written.
    """
    paths = sorted(path for item in folder.iterdir() if item.is_dir() for path in item.rglob("*") if path.is_file())
    files = {path.relative_to(folder).as_posix(): [path.stat().st_size, _crc32c(path)] for path in paths}
    unfinished = folder / f"{MANIFEST}.unfinished"
    with open(unfinished, "w") as file:
        json.dump({"files": files, "crc32c": _crc32c_of(files)}, file, indent=0)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, folder / MANIFEST)


def has_manifest(folder: pathlib.Path) -> bool:
    """Whether there is one; checkpoints of earlier versions have none."""
    return os.path.lexists(folder / MANIFEST)


def changed(folder: pathlib.Path, items: Sequence[str], share: tuple[int, int] = (0, 1)) -> str:
    """What is not as it was written, in one of the files of a checkpoint; "" where everything is.

    Files are read in blocks of 4 MiB, whatever their size.

    Args:
        folder: of a checkpoint that has a manifest.
        items: whose files are looked at.
        share: (i, n) for every n-th file from the i-th on, so that n processes look at all of them.

    Returns:
        The file, relative to the folder, and what is wrong with it.
    """
    try:
        files = _read(folder / MANIFEST)
    except (OSError, ValueError, RecursionError) as error:
        return f"{MANIFEST} is damaged: {str(error) or type(error).__name__}"
    wanted = [name for name in sorted(files) if name.split("/")[0] in items]
    lacking = [item for item in items if not any(name.startswith(f"{item}/") for name in wanted)]
    if lacking:
        return f"{MANIFEST} lists no files of {lacking[0]}"
    reasons = (_compare(folder / name, name, *files[name]) for name in wanted[share[0] :: share[1]])
    return next((reason for reason in reasons if reason), "")


def _read(path: pathlib.Path) -> dict[str, list[int]]:
    values: Any = json.loads(path.read_bytes())
    if not (isinstance(values, dict) and values.keys() == {"files", "crc32c"} and isinstance(values["files"], dict)):
        raise ValueError("it has not the keys files and crc32c alone")
    if _crc32c_of(values["files"]) != values["crc32c"]:
        raise ValueError("it does not match its checksum")
    for name, entry in values["files"].items():
        if not (isinstance(entry, list) and len(entry) == 2 and all(type(number) is int for number in entry)):
            raise ValueError(f"of {name} it has no size and checksum")
    return values["files"]


def _compare(path: pathlib.Path, name: str, size: int, crc32c: int) -> str:
    try:
        found = path.stat().st_size
        if not path.is_file():
            return f"{name} is no file"
        if found != size:
            return f"{name} has {found} bytes, not {size}"
        return "" if _crc32c(path) == crc32c else f"{name} does not match its checksum"
    except FileNotFoundError:
        return f"{name} is missing"
    except OSError as error:
        return f"{name}: {error.strerror}"


def _crc32c(path: pathlib.Path) -> int:
    value = 0
    with open(path, "rb", buffering=0) as file:
        while block := file.read(_BLOCK):
            value = google_crc32c.extend(value, block)
    return value


def _crc32c_of(files: Any) -> int:
    return google_crc32c.value(json.dumps(files, sort_keys=True).encode())
