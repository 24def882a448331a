"""Looks at a dataset: one HTML page of what it holds and what is wrong with it, and a summary.

    python data_processing/inspect_dataset.py data/bdv2 --output_path inspection
    python data_processing/inspect_dataset.py --bridgedata_config data_config.py:sample --output_path inspection

The path is that of a folder of BridgeData's TFRecords, an RLDS version folder or a LeRobotDataset; which it is shows in
what lies there. With a data config the dataset is looked at as training sees it: its cameras, its features, and what it
says of the actions. All tables are read, of frames only a sample, unless --verify asks for every byte. The page,
`inspection.html`, needs no other file, and no network.
"""

import dataclasses
import pathlib
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from absl import flags
from ml_collections import config_flags

from jaxvla import cli
from jaxvla.config import local_path
from jaxvla.data.dataset import DataConfig, open_dataset
from jaxvla.data.formats.sidecar import writing
from jaxvla.data.inspection import film as drawing
from jaxvla.data.inspection.checksums import check_records, find_damaged
from jaxvla.data.inspection.findings import find, remarks
from jaxvla.data.inspection.measures import measure
from jaxvla.data.inspection.page import render
from jaxvla.data.inspection.pictures import look
from jaxvla.data.inspection.recordings import Recordings, choose_config, open_recordings
from jaxvla.data.inspection.summary import summarize
from jaxvla.data.openvla_statistics import write_openvla
from jaxvla.data.source_config import SourceConfig
from jaxvla.envs import film
from jaxvla.errors import ConfigError, DataError

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
PAGE = "inspection.html"

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file(
    "bridgedata_config", None, "The dataset: FILE:PRESET; a path before the flags replaces its own."
)
flags.DEFINE_string("output_path", None, f"Folder to write {PAGE} into.", required=True)
flags.DEFINE_string("dataset", "", "Which one of a config that has several.")
flags.DEFINE_integer("max_episodes", 0, "Episodes to look at, drawn by the seed; 0 for all.", lower_bound=0)
flags.DEFINE_integer("max_frames", 3000, "Frames to look at, of all cameras.", lower_bound=1)
flags.DEFINE_bool("verify", False, "Also read every byte of TFRecords or array_records, against their checksums.")
flags.DEFINE_integer("video", None, "Also write a film of the episode of this number, with its actions.", lower_bound=0)
flags.DEFINE_string("statistics_path", None, "Also write the statistics of training into this file, as OpenVLA does.")
flags.DEFINE_integer("seed", 0, "Which episodes and frames are drawn.", lower_bound=0)


def main(words: Sequence[str]) -> None:
    page = cli.output_path(str(local_path(FLAGS.output_path, "--output_path") / PAGE))
    given = FLAGS["bridgedata_config"].value
    root = local_path(words[1]) if words[1:] else None
    name, config, said = choose_config(root, given and given.to_dict(), FLAGS.dataset)
    if FLAGS.statistics_path and not said:
        raise ConfigError("--statistics_path needs --bridgedata_config, which says what the actions are")
    recordings = open_recordings(config, said, FLAGS.max_episodes, FLAGS.seed)
    if FLAGS.video is not None:
        recordings.tables(FLAGS.video)  # before anything takes long
    if FLAGS.verify:
        check_records(recordings)
    measures = measure(recordings)
    pictures = look(recordings, FLAGS.max_frames, FLAGS.seed)
    damaged = find_damaged(recordings) if FLAGS.verify else ()
    findings = (*damaged, *find(recordings, measures, pictures))
    content = render(recordings, measures, pictures, findings, remarks(recordings))
    try:
        with writing(page) as file:
            file.write(content.encode(errors="backslashreplace"))
    except OSError as error:
        raise DataError(f"{page} cannot be written: {error.strerror}") from error
    print("\n".join(summarize(recordings, measures, pictures, findings)))
    print(f"page         {page}")
    if FLAGS.statistics_path:
        print(f"statistics   {save_statistics(local_path(FLAGS.statistics_path, '--statistics_path'), name, config)}")
    if FLAGS.video is not None:
        print(f"film         {save_film(recordings, FLAGS.video, page.parent)}")


def save_statistics(path: pathlib.Path, name: str, config: SourceConfig) -> pathlib.Path:
    """Writes what the training split is normalized by, and returns where."""
    dataset = open_dataset(config, DataConfig(), "train")
    mask = dataset.action_normalizer.mask or ()
    write_openvla(path, {name: dataclasses.replace(dataset.statistics, action_mask=mask)})
    return path


def save_film(recordings: Recordings, number: int, folder: pathlib.Path) -> pathlib.Path:
    """Writes the film of an episode, and returns where."""
    tables = recordings.tables(number)
    table, path = tables.table(0), folder / f"episode_{number}{film.SUFFIX}"
    names = recordings.convention.labels(table.actions.shape[1])
    texts = [f"#{number} {table.key}", *table.language[:1]]
    pictures = drawing.draw_film(views(recordings, number), table.actions, names, texts)
    film.save_pictures(path, pictures, recordings.control_frequency or film.FREQUENCY)
    return path


def views(recordings: Recordings, number: int) -> Iterator[Mapping[str, np.ndarray]]:
    """The frames of an episode, by the cameras that it has."""
    chosen = np.array([number])
    sources = {name: recordings.views(name, chosen) for name in recordings.cameras if recordings.seen(name)[number]}
    for t in range(recordings.tables(number).table(0).num_transitions + 1):
        yield {name: source.stored_frames(0, [t], name)[0] for name, source in sources.items()}


if __name__ == "__main__":
    cli.run(main, ("bridgedata_config",), str(CONFIGS), words=1)
