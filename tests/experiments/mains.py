"""The mains under test, each loaded once in a process: absl has one table of flags."""

import functools
import importlib.util
import pathlib
import types

from absl import flags

ROOT = pathlib.Path(__file__).resolve().parents[2]


def load(path: pathlib.Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@functools.cache
def train_main() -> types.ModuleType:
    """experiments/train.py, its flags at their defaults."""
    module = load(ROOT / "experiments" / "train.py")
    if not flags.FLAGS.is_parsed():
        flags.FLAGS(["pytest"])
    return module
