"""Converts the numpy files of bridgedata_raw_to_numpy.py into the TFRecords that training reads.

    python data_processing/bridgedata_numpy_to_tfrecord.py --input_path NUMPY --output_path TFRECORD --depth 5

NUMPY/<task folder>/(train|val)/out.npy becomes TFRECORD/<task folder>/(train|val)/out.tfrecord. --depth is that of the
first conversion. Files that are done are skipped, so an interrupted run is finished by running it again. Where more
than --max_skipped of the trajectories cannot be used, the others are written and it exits with 1.
"""

import time
from collections.abc import Sequence

from absl import flags

from jaxvla import cli
from jaxvla.config import local_path
from jaxvla.data.conversion.cameras import named_cameras
from jaxvla.data.conversion.numpy_to_tfrecord import convert_numpy

FLAGS = flags.FLAGS

flags.DEFINE_string("input_path", None, "Root of the numpy files.", required=True)
flags.DEFINE_string("output_path", None, "Root of the TFRecords.", required=True)
flags.DEFINE_integer("depth", 5, "The depth that the numpy files were made with.", lower_bound=1)
flags.DEFINE_bool("overwrite", False, "Convert files again whose output is there; remove outputs without an input.")
flags.DEFINE_integer("num_workers", 8, "Processes; each holds one out.npy in memory.", lower_bound=1)
flags.DEFINE_list("cameras", [], "Cameras to write, as images0,images1; those that all of a file have if empty.")
flags.DEFINE_float(
    "max_skipped",
    0.1,
    "Exit with 1, after everything else is written, where a larger share of the trajectories was skipped.",
    lower_bound=0,
    upper_bound=1,
)


def main(_: Sequence[str]) -> None:
    start = time.monotonic()
    report = convert_numpy(
        local_path(FLAGS.input_path),
        local_path(FLAGS.output_path),
        depth=FLAGS.depth,
        cameras=named_cameras(FLAGS.cameras),
        overwrite=FLAGS.overwrite,
        num_workers=FLAGS.num_workers,
    )
    print(report.table(time.monotonic() - start))
    report.check(FLAGS.max_skipped)


if __name__ == "__main__":
    cli.run(main)
