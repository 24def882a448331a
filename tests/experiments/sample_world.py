"""A few annotated demonstrations of the tabletop, converted, with their reasoning store: a small `make sample`."""

import pathlib
import subprocess
import sys

from data.raw_files import to_numpy, to_tfrecord

ROOT = pathlib.Path(__file__).resolve().parents[2]


def run(script: str, *flags: object) -> None:
    command = [sys.executable, str(ROOT / "data_processing" / script), *map(str, flags)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)


def make(root: pathlib.Path, num_trajectories: int = 9) -> pathlib.Path:
    """The data path below `root`, 32 pixels a side."""
    flags = (f"--num_trajectories={num_trajectories}", "--num_workers=1", "--image_size=32")
    annotations = root / "annotations.json"
    run("make_sample_bridgedata.py", "--output_path", root / "raw", "--annotations_path", annotations, *flags)
    to_numpy(root / "raw", root / "numpy", im_size=32)
    to_tfrecord(root / "numpy", root / "tfrecord")
    run("reasoning_to_store.py", "--input_path", annotations, "--output_path", root / "tfrecord" / "reasoning.sqlite")
    return root / "tfrecord"
