"""Draws how the samples of a real batch are laid out at each stage of a curriculum, one row per sample.

    python experiments/draw_layout.py --config train_config.py:ecot_tiny --bridgedata_config data_config.py:sample \\
        --output_path docs/images/ecot_layout.png
"""

import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import flags
from ml_collections import config_flags

from jaxvla import cli
from jaxvla.errors import ConfigError

CONFIGS = pathlib.Path(__file__).resolve().parents[1] / "configs"
SAMPLES = 12

# What a column of a sample is, in the order of the numbers that stand for them, and its colour.
KINDS = {
    "padding": "#f2f2f2",
    "prefix: image": "#bbccee",
    "prefix: instruction": "#6699cc",
    "slots": "#ee8866",
    "suffix, learned": "#44aa77",
    "suffix, not learned": "#bbddcc",
}
PADDING, IMAGE, INSTRUCTION, SLOT, LEARNED, UNLEARNED = range(len(KINDS))

FLAGS = flags.FLAGS
config_flags.DEFINE_config_file("config", None, "How to train: FILE:PRESET, such as train_config.py:ecot_tiny.")
config_flags.DEFINE_config_file("bridgedata_config", None, "What to train on: FILE:PRESET.")
flags.DEFINE_string("output_path", None, "The PNG to write.", required=True)


def main(_: list[str]) -> None:
    settings, source_settings = cli.read_configs("ecot_tiny", "sample")
    from jaxvla.training.job import open_job

    job = open_job(settings, source_settings)
    if job.texts is None:
        raise ConfigError("this configuration has no curriculum: draw that of a policy that reasons, such as ecot_tiny")
    image_token = job.agent.config.backbone.image_token_id
    panels = {}
    for first, stage in job.texts.wording.curriculum.config.schedule:
        # Random choices as in training, so that what it leaves out and mixes is seen.
        text = job.texts.training(first, *_first_samples(job))
        panels[f"stage {stage}, from step {first}"] = kinds(text, image_token)
    draw(panels, cli.output_path(FLAGS.output_path))
    print(f"wrote {FLAGS.output_path}")


def _first_samples(job: Any) -> tuple[np.ndarray, ...]:
    """Trajectories, steps, instructions and random numbers of some samples from all over the data."""
    mixture = job.training
    chosen = np.linspace(0, mixture.num_transitions - 1, SAMPLES).astype(int)
    number, row = mixture.locate(chosen)
    samples = []
    for i, dataset in enumerate(mixture.datasets):
        trajectory, step = dataset.source.locate(row[number == i])
        instruction = dataset.source.draw_annotations(trajectory, step, np.zeros(len(step)))
        told = np.where(instruction < 0, -1, instruction + mixture.text_starts[i])
        stored = dataset.source.stored_steps(row[number == i])
        samples.append((trajectory + mixture.trajectory_starts[i], stored, told))
    uniforms = np.random.default_rng(job.config.seed).random((SAMPLES, 16))
    return *(np.concatenate(column) for column in zip(*samples)), uniforms


def kinds(text: Mapping[str, np.ndarray], image_token: int) -> np.ndarray:
    """What every column of every sample is: int [b, p + k + s], numbers of `KINDS`."""
    before = np.arange(text["prefix"].shape[1]) < text["prefix_start"][:, None]
    prefix = np.where(before, PADDING, np.where(text["prefix"] == image_token, IMAGE, INSTRUCTION))
    slots = np.where(text["slots"], SLOT, PADDING)
    inside = np.arange(text["suffix"].shape[1]) < text["suffix_stop"][:, None]
    suffix = np.where(text["labels"], LEARNED, np.where(inside, UNLEARNED, PADDING))
    return np.concatenate([prefix, slots, suffix], axis=1)


def draw(panels: Mapping[str, np.ndarray], path: pathlib.Path) -> None:
    """One picture of all stages, one above the other."""
    from matplotlib.colors import ListedColormap
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    figure = Figure(figsize=(11, 1.9 * len(panels) + 0.8), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (title, columns) in zip(grid, panels.items()):
        colors = ListedColormap(list(KINDS.values()))
        axes.pcolormesh(columns, cmap=colors, vmin=-0.5, vmax=len(KINDS) - 0.5, edgecolors="white", linewidth=0.3)
        axes.invert_yaxis()
        axes.set_yticks([])
        axes.set_title(title, loc="left", fontsize=10)
        axes.set_ylabel(f"{len(columns)} samples")
    grid[-1].set_xlabel("column")
    handles = [Patch(facecolor=color, edgecolor="#999999", label=name) for name, color in KINDS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(KINDS), frameon=False, fontsize=9)
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    cli.run(main, ("config", "bridgedata_config"), str(CONFIGS))
