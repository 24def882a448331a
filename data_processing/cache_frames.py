"""Decodes every frame of a dataset once, at the size that policies see, into files from which training only reads.

    python data_processing/cache_frames.py data/grasp_dataset --image_size 224
    python data_processing/cache_frames.py data/oxe/bridge_orig/1.0.0 --image_size 224 --jpeg 95

The path is that of a LeRobotDataset, an RLDS version folder or a folder of BridgeData's TFRecords. There is a file for
each camera, in `frames` beside the data, where runs of that size and filter find it; in another --output_path, by
--bridgedata_config.frame_cache. Pixels are those that decoding gives, bit for bit; --jpeg keeps them in a tenth of the
room, and loses some. An interrupted run goes on when it is run again, and one that is done is checked, byte by byte.
"""

import os
import pathlib
from collections.abc import Sequence

import numpy as np
from absl import flags
from ml_collections import config_flags

from jaxvla import cli
from jaxvla.config import local_path
from jaxvla.data import opening
from jaxvla.data.conversion import caching
from jaxvla.data.conversion.workers import alone_in
from jaxvla.data.formats.frame_cache import Key
from jaxvla.data.inspection.recordings import Recordings, choose_config, open_recordings
from jaxvla.data.transforms.images import FILTERS
from jaxvla.errors import ConfigError

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "bridgedata_config", None, "The dataset: FILE:PRESET; a path before the flags replaces its own."
)
flags.DEFINE_list("image_size", None, "HEIGHT or HEIGHT,WIDTH of the frames that policies see.", required=True)
flags.DEFINE_enum("resize", "lanczos", [*FILTERS], "How frames get there: config.data.resize of the runs.")
flags.DEFINE_integer("jpeg", 0, "Quality of JPEG; 0 to keep pixels.", lower_bound=0, upper_bound=100)
flags.DEFINE_list("cameras", [], "Cameras, by their stored names; those of the config, or all, if empty.")
flags.DEFINE_string("output_path", "", "Another folder for the caches.")
flags.DEFINE_integer("num_threads", os.cpu_count() or 1, "Decoding threads.", lower_bound=1)


def jobs(recordings: Recordings, folder: pathlib.Path) -> list[caching.Job]:
    """The caches that the flags ask for.

    Raises:
        ConfigError: no such camera.
    """
    size = cli.image_size(FLAGS.image_size, "--image_size")
    unknown = [camera for camera in FLAGS.cameras if camera not in recordings.cameras]
    if unknown or not recordings.cameras:
        there = ", ".join(recordings.cameras) or "none"
        raise ConfigError(
            f"{recordings.root}: no camera {', '.join(unknown) or 'at all'}, it has {there}: see --cameras"
        )
    found = []
    for camera in FLAGS.cameras or recordings.cameras:
        source = recordings.views(camera, np.flatnonzero(recordings.seen(camera)), size, FLAGS.resize)
        key = Key(camera, size, FLAGS.resize, FLAGS.jpeg)
        found.append(caching.Job.of(source, camera, key, recordings.root, folder))
    return found


def main(words: Sequence[str]) -> None:
    given = FLAGS["bridgedata_config"].value
    root = local_path(words[1]) if words[1:] else None
    _, config, said = choose_config(root, given and given.to_dict())
    recordings = open_recordings(config, said, 0, 0)
    output = FLAGS.output_path
    folder = local_path(output, "--output_path") if output else opening.cache_folder(config, recordings.root)
    with alone_in(folder):
        for job in jobs(recordings, folder):
            done, wrong = caching.is_done(job)
            if done:
                print(f"{job.path}: {len(job.rows)} frames are there, and every byte is right")
                continue
            if wrong:
                print(f"{wrong}: made again")
            about = "about " if job.key.jpeg else ""
            print(f"{job.path}: {len(job.rows)} frames, {about}{job.estimate() / 1e9:.3f} GB", flush=True)
            before = caching.make(job, FLAGS.num_threads)
            print(f"{job.path}: {job.path.stat().st_size / 1e9:.3f} GB, {before} frames were there already")


if __name__ == "__main__":
    cli.run(main, ("bridgedata_config",), str(CONFIGS), words=1)
