"""Holds the words of a reasoning policy against the annotations of its validation data, or of other data.

    python experiments/check_words.py --checkpoint runs/ecot_20260101_120000
    python experiments/check_words.py --checkpoint RUN --data_path data/other/tfrecord --samples 1000

The words are generated as the policy would say them, with the likeliest token each time.
"""

import pathlib
from typing import TYPE_CHECKING

import numpy as np
import tqdm
from absl import flags

from jaxvla import cli
from jaxvla.errors import ConfigError

if TYPE_CHECKING:
    from jaxvla.data.source import TrajectorySource

FLAGS = flags.FLAGS
flags.DEFINE_string("checkpoint", None, "A run folder, or the folder of one of its checkpoints.", required=True)
flags.DEFINE_integer("step", None, "Which checkpoint of a run folder; the latest where it is not given.")
flags.DEFINE_string("data_path", "", "Other data of the same layout; that of training where it is empty.")
flags.DEFINE_string("dataset", None, "Whose samples; needed where the policy was trained on several datasets.")
flags.DEFINE_integer("samples", 256, "Steps of the validation split, spread evenly over it.", lower_bound=1)
flags.DEFINE_integer("parallel", 64, "Samples in one computation.", lower_bound=1)
flags.DEFINE_integer("show", 2, "Samples whose words are printed beside the annotations.", lower_bound=0)


def main(_: list[str]) -> None:
    from jaxvla.checkpoint import find_checkpoint, read_assets
    from jaxvla.reasoning.accuracy import accuracy
    from jaxvla.serving.policy import load_policy
    from jaxvla.training.job import open_job

    checkpoint = find_checkpoint(pathlib.Path(FLAGS.checkpoint), FLAGS.step, items=("params", "assets"))
    assets = read_assets(checkpoint)
    assets.of(FLAGS.dataset)  # says what is wrong with it before anything is opened
    if assets.text is None:
        raise ConfigError(f"{checkpoint} is of {assets.agent}, which says nothing: give a checkpoint of ecot")
    own = {"data_path": FLAGS.data_path} if FLAGS.data_path else {}
    job = open_job(assets.train_config, {**assets.data_config, **own})
    if job.texts is None or job.texts.validation.split.store is None:
        raise ConfigError("the data has no reasoning to hold words against: set bridgedata_config.reasoning_path")
    split, only = job.texts.validation.split, FLAGS.dataset
    owners = {i: job.validation.find(i) for i in np.unique(split.transitions[:, 0]).tolist()}
    own = [k for k, i in enumerate(split.transitions[:, 0].tolist()) if only in (None, owners[i][0].name)]
    rows = np.array(own)[np.unique(np.linspace(0, len(own) - 1, FLAGS.samples).astype(int))]
    policy = load_policy(checkpoint, inference="explicit", robots=min(FLAGS.parallel, len(rows)), dataset=only)
    print(f"compiled in {policy.warm_up():.1f} s", flush=True)
    said, known = [], []
    for start in tqdm.trange(0, len(rows), policy.robots, leave=False, unit="batch"):
        steps = split.transitions[rows[start : start + policy.robots]]
        views = [view(owners[i][0].dataset.source, owners[i][1], t) for i, t in steps.tolist()]
        policy.reset()
        said += policy.act_batch(views, [{"language": split.language[i][0]} for i, _ in steps.tolist()]).words
        known += split.read(*steps.T)
    for words, truth in list(zip(said, known))[: FLAGS.show]:
        print(f"said         {words}\nannotated    {' '.join(f'{k}: {v}' for k, v in truth.components().items())}\n")
    found = accuracy(said, known)
    print(f"samples      {found.samples} of {len(own)} validation steps")
    print(f"objects      {found.named:.1%} named, {found.invented:.1%} of the names invented")
    print(f"boxes        {found.box_error:.1f} px of 256 (median of the sides)")
    print(f"gripper      {found.gripper_error:.1f} px of 256 (median distance of the first position)")
    for component, share in found.sentences.items():
        print(f"{component.lower():<18} {share:.1%} as annotated, of those said")


def view(source: "TrajectorySource", trajectory: int, step: int) -> dict[str, np.ndarray]:
    """A step, by its number as it is stored, as a robot would show it."""
    start, length = int(source.action_starts[trajectory]), int(source.lengths[trajectory])
    own = int(np.searchsorted(source.stored_steps(np.arange(start, start + length)), step))
    frames = {camera: source.stored_frames(trajectory, [own], camera)[0] for camera, _ in source.cameras}
    return frames | {"proprio": source.table(trajectory).proprio[own]}


if __name__ == "__main__":
    cli.run(main)
