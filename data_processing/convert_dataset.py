"""Copies an RLDS dataset into TFRecords that training reads without TensorFlow, a frame at a time.

    python data_processing/convert_dataset.py --from tfds:berkeley_autolab_ur5 --output_path data/rlds
    python data_processing/convert_dataset.py --from rlds:data/my_set/1.0.0 --output_path data/rlds

`tfds:NAME`, `tfds:NAME/CONFIGURATION:VERSION` and so on are read by tensorflow_datasets (pip install -e '.[tf]'), which
prepares or downloads what is not there, in --data_dir. A bucket may be given there, for what others have prepared:
--data_dir gs://gresearch/robotics. `rlds:FOLDER` is a version folder that is there, of TFRecords or array_record files,
of which training decompresses a whole episode for each frame; it needs no TensorFlow.

The dataset comes to lie in --output_path/NAME/VERSION, for --bridgedata_config data_config.py:rlds with
--config.data_path OUTPUT_PATH --bridgedata_config.tfds_name NAME. Records are copied as they are. Files that are done
are skipped, so an interrupted run is finished by running it again.
"""

import importlib.util
import os
from collections.abc import Iterable, Sequence
from typing import Any

from absl import flags

from jaxvla import cli
from jaxvla.config import local_path
from jaxvla.data.conversion.rlds_copy import RLDSSource, Shard, copy_dataset, of_folder
from jaxvla.data.formats.records import open_records
from jaxvla.errors import ConfigError, DataError

FLAGS = flags.FLAGS

flags.DEFINE_string("from", None, "The dataset: tfds:NAME or rlds:FOLDER.", required=True)
flags.DEFINE_string("output_path", None, "The folder below which its folder is made.", required=True)
flags.DEFINE_list("splits", [], "Which splits to copy, as train,val; all if empty.")
flags.DEFINE_string("data_dir", None, "Where tensorflow_datasets has its data; its own choice if not given.")
flags.DEFINE_bool("overwrite", False, "Copy files again that are there.")


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


def main(_: Sequence[str]) -> None:
    kind, _, name = FLAGS["from"].value.partition(":")
    if kind not in ("tfds", "rlds") or not name:
        raise ConfigError(f"--from={FLAGS['from'].value!r} is no source: give tfds:NAME or rlds:FOLDER")
    output = local_path(FLAGS.output_path, "--output_path")
    source = of_tfds(name, FLAGS.data_dir) if kind == "tfds" else of_folder(local_path(name, "--from"))
    print(copy_dataset(source, output, FLAGS.splits, FLAGS.overwrite))


if __name__ == "__main__":
    cli.run(main)
