"""Draws a training batch as the network sees it: every view before and after augmentation, one row per example.

    python experiments/draw_batch.py --config train_config.py:gc_bc_tiny --bridgedata_config data_config.py:sample \\
        --output_path batch.png

For any pair of configs. The batch and its augmentation are those of the same step of a training run.
"""

import itertools
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from absl import flags
from ml_collections import config_flags
from PIL import Image, ImageDraw

from jaxvla import cli
from jaxvla.envs.film import FAINT, INK, LINE, MARGIN, PAPER, font, wrap

if TYPE_CHECKING:
    from jaxvla.training.job import Job

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
VIEWS = {"observations": "observation", "goals": "goal", "next_observations": "next observation"}
# Images are enlarged to about so many pixels, by whole multiples, so that every pixel of theirs shows.
TILE = 160

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "How to train: FILE:PRESET, such as train_config.py:gc_bc.")
config_flags.DEFINE_config_file("bridgedata_config", None, "What to train on: FILE:PRESET.")
flags.DEFINE_string("output_path", None, "The PNG to write.", required=True)
flags.DEFINE_integer("batch", 0, "Number of the batch in the training stream.", lower_bound=0)
flags.DEFINE_integer("examples", 8, "How many examples of the batch to draw.", lower_bound=1)


def main(_: list[str]) -> None:
    settings, source_settings = cli.read_configs("gc_bc_tiny", "sample")
    import jax

    from jaxvla.ops.augmentation import augment_batch
    from jaxvla.training.job import open_job

    job = open_job(settings, source_settings)
    batch = _nth(job.training_batches(), FLAGS.batch)
    augment = jax.jit(lambda images, rng: augment_batch(images, rng, job.config.augment))
    images = {view: batch[view] for view in VIEWS if view in batch}
    augmented = jax.device_get(augment(images, _augment_key(job.config.seed, FLAGS.batch)))
    rows = min(FLAGS.examples, job.config.batch_size)
    columns = columns_of(images, augmented, job.training.spec.cameras)
    config = job.config
    title = f"{config.agent}, batch {FLAGS.batch} of seed {config.seed}, {rows} of {config.batch_size} examples"
    sheet = draw(title, {name: x[:rows] for name, x in columns.items()}, captions(job, batch, rows))
    path = cli.output_path(FLAGS.output_path)
    sheet.save(path)
    print(f"wrote {path}")


def _nth(batches: Any, n: int) -> Mapping[str, Any]:
    batch = next(itertools.islice(batches, n, None))
    batches.close()
    return batch


def _augment_key(seed: int, step: int) -> Any:
    """The key that training augments batch `step` with, see training/state.py and training/step.py."""
    import jax

    _, rng = jax.random.split(jax.random.key(seed))
    return jax.random.split(jax.random.fold_in(rng, step))[0]


def columns_of(
    images: Mapping[str, Any], augmented: Mapping[str, Any], cameras: Sequence[str]
) -> dict[str, np.ndarray]:
    """uint8 [b, h, w, 3] by title; the frames of a history lie side by side, oldest first."""
    columns = {}
    for camera, (view, name) in itertools.product(cameras, VIEWS.items()):
        if view in images:
            where = f"{name}, {camera}" if len(cameras) > 1 else name
            columns[where] = _side_by_side(images[view][camera])
            columns[f"{where}, augmented"] = _side_by_side(augmented[view][camera])
    return columns


def _side_by_side(frames: np.ndarray) -> np.ndarray:
    """[b, h, w, 3] as it is; [b, o, h, w, 3] as [b, h, o * w, 3]."""
    return frames if frames.ndim == 4 else np.concatenate(np.moveaxis(frames, 1, 0), axis=2)


def captions(job: "Job", batch: Mapping[str, Any], rows: int) -> list[list[str]]:
    """What is known about each example: its annotation, how far its goal is, its stage, and what is said."""
    from jaxvla.data.loader import training_batches

    # The same batch of the stream: it does not depend on which of its keys are made.
    keys = ("language", "goal_distances")
    facts = _nth(training_batches(job.training, job.config.batch_size, job.config.seed, keys), FLAGS.batch)
    annotations, found = job.training.annotations(), []
    for i in range(rows):
        annotation = facts["language"][i]
        parts = [repr(annotations[annotation]) if annotation >= 0 else "no annotation"]
        if "goals" in batch:
            parts.append(f"goal {facts['goal_distances'][i]} frames ahead")
        if "text" in batch:
            parts.append(f"stage {batch['text']['stage'][i]}")
        found.append([f"{i}: {', '.join(parts)}", *_words(job, batch, i)])
    return found


def _words(job: "Job", batch: Mapping[str, Any], i: int) -> list[str]:
    """What example i of a policy that reasons is to say."""
    if "text" not in batch:
        return []
    tokens = batch["text"]["suffix"][i, : batch["text"]["suffix_stop"][i]]
    words = job.texts.wording.builder.tokenizer.decode(tokens, skip_special_tokens=True).strip()
    return [f"says: {words}"] if words else []


def draw(title: str, columns: Mapping[str, np.ndarray], texts: Sequence[Sequence[str]]) -> Image.Image:
    """A sheet of uint8 [b, h, w, 3] images, a column for each title and a row for each example, with texts below."""
    scale = {name: -(-TILE // images.shape[1]) for name, images in columns.items()}
    widths = [images.shape[2] * scale[name] for name, images in columns.items()]
    lefts = np.cumsum([MARGIN, *(width + MARGIN for width in widths)])
    height = max(images.shape[1] * scale[name] for name, images in columns.items())
    lines = [[line for text in own for line in wrap(text, int(lefts[-1]), 3)] for own in texts]
    pitches = [height + MARGIN + LINE * len(own) + MARGIN for own in lines]
    sheet = Image.new("RGB", (int(lefts[-1]), 2 * LINE + 2 * MARGIN + sum(pitches)), PAPER)
    pen = ImageDraw.Draw(sheet)
    pen.text((MARGIN, MARGIN // 2), title, INK, font())
    for (name, images), left in zip(columns.items(), lefts.tolist()):
        pen.text((left, MARGIN // 2 + LINE), name, FAINT, font())
        for image, top in zip(images, np.cumsum([0, *pitches]).tolist()):
            sharp = image.repeat(scale[name], 0).repeat(scale[name], 1)
            sheet.paste(Image.fromarray(sharp), (left, 2 * LINE + MARGIN + top))
    for own, top in zip(lines, np.cumsum([0, *pitches]).tolist()):
        for k, line in enumerate(own):
            pen.text((MARGIN, 2 * LINE + 2 * MARGIN + top + height + k * LINE), line, INK, font())
    return sheet


if __name__ == "__main__":
    cli.run(main, ("config", "bridgedata_config"), str(CONFIGS))
