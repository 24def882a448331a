"""Copies a dataset into a form that is read at random, or writes it as a LeRobotDataset.

    python data_processing/convert_dataset.py --from tfds:berkeley_autolab_ur5 --output_path data/rlds
    python data_processing/convert_dataset.py --from rlds:data/my_set/1.0.0 --output_path data/rlds
    python data_processing/convert_dataset.py --from lerobot:data/grasp --to lerobot30 --output_path data/grasp_v30
    python data_processing/convert_dataset.py --from tfrecord:data/bdv2 --to lerobot21 --fps 5 --output_path data/bd_v21

RLDS, --to rlds: TFRecords that training reads without TensorFlow, a frame at a time. `tfds:NAME`,
`tfds:NAME/CONFIGURATION:VERSION` and so on are read by tensorflow_datasets (pip install -e '.[tf]'), which prepares or
downloads what is not there, in --data_dir. A bucket may be given there, for what others have prepared: --data_dir
gs://gresearch/robotics. `rlds:FOLDER` is a version folder that is there, of TFRecords or array_record files, of which
training decompresses a whole episode for each frame; it needs no TensorFlow. The dataset comes to lie in
--output_path/NAME/VERSION, for --bridgedata_config data_config.py:rlds with --config.data_path OUTPUT_PATH
--bridgedata_config.tfds_name NAME. Records are copied as they are. Files that are done are skipped, so an interrupted
run is finished by running it again.

LeRobotDatasets, --to lerobot21 or lerobot30, of one of

    raw:FOLDER       raw BridgeData, see --depth; frames become squares of --image_size
    numpy:FOLDER     its numpy files, see --depth
    tfrecord:FOLDER  TFRecords of BridgeData
    rlds:FOLDER      an RLDS version folder
    lerobot:FOLDER   a LeRobotDataset of 2.0, 2.1 or 3.0, whose videos are copied and not encoded again

--output_path is the folder of the new dataset, which is there whole or not at all; an interrupted run goes on in
OUTPUT_PATH.partial when it is run again. What --bridgedata_config says of TFRecords and RLDS counts: features, cameras,
names and the frequency. Frames become H.264, or pictures in Parquet.
"""

import importlib.util
import os
import pathlib
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags
from ml_collections import config_flags

from jaxvla import cli
from jaxvla.config import local_path
from jaxvla.data.conversion.cameras import named_cameras
from jaxvla.data.conversion.lerobot.convert import VERSIONS, Options, write_lerobot
from jaxvla.data.conversion.lerobot.episode import IMAGE, VIDEO, Episodes
from jaxvla.data.conversion.lerobot.from_lerobot import open_lerobot
from jaxvla.data.conversion.lerobot.from_recordings import open_numpy, open_raw, open_recordings_of
from jaxvla.data.conversion.rlds_copy import RLDSSource, Shard, copy_dataset, of_folder
from jaxvla.data.formats.records import open_records
from jaxvla.data.inspection.recordings import choose_config, open_recordings
from jaxvla.errors import ConfigError, DataError

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
RLDS, LEROBOT = ("tfds", "rlds"), ("raw", "numpy", "tfrecord", "rlds", "lerobot")
SIDE = 224  # pixels, of raw frames
_OF_RLDS = ("splits", "data_dir")
_OF_LEROBOT = ("bridgedata_config", "fps", "cameras", "image_size", "pictures", "crf", "depth", "max_skipped")

FLAGS = flags.FLAGS

flags.DEFINE_string("from", None, "The dataset: KIND:NAME or KIND:FOLDER, see above.", required=True)
flags.DEFINE_enum("to", "rlds", ["rlds", *(f"lerobot{v[1]}{v[3]}" for v in VERSIONS)], "What is written.")
flags.DEFINE_string("output_path", None, "RLDS: the folder above the dataset's; LeRobot: its own.", required=True)
flags.DEFINE_list("splits", [], "RLDS: which splits to copy, as train,val; all if empty.")
flags.DEFINE_string("data_dir", None, "Where tensorflow_datasets has its data; its own choice if not given.")
flags.DEFINE_bool("overwrite", False, "Write what is there again.")
config_flags.DEFINE_config_file("bridgedata_config", None, "LeRobot: what is known of TFRecords or RLDS, FILE:PRESET.")
flags.DEFINE_float("fps", 0.0, "LeRobot: frames per second; 0 for what the data says.", lower_bound=0)
flags.DEFINE_list("cameras", [], "LeRobot: cameras, by their stored names, but of lerobot:; all if empty.")
flags.DEFINE_list("image_size", [], "LeRobot: HEIGHT or HEIGHT,WIDTH of frames, but of lerobot:; as stored if empty.")
flags.DEFINE_enum("pictures", VIDEO, [VIDEO, IMAGE], "LeRobot: what frames become, but of lerobot:.")
flags.DEFINE_integer("crf", 23, "LeRobot: what H.264 loses, 0 (nothing) to 51.", lower_bound=0, upper_bound=51)
flags.DEFINE_integer("depth", 5, "Of raw: and numpy:, path components to the dated folders.", lower_bound=1)
flags.DEFINE_float(
    "max_skipped", 0.1, "LeRobot: the share of episodes that may be left out.", lower_bound=0, upper_bound=1
)


