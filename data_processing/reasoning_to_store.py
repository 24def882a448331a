"""Converts reasoning annotations into the store that training reads: one file, read at random.

    python data_processing/reasoning_to_store.py --format ecot --input_path embodied_features_bridge.json \\
        --output_path reasoning.store
    python data_processing/reasoning_to_store.py --format lara --input_path episode_dense_captions_full_final.jsonl \\
        --boxes_path episode_sam3_bboxes_final_merged.jsonl --output_path reasoning.store

ecot is the JSON of Embodied-CoT/embodied_features_bridge, which make_sample_bridgedata.py writes too; lara are the two
files of LaRA-VLA. Memory holds one episode at a time. What is wrong in the annotations is left out and counted.
"""

import os
import pathlib
import time
from collections.abc import Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from jaxvla import cli
from jaxvla.config import local_path
from jaxvla.errors import ConfigError, DataError
from jaxvla.reasoning.annotations import Tally, ecot_episodes, lara_episodes
from jaxvla.reasoning.record import COMPONENTS
from jaxvla.reasoning.store import write_store

FLAGS = flags.FLAGS

flags.DEFINE_enum("format", "ecot", ["ecot", "lara"], "Layout of the annotations.")
flags.DEFINE_string("input_path", None, "ECoT's JSON file, or LaRA's captions.", required=True)
flags.DEFINE_string("boxes_path", "", "LaRA's boxes; none if empty.")
flags.DEFINE_string("output_path", None, "The store to write.", required=True)
flags.DEFINE_bool("overwrite", False, "Replace a store that is there.")


def convert(
    layout: str, source: pathlib.Path, boxes: pathlib.Path | None, output: pathlib.Path, tally: Tally
) -> np.ndarray:
    """Writes the store and returns its counts, as `write_store`.

    Raises:
        DataError: an input cannot be read, or holds no annotated step; or the output cannot be written.
    """
    inputs = [source, *([boxes] if boxes else [])]
    for path in inputs:
        if not path.is_file():
            raise DataError(f"no annotations {path}: correct --input_path or --boxes_path")
    total = sum(path.stat().st_size for path in inputs)
    with tqdm(total=total, desc="reasoning", unit="B", unit_scale=True, disable=None) as bar:
        if layout == "ecot":
            episodes = ecot_episodes(source, tally, bar.update)
        else:
            episodes = lara_episodes(source, boxes, tally, bar.update)
        return write_store(output, episodes, {"format": layout, "files": [path.name for path in inputs]})


def summary(counts: np.ndarray, tally: Tally, size: int, seconds: float) -> str:
    """What was written and what was left out, several lines."""
    episodes, steps, *components = counts.tolist()
    empty = f", and {tally.without_steps} without any annotated step are left out" if tally.without_steps else ""
    lines = [
        f"episodes       {episodes}" + empty,
        f"steps          {steps}, {tally.without_text} of them without reasoning in words",
        *(f"  {count / steps:6.1%}  {name}" for name, count in zip(COMPONENTS, components) if count),
        f"written        {size / 1e6:.1f} MB in {seconds:.1f} s",
    ]
    if tally.faults:
        lines.append("faults         left out of the store, the rest is kept")
    for reason, count in sorted(tally.faults.items(), key=lambda item: (-item[1], item[0])):
        lines += [f"  {count}  {reason}", *(f"       {where}" for where in tally.examples[reason])]
    return "\n".join(lines)


def check_output(path: pathlib.Path, overwrite: bool) -> None:
    """Refuses a path that must not be replaced.

    Raises:
        DataError: it exists and `overwrite` is off, or it is anything but an SQLite file.
    """
    if not path.exists():
        return
    if not overwrite:
        raise DataError(f"{path} exists: pass --overwrite to replace it, or another --output_path")
    if not path.is_file() or not _begins(path, b"SQLite format 3"):
        raise DataError(f"{path} is no store, so --overwrite spares it: remove it, or give another --output_path")


def _begins(path: pathlib.Path, start: bytes) -> bool:
    with open(path, "rb") as file:
        return file.read(len(start)) == start


def main(_: Sequence[str]) -> None:
    output = local_path(FLAGS.output_path)
    boxes = local_path(FLAGS.boxes_path) if FLAGS.boxes_path else None
    if boxes and FLAGS.format != "lara":
        raise ConfigError("--boxes_path belongs to --format lara; ECoT's JSON holds its own boxes")
    check_output(output, FLAGS.overwrite)
    start = time.monotonic()
    tally = Tally()
    counts = convert(FLAGS.format, local_path(FLAGS.input_path), boxes, output, tally)
    print(summary(counts, tally, os.path.getsize(output), time.monotonic() - start))


if __name__ == "__main__":
    cli.run(main)
