"""Converts raw BridgeData V2 (JPEG folders and pickles) into numpy files, one task folder each.

    python data_processing/bridgedata_raw_to_numpy.py --input_path RAW --output_path NUMPY --depth 5

RAW/<task folder>/<YYYY-MM-DD_HH-MM-SS>/raw/traj_group<K>/traj<N> becomes NUMPY/<task folder>/(train|val)/out.npy. The
--depth counts the path components from RAW down to the dated folder: 5 at the root of the released data, 2 where RAW
holds the task folders themselves. Task folders that are done are skipped, so an interrupted run is finished by running
it again. Where more than --max_skipped of the trajectories cannot be used, the others are written and it exits with 1.
"""

import time
from collections.abc import Sequence

from absl import flags

from jaxvla import cli
from jaxvla.config import local_path
from jaxvla.data.conversion.cameras import named_cameras
from jaxvla.data.conversion.raw_to_numpy import convert_raw

FLAGS = flags.FLAGS

flags.DEFINE_string("input_path", None, "Root of the raw data.", required=True)
flags.DEFINE_string("output_path", None, "Root of the numpy files.", required=True)
flags.DEFINE_integer("depth", 5, "Path components from the input to the dated folders, these included.", lower_bound=1)
flags.DEFINE_bool("overwrite", False, "Convert task folders again whose output is there.")
flags.DEFINE_float("train_proportion", 0.9, "Share of each dated folder's trajectories for training, in (0, 1].")
flags.DEFINE_integer("num_workers", 8, "Processes; each holds one trajectory in memory.", lower_bound=1)
flags.DEFINE_integer(
    "im_size", 224, "Height and width of the stored images, in pixels: no less than policies train at.", lower_bound=1
)
flags.DEFINE_list("cameras", [], "Cameras to convert, as images0,images1; all if empty.")
flags.DEFINE_float(
    "max_skipped",
    0.1,
    "Exit with 1, after everything else is written, where a larger share of the trajectories was skipped.",
    lower_bound=0,
    upper_bound=1,
)
flags.DEFINE_integer("seed", 0, "Seed of the split into train and val.", lower_bound=0)


def main(_: Sequence[str]) -> None:
    start = time.monotonic()
    report = convert_raw(
        local_path(FLAGS.input_path),
        local_path(FLAGS.output_path),
        depth=FLAGS.depth,
        train_proportion=FLAGS.train_proportion,
        im_size=FLAGS.im_size,
        cameras=named_cameras(FLAGS.cameras),
        seed=FLAGS.seed,
        overwrite=FLAGS.overwrite,
        num_workers=FLAGS.num_workers,
    )
    print(report.table(time.monotonic() - start))
    report.check(FLAGS.max_skipped)


if __name__ == "__main__":
    cli.run(main)