def of_tfds(name: str, data_dir: str | None) -> RLDSSource:
    """A dataset that tensorflow_datasets knows by `name`, prepared where it is not.

    Raises:
        ConfigError: TensorFlow is not installed.
        DataError: there is no such dataset, or it cannot be prepared; the first line of what tensorflow_datasets says.
    """
    for package in ("tensorflow", "tensorflow_datasets"):
        if importlib.util.find_spec(package) is None:
            raise ConfigError(f"--from tfds: needs {package}, which is not installed: pip install -e '.[tf]'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf
    import tensorflow_datasets as tfds

    tf.config.set_visible_devices([], "GPU")
    try:
        builder = tfds.builder(name, data_dir=data_dir)
        builder.download_and_prepare()
    except (ValueError, AssertionError, NotImplementedError, OSError, tf.errors.OpError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise DataError(f"--from tfds:{name}: {reason}") from error
    info = builder.info
    splits = {
        split: [_records_of(tfds, info.file_format, os.fspath(path)) for path in info.splits[split].filepaths]
        for split in info.splits
    }
    parts = [part for part in (info.name, info.config_name, str(info.version)) if part]
    features = (builder.data_path / "features.json").read_text()
    return RLDSSource(os.fspath(builder.data_path), info.name, "/".join(parts), features, splits)


def _records_of(tfds: Any, file_format: Any, path: str) -> Shard:
    def records() -> Iterable[bytes]:
        if file_format.value == "array_record":  # of which tf.data reads none
            file = open_records(path)
            yield from (file.read(*span) for span in file.spans())
        else:
            yield from tfds.core.file_adapters.ADAPTER_FOR_FORMAT[file_format].make_tf_data(path).as_numpy_iterator()

    return records


def _refuse(flag: str, beside: str) -> None:
    """Raises ConfigError where a flag is given that does nothing."""
    if FLAGS[flag].present:
        raise ConfigError(f"--{flag} has no effect with {beside}: leave it out")


def of_recordings(kind: str, name: str) -> Episodes:
    """The episodes that are to become a LeRobotDataset.

    Raises:
        ConfigError: flags that have no effect, or no such camera.
        DataError: the folder holds no such data.
    """
    folder, given = local_path(name, "--from"), FLAGS["bridgedata_config"].value
    useless = {
        "lerobot": ("cameras", "image_size", "pictures", "bridgedata_config", "depth"),
        "raw": ("bridgedata_config",),
        "numpy": ("bridgedata_config", "image_size"),
    }
    for flag in useless.get(kind, ("depth",)):
        _refuse(flag, f"--from {kind}")
    size = cli.image_size(FLAGS.image_size, "--image_size")
    if kind == "lerobot":
        return open_lerobot(folder)
    if kind == "raw":
        return open_raw(folder, FLAGS.depth, named_cameras(FLAGS.cameras), size or (SIDE, SIDE))
    if kind == "numpy":
        return open_numpy(folder, FLAGS.depth, named_cameras(FLAGS.cameras))
    _, config, said = choose_config(folder, given and given.to_dict())
    expected = {"tfrecord": "bridge_tfrecord", "rlds": "rlds"}[kind]
    if config.format != expected:
        raise ConfigError(f"--from {kind}: {folder} is of the format {config.format}: correct --from")
    recordings = open_recordings(config, said, 0, 0)
    return open_recordings_of(recordings, FLAGS.cameras, size, recordings.control_frequency)


def main(_: Sequence[str]) -> None:
    kind, _, name = FLAGS["from"].value.partition(":")
    known = RLDS if FLAGS.to == "rlds" else LEROBOT
    if kind not in known or not name:
        forms = " or ".join(f"{form}:{'NAME' if form == 'tfds' else 'FOLDER'}" for form in known)
        raise ConfigError(f"--from={FLAGS['from'].value!r} is no source for --to {FLAGS.to}: give {forms}")
    for flag in _OF_LEROBOT if FLAGS.to == "rlds" else _OF_RLDS:
        _refuse(flag, f"--to {FLAGS.to}")
    output = local_path(FLAGS.output_path, "--output_path")
    if FLAGS.to == "rlds":
        source = of_tfds(name, FLAGS.data_dir) if kind == "tfds" else of_folder(local_path(name, "--from"))
        return print(copy_dataset(source, output, FLAGS.splits, FLAGS.overwrite))
    version = next(version for version in VERSIONS if FLAGS.to == f"lerobot{version[1]}{version[3]}")
    options = Options(version, FLAGS.fps, FLAGS.pictures, FLAGS.crf, FLAGS.max_skipped, FLAGS.overwrite)
    print("\n".join(write_lerobot(of_recordings(kind, name), output, options)))


if __name__ == "__main__":
    cli.run(main, ("bridgedata_config",), str(CONFIGS))
