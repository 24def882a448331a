"""Finding the folder of an RLDS dataset: by itself, or below a root by the name and the version.

Folders are <root>/<dataset>/<version>, or <root>/<dataset>/<configuration>/<version>, as TFDS makes them.
"""

import difflib
import os
import pathlib
import re

from jaxvla.data.formats.rlds_files import FEATURES
from jaxvla.errors import ConfigError, DataError

_VERSION = re.compile(r"\d+\.\d+\.\d+")
_NAME = re.compile(r"(?P<name>[\w.+-]+(?:/[\w.+-]+)*?)(?:[:/](?P<version>\d+\.\d+\.\d+))?/?")
_SHOWN = 8


def find_version(root: pathlib.Path, name: str) -> pathlib.Path:
    """The version folder of a dataset below `root`.

    Args:
        root: a folder of datasets.
        name: `bridge_orig` for the newest version of it, `bridge_orig/1.0.0` or `bridge_orig:1.0.0` for a given one; of
            a dataset with several configurations `aloha/two_arms`, and likewise.

    Raises:
        ConfigError: the name is none.
        DataError: there is no such dataset, or not this version; names those that there are.
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ConfigError(
            f"bridgedata_config.tfds_name={name!r} is no dataset: write bridge_orig, or bridge_orig:1.0.0"
        )
    dataset, version = found["name"], found["version"]
    if not root.is_dir():
        raise DataError(f"no data folder {root}: set the data path to the folder that holds {dataset}")
    if (root / FEATURES).exists():
        raise DataError(
            f"{root} is a version folder itself: set bridgedata_config.tfds_name to '', or the data path to the folder "
            f"that holds {dataset}"
        )
    versions = _versions(root / dataset)
    if not versions:
        raise DataError(f"{root}: no dataset {dataset!r}, {_others(root, dataset)}")
    if version and version not in versions:
        raise DataError(f"{root / dataset}: no version {version}, there are {', '.join(versions)}")
    return root / dataset / (version or versions[-1])


def has_dataset(root: pathlib.Path, name: str) -> bool:
    """Whether `find_version` finds a dataset of this name below `root`, in whichever version."""
    found = _NAME.fullmatch(name)
    return found is not None and bool(_versions(root / found["name"]))


def _versions(folder: pathlib.Path) -> list[str]:
    """The versions that lie in a folder, the newest last."""
    if not folder.is_dir():
        return []
    names = [entry.name for entry in os.scandir(folder) if _VERSION.fullmatch(entry.name)]
    whole = [name for name in names if (folder / name / FEATURES).exists()]
    return sorted(whole, key=lambda name: tuple(map(int, name.split("."))))


def _others(root: pathlib.Path, dataset: str) -> str:
    """What there is in place of a dataset that is not there."""
    folders = sorted(path for pattern in ("*", "*/*") for path in root.glob(pattern) if _versions(path))
    names = [str(path.relative_to(root)) for path in folders]
    below = [name for name in names if name.startswith(f"{dataset}/")]
    if below:
        return f"but its configurations {', '.join(below[:_SHOWN])}: set bridgedata_config.tfds_name to one of these"
    near = difflib.get_close_matches(dataset, names, n=3, cutoff=0.5)
    if near:
        return f"did you mean {' or '.join(near)}? There are {len(names)} in all: correct bridgedata_config.tfds_name"
    shown = ", ".join([*names[:_SHOWN], *["..."] * (len(names) > _SHOWN)]) or "no folders <dataset>/<version>"
    return f"it holds {shown}: correct bridgedata_config.tfds_name or the data path"
