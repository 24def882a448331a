"""Episodes of datasets of the registry in files as TFDS writes them, opened as a configuration says."""

import dataclasses
import pathlib
import runpy
import zlib
from collections.abc import Mapping, Sequence

import numpy as np
from data import rlds_episodes

from jaxvla.data.dataset import DataConfig
from jaxvla.data.mixture import Mixture, open_mixture
from jaxvla.data.mixture_config import read_mixture
from jaxvla.data.oxe.registry import find

PRESETS = runpy.run_path(str(pathlib.Path(__file__).parents[3] / "configs" / "data_config.py"))["get_config"]
KEY = "/raw/0#0"


def write(
    root: pathlib.Path,
    name: str,
    episodes: Sequence[Mapping],
    packed: Sequence[str] = (),
    file_format: str = "tfrecord",
    version: str = "",
) -> pathlib.Path:
    """The version folder of a dataset below `root`, with the views and the depth that its pictures are.

    Args:
        root: the folder of all datasets.
        name: of the dataset.
        episodes: the values [n, ...] of the steps, in nested mappings; groups are of one level, as in the catalogue.
        packed: paths of features that TFDS compresses.
        file_format: of the shards.
        version: of the dataset.
    """
    records, steps = [], {}
    for number, episode in enumerate(episodes):
        values = _flat(episode)
        n = len(next(iter(values.values())))
        record = {}
        for path, array in values.items():
            steps[path], record[path] = _coded(array, path in packed)
        for path in _views(name):
            steps[path], record[path] = "image", [rlds_episodes.picture(number, t) for t in range(n)]
        for path in _views(name, "depth"):
            steps[path] = {"image": {"dtype": "uint16", "shape": {"dimensions": ["8", "8", "1"]}}}
            record[path] = [b"depth"] * n
        steps["is_first"], record["is_first"] = {"dtype": "bool", "shape": {}}, np.arange(n) == 0
        named = {f"steps/{path.replace('|', '/')}": value for path, value in record.items()}
        named["episode_metadata/file_path"] = [f"/raw/{number}"]
        records.append(named | {"episode_metadata/episode_id": np.array([number])})
    folder = root / find(name).folder / (version or find(name).version or "1.0.0")
    return rlds_episodes.write_dataset(folder, {"train": [records]}, steps, file_format=file_format)


def opened(root: pathlib.Path, preset: str = "rlds", data: Mapping | None = None, **changes: object) -> Mixture:
    """The training split of a preset of configs/data_config.py, with the datasets below `root`."""
    settings = PRESETS(preset).to_dict() | {"data_path": str(root), "validation_share": 0.0, **changes}
    return open_mixture(read_mixture(settings), DataConfig(**(data or {})), "train")


def _views(name: str, what: str = "cameras") -> list[str]:
    return [view for view in dataclasses.astuple(getattr(find(name), what)) if view]


def _flat(episode: Mapping) -> dict[str, np.ndarray]:
    found = {}
    for key, value in episode.items():
        inner = value.items() if isinstance(value, Mapping) else [(None, value)]
        found |= {key if k is None else f"{key}/{k.replace('/', '|')}": np.asarray(array) for k, array in inner}
    return found


def _coded(array: np.ndarray, packed: bool) -> tuple[dict, object]:
    """What features.json says of a feature, and what a record holds."""
    if array.dtype == object:
        return {"dtype": "string", "shape": {}}, list(array)
    described = {"dtype": str(array.dtype), "shape": {"dimensions": [str(side) for side in array.shape[1:]]}}
    if packed:
        return described | {"encoding": "zlib"}, [zlib.compress(np.ascontiguousarray(row).tobytes()) for row in array]
    return described, array
